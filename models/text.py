"""Text from elsewhere (names, errors, cells of files) as one may show it. Plain Python."""

from __future__ import annotations

import re

HIDDEN = (
    "\x00-\x1f\x7f-\x9f"  # control characters: a terminal obeys them, and XML refuses most
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # reorder or break the line around them
    "\ud800-\udfff\ufffe\uffff"  # no characters at all: UTF-8 or XML cannot hold them
    "\U00100000-\U0010ffff"  # private use; analysis/foreign.py sets marks there
)
"""Characters that do something or show nothing, as a class of a regular expression."""
_HIDDEN = re.compile(f"[{HIDDEN}]")


def visible(text: str, keep: str = "") -> str:
    """`text` with every character of HIDDEN as Python would escape it, those of `keep` aside.

    The same text where it holds none, and always text that UTF-8 can encode.
    """
    return _HIDDEN.sub(
        lambda found: (
            found[0] if found[0] in keep else found[0].encode("unicode_escape").decode("ascii")
        ),
        text,
    )
