"""The classes of transformers that are exactly some of our models: a module each.

A class is asked whether it expresses a model, its block included; the first that does is taken.
"""

from __future__ import annotations

from models.config import ModelConfig
from models.hf.native import granite, kimi_linear, nemotron_h, olmo3, olmo_hybrid, qwen3_next
from models.hf.native.record import NativeClass

CLASSES = {
    module.CLASS.model_type: module.CLASS
    for module in (olmo3, olmo_hybrid, granite, kimi_linear, qwen3_next, nemotron_h)
}


def native_class(config: ModelConfig) -> NativeClass | None:
    """The class that expresses a model exactly, None where there is none."""
    return next((c for c in CLASSES.values() if c.expresses(config)), None)
