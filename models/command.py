"""One grammar for every command: `VERB key=value …`, read into a dataclass of settings.

The dataclass is all that describes a command: types say how text is read, and `setting` adds what
is valid and what the help says. `--key value`, `--key=value` and, for a boolean, `--key` are other
spellings of key=value; dashes and underscores in keys are alike. Values given from Python pass the
same checks (`check`). Plain Python, as help and mistakes should answer at once.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import numbers
import re
import shlex
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, TypeVar

from models.errors import SettingError, nearest, one_of
from models.terminal import readable
from models.text import visible

T = TypeVar("T")
HELP_WORDS = {"-h", "--help"}
WIDTH = 100
# A + adds what a file does not name, in Hydra's grammar: it is taken, and says nothing here.
_WORD = re.compile(r"(?P<dashes>--|\++)?(?P<key>\w[\w.-]*)(?:=(?P<value>.*))?", re.DOTALL)


@dataclass(frozen=True)
class Facts:
    """What is known of a setting beside its name, type and default."""

    help: str = ""
    choices: tuple[str, ...] = ()
    """The only valid values; of a mapping, the only valid keys."""
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    words: str = ""
    """What a value must be, where type and bounds do not say it well."""
    example: str = ""
    """A valid value."""
    shape: str = ""
    """What stands for a value in the help."""
    position: bool = False
    """Whether a word without a key is this setting."""
    repeat: bool = False
    """Whether a tuple takes one value each time it is given; else values parted by commas."""
    prefixes: tuple[str, ...] = ()
    """The setting is all keys that begin with one of these, as typed: {key: text}."""
    also: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Words, written with or without two dashes, that stand for a value: {"json": "json"}."""


def setting(default: Any = MISSING, help: str = "", **facts: Any) -> Any:
    """A field of a dataclass of settings; `facts` are those of `Facts`."""
    metadata = {"setting": Facts(help, **facts)}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def ended(work: Callable[[], int | None]) -> int:
    """The exit code of a command: what `work` returns, or 2 with a sentence for a SettingError."""
    readable()
    try:
        return work() or 0
    except SystemExit as asked:  # a page of help
        return int(asked.code or 0)
    except SettingError as error:
        print(visible(f"error: {error}"), file=sys.stderr)
        return 2
    except MemoryError:
        print("error: this needs more memory than there is; ask for less of it.", file=sys.stderr)
        return 2


def choose(
    program: str, summary: str, verbs: Mapping[str, type], arguments: Sequence[str]
) -> tuple[str, Any]:
    """The verb and its settings. Raises SettingError, or SystemExit(0) after a page of help."""
    verb, *rest = arguments or [""]
    if verb in HELP_WORDS or verb == "help":
        print(overview(program, summary, verbs), end="")
        raise SystemExit(0)
    if verb not in verbs:
        raise SettingError(
            f"{verb or 'a command'} is {'not known' if verb else 'missing'}; valid: "
            f"{', '.join(verbs)}; see {program} --help."
        )
    return verb, parse(verbs[verb], rest, f"{program} {verb}")


def parse(cls: type[T], arguments: Sequence[str], program: str) -> T:
    """Words of a command line as an instance of `cls`.

    Raises SettingError for a setting that is unknown, missing, repeated or invalid, and
    SystemExit(0) after the page of help where that is asked for.
    """
    if HELP_WORDS & set(arguments):
        print(page(cls, program), end="")
        raise SystemExit(0)
    facts, hints = _facts(cls), _hints(cls)
    given: dict[str, Any] = {}
    words: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        found = _WORD.fullmatch(argument)
        if not found or not (found["dashes"] == "--" or found["value"] is not None):
            if argument.startswith("-") and argument != "-":
                raise _unknown(argument, cls)
            words.append(argument)
            continue
        name, text = _named(cls, found["key"], found["value"])
        if name in given and not (facts[name].repeat or facts[name].prefixes):
            raise SettingError(f"{name} is given twice; give it once.")
        if text is None:
            text = "true" if hints[name] is bool else next(rest, "")
        if not text:
            raise SettingError(
                f"{name} has no value; write {name}={_shape(hints[name], facts[name])}."
            )
        if facts[name].prefixes:
            own = given.setdefault(name, {})
            if found["key"] in own:
                raise SettingError(f"{found['key']} is given twice; give it once.")
            own[found["key"]] = text
        else:
            given.setdefault(name, []).append(text)
    _place(facts, words, given)
    values = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        name, fact = field.name, facts[field.name]
        if name in given:
            whole = fact.repeat or fact.prefixes
            text = given[name] if whole else given[name][0]
            values[name] = text if fact.prefixes else _value(hints[name], text, name, fact)
        elif field.default is MISSING and field.default_factory is MISSING:
            if fact.position:
                word = fact.shape or name.upper()
                raise SettingError(f"{word} is missing: {usage(cls, program)}")
            raise SettingError(f"{name}= is missing; give {name}={_example(hints[name], fact)}.")
    return cls(**values)


