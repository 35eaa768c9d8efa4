"""python -m models.roofline: the time that a step takes at the limits of a GPU. A model, no torch.

Every part of a step moves bytes and computes FLOPs; it takes at least the longer of bytes over the
memory's bandwidth and FLOPs over the peak (Williams et al. 2009, "Roofline"). The sum over parts is
a step in which every kernel reaches a limit and nothing else costs time, so its MFU is the most
that this implementation could have. What a kernel reaches of its limit is not in it.

Bytes are of what the code does: bf16 products over float32 weights, a float32 residual stream,
norms and pointwise functions fused as the compiler does, attention and recurrences without scores
in memory, the head some rows at a time with its gradients made in the forward pass.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from models.command import ended, parse, setting, tokens_of
from models.config import MLPS, ModelConfig
from models.cost import (
    LOGITS_AT_ONCE,
    flops_per_token,
    parameters,
    training_memory,
)
from models.devices import GPUS, Gpu
from models.errors import SettingError, one_of
from models.format import count as short_count
from models.format import percent, write_table
from models.mixer import FP32_BYTES, Mixer
from models.mixers import lookup
from models.named import GROUPS, named

ELEMENT_BYTES = 2
PARTS = ("embedding", "projections", "operator", "mlp", "elementwise", "head", "optimizer", "sums")
BATCH_TOKENS = 2**19
WEIGHT_PASS = 18
"""Bytes a weight of a product and pass: read in float32 and written in bf16, read for the output
and for the input's gradient, its own gradient written in bf16, and from that in float32."""
ACCUMULATE = 12
"""Bytes a weight of each further pass: gradients read, added, written."""
ADAMW = 40
"""Bytes a parameter and step: gradients read for their norm, read and written to be clipped; four
numbers read and three written."""
OPERATOR_PASSES = 1.5, 2.5
"""How often a byte kept inside a mixer, its input aside, is passed over by what is no projection,
forward and backward. A tensor between two such kernels 2 and 3 times (written and read; read again,
its gradient written and read), one beside a projection 1 and 1 to 2: in all 3.5, 3.9 and 3.6 for
the tensors of attn, gdn and mamba2."""
NORM_BYTES = 12, 16
"""A token, sublayer and width: the residual read and written in float32, with a norm's input read
and output written in bf16; backward, both gradients and the residual."""
MLP_PASSES = {"swiglu": (3, 5), "relu2": (2, 3), "none": (0, 0)}
"""Bf16 numbers a hidden unit that the MLP's own pointwise function reads and writes."""
HEAD_BYTES = 20
"""A logit: written in bf16, read for the log-partition and for the gradient; that written in
float32, its target's subtracted, read, written in bf16, and read by two products."""
HEAD_CHUNK = 16
"""A weight of the head and chunk of rows: read by two products, its gradient written, added to the
sum in float32."""
RECOMPUTED = {"attends": 3.5, "recurrent": 4.0}
"""Forward FLOPs of operators that training does: their backward passes make scores, or states and
systems, again. The model's FLOPs count 3."""


@dataclass(frozen=True)
class Part:
    """What one part of a step moves and computes on one device."""

    bytes: float
    flops: float = 0.0

    def seconds(self, bandwidth: float, peak: float) -> float:
        return max(self.bytes / bandwidth, self.flops / peak)


@dataclass(frozen=True)
class Step:
    """One training step on one device of `gpus`, at the limits of each part."""

    tokens: float
    """Of this device."""
    rows: int
    """Sequences a pass."""
    model_flops: float
    """By models.cost, of this device's tokens."""
    parts: Mapping[str, Part]
    seconds: Mapping[str, float]
    peak_flops: float

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    @property
    def mfu(self) -> float:
        """Model FLOPs utilization that is possible."""
        return self.model_flops / self.total / self.peak_flops


