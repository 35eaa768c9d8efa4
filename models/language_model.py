"""The language model: embedding, blocks of (mixer, MLP), final norm, untied head.

What is unusual here, and why: where the norms stand is a setting of each kind of layer, by default
on the sublayers' OUTPUT around attention and on their INPUT around a recurrent mixer (and on the
MLP beside it), because that is how Olmo Hybrid was trained; every parameter is drawn from its own
stream, named by the seed and the parameter's name, so that two mixes of one seed start from the
same embedding and head.

Shapes: B batch, T time, d model width, V vocabulary.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._functorch import config as functorch_config
from torch.utils.checkpoint import checkpoint, noop_context_fn

from models.config import OUTPUTS, ModelConfig
from models.decoding import Cache, NewTokens, Step, projection
from models.documents import Documents, causal_mask
from models.head import chunk_rows, token_losses, training_loss
from models.mixers import lookup
from models.parametrization import Scale, scales
from models.pointwise import RMSNorm, step_norm
from models.recomputation import REMAKE, keep_products

FORMS_OF_A_KIND = 16  # compiled: with and without gradients, and lengths of held-out documents
ROWS_KEPT = 4  # lengths of rows whose masks are kept
INIT_STD = 0.02  # Olmo 3: one normal for every matrix and the embedding


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)), no biases (Shazeer 2020)."""

    def __init__(self, d_model: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(d_model, hidden, bias=False)
        self.up_proj = nn.Linear(d_model, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = F.silu(self.gate_proj(x)), self.up_proj(x)
        # In place where no gradient needs it: fresh memory costs more than the arithmetic does.
        return self.down_proj(gate * up if torch.is_grad_enabled() else gate.mul_(up))

    def step_function(self) -> Callable[[Tensor], Tensor]:
        """The same for a step of decoding."""
        read, write = projection(self.gate_proj, self.up_proj), projection(self.down_proj)

        def step(x: Tensor) -> Tensor:
            gate, up = read(x).chunk(2, -1)
            return write(F.silu(gate) * up)

        return step


class SquaredReLU(nn.Module):
    """down(relu(up(x))²), no biases (So et al. 2021, Primer)."""

    def __init__(self, d_model: int, hidden: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(d_model, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.relu(self.up_proj(x)).square())

    def step_function(self) -> Callable[[Tensor], Tensor]:
        """The same for a step of decoding."""
        read, write = projection(self.up_proj), projection(self.down_proj)
        return lambda x: write(F.relu(read(x)).square())


MLP_CLASSES = {"swiglu": SwiGLU, "relu2": SquaredReLU}


class Block(nn.Module):
    """One mixer and one MLP, or one of them, each with a norm and a residual."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        kind = config.kind(index)
        self.norm_output = kind.norm == OUTPUTS
        self.mixer: Any = None
        self.mlp: Any = None
        if config.has_mixer(index):
            self.mixer = lookup(kind.mixer).layer_class()(config, index)
            self.mixer_norm = RMSNorm(config.d_model, config.norm_eps)
        if config.has_mlp(index):
            self.mlp_norm = RMSNorm(config.d_model, config.norm_eps)
            self.mlp = MLP_CLASSES[config.mlp](config.d_model, config.mlp_hidden)

    def forward(self, x: Tensor, documents: Documents | None = None) -> Tensor:
        """x: [B, T, d] -> [B, T, d]."""
        return self._around(x, lambda y: self.mixer(y, documents))

    def extend(
        self, x: Tensor, state: dict[str, Tensor], new: NewTokens, last: bool = False
    ) -> Tensor:
        """The same for new tokens x after what `state` holds; `last`: of each row the last's."""
        if new.step:
            return self.step_function()(x, state, new)
        if last:
            new = replace(new, last_only=True)
        return self._around(
            x, lambda y: self.mixer.extend(y, state, new), new.last if last else None
        )

    def step_function(self) -> Step:
        """`extend` for one token a row, by the mixer's own `step_function` where it has one."""
        outputs, mix, mlp = self.norm_output, None, None
        if self.mixer is not None:
            make = getattr(self.mixer, "step_function", None)
            mix = self.mixer.extend if make is None else make()
            mixer_norm = step_norm(self.mixer_norm.weight, self.mixer_norm.eps)
        if self.mlp is not None:
            mlp = self.mlp.step_function()
            mlp_norm = step_norm(self.mlp_norm.weight, self.mlp_norm.eps)

        def step(x: Tensor, state: dict[str, Tensor], new: NewTokens) -> Tensor:
            if mix is not None:
                y = mix(x if outputs else mixer_norm(x), state, new)
                x = x + (mixer_norm(y) if outputs else y)
            if mlp is not None:
                y = mlp(x if outputs else mlp_norm(x))
                x = x + (mlp_norm(y) if outputs else y)
            return x

        return step

    def new_state(self, batch: int, capacity: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """What decoding keeps of the mixer; nothing for an MLP."""
        return self.mixer.new_state(batch, capacity, dtype) if self.mixer is not None else {}

    def _around(
        self,
        x: Tensor,
        mix: Callable[[Tensor], Tensor],
        pick: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        if self.mixer is not None:
            y = self.mixer_norm(mix(x)) if self.norm_output else mix(self.mixer_norm(x))
            x = x + y if pick is None else pick(x) + pick(y)
        elif pick is not None:
            x = pick(x)
        if self.mlp is not None:
            x = x + (self.mlp_norm(self.mlp(x)) if self.norm_output else self.mlp(self.mlp_norm(x)))
        return x


class LanguageModel(nn.Module):
    """A decoder of any mix. Build it under `torch.device("meta")` to count without memory."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = "false"
        """Compute blocks again in the backward pass: `true`, all of it, less memory and a third
        more time; `selective`, what is neither a matrix product nor attention."""
        self.compiled = False
        """By `compile_blocks`."""
        self.sharded = False
        """A block's weights are gathered for each call of it, so that a step cannot keep them."""
        self.head_compiled = False
        """Compile the head's losses, a chunk of rows at a time."""
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        blocks = [Block(config, i) for i in range(config.n_layers)]
        self.blocks: Any = nn.ModuleList(blocks)
        self.windows = {
            block.mixer.window
            for block, kind in zip(blocks, config.layers, strict=True)
            if block.mixer is not None and lookup(config.kinds[kind].mixer).attends
        }
        self._rows: dict[tuple[int, torch.device], Documents] = {}
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)

    def compile_blocks(self, backend: Any = "inductor") -> None:
        """Compile each block at its first call; blocks of one kind share what is compiled."""
        import torch._dynamo

        # torch counts the forms of all blocks together, and beyond its limit compiles no more.
        kinds = len(set(self.config.layers)) + len(self.windows)
        limit = max(torch._dynamo.config.recompile_limit, FORMS_OF_A_KIND * kinds)
        torch._dynamo.config.recompile_limit = limit
        for block in self.blocks:
            block.compile(dynamic=False, backend=backend)
        self.compiled = True

    def features(self, tokens: Tensor, documents: Documents | None = None) -> Tensor:
        """tokens: [B, T] -> what the head reads, [B, T, d]; `documents` are kept apart."""
        x = self.embedding(tokens)
        T = tokens.shape[1]
        documents = documents or self._whole_rows(T, x.device)
        for window in self.windows:
            # Made here, once, and outside of what is compiled.
            causal_mask(T, window, x.device, documents)
        if self.compiled and documents.cu_seqlens is not None:
            # Its length is the number of documents: one compiled block serves any.
            torch._dynamo.maybe_mark_dynamic(documents.cu_seqlens, 0)
        selective = self.recompute == "selective"
        again = self.recompute == "true" or (selective and not self.compiled)
        # torch.compile decides itself what to keep: it is told here, where it compiles.
        told = selective and self.compiled
        with functorch_config.patch(REMAKE) if told else contextlib.nullcontext():
            for block in self.blocks:
                if again and torch.is_grad_enabled():
                    contexts = keep_products if selective else noop_context_fn
                    x = checkpoint(block, x, documents, use_reentrant=False, context_fn=contexts)
                else:
                    x = block(x, documents)
        return self.norm(x)

    def _whole_rows(self, T: int, device: torch.device) -> Documents:
        """Rows of one document each: their windows' masks are the same for every batch."""
        key = T, device
        if key not in self._rows:
            if len(self._rows) == ROWS_KEPT:
                self._rows.clear()
            self._rows[key] = Documents()
            with torch.inference_mode(False):
                for window in self.windows:
                    causal_mask(T, window, device, self._rows[key])
        return self._rows[key]

    def forward(self, tokens: Tensor, documents: Documents | None = None) -> Tensor:
        """tokens: [B, T] -> logits [B, T, V]."""
        return self.head(self.features(tokens, documents))

    def new_cache(self, batch: int, capacity: int, dtype: torch.dtype | None = None) -> Cache:
        """An empty cache for `batch` rows of up to `capacity` tokens.

        dtype: of keys, values and convolution inputs, the weights' unless given; states are
        float32.
        """
        dtype = dtype or self.head.weight.dtype
        layers = [block.new_state(batch, capacity, dtype) for block in self.blocks]
        seen = torch.zeros(batch, dtype=torch.long, device=self.head.weight.device)
        return Cache(layers, seen, capacity)

    def extend(self, tokens: Tensor, cache: Cache, count: Tensor | None = None) -> Tensor:
        """Read tokens [B, T] after what the cache holds; logits [B, V] after each row's last.

        count: [B] how many of the T are no padding (on the right), at least 1; None: all. A
        whole prompt, a part of one, and a single step of decoding are all this.
        """
        return self.head(self._read(tokens, cache, count, last=True))[:, 0]

    def extend_features(self, tokens: Tensor, cache: Cache, count: Tensor | None = None) -> Tensor:
        """As `extend`, but what the head reads of every token, [B, T, d]; a count may be 0."""
        return self._read(tokens, cache, count)

    def step_function(self) -> Callable[[Tensor, list[dict[str, Tensor]], NewTokens], Tensor]:
        """A step of decoding: one token a row, [B, 1], and the layers of a cache, which it writes
        into -> what the head reads, [B, 1, d]. It keeps the weights that it was made with."""
        embedding, norm = self.embedding.weight, step_norm(self.norm.weight, self.norm.eps)
        steps = [block.step_function() for block in self.blocks]

        def read(tokens: Tensor, layers: list[dict[str, Tensor]], new: NewTokens) -> Tensor:
            x = F.embedding(tokens, embedding)
            for step, state in zip(steps, layers, strict=True):
                x = step(x, state, new)
            return norm(x)

        return read

    def _read(
        self, tokens: Tensor, cache: Cache, count: Tensor | None, last: bool = False
    ) -> Tensor:
        """What the head reads of new tokens, [B, T, d], or of each row's last, [B, 1, d]."""
        new = cache.take(tokens.shape[0], tokens.shape[1], count)
        if new.step and not self.sharded:
            if cache.step is None:
                cache.step = self.step_function()
            x = cache.step(tokens, cache.layers, new)
        else:
            x = self.embedding(tokens)
            for i, (block, state) in enumerate(zip(self.blocks, cache.layers, strict=True), 1):
                # The logits after a prompt need of its last layer the last token alone.
                x = block.extend(x, state, new, last and i == len(self.blocks))
            x = self.norm(x)
        cache.took(new, tokens.shape[1])
        return x

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        documents: Documents | None = None,
        *,
        weight: float,
        z_loss: float,
    ) -> tuple[Tensor, Tensor]:
        """What training descends: weight · Σ (cross-entropy + z_loss · squared log-partition).

        The z-loss is Chowdhery et al.'s (2022, section 5). Returns it, a scalar, and every
        prediction's cross-entropy, float32 [B, T], which has no gradient.
        """
        x = self.features(tokens, documents).flatten(0, 1)
        loss, nll = training_loss(
            x, self.head.weight, targets.flatten(), weight, z_loss, self.head_compiled
        )
        return loss, nll.view(targets.shape)

    def losses(
        self, tokens: Tensor, targets: Tensor, documents: Documents | None = None
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy and squared log-partition of each prediction, float32, [B, T].

        For evaluation: with a gradient, all logits would be kept for it.
        """
        x = self.features(tokens, documents).flatten(0, 1)
        nll, z2 = token_losses(x, self.head.weight, targets.flatten(), self.head_compiled)
        return nll.view(targets.shape), z2.view(targets.shape)

    def choices(
        self, tokens: Tensor, at: Tensor, candidates: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Predict tokens [B, T] at positions `at` [B, Q], of at least 1, from those before each.

        Returns the nats of the token there, float32, and the likeliest id among `candidates` [c]
        (None: the vocabulary), both [B, Q].
        """
        x = self.features(tokens)
        x = x.gather(1, (at - 1).unsqueeze(-1).expand(-1, -1, x.shape[-1])).flatten(0, 1)
        y = tokens.gather(1, at).flatten()
        step = chunk_rows(x, self.config.vocab_size)
        nats, best = [], []
        for xs, ys in zip(x.split(step), y.split(step), strict=True):
            logits = self.head(xs).float()
            nats.append(F.cross_entropy(logits, ys, reduction="none"))
            if candidates is None:
                best.append(logits.argmax(-1))
                continue
            # Logits in bf16 are often equal among few candidates.
            with torch.autocast(xs.device.type, enabled=False):
                few = xs.float() @ self.head.weight[candidates].float().mT
            best.append(candidates[few.argmax(-1)])
        return torch.cat(nats).view(at.shape), torch.cat(best).view(at.shape)

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Draw every parameter from its own stream: a function of seed and name alone."""
        scale = scales(self.config)
        for name, parameter in self.named_parameters():
            digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
            parameter.copy_(self._initial(name, parameter.shape, generator, scale(name)))

    def _initial(
        self, name: str, shape: torch.Size, generator: torch.Generator, scale: Scale
    ) -> Tensor:
        """Initial value of one parameter (float32, CPU): its mixer's word, or its role's."""
        path = name.split(".")
        if path[0] == "blocks" and path[2] == "mixer":
            value = self.blocks[int(path[1])].mixer.initial(".".join(path[3:]), shape, generator)
            if value is not None:
                return value * scale.value
        if len(shape) == 1:
            value = torch.zeros(shape) if "bias" in path[-1] else torch.ones(shape)
            return value * scale.value
        std = INIT_STD
        if self.config.init == "fan_in":
            std = 1.0 if name == "embedding.weight" else shape[-1] ** -0.5
        return torch.randn(shape, generator=generator) * (std * scale.std)
