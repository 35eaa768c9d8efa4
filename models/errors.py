"""The one exception that means "the user can mend this": every command makes it exit code 2."""

import difflib
from collections.abc import Iterable

from models.text import visible

FEW = 4
"""So many choices are read at once, with no word of which is nearest."""


class SettingError(ValueError):
    """A setting that cannot be used.

    Its text is one sentence naming the setting, the value given and what would be valid.
    Commands print it without a stack trace and exit with code 2.
    """

    def __str__(self) -> str:
        # Names and cells of other people's files are quoted in it: they move no cursor.
        return visible(super().__str__(), keep="\n")


def one_of(setting: str, value: object, valid: object) -> SettingError:
    """The sentence for a value outside a closed list."""
    choices = sorted(map(str, valid))  # type: ignore[call-overload]
    near = nearest(str(value), choices) if len(choices) > FEW else ""
    return SettingError(f"{setting}={value!s} is not known; {near}valid: {', '.join(choices)}.")


def nearest(name: str, valid: Iterable[str]) -> str:
    """`nearest: a, b; ` of the valid names that `name` may be a slip of; nothing where none is."""
    valid = list(dict.fromkeys(valid))
    near = difflib.get_close_matches(name, valid, n=2)
    near = near or [one for one in valid if len(name) > 2 and name in one][:2]
    return f"nearest: {', '.join(near)}; " if near else ""


def not_ascii(sweep: str, odd: str) -> SettingError:
    """The sentence for a sweep's name with the letter `odd`, whoever reads the name first."""
    return SettingError(
        f"sweep={sweep} has {odd!r}, which is outside ASCII: it names folders and Slurm's jobs, "
        "which other machines and terminals would write otherwise; use plain letters, digits, - "
        "and _."
    )
