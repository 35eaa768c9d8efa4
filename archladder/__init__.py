"""archladder from Python: `archladder.load` and all else of `analysis`, from any folder.

    import archladder

    ladder = archladder.load("runs/demo")

See docs/python.md.
"""

from archladder.packages import claim

claim()

from analysis import Ladder, Laws, Predictions, Result, Savings, SettingError, load, show  # noqa: E402

__all__ = ["Ladder", "Laws", "Predictions", "Result", "Savings", "SettingError", "load", "show"]
