"""What two mixes of a ladder differ in beside the mix: confounds by name, with their sizes.

A protocol brings them along: Olmo Hybrid's gives hybrids 16 to 41 % more parameters, and its
sliding windows follow the layer's index and so fall on other attention layers in every mix
(Merrill et al. 2026, section 4.1, and the ladder code). Equal parameters have their price too, a
narrower MLP. Everything is read off specs and counts as plain values, so that a plan can show
before a run what a report repeats after it.
"""

from collections.abc import Callable, Iterable, Sequence

from models.config import INPUTS, MLP
from models.confound import EQUAL, NOTABLE, Confound, Facts, Pair, Rule, differs, places, span
from models.mixer import attribute
from models.mixers import loaded

LARGE = 0.05
"""Relative difference in N from which it is called large: some 10 % in tokens, by the law below."""
# Table 18 of Merrill et al. 2026, the transformer's law with exponents fixed at 0.22, fitted on
# models of 57M to 1,279M parameters: loss = E + A / N^a + B / D^a, in nats per token.
LAW_A, LAW_B, LAW_EXPONENT = 66.63, 94.85, 0.22
LAW_RANGE = (50e6, 1.5e9)


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
        (of_baseline, by_cell[mix, size])
        for (name, size), of_baseline in by_cell.items()
        if name == baseline and (mix, size) in by_cell
    ]
    pairs.sort(key=lambda pair: pair[0].N)
    rules = (*BEFORE, *_of_mixers(pairs), *RULES) if pairs else ()
    found = (rule(pairs) for rule in rules)
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
            of_baseline, of_mix = (value(one) for one in pair)
            if of_baseline and of_mix and abs(of_mix / of_baseline - 1) > threshold:
                found.append(pair)
                off.append(of_mix / of_baseline - 1)
        if not found:
            return None
        sizes = tuple(of_baseline.size for of_baseline, _ in found)
        everywhere = len(found) == len(pairs)
        by_size = f"{span(off)} at size {places(sizes, everywhere)}"
        return Confound(
            name, found[0][0].mix, found[0][1].mix, sizes, tuple(off),
            span(off) if everywhere else by_size, f"{what}: {by_size}", severity(found, off),
            fields,
        )  # fmt: skip

    return rule


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
        for of_baseline, of_mix in pairs
        if (tokens := of_baseline.get("recipe.tokens"))
        and (factor := tokens_worth(of_baseline.N, of_mix.N, tokens))
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


def _norms(pairs: Sequence[Pair]) -> Confound | None:
    """Where the norms stand is each mixer's own, unless a mix says otherwise."""
    sizes, off = [], []
    counts: dict[str, list[str]] = {}
    for of_baseline, of_mix in pairs:
        kinds = [
            [kind for kind in run.layers if kind.get("mixer") != MLP]
            for run in (of_baseline, of_mix)
        ]
        if not all(kinds):
            continue
        before = [sum(kind.get("norm") == INPUTS for kind in layers) for layers in kinds]
        shares = [n / len(layers) for n, layers in zip(before, kinds, strict=True)]
        places_of = [{kind.get("mixer"): kind.get("norm") for kind in layers} for layers in kinds]
        moved = any(
            places_of[0][mixer] != places_of[1][mixer]
            for mixer in places_of[0].keys() & places_of[1].keys()
        )
        if shares[0] != shares[1] or moved:
            sizes.append(of_baseline.size)
            off.append(shares[1] - shares[0])
            shown = [f"{n} of {len(layers)}" for n, layers in zip(before, kinds, strict=True)]
            counts.setdefault(" → ".join(shown), []).append(of_baseline.size)
    if not counts:
        return None
    everywhere = len(sizes) == len(pairs)
    of_baseline, of_mix = pairs[0]
    return Confound(
        "norm placement", of_baseline.mix, of_mix.mix, tuple(sizes), tuple(off),
        next(reversed(counts)),
        "layers with norms before the sublayers, not behind: "
        + ", ".join(
            f"{change} at size {places(tuple(sizes_of), everywhere and len(counts) == 1)}"
            for change, sizes_of in counts.items()
        ),
        "set by a mix" if any(run.get("mix.norm") for run in pairs[0])
        else "comes with the mixers, as published; equal where both mixes set norm=inputs",
    )  # fmt: skip


def _of_mixers(pairs: Sequence[Pair]) -> list[Rule]:
    """What the mixers of these runs say that a comparison should watch."""
    names = {kind.get("mixer") for pair in pairs for run in pair for kind in run.layers}
    rules: list[str] = []
    for name in sorted(name for name in names if isinstance(name, str)):
        # None for an MLP, and for a package that this command has not imported.
        record = loaded(name)
        rules += record.confounds if record else ()
    return [attribute(rule) for rule in dict.fromkeys(rules)]


def _where_tuned(field: str) -> Callable[[Facts], float | None]:
    """A setting of runs that took it, or another, from a tuning sweep."""
    return lambda run: run.get(field) if run.get("protocol.tuned") else None


BEFORE: tuple[Rule, ...] = (
    _relative("parameters", "N", lambda run: run.N, _worth),
    _relative(
        "FLOPs", "training FLOPs per token", lambda run: run.flops_per_token,
        _says("cost, not loss: savings of tokens are not savings of compute"),
    ),
    _relative(
        "tokens per parameter", "tokens per parameter", _tokens_per_parameter,
        _says("the same tokens are another Chinchilla multiple of the mix's own N"),
    ),
    *(
        _relative(
            name, name, _where_tuned(field), _says("each mix at its own, from a tuning sweep"),
            fields=(field, "protocol.tuned", set_by),
        )
        for name, field, set_by in (
            ("learning rate", "recipe.peak_lr", "protocol.lr_multiplier"),
            ("weight decay", "recipe.weight_decay", "train.weight_decay"),
            ("batch", "recipe.batch_tokens", "protocol.batch_tokens"),
        )
    ),
)  # fmt: skip
"""Rules that come before those of mixers, in the order in which people ask."""
RULES: tuple[Rule, ...] = (
    _norms,
    differs(
        "MLP", lambda run: run.get("model.mlp"),
        "another function and, at equal N, another width", ("model.mlp",),
    ),
    differs(
        "norm eps", lambda run: run.get("model.norm_eps"),
        "as published; matters where activations are small", ("model.norm_eps",),
    ),
    _relative(
        "model width", "d_model", lambda run: run.get("model.d_model"),
        _says("moved by matching, and with it the embeddings and the head"), 0.0,
        ("model.d_model", "model.n_heads"),
    ),
    _relative(
        "MLP width", "mlp_hidden", lambda run: run.get("model.mlp_hidden"),
        _says("moved by matching: equality is made with the MLP"), NOTABLE,
        ("model.mlp_hidden",),
    ),
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
