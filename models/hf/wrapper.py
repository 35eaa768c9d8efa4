"""Any model of ours as transformers wants one: `from_pretrained`, `generate`, a loss from labels.

The layers are those of `models.language_model`, a mixer of your own included. An export that no
class of transformers expresses opens through this.

Shapes: B batch, T time, d model width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from models.decoding import Cache
from models.language_model import LanguageModel
from models.plain import model_from_plain

# Our names -> those that other tools read.
NAMES = {
    "vocab_size": "vocab_size", "d_model": "hidden_size", "mlp_hidden": "intermediate_size",
    "n_heads": "num_attention_heads",
}  # fmt: skip
ROOM = 64
"""Tokens that fit a new cache beside the prompt."""


class ArchladderConfig(PretrainedConfig):
    """`architecture`, a ModelConfig as plain values, decides the function."""

    model_type = "archladder"

    architecture: dict[str, Any] | None = None
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        a = self.architecture or {}
        derived = {name: a.get(ours) for ours, name in NAMES.items()}
        derived["num_hidden_layers"] = len(a.get("layers", ()))
        super().__post_init__(**{**kwargs, **derived})


class GrowingCache(Cache):
    """Our cache as `generate` wants one: of no length given before, its rows in any order."""

    is_compileable = False

    def get_seq_length(self, *_: Any) -> int:
        """Tokens of each row so far, pads included."""
        return self.most_seen

    def reorder_cache(self, beams: Tensor) -> None:
        for layer in self.layers:
            layer.update({name: x.index_select(0, beams) for name, x in layer.items()})
        self.seen = self.seen.index_select(0, beams)

    def make_room(self, model: LanguageModel, T: int) -> None:
        """Let T more tokens fit. Tensors of a layer's state are filled from the front."""
        if self.most_seen + T <= self.capacity:
            return
        self.capacity = 2 * (self.most_seen + T)
        larger = model.new_cache(len(self.seen), self.capacity)
        for layer, room in zip(self.layers, larger.layers, strict=True):
            for name, x in layer.items():
                room[name][tuple(map(slice, x.shape))] = x
        self.layers = larger.layers


class ArchladderForCausalLM(PreTrainedModel, GenerationMixin):
    config_class: type[PretrainedConfig] = ArchladderConfig
    main_input_name = "input_ids"
    _no_split_modules = ["Block"]  # noqa: RUF012
    _is_stateful = True

    def __init__(self, config: ArchladderConfig) -> None:
        super().__init__(config)
        model = LanguageModel(model_from_plain(config.architecture, "config.json's architecture"))
        if not model.head.weight.is_meta:
            model.initialize(torch.initial_seed())
        # One dict of children for both, so that weights keep their names; no child itself.
        object.__setattr__(self, "model", model)
        self._modules = model._modules
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: they are initialized where they are made."""

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embedding

    def get_output_embeddings(self) -> nn.Module:
        return self.model.head

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # forward makes its own

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: GrowingCache | None = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """input_ids: [B, T]; attention_mask: [B, …, T], 0 for pads, of which only the last T are
        read; logits: [B, T, V]. Pads may stand anywhere; what their logits are means nothing.
        """
        B, T = input_ids.shape
        if use_cache is None:
            use_cache = not self.training
        cache = past_key_values
        if cache is None and use_cache:
            cache = GrowingCache(**vars(self.model.new_cache(B, T + ROOM)))
        # Our model takes pads on the right, where they are after all that a token may see.
        order = count = None
        if attention_mask is not None and not attention_mask[:, -T:].all():
            real = attention_mask[:, -T:].bool()
            order, count = real.argsort(dim=1, descending=True, stable=True), real.sum(1)
            input_ids = input_ids.gather(1, order)
        if cache is None:
            x = self.model.features(input_ids)
        else:
            cache.make_room(self.model, T)
            x = self.model.extend_features(input_ids, cache, count)
        if order is not None:
            x = x.gather(1, order.argsort(1)[..., None].expand_as(x))
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.model.head(x[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=logits.shape[-1], **kwargs)
        out = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache)  # type: ignore[arg-type]
        return out.to_tuple() if return_dict is False else out
