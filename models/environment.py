"""Environment variables that settings name, like `${oc.env:SCRATCH}`: read where they are used.

Records keep the name, so that what a variable holds, perhaps a password, is in none of them.
"""

from __future__ import annotations

import os
import re

from models.errors import SettingError

NAMED = re.compile(r"\$\{oc\.env:([^,}]+)(?:,([^}]*))?\}")
"""As sweeps.variables writes it: a variable, and what stands for it where it is not set."""


def expand(text: str, setting: str) -> str:
    """`text` with the values of the variables that it names.

    setting: where it stands, for the sentence. Raises SettingError on a variable that is not set.
    """

    def value(match: re.Match[str]) -> str:
        name, default = match.groups()
        found = os.environ.get(name, default)
        if found is None:
            raise SettingError(
                f"{setting}={text} names the environment variable {name}, which is not set; set "
                "it, or give the value itself."
            )
        return str(found)

    return NAMED.sub(value, text)
