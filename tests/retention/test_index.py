"""The retention index against closed forms, brute force and the cost it is meant to minimise."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsched.retention import index, pauses, ttl

SECOND = 1e6
RELOAD, PRICE = 6.0, 1.0  # the check of the learning sheets: R = 6 s, one second of keeping costs one second


# Compiled once: call by call each of their operations would be compiled by itself.
age_table = jax.jit(index.age_table)
index_at = jax.jit(index.index)
return_rate = jax.jit(index.return_rate)
best_age = jax.jit(index.optimal_eviction_age)
cost_of_stopping = jax.jit(index.threshold_cost)


@jax.jit
def rates_at_knots(table: pauses.PauseTable) -> jax.Array:
    """Return rate of the first law at every knot of its table."""
    return jax.vmap(lambda age_us: index.return_rate(table, jnp.int32(0), age_us))(table.time_us[0])


def lomax_cost(tau_s: float) -> float:
    """Expected cost of evicting a Lomax(1.5, 2 s) pause at `tau_s`: closed form."""
    kept = 4.0 * (1.0 - (1.0 + tau_s / 2.0) ** -0.5)
    return PRICE * kept + RELOAD * (1.0 + tau_s / 2.0) ** -1.5


def crossing_s(ages: index.AgeTable, tool: int, reload_s: float, price: float, longest_s: float = 60.0) -> float:
    """The age at which event code, reading the index as time passes, would evict."""
    grid = jnp.linspace(0.0, longest_s * SECOND, 120_001)
    value = index_at(ages, grid, jnp.int32(tool), reload_s * SECOND, jnp.int32(1), jnp.float32(1.0))
    below = np.flatnonzero(np.asarray(value) <= price)
    return float(grid[below[0]]) / SECOND if len(below) else np.inf


LAWS = (
    pauses.Lomax(1.5, 2 * SECOND),
    pauses.Exponential(3 * SECOND),
    pauses.Deterministic(5 * SECOND),
    pauses.LogNormal(0.08 * SECOND, 2.7),
    pauses.Mixture((0.7, 0.3), (pauses.Deterministic(2 * SECOND), pauses.Lomax(1.5, 20 * SECOND))),
)
LOMAX, EXPONENTIAL, DETERMINISTIC, LOGNORMAL, MIXTURE = range(5)


@pytest.fixture(scope="module")
def table() -> pauses.PauseTable:
    return pauses.tables_from_laws(LAWS)


@pytest.fixture(scope="module")
def ages(table) -> index.AgeTable:
    return age_table(table)


def test_closed_forms_of_the_lomax_check():
    assert lomax_cost(7.0) == pytest.approx(2.743, abs=5e-4)
    assert lomax_cost(0.0) == 6.0
    assert lomax_cost(1e12) == pytest.approx(4.0, abs=1e-4)


def test_lomax_is_evicted_at_seven_by_the_table(table):
    age, cost = best_age(table, jnp.int32(LOMAX), RELOAD * SECOND, PRICE)
    assert float(age) / SECOND == pytest.approx(7.0, rel=0.05)
    assert lomax_cost(float(age) / SECOND) < 2.76
    assert float(cost) / SECOND == pytest.approx(lomax_cost(7.0), rel=2e-3)
    costs = cost_of_stopping(table, jnp.int32(LOMAX), RELOAD * SECOND, PRICE) / SECOND
    assert float(costs[0]) == pytest.approx(6.0)  # evict now
    assert float(costs[-1]) == pytest.approx(4.0, rel=0.02)  # keep for ever, but for the last millionth of pauses


def test_lomax_is_evicted_at_seven_by_reading_the_index_as_time_passes(ages):
    age = crossing_s(ages, LOMAX, RELOAD, PRICE)
    assert age == pytest.approx(7.0, rel=0.02)
    assert lomax_cost(age) < 2.744


def test_lomax_cost_in_a_simulation(ages):
    age = crossing_s(ages, LOMAX, RELOAD, PRICE)
    uniform = np.random.default_rng(0).random(400_000)
    pause = 2.0 * (uniform ** (-1 / 1.5) - 1.0)
    cost = PRICE * np.minimum(pause, age) + RELOAD * (pause > age)
    assert cost.mean() == pytest.approx(2.743, abs=4 * cost.std() / np.sqrt(len(cost)))
    assert cost.mean() < 2.76


@pytest.mark.parametrize("age_s", [0.0, 0.5, 3.0, 7.0, 50.0, 200.0])
def test_index_of_a_falling_hazard_is_the_hazard(table, ages, age_s):
    hazard = 1.5 / (2.0 + age_s)
    exact = return_rate(table, jnp.int32(LOMAX), age_s * SECOND) * SECOND
    assert float(exact) == pytest.approx(hazard, rel=0.04)
    assert float(index.rate_at(ages, jnp.int32(LOMAX), age_s * SECOND) * SECOND) == pytest.approx(hazard, rel=0.04)


@pytest.mark.parametrize("age_s", [0.0, 0.01, 1.0, 10.0, 25.0])
def test_index_of_an_exponential_pause_does_not_depend_on_age(table, ages, age_s):
    exact = return_rate(table, jnp.int32(EXPONENTIAL), age_s * SECOND) * SECOND
    assert float(exact) == pytest.approx(1 / 3, rel=0.03)
    assert float(index.rate_at(ages, jnp.int32(EXPONENTIAL), age_s * SECOND) * SECOND) == pytest.approx(1 / 3, rel=0.03)


@pytest.mark.parametrize("age_s", [0.0, 1.0, 4.0, 4.999])
def test_index_of_a_deterministic_pause_is_one_over_what_is_left(table, age_s):
    rate = return_rate(table, jnp.int32(DETERMINISTIC), age_s * SECOND) * SECOND
    assert float(rate) == pytest.approx(1 / (5.0 - age_s), rel=1e-3)


def test_nothing_is_expected_of_a_pause_that_outlived_its_law(table):
    for age_s in (5.0, 5.001, 100.0):
        assert float(return_rate(table, jnp.int32(DETERMINISTIC), age_s * SECOND)) == 0.0


@pytest.mark.parametrize(("reload_s", "kept"), [(4.9, False), (5.1, True), (20.0, True), (1.0, False)])
def test_a_deterministic_pause_is_kept_to_its_end_or_not_at_all(table, ages, reload_s, kept):
    age, cost = best_age(table, jnp.int32(DETERMINISTIC), reload_s * SECOND, PRICE)
    assert float(age) / SECOND == pytest.approx(5.0 if kept else 0.0)
    assert float(cost) / SECOND == pytest.approx(min(5.0, reload_s), rel=1e-5)
    reading = crossing_s(ages, DETERMINISTIC, reload_s, PRICE)
    assert 5.0 <= reading < 5.25 if kept else reading == 0.0  # never let go just before the tool returns


def test_a_pause_that_ends_on_an_age_of_the_table_is_not_let_go_just_before():
    end_us = 1000.0 * (2 ** (200 / 16) - 1)  # the worst place for a slope between neighbouring ages
    ages = age_table(pauses.tables_from_laws([pauses.Deterministic(end_us)]))
    just_before = jnp.linspace(0.955 * end_us, 0.99999 * end_us, 2000)
    value = index_at(ages, just_before, jnp.int32(0), jnp.float32(end_us), jnp.int32(1), jnp.float32(1.0))
    assert float(value.min()) > 1.0


def test_a_plain_hazard_rule_fails_the_deterministic_check():
    # What the index is there for: before D the hazard is 0, so a rule that reads it evicts at once whatever R is.
    law = LAWS[DETERMINISTIC]
    ages_us = np.linspace(0.0, 4.9 * SECOND, 50)
    hazard = (law.survival(ages_us) - law.survival(ages_us + 1e4)) / (1e4 * law.survival(ages_us))
    assert (hazard * 20.0 * SECOND < PRICE).all()


def test_a_mixture_is_kept_through_its_common_pause_and_then_let_go(table, ages):
    # Kept for 2 s: cost .7 * 2 + .3 * (about 1.8) + R * P(longer) against R at once; then a hazard of .07/s.
    age, _ = best_age(table, jnp.int32(MIXTURE), 6 * SECOND, PRICE)
    assert float(age) == pytest.approx(2 * SECOND)
    assert 2.0 <= crossing_s(ages, MIXTURE, 6.0, PRICE) < 2.1


def test_mean_pause_and_tails_of_tabulated_laws(table):
    for row, law in enumerate(LAWS):
        times = np.geomspace(1e3, 1e9, 200)
        row_time, row_survival = np.asarray(table.time_us[row]), np.asarray(table.survival[row])
        if not law.atoms():
            assert np.interp(times, row_time, row_survival) == pytest.approx(law.survival(times), abs=2e-3)
        assert (np.diff(row_time) >= 0).all() and (np.diff(row_survival) <= 0).all()
        assert row_time[0] == 0 and row_survival[0] == 1
    assert float(table.area_us[EXPONENTIAL, -1]) == pytest.approx(3 * SECOND, rel=1e-3)
    assert float(table.area_us[DETERMINISTIC, -1]) == pytest.approx(5 * SECOND, rel=1e-5)
    assert float(table.area_us[MIXTURE, -1]) == pytest.approx((0.7 * 2 + 0.3 * 40) * SECOND, rel=0.03)
    mean = 0.08 * np.exp(2.7**2 / 2) * SECOND
    assert float(table.area_us[LOGNORMAL, -1]) == pytest.approx(mean, rel=0.03)


def test_price_and_size_scale_the_index():
    value = index.retention_index(
        jnp.float32(2e-6), jnp.float32(3e6), jnp.array([1000, 500, 2000, 0], jnp.int32), jnp.float32(1000.0)
    )
    np.testing.assert_allclose(value, [6.0, 12.0, 3.0, np.inf], rtol=1e-6)


# --- random laws --------------------------------------------------------------------------------------------------

KNOTS = 9
#: Steps in time (0: a jump) and falls of survival between knots.
random_laws = st.tuples(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.0, 3.0, 10.0]), min_size=KNOTS - 1, max_size=KNOTS - 1),
    st.lists(st.sampled_from([0.0, 0.0, 1.0, 2.0, 5.0, 20.0]), min_size=KNOTS, max_size=KNOTS),
).filter(lambda law: sum(law[0]) > 0 and sum(law[1]) > 0)


def build(law) -> pauses.PauseTable:
    steps, falls = np.array(law[0]) * SECOND, np.array(law[1])
    survival = 1.0 - np.concatenate([[0.0], np.cumsum(falls[:-1])]) / falls.sum()  # the last fall never returns
    time = np.concatenate([[0.0], np.cumsum(steps)])
    return pauses.pause_table(jnp.asarray(time[None], jnp.float32), jnp.asarray(survival[None], jnp.float32))


def brute_rate(table: pauses.PauseTable, age: float) -> float:
    """The supremum over a dense grid of keeping times, in float64."""
    time, survival = np.asarray(table.time_us[0], float), np.asarray(table.survival[0], float)
    after = np.searchsorted(time, age, side="right")
    if after == len(time):
        return 0.0
    # Two-sided values at jumps: a dense grid plus every knot from above.
    fine = np.unique(np.concatenate([np.linspace(age, time[-1], 4001), time[time > age]]))

    def s_of(t):
        place = np.searchsorted(time, t, side="right")
        place = np.minimum(place, len(time) - 1)
        left = place - 1
        width = np.where(time[place] > time[left], time[place] - time[left], 1.0)
        share = np.clip((t - time[left]) / width, 0, 1)
        inside = survival[left] + share * (survival[place] - survival[left])
        return np.where(t >= time[-1], survival[-1], inside)

    now = s_of(np.array(age))
    kept = np.cumsum(s_of(0.5 * (fine[1:] + fine[:-1])) * np.diff(fine))
    paying = kept > 0
    return float(np.max((now - s_of(fine[1:][paying])) / kept[paying], initial=0.0))


@settings(max_examples=100, deadline=None)
@given(random_laws, st.floats(0.0, 1.05))
def test_index_equals_brute_force_over_keeping_times(law, share):
    table = build(law)
    age = float(np.float32(share * float(table.time_us[0, -1])))
    expected = brute_rate(table, age)
    assert float(return_rate(table, jnp.int32(0), age)) == pytest.approx(expected, rel=5e-3, abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(random_laws, st.floats(0.2, 60.0))
def test_stopping_when_the_index_falls_to_the_price_costs_the_least(law, reload_s):
    table = build(law)
    _, least = best_age(table, jnp.int32(0), reload_s * SECOND, PRICE)
    times = np.asarray(table.time_us[0])
    rates = np.asarray(rates_at_knots(table))
    stop = np.flatnonzero(rates * reload_s * SECOND <= PRICE)[0]  # the last knot has rate 0
    costs = np.asarray(cost_of_stopping(table, jnp.int32(0), reload_s * SECOND, PRICE))
    at_stop = costs[np.flatnonzero(times == times[stop])[-1]]
    assert at_stop == pytest.approx(float(least), rel=1e-4)


# --- learned tables -----------------------------------------------------------------------------------------------


def lomax_history(seed: int, num: int, window: int = 100) -> ttl.ToolHistory:
    pause = 2.0 * (np.random.default_rng(seed).random(num) ** (-1 / 1.5) - 1.0) * SECOND
    durations = jnp.asarray(np.minimum(pause, 2**31 - 1), jnp.int32)
    start = ttl.empty_history(2, window)
    return jax.jit(lambda s, d: jax.lax.scan(lambda h, x: (ttl.record(h, jnp.int32(0), x), None), s, d)[0])(
        start, durations
    )


def test_tables_from_history_and_from_samples_agree():
    history = lomax_history(0, 150)
    learned = jax.jit(pauses.tables_from_history)(history)
    samples = np.asarray(history.durations.ordered[0])
    host = pauses.tables_from_samples([samples, samples, samples])
    for ours, theirs in zip(jax.tree.leaves(learned), jax.tree.leaves(host), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=3e-6)


def test_without_samples_a_learned_table_is_the_prior():
    learned = pauses.tables_from_history(ttl.empty_history(2))
    for tool in range(3):
        for age_s in (0.0, 0.5, 2.0):
            rate = return_rate(learned, jnp.int32(tool), age_s * SECOND) * SECOND
            assert float(rate) == pytest.approx(1.0, rel=0.35)  # 17 knots, the last millisecond of tail cut off


@pytest.mark.parametrize("num", [200, 2000])
def test_a_table_learned_from_the_window_evicts_at_nearly_the_least_cost(num):
    # Evict-now costs 6, keep-for-ever 4, the optimum with the law known 2.743.
    costs = []
    for seed in range(20):
        learned = pauses.tables_from_history(lomax_history(seed, num))
        age, _ = best_age(learned, jnp.int32(0), RELOAD * SECOND, PRICE)
        costs.append(lomax_cost(float(age) / SECOND))
    assert np.mean(costs) < 2.743 * 1.05
    assert max(costs) < 3.2


def test_a_table_needs_samples_and_room_for_its_jumps():
    with pytest.raises(ValueError, match="at least one sample"):
        pauses.tables_from_samples([np.array([])])
    with pytest.raises(ValueError, match="too few"):
        pauses.tables_from_laws([pauses.Deterministic(1.0)], knots=4)
