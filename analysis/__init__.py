"""What the runs say: scaling laws, token savings with intervals, and reports (docs/python.md).

    import analysis

    ladder = analysis.load("runs/demo")
    ladder.savings()

Nothing but this page's names is imported before it is used.
"""

from ablations.records import SettingError
from analysis.ladder import Ladder, load
from analysis.result import Laws, Predictions, Result, Savings, show

__all__ = ["Ladder", "Laws", "Predictions", "Result", "Savings", "SettingError", "load", "show"]
