"""Continuum's TTL against a hand-worked table and exact brute force."""

from __future__ import annotations

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsched.retention import ttl
from jaxsched.retention.window import LARGEST

SECOND = 1_000_000
ALWAYS = ttl.ttl_params(min_samples=3)


def history_of(samples, num_tools=3, window=8, waits=(), programs=()):
    """A history that has seen (tool, duration in us) pairs, waits in us, and programs by number of turns."""
    history = ttl.empty_history(num_tools, window)
    record, record_wait, record_program = jax.jit(ttl.record), jax.jit(ttl.record_wait), jax.jit(ttl.record_program)
    for tool, duration in samples:
        history = record(history, jnp.int32(tool), jnp.int32(duration))
    for wait in waits:
        history = record_wait(history, jnp.int32(wait))
    for turns in programs:
        history = record_program(history, jnp.int32(turns))
    return history


#: Tool 0 lasts 1, 2, 2, 4, 10 s (P = .2, .6, .6, .8, 1), tool 1 lasts 2, 4, 4, 4 s (P = .25, 1, 1, 1).
#: Worked by hand, gain B = T * eta + reload, utility P(tau) * B - tau:
#:   tool 0, B = 3:  1: -.4   2: -.2   4: -1.6  10: -7   -> 0
#:   tool 0, B = 5:  1: 0     2: 1     4: 0     10: -5   -> 2
#:   tool 0, B = 20: 1: 3     2: 10    4: 12    10: 10   -> 4
#:   tool 0, B = 30: 1: 5     2: 16    4: 20    10: 20   -> 4, the smaller of a tie
#:   tool 0, B = 31: 1: 5.2   2: 16.6  4: 20.8  10: 21   -> 10
#:   tool 1, B = 4:  2: -1    4: 0                       -> 0, the smaller of a tie with 0
#:   tool 1, B = 5:  2: -.75  4: 1                       -> 4
#: All nine together: 1, 2, 2, 2, 4, 4, 4, 4, 10 (P = 1/9, 4/9, 8/9, 1):
#:   B = 9 (tool 2, never seen): 1: 0   2: 2   4: 4   10: -1 -> 4
SEEN = [(0, 1), (0, 2), (1, 2), (0, 10), (1, 4), (1, 4), (0, 2), (0, 4), (1, 4)]
TABLE = [
    (0, 3, 0),
    (0, 5, 2),
    (0, 20, 4),
    (0, 30, 4),
    (0, 31, 10),
    (1, 4, 0),
    (1, 5, 4),
    (2, 9, 4),
    (-1, 9, 4),
    (7, 9, 4),
]


@pytest.mark.parametrize(("tool", "gain_s", "expected_s"), TABLE)
def test_ttl_equals_the_table_worked_by_hand(tool, gain_s, expected_s):
    history = history_of([(tool, s * SECOND) for tool, s in SEEN], window=16)
    got = ttl.best_ttl(history, jnp.int32(tool), jnp.int32(gain_s * SECOND), ALWAYS)
    assert int(got) == expected_s * SECOND


@pytest.mark.parametrize(("wait_s", "reload_s", "expected_s"), [(2, 3, 2), (17, 3, 4), (28, 3, 10), (0, 3, 0)])
def test_the_wait_of_evicted_requests_adds_to_the_reload(wait_s, reload_s, expected_s):
    # One program of five turns: eta = 1, so B = wait + reload in the table above.
    samples = [(tool, s * SECOND) for tool, s in SEEN]
    history = history_of(samples, window=16, waits=[wait_s * SECOND], programs=[5])
    assert int(ttl.best_ttl(history, jnp.int32(0), jnp.int32(reload_s * SECOND), ALWAYS)) == expected_s * SECOND


@pytest.mark.parametrize(
    ("wait_s", "reload_s", "expected_s"),
    [(0, 0.5, 0.0), (0, 1, 0.0), (0, float(np.e), 1.0), (0, 10, 2.302585), (2, 3, 1.609438)],
)
def test_with_few_samples_the_prior_gives_the_logarithm(wait_s, reload_s, expected_s):
    # Programs that would make eta negative are not looked at: under the prior it is 1.
    history = history_of([(0, 1), (1, 1), (2, 1)], waits=[wait_s * SECOND], programs=[2] * 50 + [11])
    got = ttl.best_ttl(history, jnp.int32(0), jnp.int32(round(reload_s * SECOND)), ALWAYS)
    assert int(got) / SECOND == pytest.approx(expected_s, abs=2e-6)


def test_the_prior_maximises_its_own_utility():
    for gain_s in (0.3, 1.5, 4.0, 60.0):
        got = int(ttl.best_ttl(ttl.empty_history(1), jnp.int32(0), jnp.int32(gain_s * SECOND))) / SECOND
        tau = np.linspace(0, 10, 100_001)
        assert got == pytest.approx(tau[np.argmax((1 - np.exp(-tau)) * gain_s - tau)], abs=2e-4)


def test_sources_change_only_when_more_than_k_samples_are_there():
    # Tool 0 always 1 s, tool 1 always 3 s. B = 8 s: the global optimum depends on the mix.
    params = ttl.ttl_params(min_samples=4)
    gain = jnp.int32(8 * SECOND)
    prior = int(ttl.best_ttl(ttl.empty_history(2), jnp.int32(0), gain, params))
    samples = [(1, 3)] * 4 + [(0, 1)] * 5
    seen = []
    for num in range(len(samples) + 1):
        history = history_of([(tool, s * SECOND) for tool, s in samples[:num]], num_tools=2)
        seen.append(int(ttl.best_ttl(history, jnp.int32(0), gain, params)))
    assert seen[:5] == [prior] * 5  # 0 to 4 samples in all
    # 5 to 8 in all, at most 4 of tool 0. Window 8: P(1) = 1/5 .. 4/8 against P(3) = 1: 5 > 8 P - 1.
    assert seen[5:9] == [3 * SECOND] * 4
    assert seen[9] == 1 * SECOND  # five of its own


