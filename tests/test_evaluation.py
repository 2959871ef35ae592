"""Intervals over training and evaluation seeds keep what they promise; the numbers are those of sheet 12."""

from __future__ import annotations

import numpy as np
import pytest

from jaxsched.evaluation import (
    Evaluation,
    decrease,
    improvement,
    increase,
    iqm_interval,
    markdown,
    normalised,
    rejects,
    two_way_error,
    two_way_interval,
)
from jaxsched.stats import iqm

REPEATS = 500


def _normals(key: np.random.Generator, rows: int = 5, columns: int = 50, row_sd: float = 0.3, column_sd: float = 1.0):
    """Training seeds and evaluation seeds are both random, and there is a rest."""
    return (
        row_sd * key.normal(size=(rows, 1))
        + column_sd * key.normal(size=(1, columns))
        + 0.5 * key.normal(size=(rows, columns))
    )


def test_interquartile_mean() -> None:
    assert iqm(np.arange(1, 9)) == 4.5
    assert iqm_interval(np.arange(1.0, 9.0).reshape(2, 4)).estimate == 4.5


def test_coverage_is_92_to_98_percent_on_normals() -> None:
    for row_sd in (0.0, 0.3):
        key = np.random.default_rng(1)
        hits = sum(
            not two_way_interval(_normals(key, row_sd=row_sd), num_bootstrap=300).excludes(0.0) for _ in range(REPEATS)
        )
        assert 0.92 <= hits / REPEATS <= 0.98


def test_an_a_a_test_rejects_2_to_8_percent() -> None:
    """The same policy trained five times, against the mean of five other runs of it, on the same workloads."""
    key = np.random.default_rng(2)

    def one() -> bool:
        level = key.normal(size=(1, 50))  # workloads differ far more than runs do, and are common to both
        first, second = (level + 0.2 * key.normal(size=(5, 50)) for _ in range(2))
        return rejects(first, second.mean(0), num_bootstrap=300)

    assert 0.02 <= sum(one() for _ in range(REPEATS)) / REPEATS <= 0.08


def test_paired_variance_is_below_unpaired() -> None:
    key = np.random.default_rng(3)
    level = key.normal(size=(1, 50))
    policy, rival = (level + 0.2 * key.normal(size=(5, 50)) for _ in range(2))
    paired = two_way_interval(policy - rival.mean(0))
    other = (key.normal(size=(1, 50)) + 0.2 * key.normal(size=(5, 50))).mean(0)
    assert paired.width < 0.5 * two_way_interval(policy - other).width


def test_standard_error_of_a_two_way_layout() -> None:
    """Against the spread of means over many layouts: sd^2 = .3^2/5 + 1/50 + .5^2/250."""
    key = np.random.default_rng(4)
    layouts = np.stack([_normals(key) for _ in range(2000)])
    truth = np.sqrt(0.09 / 5 + 1.0 / 50 + 0.25 / 250)
    np.testing.assert_allclose(layouts.mean((1, 2)).std(), truth, rtol=0.05)
    np.testing.assert_allclose(np.sqrt(np.mean(two_way_error(layouts) ** 2)), truth, rtol=0.05)


def test_improvement_is_of_the_geometric_mean_seed_by_seed() -> None:
    rival = np.array([100.0, 400.0, 1000.0])
    gain = improvement(np.tile(0.8 * rival, (2, 1)), rival)
    assert gain.estimate == pytest.approx(0.2) and gain.low == pytest.approx(0.2) and gain.high == pytest.approx(0.2)
    assert improvement(np.array([[80.0, 500.0, 1000.0]]), rival).estimate == pytest.approx(0.0, abs=1e-12)


def test_normalised_scores() -> None:
    np.testing.assert_allclose(
        normalised(np.array([[10.0, 6.0]]), np.array([10.0, 10.0]), np.array([6.0, 6.0])), [[0, 1]]
    )
    with pytest.raises(ValueError, match="not below"):
        normalised(np.ones((1, 2)), np.ones(2), np.ones(2))


def test_increases_and_decreases_are_of_the_means_and_values_of_0_are_allowed() -> None:
    """Rival 0, 2, 4: ten per cent more of each is ten per cent, exactly, and a fifth of each 80 % less; noise of both
    signs is not told from 0."""
    rival = np.array([0.0, 2.0, 4.0])
    exact = increase(np.stack([rival * 1.1] * 2), rival)
    assert exact.estimate == pytest.approx(0.1) and exact.low == pytest.approx(0.1) and exact.high == pytest.approx(0.1)
    noise = np.random.default_rng(0).normal(size=(5, 50))
    level = 5.0 + np.random.default_rng(1).normal(size=50)
    assert increase(level + 0.1 * noise, level).low < 0 < increase(level + 0.1 * noise, level).high
    assert increase(level + 0.1 * noise + 0.5, level).low > 0.05
    fewer = decrease(np.stack([rival * 0.2] * 2), rival)
    assert fewer.estimate == pytest.approx(0.8) and fewer.low == pytest.approx(0.8) == fewer.high
    assert decrease(level + 0.1 * noise, level).low < 0 < decrease(level + 0.1 * noise, level).high
    gaps = Evaluation((0, 1, 2), {"learned": {"service_gap_tokens": 0 * rival[None]},
                                  "rule": {"service_gap_tokens": rival[None]}})  # fmt: skip
    assert "100.0% [100.0%, 100.0%]" in markdown(gaps, "learned", metric="service_gap_tokens")
    table = Evaluation((0, 1, 2), {"learned": {"goodput_per_s": rival[None] * 1.1, "goodput_chat_per_s": rival[None]},
                                   "rule": {"goodput_per_s": rival[None]}})  # fmt: skip
    assert "| rule | 2 |" in (text := markdown(table, "learned", metric="goodput_per_s"))
    assert "10.0% [10.0%, 10.0%]" in text and "chat/s" in text
