"""The model card: front matter that parses, numbers of the records, names that are text."""

import json
import re
from html.parser import HTMLParser

import pytest
import yaml
from markdown_it import MarkdownIt

from ablations.train import train
from models.cost import count
from models.hf.card import card, code, public
from models.hf.convert import export_run
from tests.ablations.conftest import make_run, settings  # noqa: F401

from .test_whole_models import CONFIGS

HOSTILE = "x`|<script>alert(1)</script>\n---\n# [a](javascript:b) **c** \x1b[2J: {d: e}"


def parts(text):
    front, body = re.fullmatch(r"---\n(.*?)\n---\n(.*)", text, re.DOTALL).groups()
    return yaml.safe_load(front), body


def elements(body):
    seen = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag, attrs):
            seen.append((tag, tuple(attrs)))

    Parser().feed(MarkdownIt("commonmark").enable("table").render(body))
    return seen


def of(spec=None, manifest=None, point=None, **changes):
    asked = {"step": 7, "context": 64, "opened_as": "Any", "remote": False, "has_tokenizer": True}
    return card(CONFIGS["gdn3_attn1"], spec or {}, manifest or {}, point or {}, **asked | changes)


@pytest.mark.slow
def test_an_exported_run_has_a_card_with_the_numbers_of_its_records(
    make_run, tmp_path, monkeypatch  # noqa: F811
):  # fmt: skip
    pytest.importorskip("transformers")
    command = f"python sweeps/run.py mix=gdn3_attn1 runs={tmp_path} 'data.path=/my disk/x'"
    monkeypatch.setenv("ARCHLADDER_COMMAND", command)
    run, spec = make_run("gdn3_attn1")
    assert train(run, spec, stop=lambda: False, say=lambda _: None) == "done"
    export_run(run.path, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    front, body = parts(text)
    assert front["library_name"] == "transformers"
    assert {"archladder", "gdn", "attn"} <= set(front["tags"])
    assert "license" not in front
    point = list(run.rows("points.jsonl"))[-1]
    for words in (
        f"parameters: {point['N']:,} without", f"tokens: {point['D']:,}\n",
        f"peak learning rate: {spec.recipe.peak_lr:.6g}\n", "protocol: `controlled`",
        "data: `embedded`, fingerprint", f"`{run.read_manifest()['revision']}`",
        f"| mean of domains | {point['loss']:.4f} ± {point['loss_se']:.4f} | {point['bpb']:.4f} ±",
        "layers: 4: `gdn` × 3, `attn`",
        *(f"| `{name}` | {sums['loss']:.4f}" for name, sums in point["domains"].items()),
    ):  # fmt: skip
        assert words in body, words
    flops = re.search(r"training FLOPs: (\S+)", body)[1]
    assert float(flops) == pytest.approx(point["C"], rel=1e-2)
    assert "mix=gdn3_attn1 runs=PATH data.path=PATH" in body
    assert str(tmp_path) not in text
    assert "toy" in body
    export_run(run.path, tmp_path / "first", checkpoint=str(spec.recipe.milestones[0].step))
    early = (tmp_path / "first" / "README.md").read_text(encoding="utf-8")
    assert f"{next(iter(run.rows('points.jsonl')))['loss']:.4f}" in early


def test_hostile_names_in_records_are_text():
    def records(name):
        spec = {
            "mix": {"name": name}, "size": {"name": name}, "seed": 0, "matched": name,
            "protocol": {"name": name, "schedule": name}, "train": {"optim": name},
            "corpus": {"name": name, "fingerprint": name}, "recipe": {"batch_tokens": 256},
        }  # fmt: skip
        manifest = {"revision": name, "command": f"run.py mix={json.dumps(name)}",
                    "precision": name}  # fmt: skip
        domains = {name: {"loss": 1.0, "bpb": 2.0, "loss_se": None, "bpb_se": 0.1}}
        return spec, manifest, {"loss": 1.0, "bpb": 2.0, "domains": domains}

    front, body = parts(of(*records(HOSTILE)))
    tame, harmless = parts(of(*records("x")))
    assert front.keys() == tame.keys()
    assert all(isinstance(tag, str) for tag in front["tags"])
    assert elements(body) == elements(harmless)
    assert "\x1b" not in body


def test_a_name_shows_as_it_is():
    for text in ("a", "`", "a`b``c", " a ", "<b>", "*a*"):
        (token,) = MarkdownIt("commonmark").parseInline(code(text))[0].children
        assert (token.type, token.content) == ("code_inline", text)


@pytest.mark.parametrize("rubbish", [None, [], "text", 7, {"name": []}, {"name": {"a": 1}}])
def test_records_of_other_types_leave_a_card_that_says_so(rubbish):
    spec = dict.fromkeys(("mix", "size", "protocol", "recipe", "corpus", "train", "data"), rubbish)
    front, body = parts(of(spec, {"revision": rubbish, "command": rubbish}, {"domains": rubbish}))
    assert front["library_name"] == "transformers"
    assert "tokens: not recorded" in body
    assert f"{count(CONFIGS['gdn3_attn1'], 64).N:,}" in body


def test_a_card_says_what_its_step_and_folder_lack():
    assert "Step 7 is no point of the run" in of()
    assert "AutoTokenizer.from_pretrained" not in of(has_tokenizer=False)
    assert 'from_pretrained("FOLDER", trust_remote_code=True)' in of(remote=True)


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("python sweeps/run.py -m mix=a,b", "python sweeps/run.py -m mix=a,b"),
        ("/home/me/venv/python /x/run.py runs=/home/me", "python run.py runs=PATH"),
        ("run.py 'data.path=${oc.env:HOME}/a b' sweep=x", "run.py data.path=PATH sweep=x"),
        ("run.py data.path=~me runs=../me", "run.py data.path=PATH runs=PATH"),
        ("run.py --runs ../../me/runs", "run.py --runs runs"),
        ("run.py 'open", ""),
    ],
)
def test_a_command_is_shown_without_paths(command, shown):
    assert public(command) == shown
