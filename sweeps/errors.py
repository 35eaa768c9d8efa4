"""One sentence for what a user can mend, whether the project or Hydra noticed it."""

from __future__ import annotations

import re

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from models.errors import SettingError, not_ascii, one_of
from sweeps.names import not_a_setting


def sentence(error: Exception) -> str | None:
    """What to print for `error`, or None where it is no user's mistake."""
    if isinstance(error, SettingError):
        return str(error)
    if isinstance(error, MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return f"line {mark.line + 1} of {mark.name} is no YAML: {error.problem}."
    if isinstance(error, MissingConfigException) and error.options:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return str(one_of(group, option, error.options))
    if isinstance(error, OverrideParseException):
        return _unreadable(str(error.override))
    if isinstance(error, HydraException | OmegaConfBaseException):
        text = f"{error} {error.__cause__ or ''}"
        if several := re.search(r"Ambiguous value for argument '(.*)'", text):
            return f"{several.group(1)} names several values; add -m, for a run of each."
        if unset := re.search(r"variable '(.*)' not found\W+full_key: (\S+)", text):
            return (
                f"{unset.group(2)} names the environment variable {unset.group(1)}, which is not "
                "set; set it, or give the value itself."
            )
        if unknown := re.search(r"Could not override '([^']+)'.*is not in struct", text, re.DOTALL):
            return str(not_a_setting(unknown.group(1)))
        return f"{' '.join(str(error).split()).rstrip('.')}."
    return None


def _unreadable(override: str) -> str:
    key, equals, value = override.partition("=")
    if not equals or not re.fullmatch(r"[+~]*[A-Za-z][\w./@]*", key, re.ASCII):
        return f"{override} is not a setting; write GROUP=OPTION or KEY=VALUE."
    odd = next((letter for letter in value if not letter.isascii()), None)
    if odd and key == "sweep":
        return str(not_ascii(value, odd))
    return (
        f"{override} has a value that Hydra's grammar cannot read; put it in quotes inside those "
        f"of the shell: '{key}=\"…\"'."
    )
