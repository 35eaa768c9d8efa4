"""The grammar of every command: spellings that mean one thing, and a sentence for each mistake."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from models.command import check, choose, ended, page, parse, setting, spelled
from models.errors import SettingError

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Group:
    """What several commands share."""

    format: str = setting(
        "table", "how it is printed", choices=("table", "json"), also={"json": "json"}
    )


@dataclass(frozen=True, kw_only=True)
class Bake(Group):
    """Bake bread.

    All of it.
    """

    EXAMPLES = ("rye loaves=2",)
    flour: str = setting(help="what it is made of", position=True, example="rye")
    loaves: int = setting(1, "how many", least=1)
    salt_share: float = setting(0.02, "of the flour", above=0, below=1, example="0.02")
    heat: float | None = setting(None, "degrees", above=0)
    rest: float = setting(1.0, "hours", least=0.5, most=48)
    steam: bool = setting(False, "wet the oven")
    seeds: tuple[str, ...] = setting((), "on top")
    turns: tuple[int, ...] = setting((1, 2), "minutes", least=1)
    at: tuple[Mapping[str, float], ...] = setting((), "places", above=0, example="x=1", repeat=True)
    where: Mapping[str, tuple[str, ...]] = setting({}, "shelves", example="shelf=1")
    fix: Mapping[str, float] = setting({}, "held", choices=("a", "b"), example="a=1")
    names: Mapping[str, str] = setting({}, "own words", choices=("a", "b"), example="a=c")
    out: Path = setting(Path("bread"), "where it cools")
    oven: Mapping[str, str] = setting({}, "of the oven", prefixes=("oven.",))


def bake(*words: str) -> Bake:
    return parse(Bake, words, "bake")


SPELLINGS = {
    "loaves": (3, [["loaves=3"], ["--loaves", "3"], ["--loaves=3"], ["+loaves=3"]]),
    "salt_share": (
        0.5,
        [["salt_share=0.5"], ["salt-share=5e-1"], ["--salt-share", ".5"], ["--salt_share=0.5"]],
    ),
    "heat": (220.0, [["heat=220"], ["--heat", "2.2e2"]]),
    "steam": (True, [["steam=true"], ["--steam"], ["--steam=true"]]),
    "seeds": (("poppy", "hemp"), [["seeds=poppy,hemp"], ["--seeds", "poppy,hemp"]]),
    "turns": ((5, 7), [["turns=5,7"], ["turns=[5,7]"], ["--turns", "[5, 7]"]]),
    "at": (
        ({"x": 1.0, "y": 2.0}, {"x": 3.0}),
        [["at=x=1,y=2", "at=x=3"], ["--at", "x=1,y=2", "--at=x=3"]],
    ),
    "where": ({"shelf": ("1", "2"), "row": ("a",)}, [["where=shelf=1,row=a,shelf=2"]]),
    "fix": ({"a": 0.1}, [["fix=a=0.1"], ["--fix", "a=1e-1"]]),
    "names": ({"a": "x", "b": "y"}, [["names=a=x,b=y"], ["--names", "a=x,b=y"]]),
    "out": (Path("tin"), [["out=tin"], ["--out", "tin"]]),
    "oven": (
        {"oven.fan": "on", "oven.x-y": "1"},
        [["oven.fan=on", "oven.x-y=1"], ["--oven.fan", "on", "--oven.x-y=1"]],
    ),
    "format": ("json", [["format=json"], ["--format", "json"], ["--json"]]),
}


def test_each_spelling_gives_the_same_instance_wherever_the_flour_stands() -> None:
    for name, (value, spellings) in SPELLINGS.items():
        expected = Bake(flour="rye", **{name: value})
        for words in spellings:
            for flour in (["rye"], ["flour=rye"], ["--flour", "rye"]):
                assert bake(*flour, *words) == expected, (flour, words)
                assert bake(*words, *flour) == expected, (flour, words)


def test_settings_do_not_disturb_one_another() -> None:
    names = list(SPELLINGS)
    for one, other in itertools.combinations(names, 2):
        words = [*SPELLINGS[one][1][0], *SPELLINGS[other][1][-1]]
        expected = Bake(flour="rye", **{name: SPELLINGS[name][0] for name in (one, other)})
        assert bake("rye", *words) == expected


def test_what_is_spelled_out_is_read_back() -> None:
    everything = Bake(
        flour="a b'c", **{name: value for name, (value, _) in SPELLINGS.items() if name != "where"}
    )
    assert bake(*shlex.split(spelled(everything))) == everything
    assert spelled(Bake(flour="rye")) == "flour=rye"
    assert spelled(Bake(flour="rye", loaves=2), without=("loaves",)) == "flour=rye"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "FLOUR is missing: bake FLOUR [key=value …]"),
        (["rye", "loaves=0"], "loaves=0 must be a whole number of at least 1."),
        (["rye", "loaves=1.5"], "loaves=1.5 must be a whole number of at least 1."),
        (["rye", "loaves=many"], "loaves=many must be a whole number of at least 1."),
        (["rye", "--loaves"], "loaves has no value; write loaves=N."),
        (["rye", "loaves="], "loaves has no value; write loaves=N."),
        (["rye", "loaves=1", "--loaves", "2"], "loaves is given twice; give it once."),
        (["rye", "salt_share=1"], "salt_share=1 must be a share above 0 and below 1, such as 0"),
        (["rye", "heat=-1"], "heat=-1 must be a positive finite number."),
        (["rye", "heat=inf"], "heat=inf must be a positive finite number."),
        (["rye", "heat=nan"], "heat=nan must be a positive finite number."),
        (["rye", "rest=49"], "rest=49 must be a number from 0.5 to 48."),
        (["rye", "steam=yes"], "steam=yes is not known; valid: false, true."),
        (["rye", "turns=1,0"], "turns=0 must be a whole number of at least 1."),
        (["rye", "seeds=,"], "seeds has no value; write seeds=A,B."),
        (["rye", "at=5"], "at=5 is not a setting; give one like x=1."),
        (["rye", "at=x=0"], "at x=0 must be a positive finite number."),
        (["rye", "at=x=1,x=2"], "at=x=1,x=2 gives x twice."),
        (["rye", "fix=c=1"], "fix=c is not known; valid: a, b."),
        (["rye", "fix=a=b"], "fix a=b must be a number."),
        (["rye", "where=shelf"], "where=shelf is not a setting; give one like shelf=1."),
        (["rye", "format=xml"], "format=xml is not known; valid: json, table."),
        (["rye", "--json", "format=json"], "format is given twice; give it once."),
        (["rye", "oven.fan=1", "oven.fan=2"], "oven.fan is given twice; give it once."),
        (["rye", "spelt"], "spelt is not a setting; write key=value, or see --help."),
        (["rye", "flour=spelt"], "flour is given twice, spelt and rye; give one."),
        (["rye", "loafs=2"], "loafs is not a setting; nearest: loaves; valid: at, fix, flour, "),
        (["rye", "--loafs", "2"], "loafs is not a setting; nearest: loaves; valid: at, "),
        (["rye", "-n"], "-n is not a setting; valid: at, "),
        (["rye", "größe=1"], "größe is not a setting; valid: at, "),
    ],
)  # fmt: skip
def test_every_mistake_is_one_sentence_and_exit_code_2(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(lambda: print(bake(*words))) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert sentence in printed.err


def test_what_is_missing_is_named_with_a_valid_value() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Plan:
        sizes: tuple[str, ...] = setting(example="60m,100m")

    # Its types are found where the class is, and a local class has no such place.
    Plan.__annotations__["sizes"] = tuple[str, ...]
    with pytest.raises(SettingError, match=r"^sizes= is missing; give sizes=60m,100m\.$"):
        parse(Plan, [], "plan")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"loaves": 0}, "loaves=0 must be a whole number of at least 1."),
        ({"loaves": 2.5}, "loaves=2.5 must be a whole number of at least 1."),
        ({"salt_share": 2}, "salt_share=2 must be a share above 0 and below 1, such as 0.02."),
        ({"heat": [1]}, "heat=[1] must be a positive finite number."),
        ({"steam": "perhaps"}, "steam=perhaps is not known; valid: false, true."),
        ({"steam": 3}, "steam=3 must be True or False."),
        ({"format": "xml"}, "format=xml is not known; valid: json, table."),
        ({"fix": {"a": "big"}}, "fix a=big must be a number."),
        ({"fix": 3}, "fix=3 is no mapping; give one like {'a': 1}."),
        ({"at": [1e9]}, "at=1000000000.0 is no mapping; give one like {'x': 1}."),
    ],
)
def test_values_of_python_are_held_to_the_same(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingError) as caught:
        check(Bake(flour="rye", **values))
    assert str(caught.value) == sentence


def test_values_of_python_come_out_in_their_types() -> None:
    made = check(
        Bake(
            flour="rye", loaves=np.int64(3), heat=np.float32(2), steam=np.bool_(True),
            at={"x": np.float64(1)}, where={"shelf": [1, 2], "row": "a"}, turns=[1, 2],  # type: ignore[arg-type]
        )
    )  # fmt: skip
    assert (type(made.loaves), type(made.heat), type(made.steam)) == (int, float, bool)
    assert made.at == ({"x": 1.0},)
    assert made.where == {"shelf": (1, 2), "row": ("a",)}
    assert made.turns == (1, 2)


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help_lists_every_setting_its_default_and_what_is_valid(
    word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(lambda: print(bake("rye", word))) == 0
    told = capsys.readouterr().out
    assert told == page(Bake, "bake")
    assert told.startswith("bake FLOUR [key=value …]\n\nBake bread.\n\nAll of it.\n")
    for field in dataclasses.fields(Bake):
        assert re.search(rf"^  {field.name}(\.NAME)?=", told, re.MULTILINE), field.name
    flat = " ".join(told.split())
    for words in ("table, json (table)", "a whole number of at least 1 (1)", "(required)",
                  "from 0.5 to 48 (1)", "(1,2)", "(false)", "(bread)"):  # fmt: skip
        assert words in flat
    assert told.endswith("Examples\n  bake rye loaves=2\n")
    assert max(map(len, told.splitlines())) <= 100


def test_a_program_lists_its_commands_and_knows_no_other(
    capsys: pytest.CaptureFixture[str],
) -> None:
    verbs = {"bake": Bake, "share": Group}
    assert ended(lambda: print(choose("shop", "Bread.", verbs, ["--help"]))) == 0
    told = capsys.readouterr().out
    assert told.startswith("shop COMMAND [key=value …]\n\nBread.\n\n  bake   Bake bread.\n")
    assert choose("shop", "", verbs, ["share"]) == ("share", Group())
    assert choose("shop", "", verbs, ["bake", "rye"]) == ("bake", Bake(flour="rye"))
    for words, sentence in ((["eat"], "eat is not known; valid: bake, share"), ([], "is missing")):
        assert ended(lambda words=words: print(choose("shop", "", verbs, words))) == 2
        assert sentence in capsys.readouterr().err


# What stands for a value in a page: a word for one that reads as such.
STANDS_FOR = {
    "RUN_DIR": "runs/a", "SWEEP": "demo", "RUN": "a", "NAME": "demo", "OUT": "out",
    "FOLDER": "there", "FILE": "file", "DIR": "there", "STEP": "3", "CODE": "there",
}  # fmt: skip
PROGRAMS = re.compile(
    r"(?:python )?(-m (?:analysis|models|models\.hf|models\.doctor|models\.roofline|"
    r"ablations\.data|ablations\.evaluate)|sweeps/status\.py|archladder)(?= |$)(.*)"
)


def printed_commands() -> list[Any]:
    """(program, words) of every command in the pages, the experiments and the Makefile."""
    pages = [ROOT / "README.md", ROOT / "Makefile", *sorted((ROOT / "docs").glob("*.md"))]
    pages += sorted((ROOT / "conf").rglob("*.yaml"))
    found = []
    for path in pages:
        text = re.sub(r"\\\n\s*", " ", path.read_text(encoding="utf-8"))
        for line in text.splitlines():
            code = re.findall(r"`([^`]+)`", line)
            if re.match(r"(    |#|\t)", line):
                plain = line.lstrip("#").strip().removeprefix("$ ").replace("$(BIN)/", "")
                code = [re.sub(r"^\w+: +", "", plain)]
            for one in code:
                match = PROGRAMS.match(one)
                words = (
                    re.split(r"\s+#|\s{3,}", match[2])[0].replace("RUN…", "RUN") if match else ""
                )
                if match and words.strip() and not re.search(r"…|fit\|", words):
                    found.append(pytest.param(match[1], words, id=f"{path.name}:{one[:60]}"))
    return found


def test_commands_are_found_in_the_pages() -> None:
    programs = [param.values[0] for param in printed_commands()]
    assert len(programs) > 60
    assert len(set(programs)) == 9


@pytest.mark.parametrize(("program", "words"), printed_commands())
def test_a_printed_command_parses(program: str, words: str) -> None:
    plain = re.sub(r"\[(\S+=\S+|--\w+)\]", r"\1", words)  # optional settings, as if given
    plain = re.sub(r"(\w+)\|\w+", r"\1", plain)
    for stand, value in STANDS_FOR.items():
        plain = re.sub(rf"(?<![\w.]){stand}(?![\w.])", value, plain)
    given = shlex.split(plain)
    if "--help" in given:
        return
    parsed(program, given)


def parsed(program: str, given: list[str]) -> Any:
    if program in ("-m analysis", "archladder"):
        main = importlib.import_module("analysis.__main__")
        verbs = {
            name: importlib.import_module(f"analysis.commands.{name}").Settings
            for name in main.COMMANDS
        }
        return choose(program, "", verbs, given)
    if program in ("-m models.hf", "-m ablations.data"):
        verbs = importlib.import_module(f"{program[3:]}.__main__").VERBS
        return choose(program, "", verbs, given)
    if program == "sweeps/status.py":
        status = importlib.import_module("sweeps.status")
        action = given.pop(0) if given[0] in status.ACTIONS else "show"
        return parse(status.ACTIONS[action][0], given, program)
    module = program[3:] + ("" if program.endswith(("doctor", "roofline")) else ".__main__")
    return parse(importlib.import_module(module).Settings, given, program)


def test_choices_written_for_the_help_are_those_of_the_statistics() -> None:
    from analysis.commands import common, figures, fit, savings
    from analysis.report.figures.style import WIDTHS
    from analysis.stats import losses, other_savings, rays, uncertainty
    from analysis.stats.fit import MODELS
    from analysis.study.law_answer import FORMS
    from analysis.study.study import Joint

    def choices(cls: type, name: str) -> set[str]:
        (field,) = (one for one in dataclasses.fields(cls) if one.name == name)  # type: ignore[arg-type]
        return set(field.metadata["setting"].choices)

    assert set(common.LOSSES) == set(losses.LOSSES)
    assert set(common.MODELS) == set(MODELS)
    assert set(fit.LAWS) == set(FORMS)
    assert choices(fit.Settings, "minimum") == set(rays.MINIMA)
    joints = {one for part in get_args(Joint) for one in get_args(part) or (part,)}
    assert choices(savings.Settings, "model") == joints
    assert choices(savings.Settings, "kind") == set(other_savings.KINDS)
    assert choices(savings.Settings, "method") == set(uncertainty.METHODS)
    assert choices(figures.Settings, "width") == set(WIDTHS)


@pytest.mark.parametrize(
    "words", ["-m analysis fit --help", "-m analysis report szie=1", "-m models --help"]
)
def test_help_and_mistakes_wait_for_no_heavy_library(words: str) -> None:
    module, *rest = words.split()[1:]
    code = (
        f"import sys; from {module}.__main__ import main; main({rest!r}); "
        "sys.exit(bool({'numpy', 'pandas', 'torch', 'scipy', 'matplotlib'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0


def test_a_program_is_named_as_it_was_called() -> None:
    for program in ("python -m analysis", "archladder"):
        words = [sys.executable, *(["-m", program.split()[-1]])]
        told = subprocess.run(
            [*words, "fit", "-h"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        assert told.startswith(f"{program} fit [")
