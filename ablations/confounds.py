"""What two mixes of a ladder differ in beside the mix: confounds by name, with their sizes.

A protocol brings them along: Olmo Hybrid's gives hybrids 16 to 41 % more parameters, and its
sliding windows follow the layer's index and so fall on other attention layers in every mix
(Merrill et al. 2026, section 4.1, and the ladder code). Equal parameters have their price too, a
narrower MLP. Everything is read off specs and counts as plain values, so that a plan can show
before a run what a report repeats after it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

EQUAL = 0.005
"""Relative difference that counts as equal: the controlled protocol's tolerance on N."""
NOTABLE = 0.02
"""Relative difference from which a width is named."""
LARGE = 0.05
"""Relative difference in N from which it is called large: some 10 % in tokens, by the law below."""
NORM_ON_OUTPUT = ("attn",)
"""Mixers whose layer has its norms on the sublayers' outputs; the others' stand before them."""
PRE_NORM = ("gdn", "mamba2")
# Table 18 of Merrill et al. 2026, the transformer's law with exponents fixed at 0.22, fitted on
# models of 57M to 1,279M parameters: loss = E + A / N^a + B / D^a, in nats per token.
LAW_A, LAW_B, LAW_EXPONENT = 66.63, 94.85, 0.22
LAW_RANGE = (50e6, 1.5e9)


@dataclass(frozen=True)
class Facts:
    """What is compared of one run: its spec as a plain nested dict, and its counts."""

    spec: Mapping[str, Any]
    N: float
    flops_per_token: float

    @property
    def mix(self) -> str:
        return str(self.get("mix.name"))

    @property
    def size(self) -> str:
        return str(self.get("size.name"))

    def get(self, field: str) -> Any:
        """A field of the spec by its dotted name; None where it was not recorded."""
        value: Any = self.spec
        for key in field.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value


@dataclass(frozen=True)
class Confound:
    """One thing that differs between a mix and the baseline of its size."""

    name: str
    baseline: str
    mix: str
    """Empty for what concerns every mix of the sweep alike."""
    sizes: tuple[str, ...]
    """Where it was found, smallest first."""
    magnitudes: tuple[float, ...]
    """A size each: (mix - baseline) / baseline, or the difference of two shares of layers."""
    short: str
    """How much, for a caption."""
    what: str
    """What differs, from what to what, and where."""
    severity: str
    """What it does to a comparison."""
    fields: tuple[str, ...] = ()
    """Fields of the spec that it stands for."""

    def __str__(self) -> str:
        return f"{self.name}: {self.short}"


Pair = tuple[Facts, Facts]
Rule = Callable[[Sequence[Pair]], "Confound | None"]


def baseline_among(mixes: Iterable[str]) -> str:
    """The mix that others are compared with where none is named: the transformer, else the first.

    Raises ValueError where there is no mix.
    """
    there = list(dict.fromkeys(mixes))
    if not there:
        raise ValueError("no mix to compare")
    return "transformer" if "transformer" in there else there[0]


def confounds(runs: Iterable[Facts], baseline: str, mix: str) -> list[Confound]:
    """The confounds of a mix against a baseline, over every size that both have.

    One run of a mix and size stands for its seeds. What a spec does not record is left out.
    """
    by_cell: dict[tuple[str, str], Facts] = {}
    for run in runs:
        by_cell.setdefault((run.mix, run.size), run)
    pairs = [
        (ours, by_cell[mix, size])
        for (name, size), ours in by_cell.items()
        if name == baseline and (mix, size) in by_cell
    ]
    pairs.sort(key=lambda pair: pair[0].N)
    found = (rule(pairs) for rule in RULES) if pairs else ()
    return [one for one in found if one is not None]


def conditions(runs: Iterable[Facts]) -> list[Confound]:
    """What concerns every mix alike and bends the ladder itself: repeated text, sizes that differ
    in more than their width and depth."""
    by_size: dict[str, Facts] = {}
    for run in runs:
        by_size.setdefault(run.size, run)
    ladder = sorted(by_size.values(), key=lambda run: run.N)
    return [one for one in (_epochs(ladder), *_breaks(ladder)) if one is not None]


def _relative(
    name: str,
    what: str,
    value: Callable[[Facts], float | None],
    severity: Callable[[Sequence[Pair], Sequence[float]], str],
    threshold: float = EQUAL,
    fields: tuple[str, ...] = (),
) -> Rule:
    """A rule for a number of each run that should be the same."""

    def rule(pairs: Sequence[Pair]) -> Confound | None:
        found, off = [], []
        for pair in pairs:
            ours, theirs = (value(one) for one in pair)
            if ours and theirs and abs(theirs / ours - 1) > threshold:
                found.append(pair)
                off.append(theirs / ours - 1)
        if not found:
            return None
        sizes, everywhere = tuple(ours.size for ours, _ in found), len(found) == len(pairs)
        told = f"{_span(off)} at size {_places(sizes, everywhere)}"
        return Confound(
            name, found[0][0].mix, found[0][1].mix, sizes, tuple(off),
            _span(off) if everywhere else told, f"{what}: {told}", severity(found, off), fields,
        )  # fmt: skip

    return rule