def check(instance: T) -> T:
    """The instance with its values checked, and of their fields' types, numbers of numpy included.

    Raises SettingError in the words of the command line.
    """
    facts, hints = _facts(type(instance)), _hints(type(instance))
    values = {
        name: _value(hints[name], getattr(instance, name), name, fact)
        for name, fact in facts.items()
    }
    return dataclasses.replace(instance, **values)  # type: ignore[type-var]


def spelled(instance: Any, without: Iterable[str] = ()) -> str:
    """The settings that are not at their defaults, as one would type them in a shell."""
    words = []
    for field in dataclasses.fields(instance):
        value, fact = getattr(instance, field.name), _facts(type(instance))[field.name]
        default = field.default_factory() if field.default is MISSING and (
            field.default_factory is not MISSING
        ) else field.default  # fmt: skip
        if value == default or field.name in without:
            continue
        if fact.prefixes:
            words += [f"{key}={text}" for key, text in value.items()]
        else:
            words += [f"{field.name}={as_text(one)}" for one in (value if fact.repeat else [value])]
    return " ".join(map(shlex.quote, words))


def as_text(value: Any) -> str:
    """A value as one types it: `N=1e9,D=2e10` of a mapping, `a,b` of a tuple."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return ",".join(
            f"{key}={as_text(one)}"
            for key, own in value.items()
            for one in (own if isinstance(own, tuple) else [own])
        )
    if isinstance(value, tuple):
        return ",".join(map(as_text, value))
    if isinstance(value, float):
        short = f"{value:g}" if float(f"{value:g}") == value else str(value)
        return re.sub(r"e\+0*", "e", short)
    return str(value)


def tokens_of(name: str, text: str) -> int:
    """8k as 8192, 1m as 1048576, and plain numbers: the value of a setting that counts tokens.

    Raises SettingError for what is none.
    """
    match = re.fullmatch(r"(\d+)([km]?)", text, re.IGNORECASE)
    if not match or not int(match[1]):
        raise SettingError(f"{name}={text} must be tokens, like 8192 or 8k.")
    return int(match[1]) * {"": 1, "k": 2**10, "m": 2**20}[match[2].lower()]


def usage(cls: type, program: str) -> str:
    """The program with its positional words."""
    facts = _facts(cls)
    words = []
    for field in dataclasses.fields(cls):
        fact = facts[field.name]
        if fact.position:
            shape = (fact.shape or field.name.upper()) + (" …" if fact.repeat else "")
            words.append(shape if field.default is MISSING else f"[{shape}]")
    more = len(words) < len(facts)
    return " ".join([program, *words, *(["[key=value …]"] if more else [])])


def page(cls: type, program: str) -> str:
    """The help of one command: how it is written, each setting, examples."""
    facts, hints = _facts(cls), _hints(cls)
    rows = []
    for field in dataclasses.fields(cls):
        hint, fact = hints[field.name], facts[field.name]
        keys = [f"{prefix}NAME" for prefix in fact.prefixes] or [field.name]
        rows.append((f"{' '.join(keys)}={_shape(hint, fact)}", _told(field, hint, fact)))
    width = min(28, max(len(left) for left, _ in rows))
    lines = [usage(cls, program), "", inspect.cleandoc(cls.__doc__ or ""), ""]
    for left, told in rows:
        head = f"  {left:<{width}}  "
        if len(left) > width:
            lines.append(f"  {left}")
            head = " " * (width + 4)
        lines.append(
            textwrap.fill(
                told, WIDTH, initial_indent=head, subsequent_indent=" " * (width + 4),
                break_on_hyphens=False, break_long_words=False,
            )
        )  # fmt: skip
    if examples := getattr(cls, "EXAMPLES", ()):
        lines += ["", "Examples", *(f"  {program} {example}".rstrip() for example in examples)]
    return "\n".join(lines) + "\n"


def overview(program: str, summary: str, verbs: Mapping[str, type]) -> str:
    """The help of a program: a line each command."""
    width = max(map(len, verbs))
    lines = [f"{program} COMMAND [key=value …]", "", summary, ""]
    for verb, cls in verbs.items():
        lines.append(f"  {verb:<{width}}  {inspect.cleandoc(cls.__doc__ or '').splitlines()[0]}")
    return "\n".join([*lines, "", f"{program} COMMAND --help says more.", ""])


def _facts(cls: type) -> dict[str, Facts]:
    return {field.name: field.metadata.get("setting", Facts()) for field in dataclasses.fields(cls)}


def _hints(cls: type) -> dict[str, Any]:
    """Field -> its type, without the None of an optional one."""
    return {
        name: next(
            (one for one in typing.get_args(hint) if one is not types.NoneType), hint
        ) if typing.get_origin(hint) in (typing.Union, types.UnionType) else hint
        for name, hint in typing.get_type_hints(cls).items()
    }  # fmt: skip


def _named(cls: type, key: str, text: str | None) -> tuple[str, str | None]:
    """The field that a key of the command line means, and its text."""
    facts, plain = _facts(cls), key.replace("-", "_")
    if plain in facts and not facts[plain].prefixes:
        return plain, text
    word = plain if text is None else f"{plain}={text}"
    for name, fact in facts.items():
        if word in fact.also:
            return name, fact.also[word]
    for name, fact in facts.items():
        if any(key.startswith(prefix) and key != prefix for prefix in fact.prefixes):
            return name, text
    raise _unknown(key, cls)


def _unknown(key: str, cls: type) -> SettingError:
    valid = [one for name, fact in _facts(cls).items()
             for one in ([f"{prefix}NAME" for prefix in fact.prefixes] or [name])]  # fmt: skip
    plain = key.lstrip("-").replace("-", "_")
    return SettingError(
        f"{key} is not a setting; {nearest(plain, valid)}valid: {', '.join(sorted(valid))}."
    )


def _place(facts: Mapping[str, Facts], words: list[str], given: dict[str, Any]) -> None:
    """Give words without a key to the settings that take them, in order."""
    places = [name for name, fact in facts.items() if fact.position]
    for name in places:
        if words and name in given and not facts[name].repeat:
            raise SettingError(f"{name} is given twice, {given[name][0]} and {words[0]}; give one.")
        taken, words[:] = (words[:], []) if facts[name].repeat else (words[:1], words[1:])
        if "" in taken:
            word = facts[name].shape or name.upper()
            raise SettingError(f"{name} has no value; write {word}.")
        if taken:
            given[name] = [*given.get(name, []), *taken]
    if words:
        raise SettingError(f"{words[0]} is not a setting; write key=value, or see --help.")


def _value(hint: Any, given: Any, name: str, fact: Facts) -> Any:
    """A value of type `hint` from text or from Python."""
    if given is None:
        return None
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        if not fact.repeat and isinstance(given, str):
            given = [part.strip() for part in given.strip("[]").split(",") if part.strip()]
            if not given:
                raise SettingError(f"{name} has no value; write {name}={_example(hint, fact)}.")
        elif isinstance(given, str | Mapping) or not isinstance(given, Iterable):
            given = [given]
        return tuple(_value(args[0], part, name, fact) for part in given)
    if origin in (Mapping, dict) or hint is Mapping:
        return given if fact.prefixes else _group(args, given, name, fact)
    if hint is bool:
        if isinstance(given, str):
            if given not in ("true", "false"):
                raise one_of(name, given, ("true", "false"))
            return given == "true"
        if given not in (True, False):
            raise SettingError(f"{name}={given!r} must be True or False.")
        return bool(given)
    if hint in (int, float):
        return _number(hint, given, name, fact)
    if fact.choices and given not in fact.choices:
        raise one_of(name, given, fact.choices)
    return Path(given).expanduser() if hint is Path else hint(given)


def _number(kind: type, given: Any, name: str, fact: Facts) -> Any:
    try:
        right = isinstance(given, str | (numbers.Integral if kind is int else numbers.Real))
        value = kind(given) if right else math.nan
    except (ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value) or not _within(value, fact):
        text = given if isinstance(given, str) else repr(given)
        raise SettingError(f"{name}={text} must be {_must(kind, fact)}.")
    return value


def _within(value: float, fact: Facts) -> bool:
    return (
        (fact.least is None or value >= fact.least)
        and (fact.most is None or value <= fact.most)
        and (fact.above is None or value > fact.above)
        and (fact.below is None or value < fact.below)
    )


def _group(args: tuple[Any, ...], given: Any, name: str, fact: Facts) -> dict[str, Any]:
    """`a=1,b=2`, or a mapping. A key given twice is refused, unless its values are a tuple."""
    kind, inner = args[1], dataclasses.replace(fact, choices=())  # choices are of keys
    several = typing.get_origin(kind) is tuple
    pairs: list[tuple[str, Any]] = []
    if isinstance(given, Mapping):
        pairs = [(str(key), value) for key, value in given.items()]
    elif isinstance(given, str):
        for part in filter(None, given.split(",")):
            key, equals, value = (one.strip() for one in part.partition("="))
            if not equals or not key or not value:
                raise SettingError(
                    f"{name}={part} is not a setting; give one like {_example(None, fact)}."
                )
            pairs.append((key, value))
    else:
        raise SettingError(f"{name}={given!r} is no mapping; give one like {_as_mapping(fact)}.")
    values: dict[str, Any] = {}
    for key, value in pairs:
        if fact.choices and key not in fact.choices:
            raise one_of(name, key, fact.choices)
        if several:
            more = [value] if isinstance(value, str) or not isinstance(value, Iterable) else value
            values[key] = (*values.get(key, ()), *more)
        elif key in values:
            raise SettingError(f"{name}={given} gives {key} twice.")
        else:
            values[key] = _value(kind, value, f"{name} {key}", inner)
    return values


def _must(kind: type, fact: Facts) -> str:
    if fact.words:
        return fact.words
    if kind is float and (fact.above, fact.least, fact.most) == (0, None, None):
        if fact.below is None:
            return "a positive finite number"
        if fact.below == 1:
            return f"a share above 0 and below 1, such as {fact.example or 0.5}"
    noun = "a whole number" if kind is int else "a number"
    if fact.least is not None and fact.most is not None:
        return f"{noun} from {fact.least:g} to {fact.most:g}"
    bounds = [
        f"{word} {bound:g}"
        for word, bound in (
            ("of at least", fact.least), ("above", fact.above), ("at most", fact.most),
            ("below", fact.below),
        )
        if bound is not None
    ]  # fmt: skip
    return " ".join([noun, *([" and ".join(bounds)] if bounds else [])])


def _told(field: dataclasses.Field[Any], hint: Any, fact: Facts) -> str:
    """What the help says of a setting: what it is, what is valid, its default."""
    inner = next(iter(typing.get_args(hint)), hint) if typing.get_origin(hint) is tuple else hint
    bounded = fact.words or any(
        bound is not None for bound in (fact.least, fact.most, fact.above, fact.below)
    )
    parts = [fact.help]
    if len(fact.choices) > 1:
        parts.append(", ".join(fact.choices))
    elif bounded and inner in (int, float):
        parts.append(_must(inner, fact))
    told = ": ".join(filter(None, parts))
    if field.default is MISSING and field.default_factory is MISSING:
        return f"{told} (required)"
    default = "" if field.default is MISSING else as_text(field.default)
    return f"{told} ({default})" if default else told


def _shape(hint: Any, fact: Facts) -> str:
    if fact.shape:
        return fact.shape
    if hint is bool:
        return "true|false"
    if fact.example:
        return fact.example
    if typing.get_origin(hint) is tuple:
        return "A,B"
    return {int: "N", float: "X", Path: "PATH"}.get(hint, "NAME")


def _example(hint: Any, fact: Facts) -> str:
    return fact.example or _shape(hint, fact)


def _as_mapping(fact: Facts) -> str:
    pairs = (part.partition("=") for part in _example(None, fact).split(","))
    return "{" + ", ".join(f"'{key}': {value}" for key, _, value in pairs) + "}"
