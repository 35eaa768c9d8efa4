"""`python -m analysis classes sweep=NAME`: which tokens pay, by class of held-out token."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ablations.records import SettingError
from analysis.commands.common import BASELINE, REFERENCE, Leveled, Points, Shown, read, shown
from models.command import setting
from models.format import percent


@dataclass(frozen=True, kw_only=True)
class Settings(Shown, Leveled, Points):
    """Loss, difference from the baseline and token savings by class of held-out token.

    At the largest size and the largest budget there that a mix and its baseline both reached.
    docs/contracts.md lists the classes; `all` is every token.
    """

    EXAMPLES = ("sweep=demo", "sweep=demo only=repeat,delimiter/closing format=csv")
    baseline: str = setting("transformer", BASELINE)
    reference: Mapping[str, str] = setting({}, REFERENCE, example="lr_multiplier=1")
    only: tuple[str, ...] = setting(
        (), "partitions or classes to show", shape="PARTITION[/CLASS][,…]"
    )


def run(asked: Settings) -> str:
    from analysis.study import classes

    sweep = read(asked)
    sweep = replace(sweep, arms=sweep.arms.over(asked.reference))
    mixes = list(dict.fromkeys(sweep.points["mix"]))
    versus = sweep.arms.versus(mixes, asked.baseline)
    if not versus:
        raise SettingError(f"mix={mixes[0]} is the only one; classes compare two mixes or more.")
    recorded = classes.read_classes(sweep)
    if recorded.empty:
        raise SettingError(
            f"sweep={sweep.name} has no losses by class of token: they are written to points.jsonl "
            "as runs are evaluated, and these points have none; run the sweep again under another "
            "name to have them."
        )
    kept = classes.chosen(recorded, asked.only)
    found = classes.by_class(recorded, versus, asked.level)
    wanted = set(zip(kept["partition"], kept["class"], strict=True)) | {(classes.ALL,) * 2}
    found = found[[pair in wanted for pair in zip(found["partition"], found["class"], strict=True)]]
    notes = [
        f"At {classes.place_words(found)}. difference: loss less the baseline's, nats per token of "
        f"the class; part: of all tokens, parts of a partition add up. {percent(asked.level, 'g')} "
        "by Student's t on seeds that both have, their scatter pooled over sizes. Each interval "
        "stands alone: of many, some miss by luck.",
    ]
    table = classes.cells(found) if asked.format in ("table", "latex") else found
    rows = [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]
    document = {"classes": rows, "notes": notes, "level": asked.level}
    return shown(asked.format, document, rows, notes)
