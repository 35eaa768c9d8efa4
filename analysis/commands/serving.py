"""`python -m analysis serving SPEED.json`: what mixes cost to serve, and when one pays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablations.records import SettingError, home, one_of
from analysis.commands.common import shown
from models.command import setting

NEEDED = (
    "mix", "size", "batch", "context", "prefill_tokens_per_second", "decode_tokens_per_second",
    "cache_bytes",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Decoding speed and memory against context by mix, and the break-even with a baseline.

    FILE is what `python -m models.speed … format=json` printed. With training=, the served tokens
    for which a mix costs less than the baseline in all are told at each context: training and
    served tokens times seconds a token, in seconds of the machine that was measured.
    """

    EXAMPLES = ("speed.json", "speed.json training=transformer=7200,gdn3_attn1=4100")
    file: Path = setting(help="JSON of models.speed", position=True, shape="FILE.json")
    baseline: str = setting("transformer", "the mix that others are compared with")
    training: Mapping[str, float] = setting(
        {}, "seconds of training to one loss, by mix", example="transformer=7200,gdn3_attn1=4100",
        least=0,
    )  # fmt: skip
    size: str | None = setting(None, "of several sizes one, the last unless given")
    batch: int | None = setting(None, "of several batches one, the largest unless given", least=1)
    out: Path | None = setting(None, "folder to write, reports/serving unless given")
    width: str = setting("double", "columns of a paper", choices=("double", "single"))
    format: str = setting("table", "how it is printed", choices=("table", "csv", "json"))


def run(asked: Settings) -> str:
    import pandas as pd

    from analysis.report.figures.serving import serving_against_context
    from analysis.report.figures.style import WIDTHS, save
    from analysis.report.write import make_writable
    from analysis.stats.break_even import crossings, served_tokens

    document = _read(asked.file)
    rows = pd.DataFrame(document["rows"])
    size = _chosen("size", asked.size, [str(one) for one in rows["size"].unique()])
    rows = rows[rows["size"] == size]
    batch = int(_chosen("batch", asked.batch, sorted(int(one) for one in rows["batch"].unique())))
    rows = rows[rows["batch"] == batch]
    mixes = [str(mix) for mix in rows["mix"].unique()]
    if asked.baseline not in mixes:
        raise one_of("baseline", asked.baseline, mixes)
    for mix in asked.training:
        if mix not in mixes:
            raise one_of("training", mix, mixes)
    if asked.training and asked.baseline not in asked.training:
        raise SettingError(f"training= lacks the baseline's; add {asked.baseline}=SECONDS.")
    seconds = {
        mix: dict(zip(own["context"], 1 / own["decode_tokens_per_second"], strict=True))
        for mix, own in rows.groupby("mix", sort=False)
    }
    base = seconds[asked.baseline]
    table: list[dict[str, Any]] = []
    for mix, own in seconds.items():
        shared = sorted(set(own) & set(base))
        equal = crossings(shared, [own[c] for c in shared], [base[c] for c in shared])
        for context in shared:
            row: dict[str, Any] = {
                "mix": mix, "context": int(context), "seconds_per_token": own[context],
                "speed_ratio": base[context] / own[context],
                "as_fast_at_context": ", ".join(f"{c:.0f}" for c in equal)
                if mix != asked.baseline else "",
            }  # fmt: skip
            if mix != asked.baseline and mix in asked.training:
                pays = served_tokens(
                    asked.training[mix], own[context], asked.training[asked.baseline], base[context]
                )
                row |= {"pays": str(pays), "pays_after": pays.after, "pays_until": pays.until}
            table.append(row)
    place = (asked.out or home() / "reports" / "serving") / "figures"
    make_writable(place)
    threads = f", {document['threads']} threads" if document.get("threads") else ""
    steps = "compiled" if document.get("compiled") else "not compiled"
    told = (
        f"Size {size}, batch {batch}, {document.get('device')}{threads}, {document.get('dtype')}, "
        f"steps {steps}."
    )
    figure, data = serving_against_context(rows, told, WIDTHS[asked.width])
    save(figure, place / "serving", data, {"figure": "serving", "caption": told})
    if asked.format != "table":
        return shown(asked.format, {"note": told, "rows": table}, table)
    frame = pd.DataFrame(table).drop(columns=["pays_after", "pays_until"], errors="ignore")
    drawn = frame.fillna("").to_dict("records")
    return shown("table", {}, drawn, ["", told, str(place / "serving.pdf")])  # type: ignore[arg-type]


def _read(path: Path) -> dict[str, Any]:
    """The document of models.speed; SettingError where the file is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(f"{path} cannot be read ({error.strerror}).") from None
    except ValueError:
        document = None
    rows = document.get("rows") if isinstance(document, dict) else None
    numbers = NEEDED[2:]
    right = (
        isinstance(rows, list)
        and bool(rows)
        and all(
            isinstance(row, dict)
            and all(isinstance(row.get(name), str) for name in NEEDED[:2])
            and all(type(row.get(name)) in (int, float) and row[name] > 0 for name in numbers)
            for row in rows
        )
    )
    if not right or not isinstance(document, dict):
        raise SettingError(
            f"{path} is not what `python -m models.speed … format=json` prints; give such a file."
        )
    return document


def _chosen(name: str, asked: Any, there: list[Any]) -> Any:
    if asked is not None and asked not in there:
        raise one_of(name, str(asked), [str(one) for one in there])
    return there[-1] if asked is None else asked
