"""Specs of every version of the code: what each was known by, and what each says in today's terms.

A run's folder bears the identity that the code which made it gave it, so every version's rule stays
here. A setting with a default changes no identity and needs no version; a setting that goes, or
takes another name, place or default, does: VERSION goes up, and `upgraded` says how.

Version 1 hashed all settings of all mixers. Version 2 hashes what a run reads, less fields at their
defaults, which a spec lists apart.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from models.errors import SettingError
from models.mix import Mix, check_rules_of
from models.plain import VERSION, check_version, model_from_version_1
from models.settings import from_dict, merge, to_dict

READ = ("model", "recipe", "train", "data")
"""Groups of a spec that training reads."""


def identity(spec: Mapping[str, Any]) -> str:
    """Eight hex digits over everything in a spec, as its file holds it, that decides a run's
    numbers; by the rule of the version that wrote it.

    Raises TypeError, KeyError or AttributeError where it is no spec.
    """
    if spec.get("version", 1) == 1:
        left_out = ("sweep", "evaluation", "resources", "logging")
        content = {key: value for key, value in spec.items() if key not in left_out}
    else:
        content = {group: spec[group] for group in (*READ, "seed", "corpus")}
        content |= {group: spec[group]["name"] for group in ("mix", "size")}
    # The corpus is known by its fingerprint, wherever it lies and whatever it is called.
    corpus = content.get("corpus")
    content["corpus"] = corpus["fingerprint"] if corpus else None
    content["data"] = {k: v for k, v in content["data"].items() if k not in ("path", "name")}
    return hash_of(content)


def hash_of(content: Any) -> str:
    """Eight hex digits of plain values."""
    canonical = json.dumps(content, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


def check_defaults(spec: Mapping[str, Any]) -> None:
    """Raise SettingError where fields at their defaults, which no identity holds, were changed."""
    if check_version(spec) > 1 and spec.get("defaults_hash") != hash_of(spec.get("defaults")):
        raise SettingError("spec.yaml's defaults are not those that it was written with")


def upgraded(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What a spec of any version says, in this version's terms.

    Raises SettingError for a spec of a later version, or one whose settings no version has.
    """
    version = check_version(spec)
    apart = ("version", "defaults", "defaults_hash", "folder")
    content = {key: value for key, value in spec.items() if key not in apart}
    if version == 1:
        content = _from_version_1(content)
    return {"version": VERSION, **merge(content, spec.get("defaults") or {})}


def _from_version_1(content: dict[str, Any]) -> dict[str, Any]:
    """What can be read of a spec is put in today's terms, and the rest left as it stands."""
    model, mix, protocol = (content.get(group) for group in ("model", "mix", "protocol"))
    if isinstance(model, Mapping):
        with contextlib.suppress(SettingError):
            content["model"] = dict(model_from_version_1(model, "spec.yaml's model"))
    if not isinstance(mix, Mapping) or "pattern" not in mix:
        return content
    mix = dict(mix)
    if not mix.pop("attn_rope", True):
        mix["attn_rotary"] = 0
    with contextlib.suppress(SettingError):
        read = from_dict(Mix, mix, "mix").reads()
        content["mix"] = to_dict(read)
        if isinstance(protocol, Mapping):
            # Rules of mixers that are not in the pattern were listed too.
            rules = {k: v for k, v in protocol.items() if k.startswith(("gdn_", "mamba2_"))}
            kept = check_rules_of(rules, read.mixers())
            content["protocol"] = {k: v for k, v in protocol.items() if k not in rules} | kept
    return content
