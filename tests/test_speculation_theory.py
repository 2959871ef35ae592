"""The small decision process of SpecDec++, and the acceptance process that the machine draws from."""

from __future__ import annotations

import numpy as np
import pytest

from jaxsched.sim.speculate import ONE
from jaxsched.speculation import DraftModel
from jaxsched.speculation.optimal import fixed_us_per_token, optimal_drafting, threshold_us_per_token
from jaxsched.speculation.process import beta_levels


def _levels(spread: float) -> np.ndarray:
    return np.minimum(beta_levels(np.asarray(0.8), spread, 32), 0.999)


@pytest.mark.parametrize(("spread", "draft_us"), [(0.2, 10.0), (0.4, 10.0), (0.4, 25.0), (0.7, 2.0)])
def test_value_iteration_finds_a_threshold_and_no_threshold_or_fixed_length_is_better(spread, draft_us) -> None:
    levels = _levels(spread)
    best = optimal_drafting(levels, draft_us, 100.0)
    first = int(np.argmax(best.goes_on))
    assert best.goes_on.any() and not best.goes_on.all()
    assert best.goes_on[first:].all() and not best.goes_on[:first].any()  # the theorem: a threshold in p
    thresholds = np.linspace(0.05, 0.95, 19)
    with_thresholds = [threshold_us_per_token(levels, h, draft_us, 100.0) for h in thresholds]
    own = threshold_us_per_token(levels, best.reject_threshold, draft_us, 100.0)
    assert own == pytest.approx(best.us_per_token, rel=2e-3)  # (the grid in p)
    assert best.us_per_token <= min(with_thresholds) * 1.001
    fixed = [fixed_us_per_token(levels.mean(), k, draft_us, 100.0) for k in range(33)]
    assert best.us_per_token < 0.99 * min(fixed)
    assert abs(thresholds[int(np.argmin(with_thresholds))] - best.reject_threshold) <= 0.15


def test_the_threshold_rises_with_the_cost_of_verifying_and_falls_with_that_of_drafting() -> None:
    costs = ((5.0, 100.0), (10.0, 100.0), (10.0, 60.0))
    found = [optimal_drafting(_levels(0.4), draft, verify).reject_threshold for draft, verify in costs]
    assert found[0] > found[1] > found[2]
    assert optimal_drafting(_levels(0.4), 90.0, 100.0).reject_threshold == 0.0  # dearer than what it can save


def test_where_all_tokens_are_alike_the_best_rule_is_the_best_fixed_length() -> None:
    best = optimal_drafting(np.array([0.8]), 10.0, 100.0)
    fixed = [fixed_us_per_token(0.8, k, 10.0, 100.0) for k in range(33)]
    assert best.us_per_token == pytest.approx(min(fixed), rel=2e-3)


@pytest.mark.parametrize("acceptance", [0.0, 0.5, 0.7, 0.9, 1.0])
def test_levels_keep_the_mean_and_spreads_do_what_they_say(acceptance: float) -> None:
    for request_spread, token_spread in ((0.0, 0.0), (0.05, 0.4), (0.3, 0.9)):
        model = DraftModel(acceptance, 1000.0, request_spread=request_spread, token_spread=token_spread)
        chances = model.chances()
        assert chances.mean() == pytest.approx(acceptance, abs=2e-3) and ((chances >= 0) & (chances <= 1)).all()
        means = chances.mean(axis=1)
        most = acceptance * (1 - acceptance)
        assert means.var() == pytest.approx(request_spread * most, rel=0.2, abs=1e-6)
        usual = (means > 0.15) & (means < 0.85)  # beyond, 64 levels do not tell a rare token
        inside = chances[usual].var(axis=1) / (means[usual] * (1 - means[usual]))
        assert inside == pytest.approx(token_spread, rel=0.2, abs=1e-6)
        table = np.asarray(model.params().accept)
        assert table.min() >= 0 and table.max() <= ONE