def _span(values: Sequence[float]) -> str:
    ends = dict.fromkeys(f"{100 * end:+.1f}" for end in (min(values), max(values)))
    return f"{' to '.join(ends)} %"


def _places(sizes: Sequence[str], everywhere: bool) -> str:
    if everywhere and len(sizes) > 3:
        return f"{sizes[0]} to {sizes[-1]}"
    return ", ".join(sizes)


def tokens_worth(N: float, N_other: float, tokens: float) -> float | None:
    """Times the tokens that N parameters need for the loss that N_other reach on `tokens`.

    By the published law of the transformer; None outside the range it was fitted on, or where no
    number of tokens is enough.
    """
    if not LAW_RANGE[0] <= N <= LAW_RANGE[1]:
        return None
    of_tokens = LAW_B * tokens**-LAW_EXPONENT
    left = of_tokens - LAW_A * (N**-LAW_EXPONENT - N_other**-LAW_EXPONENT)
    return (of_tokens / left) ** (1 / LAW_EXPONENT) if left > 0 else None


def _worth(pairs: Sequence[Pair], off: Sequence[float]) -> str:
    """What the difference in parameters is worth at the runs' end."""
    size = "large" if max(map(abs, off)) > LARGE else "small"
    factors = [
        factor
        for ours, theirs in pairs
        if (tokens := ours.get("recipe.tokens"))
        and (factor := tokens_worth(ours.N, theirs.N, tokens))
    ]
    if not factors:
        return f"{size}: more parameters lower the loss by themselves"
    ends = dict.fromkeys(f"{end:.2g}" for end in (min(factors), max(factors)))
    return (
        f"{size}: size by size worth {' to '.join(ends)} times the tokens at the runs' end, by "
        "Olmo Hybrid's law of the transformer; a law in N corrects for it"
    )


def _says(text: str) -> Callable[[Sequence[Pair], Sequence[float]], str]:
    return lambda _pairs, _off: text


def _tokens_per_parameter(run: Facts) -> float | None:
    tokens = run.get("recipe.tokens")
    return tokens / run.N if tokens else None


def _windowed(run: Facts) -> tuple[list[int], int] | None:
    """Indexes of the attention layers with a window shorter than the context, and how many
    attention layers there are."""
    layers, windows = run.get("model.layers"), run.get("model.windows")
    context = run.get("recipe.context")
    if not layers or windows is None or not context:
        return None
    attention = [i for i, mixer in enumerate(layers) if mixer == "attn"]
    return [i for i in attention if 0 < windows[i] < context], len(attention)


def _windows(pairs: Sequence[Pair]) -> Confound | None:
    """Sliding windows by layer index fall on a share of attention layers that the mix decides."""
    sizes, off, told = [], [], None
    for ours, theirs in pairs:
        before, after = _windowed(ours), _windowed(theirs)
        if before is None or after is None:
            continue
        shares = [len(cut) / attn if attn else 0.0 for cut, attn in (before, after)]
        if shares[0] != shares[1]:
            sizes.append(ours.size)
            off.append(shares[1] - shares[0])
            told = (ours, theirs, before, after)
    if told is None:
        return None
    ours, theirs, before, after = told  # the largest size, whose layers are named
    width = max(max(run.get("model.windows")) for run in (ours, theirs))
    words = [f"{len(cut)} of {attn}" if attn else "no attention" for cut, attn in (before, after)]
    where = f", layers {', '.join(map(str, after[0]))}" if after[0] else ""
    return Confound(
        "windows", ours.mix, theirs.mix, tuple(sizes), tuple(off), " → ".join(words),
        f"attention layers with a window of {width:,} tokens: {' → '.join(words)}{where} at size "
        f"{ours.size}",
        "attention sees less of the context where windows fall, and costs less there",
        ("model.windows",),
    )  # fmt: skip