def products(mixer: Mixer, config: ModelConfig, layer: int) -> list[tuple[int, int]]:
    """(inputs, outputs) of each of a mixer's projections."""
    if mixer.products is not None:
        return list(mixer.products(config, layer))
    return [(config.d_model, mixer.parameters(config, layer) // config.d_model)]


def step_parts(
    config: ModelConfig,
    context: int,
    tokens: float,
    rows: int,
    *,
    gpus: int = 1,
    recompute: bool = False,
) -> dict[str, Part]:
    """Bytes and FLOPs of a step of so many tokens a device, in passes of `rows` sequences."""
    d, V, b = config.d_model, config.vocab_size, ELEMENT_BYTES
    passes = max(1.0, tokens / (rows * context))
    forwards = 2 if recompute else 1
    N_total = parameters(config)[1]
    sums = 12 * (passes - 1)

    def of(shapes: list[tuple[int, int]]) -> Part:
        """Matrix products: forward, and backward to the input and to the weights."""
        weights = sum(i * o for i, o in shapes)
        moved = (2 + forwards) * b * sum(i + o for i, o in shapes)
        a_pass = WEIGHT_PASS + b * (forwards - 1)
        return Part(
            tokens * moved + weights * (passes * a_pass + ACCUMULATE * (passes - 1)),
            tokens * 2 * (2 + forwards) * weights,
        )

    mixing: list[tuple[int, int]] = []
    feeding: list[tuple[int, int]] = []
    operator_bytes = operator_flops = elementwise = 0.0
    forward, backward = OPERATOR_PASSES
    norm = NORM_BYTES[0] * forwards + NORM_BYTES[1]
    for layer in range(config.n_layers):
        if config.has_mixer(layer):
            mixer = lookup(config.kind(layer).mixer)
            own = products(mixer, config, layer)
            mixing += own
            kept = mixer.activation_bytes(config, layer, context, b) - d * b
            operator_bytes += (forward * forwards + backward) * max(0.0, kept)
            inside = mixer.flops(config, layer, context) - 2 * sum(i * o for i, o in own)
            done = RECOMPUTED["attends" if mixer.attends else "recurrent"] + forwards - 1
            operator_flops += done * max(0.0, inside)
            elementwise += norm * d
        if config.has_mlp(layer):
            matrices = MLPS[config.mlp]
            feeding += [(d, config.mlp_hidden)] * (matrices - 1) + [(config.mlp_hidden, d)]
            of_one, back = MLP_PASSES[config.mlp]
            elementwise += norm * d + (of_one * forwards + back) * b * config.mlp_hidden
    elementwise += norm * d  # the last norm
    chunk = 1 << ((LOGITS_AT_ONCE // V).bit_length() - 1)
    return {
        # A row read, written, its gradient read and added; the table's gradient whole, each pass.
        "embedding": Part(tokens * 5 * FP32_BYTES * d + V * d * (FP32_BYTES * passes + sums)),
        "projections": of(mixing),
        "operator": Part(tokens * operator_bytes, tokens * operator_flops),
        "mlp": of(feeding),
        "elementwise": Part(tokens * elementwise),
        "head": Part(
            tokens * (HEAD_BYTES * V + HEAD_CHUNK * V * d / chunk + 4 * b * d) + V * d * sums,
            tokens * 6 * V * d,
        ),
        "optimizer": Part(float(ADAMW * N_total)),
        # A ring's all-reduce: each device sends all gradients but its own share, twice.
        "sums": Part(2 * FP32_BYTES * N_total * (gpus - 1) / gpus),
    }


def step(
    config: ModelConfig,
    context: int,
    gpu: Gpu,
    *,
    batch_tokens: float = BATCH_TOKENS,
    gpus: int = 1,
    recompute: bool = False,
    rows: int | None = None,
) -> Step:
    """A step of a batch that `gpus` share, in passes of `rows` sequences; None: the largest that a
    device's memory holds.

    Raises SettingError where the GPU's bandwidth, memory or link is not known.
    """
    if gpu.bandwidth is None or gpu.memory_bytes is None or gpu.link is None:
        raise SettingError("the bandwidth and memory of this GPU are not known.")
    tokens = batch_tokens / gpus
    memory = training_memory(
        config,
        context,
        recompute="true" if recompute else "false",
        parallel="ddp" if gpus > 1 else None,
    )
    if rows is None:
        rows = max(1, min(memory.rows_in(gpu.memory_bytes), round(tokens / context)))
    parts = step_parts(config, context, tokens, rows, gpus=gpus, recompute=recompute)
    seconds = {
        name: part.seconds(gpu.link if name == "sums" else gpu.bandwidth, gpu.peak_flops)
        for name, part in parts.items()
    }
    flops = tokens * flops_per_token(config, context)
    return Step(tokens, rows, flops, parts, seconds, gpu.peak_flops)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The shortest time that a training step could take on a GPU: a model, not a measurement.

    Columns
      rows        sequences of a pass, as many as the GPU's memory holds by count
      embedding … of the step's time, the share of: embedding; projections of the mixers; their
                  operator (attention or recurrence) with its norms, gates and convolution; mlp;
                  elementwise, the norms and additions around them; head, with the loss; optimizer;
                  sums, of gradients over several GPUs, none of it behind the backward pass
      tokens/s    of one GPU
      MFU         that is possible: every part at its limit, bytes over bandwidth or FLOPs over peak

    Assumed: bf16 products over float32 weights, AdamW, fused pointwise functions, kernels that
    hold scores and states on chip, vendors' peaks and bandwidths in full. format=json has the
    bytes, FLOPs and seconds of every part.
    """

    EXAMPLES = (
        "mix=transformer,gdn3_attn1 size=60m,1b gpu=H100 context=8k",
        "mix=transformer size=1b context=2k,8k,32k gpus=8 batch=1m format=json",
    )
    mix: tuple[str, ...] = setting((), "names in conf/mix, all unless given", shape="A,B")
    size: tuple[str, ...] = setting((), "names in conf/size, all unless given", shape="A,B")
    gpu: str = setting("H100", "a kind in models/devices.py")
    gpus: int = setting(1, "that train a run together, whose gradients are summed (DDP)", least=1)
    context: tuple[str, ...] = setting(
        (), "tokens of a sequence, the size's own unless given; 8k is 8192", shape="2k,8k"
    )
    batch: str = setting("512k", "tokens a step of all GPUs; 512k is 524288, 1m 1048576")
    recompute: bool = setting(False, "blocks computed again in the backward pass")
    protocol: str = setting("controlled", "a name in conf/protocol")
    changes: Mapping[str, str] = setting(
        {}, "any setting of mix, size and protocol, as for python -m models",
        prefixes=tuple(f"{group}." for group in GROUPS), shape="VALUE",
    )  # fmt: skip
    format: str = setting(
        "table", "how it is printed", choices=("table", "csv", "markdown", "json")
    )
    config_dir: Path | None = setting(None, "a folder with files of your own")


def main(arguments: list[str]) -> int:
    """Print the table; 2 where a setting or a row cannot be, with a sentence on stderr."""
    return ended(lambda: _print(parse(Settings, arguments, "python -m models.roofline")))


def _print(asked: Settings) -> int:
    if asked.gpu not in GPUS:
        raise one_of("gpu", asked.gpu, tuple(GPUS))
    batch = tokens_of("batch", asked.batch)
    rows, problems = [], []
    contexts: list[int | None] = [tokens_of("context", text) for text in asked.context]
    for context in contexts or [None]:
        for one in named(
            asked.mix, asked.size, asked.protocol, context, asked.changes, asked.config_dir
        ):
            length = one.conditions.context
            try:
                config = one.matched().config
            except SettingError as error:
                problems.append(str(error))
                continue
            found = step(
                config, length, GPUS[asked.gpu],
                batch_tokens=batch, gpus=asked.gpus, recompute=asked.recompute,
            )  # fmt: skip
            rows.append((one.mix.name, one.size.name, length, found))
    for problem in dict.fromkeys(problems):
        print(f"error: {problem}", file=sys.stderr)
    if asked.format == "json":
        print(json.dumps([_plain(asked, *row) for row in rows], indent=1, ensure_ascii=False))
    elif rows:
        names = ["mix", "size", "context", "rows", *PARTS, "tokens/s", "MFU"]
        print(write_table(names, (_cells(*row) for row in rows), asked.format, [0, 1]), end="")
    if asked.format in ("table", "markdown"):
        print(f"\nA model of one {asked.gpu} at its limits, not a measurement; shares of a step's "
              "time. --help says what is assumed.")  # fmt: skip
    return 2 if problems else 0


def _cells(mix: str, size: str, context: int, found: Step) -> list[str]:
    shares = [percent(found.seconds[part] / found.total, ".0f") for part in PARTS]
    rate = short_count(found.tokens / found.total, 3)
    head = [mix, size, f"{context:,}", str(found.rows)]
    return [*head, *shares, rate, percent(found.mfu, ".0f")]


def _plain(asked: Settings, mix: str, size: str, context: int, found: Step) -> dict[str, object]:
    return {
        "mix": mix, "size": size, "context": context, "gpu": asked.gpu, "gpus": asked.gpus,
        "model": "the limits of every part, not a measurement", "rows": found.rows,
        "tokens": found.tokens, "seconds": found.total,
        "tokens_per_second": found.tokens / found.total, "mfu": found.mfu,
        "parts": {
            name: {**asdict(part), "seconds": found.seconds[name]}
            for name, part in found.parts.items()
        },
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
