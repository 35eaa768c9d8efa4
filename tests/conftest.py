"""What holds for every test.

Hypothesis draws the same examples in every run of the suite, so that a change is judged by the
change and not by luck. `make test` is then the same twice; to search further, ask for its own
profile: `pytest --hypothesis-profile=default`.
"""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("same", derandomize=True, database=None)
settings.load_profile("same")
