"""The mixers that come with the project: one folder and one name each.

The first is the transformer's. docs/mixers.md walks through one. A mixer of your own may also stay
in a package of your own: its dotted path stands where a name does.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from models.errors import SettingError
from models.mixer import Mixer

NAMES = ("attn", "gdn", "kda", "mamba2", "mla", "s6")
MIXERS: dict[str, Mixer] = {name: import_module(f"{__name__}.{name}").MIXER for name in NAMES}


def loaded(mixer: Any) -> Mixer | None:
    """The record of a mixer of the project, or of a module that this process has imported
    already; None for others. What records of runs name is never imported by reading them."""
    if not isinstance(mixer, str) or mixer in MIXERS:
        return MIXERS.get(mixer) if isinstance(mixer, str) else None
    record = getattr(sys.modules.get(mixer), "MIXER", None)
    return record if isinstance(record, Mixer) else None


def lookup(mixer: str) -> Mixer:
    """The record of a mixer, by its name, or by the dotted path of a module with a `MIXER`.

    Raises SettingError where there is none.
    """
    if mixer in MIXERS:
        return MIXERS[mixer]
    shown = mixer if len(mixer) <= 80 else f"{mixer[:79]}…"
    valid = f"valid: {', '.join(MIXERS)}, or the dotted path of a module that has a MIXER"
    if "." not in mixer or not all(part.isidentifier() for part in mixer.split(".")):
        raise SettingError(f"mixer={shown} is not known; {valid}.")
    try:
        record = getattr(import_module(mixer), "MIXER", None)
    except (Exception, SystemExit) as error:  # whatever the package's own code raises
        problem = " ".join(str(error).split())
        if not isinstance(error, ImportError):
            problem = f"{type(error).__name__}: {problem}"
        raise SettingError(
            f"mixer={shown} cannot be imported ({problem}); {valid}, in the folder of the "
            "command, on PYTHONPATH or installed."
        ) from error
    if not isinstance(record, Mixer):
        raise SettingError(f"mixer={shown} holds no MIXER, a models.mixer.Mixer; {valid}.")
    return record
