"""The gamma form against its published fits, and where it meets the Chinchilla law."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from synthetic_sweeps import DATA, TRUTH, grid_points

from ablations.records import SettingError
from analysis.stats.fit import fit
from analysis.stats.laws import Chinchilla
from analysis.study.load import load_csv

PUBLISHED = pd.read_csv(DATA / "xlstm_published_fits.csv").query("gamma != 1")


@pytest.mark.parametrize(
    "row", list(PUBLISHED.itertuples()), ids=lambda row: f"{row.mix}-{row.most}"
)
def test_published_objectives_of_the_gamma_form_come_out_or_better(row: Any) -> None:
    points = load_csv(DATA / "xlstm_tokenparam.csv")
    own = points[(points["mix"] == row.mix) & (points["tokens_per_param"] <= row.most)]
    one = fit(own, law="gamma").mixes[row.mix]
    published = Chinchilla(row.E, row.A, row.alpha, row.B, row.beta, row.gamma)
    assert one.objective <= row.objective * (1 + 1e-9)
    assert one.starts_agreeing >= 0.5
    if (row.mix, row.most) == ("xlstm", 100):
        # Fourteen points leave the form open; the published search stopped 0.3 % above.
        assert one.objective == pytest.approx(row.objective, rel=5e-3)
        assert one.caveats
        return
    assert one.objective == pytest.approx(row.objective, rel=1e-6)
    assert one.law.loss(own["N"], own["D"]) == pytest.approx(
        published.loss(own["N"], own["D"]), rel=2e-4
    )


@pytest.mark.parametrize("gamma", [0.4, 1.0, 2.5])
def test_a_law_of_the_gamma_form_is_found_again(gamma: float) -> None:
    outer = 1 / gamma
    truth = Chinchilla(0.9, 60**outer, 0.42 * outer, 90**outer, 0.35 * outer, gamma)
    found = fit(grid_points({"gdn": truth}), law="gamma", loss="squares").mixes["gdn"].law
    for name in ("E", "alpha", "beta", "gamma"):
        assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=1e-3)


def test_the_gamma_form_never_fits_worse_than_the_law_it_holds() -> None:
    points = grid_points({"gdn": TRUTH["gdn"]}, noise=0.01)
    assert fit(points, law="gamma").objective <= fit(points).objective * (1 + 1e-9)


def test_the_gamma_form_is_for_one_mix_at_a_time() -> None:
    points = grid_points({name: TRUTH[name] for name in ("gdn", "transformer")})
    with pytest.raises(SettingError, match="model=shared is not there for law=gamma"):
        fit(points, "shared", law="gamma")
    with pytest.raises(SettingError, match=r"fix=alpha cannot be held with law=gamma; valid: E\."):
        fit(points, law="gamma", held={"alpha": 0.3})


def test_tokens_and_parameters_invert_the_gamma_form() -> None:
    law = Chinchilla(1.0, 1e5, 0.5, 6e5, 0.5, 0.3)
    loss = law.loss(1e9, 2e10)
    assert law.tokens(1e9, loss) == pytest.approx(2e10)
    assert law.parameters(2e10, loss) == pytest.approx(1e9)
    assert np.isinf(law.tokens(1e9, 0.5))