def test_t_is_the_mean_of_the_waits_and_then_moves():
    waits = [3, 5, 10, 2]
    history = history_of([], waits=waits)
    assert float(history.wait_us) == pytest.approx(np.mean(waits), rel=1e-6)
    params = ttl.ttl_params(wait_window=2.0)
    moving, expected = ttl.empty_history(1), 0.0
    for number, wait in enumerate(waits, 1):
        moving = ttl.record_wait(moving, jnp.int32(wait), True, params)
        expected += (wait - expected) / min(number, 2)
    assert float(moving.wait_us) == pytest.approx(expected, rel=1e-6)
    assert float(ttl.empty_history(1).wait_us) == 0.0


def test_eta_by_hand():
    # Programs of 2 and 4 turns: pairs (1,1); (1,3), (2,2), (3,1). Covariance -1.25, variance 2.75 (times 4): 5/11.
    assert float(ttl.eta(history_of([], programs=[2, 4]))) == pytest.approx(5 / 11, rel=1e-5)


@pytest.mark.parametrize("turns", [3, 5, 40, 1000])
def test_eta_is_one_for_a_fixed_number_of_turns(turns):
    assert float(ttl.eta(history_of([], programs=[turns] * 5))) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("programs", [[], [1, 1, 1], [2], [2, 2, 1, 2]])
def test_eta_is_one_before_turns_vary(programs):
    assert float(ttl.eta(history_of([], programs=programs))) == 1.0


def test_eta_vanishes_for_memoryless_programs():
    turns = np.random.default_rng(0).geometric(0.15, 4000)
    history = jax.lax.scan(
        lambda h, n: (ttl.record_program(h, n), None), ttl.empty_history(1), jnp.asarray(turns, jnp.int32)
    )[0]
    assert abs(float(ttl.eta(history))) < 0.05


def test_a_negative_eta_never_pins_what_is_cheap_to_reload():
    history = history_of([(0, SECOND)] * 5, waits=[100 * SECOND], programs=[2] * 200 + [11])
    assert float(ttl.eta(history)) == pytest.approx(-0.4008, abs=1e-4)  # covariance .5255, variance 1.3113
    assert int(ttl.best_ttl(history, jnp.int32(0), jnp.int32(SECOND), ALWAYS)) == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=30))
def test_eta_is_minus_the_correlation_of_turns_done_and_left(programs):
    history = history_of([], programs=programs)
    pairs = np.array([(k, n - k) for n in programs for k in range(1, n)], float).reshape(-1, 2)
    if len(pairs) == 0 or pairs[:, 0].std() == 0:
        assert float(ttl.eta(history)) == 1.0
    else:
        assert float(ttl.eta(history)) == pytest.approx(-np.corrcoef(pairs.T)[0, 1], abs=2e-4)


def brute_force(samples: list[int], gain_us: int) -> int:
    """argmax over {0} and the samples by exact fractions."""
    best, best_tau = None, None
    for tau in sorted({0, *samples}):
        utility = Fraction(sum(s <= tau for s in samples), len(samples)) * gain_us - tau
        if best is None or utility > best:
            best, best_tau = utility, tau
    assert best_tau is not None
    return best_tau


durations = st.one_of(st.integers(0, 12), st.integers(0, 60 * SECOND), st.integers(0, LARGEST))
WINDOW = 12


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-1, 3), durations), min_size=1, max_size=40),
    st.integers(-1, 3),
    st.one_of(st.integers(0, 30), st.integers(0, 120 * SECOND), st.integers(0, LARGEST)),
    st.lists(st.integers(0, 300 * SECOND), max_size=3),
    st.lists(st.integers(1, 30), max_size=4),
)
def test_ttl_equals_exact_brute_force_on_random_histories(samples, tool, reload_us, waits, programs):
    history = history_of(samples, num_tools=3, window=WINDOW, waits=waits, programs=programs)
    got = int(jax.jit(ttl.best_ttl)(history, jnp.int32(tool), jnp.int32(reload_us), ALWAYS))
    if len(samples) <= 3:
        gain_s = (np.mean(waits or [0]) + reload_us) / SECOND
        assert got == pytest.approx(max(0.0, np.log(gain_s) * SECOND if gain_s > 0 else 0.0), rel=1e-6, abs=2)
        return
    own = [duration for of, duration in samples if of == tool and 0 <= tool < 3]
    source = own[-WINDOW:] if len(own) > 3 else [duration for _, duration in samples][-WINDOW:]
    # The gain is what float32 makes of it: the mean wait and eta have their own tests.
    gain = np.float32(np.float32(history.wait_us) * np.float32(ttl.eta(history))) + np.float32(reload_us)
    near = {int(np.clip(round(float(gain)) + d, 0, 2147483520)) for d in (-1, 0, 1)}  # a fused multiply-add may differ
    assert got in {brute_force(source, g) for g in near}
    if not waits:
        exact = int(np.clip(np.round(np.float32(reload_us)), 0, 2147483520))
        assert got == brute_force(source, exact)


def test_masked_records_change_nothing():
    history = history_of(SEEN, waits=[5], programs=[3, 4])
    for after in (
        ttl.record(history, jnp.int32(0), jnp.int32(9), jnp.array(False)),
        ttl.record_wait(history, jnp.int32(9), jnp.array(False)),
        ttl.record_program(history, jnp.int32(9), jnp.array(False)),
        ttl.record_program(history, jnp.int32(1)),
    ):
        jax.tree.map(np.testing.assert_array_equal, history, after)
