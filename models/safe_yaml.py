"""YAML of other people's files: what is more than plain values is refused, before it is built."""

from __future__ import annotations

from typing import Any

import yaml

DEEPEST = 16
"""Levels that a file nests at most; specs have five."""


def parse_yaml(text: str) -> Any:
    """YAML without aliases, a few lines of which can stand for more than memory holds, and without
    tags, which ask for values that the text after them need not be.

    Raises ValueError, yaml.YAMLError or TypeError for what is none.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is ten times as fast
    level = 0
    # What is nested too deep is found before it is built: libyaml builds until the stack ends.
    for event in yaml.parse(text, Loader=loader):
        level += isinstance(event, yaml.CollectionStartEvent)
        level -= isinstance(event, yaml.CollectionEndEvent)
        if level > DEEPEST or isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None):
            raise ValueError("no record is written so")
    return yaml.load(text, Loader=loader)
