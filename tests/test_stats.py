"""Intervals hold their level, pairs help, the saturation point of known queues is found."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from jaxsched.errors import UserError
from jaxsched.stats import (
    find_capacity,
    find_knee,
    iqm,
    is_stable,
    paired_bootstrap,
    sign_test,
    t_interval,
    t_quantile,
    unpaired_bootstrap,
)

NUM_REPEATS = 500


def paired_samples(num_seeds: int, effect: float, seed: int):
    """Policy and baseline that share the noise of a seed (sd 1) and have own noise (sd 0.3)."""
    generator = np.random.default_rng(seed)
    common = generator.normal(10, 1, (NUM_REPEATS, num_seeds))
    own = generator.normal(0, 0.3, (2, NUM_REPEATS, num_seeds))
    return common + own[0] + effect, common + own[1]


@pytest.mark.parametrize("num_seeds", [8, 16])
def test_an_a_a_test_rejects_as_often_as_it_says(num_seeds):
    x, y = paired_samples(num_seeds, 0.0, seed=1)
    rejected = [
        paired_bootstrap(a, b, num_bootstrap=1000, seed=i).excludes(0)
        for i, (a, b) in enumerate(zip(x, y, strict=True))
    ]
    assert 0.02 <= np.mean(rejected) <= 0.08


@pytest.mark.parametrize(("effect", "truth"), [("difference", 1.0), ("ratio", 1.1)])
def test_the_paired_interval_covers_the_truth_as_often_as_it_says(effect, truth):
    x, y = paired_samples(16, 1.0, seed=2)
    intervals = [
        paired_bootstrap(a, b, effect=effect, num_bootstrap=1000, seed=i)
        for i, (a, b) in enumerate(zip(x, y, strict=True))
    ]
    assert 0.92 <= np.mean([not i.excludes(truth) for i in intervals]) <= 0.98


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_the_other_methods_hold_their_level_with_many_seeds(method):
    x, y = paired_samples(50, 1.0, seed=3)
    intervals = [
        paired_bootstrap(a, b, method=method, num_bootstrap=500, seed=i)
        for i, (a, b) in enumerate(zip(x, y, strict=True))
    ]
    assert 0.92 <= np.mean([not i.excludes(1.0) for i in intervals]) <= 0.98


def test_the_t_interval_covers_the_truth_as_often_as_it_says():
    values = np.random.default_rng(4).normal(3, 2, (NUM_REPEATS, 6))
    assert 0.92 <= np.mean([not t_interval(v).excludes(3) for v in values]) <= 0.98


def test_pairs_are_narrower_than_the_same_values_unpaired():
    x, y = paired_samples(12, 0.2, seed=5)
    paired = [paired_bootstrap(a, b, num_bootstrap=500).width for a, b in zip(x[:50], y[:50], strict=True)]
    unpaired = [unpaired_bootstrap(a, b, num_bootstrap=500).width for a, b in zip(x[:50], y[:50], strict=True)]
    # The difference of pairs has sd 0.3 * sqrt(2) = 0.42, that of strangers sqrt(2 * 1.09) = 1.48.
    assert np.mean(paired) < 0.5 * np.mean(unpaired)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    x, y = paired_samples(8, 0.5, seed=6)
    assert paired_bootstrap(x[0], y[0], seed=7) == paired_bootstrap(x[0], y[0], seed=7)
    assert paired_bootstrap(x[0], y[0], seed=7) != paired_bootstrap(x[0], y[0], seed=8)


def test_bca_leans_where_skewed_data_lean():
    x = np.random.default_rng(8).lognormal(0, 1, 30)
    zero = np.zeros_like(x)
    percentile, bca = (paired_bootstrap(x, zero, method=m, num_bootstrap=4000) for m in ("percentile", "bca"))
    reference = scipy_stats.bootstrap((x,), np.mean, n_resamples=4000, method="BCa", rng=np.random.default_rng(1))
    assert bca.low > percentile.low and bca.high > percentile.high
    assert bca.low == pytest.approx(reference.confidence_interval.low, rel=0.03)
    assert bca.high == pytest.approx(reference.confidence_interval.high, rel=0.03)


def test_one_outlying_seed_does_not_hide_what_every_seed_shows():
    # A cluster with an SLO: the rule loses all its goodput on each of eight seeds, and one seed was hard for both.
    baseline = [23.4, 7.0, 13.4, 24.6, 24.2, 24.1, 24.5, 23.8]
    difference = paired_bootstrap([0.0] * 8, baseline)
    assert difference.excludes(0) and difference.low < -20.6 < difference.high
    # 28 to 42 s against 0.7 to 2.2 s: whichever seeds are drawn, the ratio is above 10.
    slow, fast = [34.9, 41.8, 39.7, 36.2, 34.6, 28.3, 29.7, 28.2], [0.91, 2.24, 0.93, 0.72, 0.87, 0.75, 0.71, 0.72]
    ratio = paired_bootstrap(slow, fast, effect="ratio")
    assert 1 < ratio.low < 34.8 < ratio.high < 100


@pytest.mark.parametrize(("num_seeds", "most_missed"), [(8, 0.10), (20, 0.085)])
def test_skewed_differences_are_covered_almost_as_often_as_it_says(num_seeds, most_missed):
    values = np.random.default_rng(9).exponential(1, (NUM_REPEATS, num_seeds))
    intervals = [paired_bootstrap(v, np.zeros(num_seeds), num_bootstrap=1000, seed=i) for i, v in enumerate(values)]
    assert np.mean([i.excludes(1.0) for i in intervals]) <= most_missed


def test_identical_runs_have_no_difference_and_a_ratio_of_one():
    values = [1.0, 2.0, 4.0]
    difference = paired_bootstrap(values, values)
    ratio = paired_bootstrap(values, values, effect="ratio")
    assert (difference.low, difference.estimate, difference.high) == (0, 0, 0)
    assert (ratio.low, ratio.estimate, ratio.high) == (1, 1, 1)


def test_one_seed_decides_nothing():
    assert not paired_bootstrap([5.0], [1.0]).excludes(0)
    assert not t_interval([5.0]).excludes(0)


def test_a_ratio_to_nothing_is_nan_not_an_error():
    assert math.isnan(paired_bootstrap([1.0, 2.0], [0.0, 0.0], effect="ratio").estimate)


def test_unequal_numbers_of_seeds_are_refused():
    with pytest.raises(ValueError, match="3 and 2"):
        paired_bootstrap([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="not empty"):
        t_interval([])


@pytest.mark.parametrize("dof", [1, 2, 3, 7, 30, 101])
@pytest.mark.parametrize("probability", [0.025, 0.5, 0.9, 0.975, 0.9995])
def test_t_quantiles_are_those_of_scipy(probability, dof):
    assert t_quantile(probability, dof) == pytest.approx(scipy_stats.t.ppf(probability, dof), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("wins", "losses"), [(8, 0), (5, 3), (4, 4), (1, 9)])
def test_the_sign_test_is_the_binomial_test(wins, losses):
    x = np.array([1.0] * wins + [-1.0] * losses + [0.0])
    assert sign_test(x, np.zeros_like(x)) == pytest.approx(scipy_stats.binomtest(wins, wins + losses).pvalue)


def test_the_interquartile_mean_is_the_mean_of_the_middle_half():
    assert iqm(range(1, 9)) == 4.5
    assert iqm([1, 2, 3, 4, 5, 6, 7, 1e9]) == 4.5
    # Five values: a quarter is 1.25 of them, so 0.75 of the second and fourth count. (0.75*2 + 3 + 0.75*4) / 2.5 = 3
    assert iqm([1, 2, 3, 4, 100]) == pytest.approx(3.0)
    assert iqm([7.0]) == 7.0


def mm1(capacity: float):
    """M/M/1 with service rate `capacity`: delivers min(rate, capacity), the rest piles up; p99 of the sojourn time."""

    def measure(rate: float) -> dict[str, float]:
        sojourn = math.log(100) / (capacity - rate) if rate < capacity else math.inf
        return {"throughput": min(rate, capacity), "backlog_slope": max(rate - capacity, 0.0), "p99_ttft": sojourn}

    return measure


@pytest.mark.parametrize("capacity", [0.3, 10.0, 777.0])
def test_the_capacity_of_m_m_1_is_found_from_any_first_guess(capacity):
    found = find_capacity(mm1(capacity), 5.0, 20.0, 0.01)
    # 98 % delivered is stable by definition, so the criterion's own capacity is capacity / 0.98.
    assert found.low <= capacity / 0.98 <= found.high <= found.low * 1.01
    assert found.capacity == found.low
    assert all(e.stable == (e.rate <= found.low) for e in found.evaluations)


def test_a_growing_backlog_is_not_stable_even_if_all_is_delivered():
    assert is_stable(10.0, {"throughput": 10.0, "backlog_slope": 0.1})
    assert not is_stable(10.0, {"throughput": 10.0, "backlog_slope": 0.5})
    assert not is_stable(10.0, {"throughput": 9.7, "backlog_slope": 0.0})


def test_a_system_that_never_saturates_or_never_keeps_up_is_reported():
    with pytest.raises(UserError, match=r"no saturation point .*the last one was stable"):
        find_capacity(lambda rate: {"throughput": rate, "backlog_slope": 0.0}, 1.0, 2.0, max_evaluations=12)
    with pytest.raises(UserError, match="the last one was not stable"):
        find_capacity(lambda rate: {"throughput": 0.0, "backlog_slope": rate}, 1.0, 2.0, max_evaluations=12)


def test_the_knee_of_m_m_1_lies_where_latency_takes_off():
    load = np.linspace(0.05, 0.99, 95)
    knee = load[find_knee(load, 1 / (1 - load))]
    # Largest gap of log latency below its chord: 1 / (1 - load) = slope of the chord = log(95) / 0.94 = 4.84.
    assert knee == pytest.approx(1 - 0.94 / math.log(0.95 / 0.01), abs=0.011)


def test_a_knee_needs_a_curve():
    with pytest.raises(ValueError, match="three points"):
        find_knee([1, 2], [1, 2])
    with pytest.raises(ValueError, match="increase"):
        find_knee([1, 2, 2], [1, 2, 3])
    assert find_knee([1, 2, 3], [5, 5, 5]) == 2  # flat: no knee up to the last load