def _norms(pairs: Sequence[Pair]) -> Confound | None:
    """Recurrent layers have their norms before the sublayers, attention layers behind them."""
    sizes, off, told = [], [], None
    for ours, theirs in pairs:
        layers = [run.get("model.layers") or [] for run in (ours, theirs)]
        known = (*NORM_ON_OUTPUT, *PRE_NORM)
        if not all(layers) or any(mixer not in known for own in layers for mixer in own):
            continue
        counts = [sum(mixer in PRE_NORM for mixer in own) for own in layers]
        shares = [n / len(own) for n, own in zip(counts, layers, strict=True)]
        if shares[0] != shares[1]:
            sizes.append(ours.size)
            off.append(shares[1] - shares[0])
            told = [f"{n} of {len(own)}" for n, own in zip(counts, layers, strict=True)]
    if told is None:
        return None
    ours, theirs = pairs[0]
    return Confound(
        "norm placement", ours.mix, theirs.mix, tuple(sizes), tuple(off), " → ".join(told),
        f"layers with norms before the sublayers, not behind: {' → '.join(told)} at size "
        f"{sizes[-1]}",
        "comes with the recurrent layers, as published; no run here takes the two apart",
    )  # fmt: skip


def _key_width(pairs: Sequence[Pair]) -> Confound | None:
    """Key heads of Gated DeltaNet against the rule's 0.75 of attention's, before rounding up."""
    sizes, off, told = [], [], []
    for ours, theirs in pairs:
        key, d_model, heads = (
            theirs.get(f"model.{name}") for name in ("gdn_key_dim", "d_model", "n_heads")
        )
        has = [("gdn" in (run.get("model.layers") or [])) for run in (ours, theirs)]
        if has == [False, True] and key and d_model and heads:
            nominal = 0.75 * d_model / heads
            sizes.append(ours.size)
            off.append(key / nominal - 1)
            told.append(f"{key} for {nominal:g} ({ours.size})")
    if not any(abs(excess) > NOTABLE for excess in off):
        return None
    ours, theirs = pairs[0]
    ends = list(dict.fromkeys((told[0], told[-1])))
    even = max(off) - min(off) <= NOTABLE
    return Confound(
        "key width", ours.mix, theirs.mix, tuple(sizes), tuple(off), _span(off),
        f"gdn key heads wider than 0.75 of attention's: {', '.join(ends)}",
        "the same at every size" if even
        else "the state shrinks against the model from size to size: part of any trend in N",
    )  # fmt: skip


RULES: tuple[Rule, ...] = (
    _relative("parameters", "N", lambda run: run.N, _worth),
    _relative(
        "FLOPs", "training FLOPs per token", lambda run: run.flops_per_token,
        _says("cost, not loss: savings of tokens are not savings of compute"),
    ),
    _relative(
        "tokens per parameter", "tokens per parameter", _tokens_per_parameter,
        _says("the same tokens are another Chinchilla multiple of the mix's own N"),
    ),
    _windows,
    _norms,
    _relative(
        "model width", "d_model", lambda run: run.get("model.d_model"),
        _says("moved by matching, and with it the embeddings and the head"), 0.0,
        ("model.d_model", "model.n_heads", "model.n_kv_heads"),
    ),
    _relative(
        "MLP width", "mlp_hidden", lambda run: run.get("model.mlp_hidden"),
        _says("moved by matching: equality is made with the MLP"), NOTABLE,
        ("model.mlp_hidden",),
    ),
    _key_width,
)  # fmt: skip


def _epochs(ladder: Sequence[Facts]) -> Confound | None:
    """Runs that read their corpus more than once, the same for every mix."""
    read = []
    for run in ladder:
        tokens, there = run.get("recipe.tokens"), run.get("corpus.train_tokens")
        if tokens and there and tokens > there:
            read.append((run.size, tokens / there))
    if not read:
        return None
    words = f"up to {max(epochs for _, epochs in read):.1f} epochs"
    return Confound(
        "epochs", "", "", tuple(size for size, _ in read), tuple(n for _, n in read), words,
        f"the corpus is repeated, {words} at size {', '.join(size for size, _ in read)}",
        "the law has no term for repeated text",
    )  # fmt: skip


def _breaks(ladder: Sequence[Facts]) -> Iterable[Confound]:
    """What one law in N and D takes for granted: the same text, tokens, context and budgets."""
    for name, field, severity in (
        ("corpus", "data.name", "losses over other text and tokens do not lie on one law"),
        ("vocabulary", "model.vocab_size", "nats per token of two tokenizers do not compare"),
        ("context", "size.context", "longer contexts lower the loss by themselves"),
        ("init", "size.init", "sizes of two recipes do not lie on one law"),
        ("lr_multiplier", "size.lr_multiplier", "the learning rate leaves its rule at some sizes"),
    ):
        values: dict[str, list[str]] = {}
        for run in ladder:
            if (value := run.get(field)) is not None:
                values.setdefault(str(value), []).append(run.size)
        if len(values) > 1:
            told = "; ".join(f"{value} at {', '.join(sizes)}" for value, sizes in values.items())
            yield Confound(
                name, "", "", tuple(run.size for run in ladder), (), told,
                f"{name} differs by size: {told}", severity,
            )  # fmt: skip
