"""The formulas: equal to the published table, and the step-level versions go to them as steps get finer."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tests.queueing import theory
from tests.queueing.theory import H2, D, M

# shared/research/learning.md, sheet 11: mean time in system, mean service 1.
PUBLISHED = [
    (theory.fcfs_limit(M, 0.5), 2.000), (theory.fcfs_limit(M, 0.7), 3.333), (theory.fcfs_limit(M, 0.8), 5.000),
    (theory.fcfs_limit(M, 0.9), 10.00), (theory.fcfs_limit(H2, 0.5), 6.5), (theory.fcfs_limit(H2, 0.8), 23.0),
    (theory.fcfs_limit(D, 0.8), 3.0), (theory.ps_limit(0.5), 2.0), (theory.ps_limit(0.8), 5.0),
    (theory.srpt_limit(M, 0.5), 1.425), (theory.srpt_limit(M, 0.7), 1.875), (theory.srpt_limit(M, 0.8), 2.353),
    (theory.srpt_limit(M, 0.9), 3.552), (theory.srpt_limit(H2, 0.5), 1.401), (theory.srpt_limit(H2, 0.8), 2.151),
    (theory.erlang_c(8, 10)[0], 0.4092), (theory.erlang_c(8, 10)[1], 0.2046),
    (theory.power_of_two_limit(0.7), 1.614), (theory.power_of_two_limit(0.9), 2.614),
]  # fmt: skip


@pytest.mark.parametrize(("formula", "published"), PUBLISHED)
def test_formulas_give_the_published_values(formula, published):
    assert formula == pytest.approx(published, abs=6e-4)


def test_the_hyperexponential_law_is_the_published_one():
    assert H2.weights[0] == pytest.approx(0.9523, abs=5e-5)
    assert 1 / np.asarray(H2.means) == pytest.approx([1.9045, 0.0955], abs=5e-5)


@pytest.mark.parametrize("law", [M, D, H2], ids=lambda law: law.name)
def test_step_counts_have_the_moments_that_the_formulas_use(law):
    pmf = law.pmf(50)
    steps = np.arange(1, len(pmf) + 1)
    assert pmf.sum() == pytest.approx(1)
    assert pmf @ steps == pytest.approx(50)
    assert pmf @ steps**2 == pytest.approx(law.second_moment_steps(50))


@pytest.mark.parametrize("law", [M, H2], ids=lambda law: law.name)
def test_drawn_step_counts_follow_their_law(law):
    expected = law.pmf(50) * 1_000_000
    num_bins = int((expected >= 100).sum())  # the law decreases: the last bin takes the tail
    drawn = np.minimum(law.draw(np.random.default_rng(0), 50, 1_000_000), num_bins)
    found = np.bincount(drawn, minlength=num_bins + 1)[1:]
    expected = np.append(expected[: num_bins - 1], 1_000_000 - expected[: num_bins - 1].sum())
    assert stats.chisquare(found, expected).pvalue > 0.001


@pytest.mark.parametrize(
    ("exact", "limit"),
    [
        (lambda steps: theory.fcfs(M, 0.8, steps), theory.fcfs_limit(M, 0.8)),
        (lambda steps: theory.srpt(M, 0.8, steps), theory.srpt_limit(M, 0.8)),
        (lambda steps: theory.srpt(H2, 0.5, steps), theory.srpt_limit(H2, 0.5)),
        (lambda steps: theory.ps(H2, 0.5, steps), theory.ps_limit(0.5)),
        (lambda steps: theory.many_servers(8, 10, steps)[0], theory.erlang_c(8, 10)[0]),
        (lambda steps: theory.many_servers(8, 10, steps)[1], 1 + theory.erlang_c(8, 10)[1]),
    ],
    ids=["fcfs", "srpt", "srpt H2", "ps H2", "P(wait)", "ten servers"],
)
def test_step_level_values_go_to_the_continuous_ones(exact, limit):
    coarse, fine = (abs(exact(steps) - limit) for steps in (20, 200))
    assert fine < 0.005 * limit
    assert fine == pytest.approx(coarse / 10, rel=0.15)  # first order in the step


@pytest.mark.parametrize("steps", [4, 100])
def test_step_level_sharing_has_its_closed_form_for_one_phase(steps):
    """Memoryless remaining service ties the number in system to the (discipline-free) work: docs/validation.md."""
    closed = (steps - 0.5) / (steps - 1 / (2 + 0.8 / steps)) / (1 - 0.8)
    assert theory.ps(M, 0.8, steps) == pytest.approx(closed, rel=2e-5)


def test_srpt_of_equal_sizes_is_first_come_first_served():
    """Nobody who has begun is ever longer than a newcomer: the discrete Schrage-Miller sum is Pollaczek-Khinchine."""
    assert theory.srpt(D, 0.8, 50) == pytest.approx(theory.fcfs(D, 0.8, 50))


@pytest.mark.parametrize(("load", "servers", "number"), [(0.7, 10, 1.2150), (0.9, 10, 2.7513), (0.9, 100, 2.3925)])
def test_refined_mean_field_gives_its_published_values(load, servers, number):
    """Gast and Van Houdt 2017, table 1 (mean number per server), who draw the two servers with replacement."""
    assert theory.power_of_two(load, servers, distinct=False) * load == pytest.approx(number, abs=1e-4)


@pytest.mark.parametrize(("load", "simulated", "se"), [(0.7, 1.62323, 0.00043), (0.9, 2.66223, 0.00140)])
def test_refined_mean_field_agrees_with_an_independent_simulation_of_64_servers(load, simulated, se):
    """A uniformised birth-death simulation in C, 20 x 20 million events; numbers from docs/validation.md."""
    assert abs(theory.power_of_two(load, 64) - simulated) <= 2 * se
