"""The model card of an export: README.md with Hugging Face's front matter, from a run's records.

Records are other people's files: whatever they hold stands in the card as code, which no Markdown
obeys, and a value of another type than a record has is left out. No path of a machine is in it.
"""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

import yaml

from models.config import ModelConfig
from models.cost import count
from models.format import count as count_words
from models.format import fence, flop_count, write_table
from models.text import visible

TOY = 10_000_000
"""Parameters below which a model is a toy whatever it was trained on."""
NOT_RECORDED = "not recorded"


def card(
    config: ModelConfig,
    spec: Mapping[str, Any],
    manifest: Mapping[str, Any],
    point: Mapping[str, Any],
    *,
    step: int,
    context: int,
    opened_as: str,
    remote: bool,
    has_tokenizer: bool,
) -> str:
    """README.md of the export of a run's step.

    manifest, point: of the run and of that step, empty where there is none; context: tokens the
    model was trained on at a time; remote: whether it opens with trust_remote_code alone.
    """
    sections = (
        _front_matter(config, spec),
        _what(config, spec, context, opened_as),
        _training(config, spec, manifest, context, step),
        _scores(point, step),
        _limits(config, spec),
        _loading(remote, has_tokenizer),
    )
    return "\n".join(line for section in sections for line in section)


def _front_matter(config: ModelConfig, spec: Mapping[str, Any]) -> Iterator[str]:
    mixers = dict.fromkeys(config.kinds[kind].mixer for kind in config.layers)
    content = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["archladder", "research", *(visible(mixer) for mixer in mixers)],
        "model_name": visible(_title(spec)),
    }
    yield "---"
    yield yaml.safe_dump(content, sort_keys=False, allow_unicode=True).rstrip()
    yield "---"
    yield ""


def _what(
    config: ModelConfig, spec: Mapping[str, Any], context: int, opened_as: str
) -> Iterator[str]:
    counts = count(config, context)
    yield f"# {code(_title(spec))}"
    yield ""
    yield (
        "A language model of a controlled ablation: one rung of a ladder of models that differ in "
        "their layer mix alone, trained with archladder."
    )
    yield ""
    layers = [(kind, len(list(run))) for kind, run in itertools.groupby(config.layers)]
    yield from _facts(
        ("mix", _text(spec, "mix.name")),
        ("size", _text(spec, "size.name")),
        ("parameters", f"{counts.N:,} without the input embedding, {counts.N_total:,} with it"),
        ("layers", f"{config.n_layers}: " + ", ".join(
            code(kind) + (f" × {n}" if n > 1 else "") for kind, n in layers)),
        ("width", f"{config.d_model}, MLP {config.mlp_hidden}"),
        ("vocabulary", f"{config.vocab_size:,}"),
        ("matching", _text(spec, "matched")),
        ("class of transformers", code(opened_as)),
    )  # fmt: skip
    yield "No license is stated here: whoever publishes this adds `license:` to the lines above."
    yield ""


def _training(
    config: ModelConfig,
    spec: Mapping[str, Any],
    manifest: Mapping[str, Any],
    context: int,
    step: int,
) -> Iterator[str]:
    batch, steps = _number(spec, "recipe.batch_tokens"), _number(spec, "recipe.steps")
    tokens = step * batch if batch else None
    training = tokens and tokens * count(config, context).flops_per_token
    revision, dirty = _text(manifest, "revision"), _at(manifest, "dirty") is True
    fingerprint = _at(spec, "corpus.fingerprint")
    corpus = _text(spec, "corpus.name") or _text(spec, "data.name")
    if isinstance(fingerprint, str):
        corpus = f"{corpus}, fingerprint {code(fingerprint[:16])}"
    yield "## Training"
    yield ""
    yield from _facts(
        ("step", f"{step:,}" + (f" of {steps:,}" if steps else "")),
        ("tokens", f"{tokens:,}" if tokens else None),
        ("training FLOPs", flop_count(training) if training else None),
        ("data", corpus),
        ("batch", f"{batch:,} tokens" if batch else None),
        ("context", f"{context:,} tokens"),
        ("peak learning rate", _shown(_number(spec, "recipe.peak_lr"))),
        ("optimizer", _text(spec, "train.optim") or _text(spec, "defaults.train.optim")),
        ("schedule", _text(spec, "protocol.schedule")),
        ("protocol", _text(spec, "protocol.name")),
        ("seed", _shown(_number(spec, "seed"))),
        ("precision", _text(manifest, "precision")),
        ("revision", revision and revision + (" with changes" if dirty else "")),
    )
    if command := public(_at(manifest, "command")):
        around = fence(command, 3)
        yield from (around, visible(command), around, "")


