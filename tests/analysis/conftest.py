"""What the tests of the analysis share."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic_sweeps import SweepWriter


@pytest.fixture
def sweep(tmp_path: Path) -> SweepWriter:
    """A writer into runs/trial under a temporary folder."""
    return SweepWriter(tmp_path / "runs" / "trial")