def _scores(point: Mapping[str, Any], step: int) -> Iterator[str]:
    yield "## Evaluation"
    yield ""
    if not point:
        yield f"Step {step:,} is no point of the run: it was not evaluated on held-out text."
        yield ""
        return
    yield (
        "On held-out text of the same corpus, in nats per token and bits per UTF-8 byte, with the "
        "standard errors over documents:"
    )
    yield ""
    rows = [["mean of domains", *_measures(point)]]
    domains = _at(point, "domains")
    for name, sums in domains.items() if isinstance(domains, dict) else ():
        rows.append([code(str(name)).replace("|", r"\|"), *_measures(sums)])
    yield write_table(("domain", "loss", "bits per byte"), rows, "markdown")


def _limits(config: ModelConfig, spec: Mapping[str, Any]) -> Iterator[str]:
    N = count(config, 1).N
    yield "## What it is not"
    yield ""
    yield (
        "This is a run of a research ladder, trained to be compared with its neighbours at equal "
        "tokens. It is neither tuned to follow instructions nor made safe, and no other evaluation "
        "than the one above is behind this card."
    )
    if N < TOY or config.vocab_size <= 256:
        kind = "byte-level model" if config.vocab_size <= 256 else "model"
        yield (
            f"With {count_words(N)} parameters it is a toy: a {kind} of this size writes no sense, "
            "and what it scores says nothing of large models by itself."
        )
    if _at(spec, "recipe.ladder_steps") is not None:
        yield "Its run was a try that ended early, no point of the ladder."
    yield ""


def _loading(remote: bool, has_tokenizer: bool) -> Iterator[str]:
    more = ", trust_remote_code=True" if remote else ""
    yield "## How to load it"
    yield ""
    if remote:
        yield "Its layers are archladder's, which must be installed."
        yield ""
    yield "```python"
    yield "from transformers import AutoModelForCausalLM, AutoTokenizer"
    yield ""
    yield "# FOLDER: this folder, or its name on the hub."
    yield f'model = AutoModelForCausalLM.from_pretrained("FOLDER"{more})'
    if has_tokenizer:
        yield f'tokenizer = AutoTokenizer.from_pretrained("FOLDER"{more})'
    yield "```"
    yield ""
    if not has_tokenizer:
        yield "The folder has no tokenizer: use the one that the corpus was made with."
        yield ""


def code(text: str) -> str:
    """A code span that shows the text as it is, whatever it holds."""
    shown = visible(text) or " "
    around = fence(shown)
    space = " " if shown.startswith(("`", " ")) or shown.endswith(("`", " ")) else ""
    return f"{around}{space}{shown}{space}{around}"


def public(command: Any) -> str:
    """A recorded command without paths: what stands behind a `=` and holds one is `PATH`."""
    if not isinstance(command, str):
        return ""
    try:
        words = shlex.split(command)
    except ValueError:  # a quote that does not end
        return ""
    return shlex.join(map(_without_path, words))


def _without_path(word: str) -> str:
    name, equals, value = word.partition("=")
    if equals:
        return f"{name}=PATH" if {*value} & {*"/\\~"} else word
    path = PurePath(word)
    inside = not path.is_absolute() and not {*word} & {*"\\~"} and ".." not in path.parts
    return word if inside else path.name


def _facts(*facts: tuple[str, str | None]) -> Iterator[str]:
    for name, value in facts:
        yield f"- {name}: {value or NOT_RECORDED}"
    yield ""


def _title(spec: Mapping[str, Any]) -> str:
    return f"{_at(spec, 'mix.name')}-{_at(spec, 'size.name')}-s{_at(spec, 'seed')}"


def _at(record: Any, path: str) -> Any:
    for part in path.split("."):
        record = record.get(part) if isinstance(record, Mapping) else None
    return record


def _text(record: Mapping[str, Any], path: str) -> str | None:
    value = _at(record, path)
    return code(value) if isinstance(value, str) else None


def _number(record: Mapping[str, Any], path: str) -> Any:
    value = _at(record, path)
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if known else None


def _shown(value: float | None) -> str | None:
    return None if value is None else f"{value:.6g}" if isinstance(value, float) else f"{value}"


def _measures(sums: Mapping[str, Any]) -> list[str]:
    """Loss and bits per byte of a point or a domain, each with its standard error."""
    shown = []
    for name in ("loss", "bpb"):
        value, error = _number(sums, name), _number(sums, f"{name}_se")
        cell = "–" if value is None else f"{value:.4f}"
        shown.append(cell + ("" if error is None else f" ± {error:.4f}"))
    return shown
