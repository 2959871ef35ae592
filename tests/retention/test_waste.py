"""Reload costs and InferCept's wastes against hand-worked numbers and a step-by-step account."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsched.retention import reload, waste
from jaxsched.retention.waste import Action


def test_recompute_time_is_the_quadratic_fit():
    curve = reload.prefill_curve(fixed_us=1000.0, linear_us=50.0, quadratic_us=0.001)
    got = reload.recompute_us(curve, jnp.array([0, 1, 1000, 10_000], jnp.int32))
    np.testing.assert_array_equal(got, [0, 1050, 1000 + 50_000 + 1000, 1000 + 500_000 + 100_000])


def test_transfer_time_pays_one_launch_per_group():
    # 1,000 tokens of 131,072 bytes at 25,000 bytes/us: 5,243 us; 63 blocks of 16 tokens, or a group of 960 and a rest.
    tokens = jnp.array([0, 1000], jnp.int32)
    np.testing.assert_array_equal(reload.transfer_us(reload.link(), tokens), [0, 5243 + 630])
    grouped = reload.link(tokens_per_operation=960.0)
    np.testing.assert_array_equal(reload.transfer_us(grouped, tokens), [0, 5243 + 20])


def test_only_the_increment_is_written_back():
    got = reload.increment_tokens(jnp.array([1000, 500], jnp.int32), jnp.array([400, 600], jnp.int32))
    np.testing.assert_array_equal(got, [600, 0])


def test_times_saturate_instead_of_wrapping():
    curve = reload.prefill_curve()
    assert int(reload.recompute_us(curve, jnp.int32(2**30))) == 2**31 - 128


def test_wastes_by_hand():
    # 10,000 tokens of context, 2 s pause, 0.5 s of recomputation, 50,000 tokens of others, 0.1 s one way on the link.
    assert float(waste.preserve_waste(jnp.int32(10_000), 2e6)) == pytest.approx(2e10)
    assert float(waste.discard_waste(jnp.int32(10_000), 5e5, jnp.int32(50_000))) == pytest.approx(3e10)
    assert float(waste.swap_waste(1e5, jnp.int32(50_000))) == pytest.approx(1e10)


def chunked_by_steps(context: int, running: int, others: int, step_tokens: int, token_us: float, step_us: float):
    """Equation 4 chunk by chunk: what the chunks already computed hold, and what others wait longer."""
    chunk = max(step_tokens - running, 1)
    total, done = 0.0, 0
    while context - done > chunk:
        done += chunk
        total += (step_us + token_us * step_tokens) * done  # memory of the chunks so far, during one full step
        total += token_us * chunk * others  # others wait for what the chunk adds to the step
    last = context - done
    return total + token_us * last * (others + last)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 20_000), st.integers(0, 600), st.integers(0, 400_000))
def test_chunked_waste_equals_the_account_chunk_by_chunk(context, running, others):
    got = waste.chunked_discard_waste(jnp.int32(context), jnp.int32(running), jnp.int32(others))
    expected = chunked_by_steps(context, running, others, 384, 27.9, 15_400.0)
    assert float(got) == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize(
    ("preserve", "swap", "discard", "expected"),
    [
        (1.0, 2.0, 3.0, Action.PRESERVE),
        (3.0, 2.0, 1.0, Action.DISCARD),
        (3.0, 1.0, 2.0, Action.SWAP),
        (1.0, 1.0, 1.0, Action.PRESERVE),
        (2.0, 1.0, 1.0, Action.SWAP),
        (2.0, np.inf, 1.0, Action.DISCARD),
    ],
)
def test_the_least_waste_is_chosen(preserve, swap, discard, expected):
    assert int(waste.least_waste(jnp.float32(preserve), jnp.float32(swap), jnp.float32(discard))) == expected


def test_a_long_pause_turns_preserving_into_discarding_at_the_break_even():
    # C = 8,000, T_fwd = 0.6 s, nobody else: preserve costs T_INT * C, discard T_fwd * C, so the turn is at 0.6 s.
    pause = jnp.arange(121, dtype=jnp.float32) * 1e4
    preserve = waste.preserve_waste(jnp.int32(8000), pause)
    discard = waste.discard_waste(jnp.int32(8000), 6e5, jnp.int32(0))
    chosen = np.asarray(waste.least_waste(preserve, jnp.float32(np.inf), discard))
    assert (chosen[:61] == Action.PRESERVE).all() and (chosen[61:] == Action.DISCARD).all()


def test_others_in_memory_make_discarding_worse():
    pause, context = 2e6, jnp.int32(8000)
    preserve = waste.preserve_waste(context, pause)
    for others, expected in ((0, Action.DISCARD), (100_000, Action.PRESERVE)):
        discard = waste.discard_waste(context, 6e5, jnp.int32(others))
        assert int(waste.least_waste(preserve, jnp.float32(np.inf), discard)) == expected


def test_remaining_pause_of_known_and_unknown_durations():
    assert float(waste.remaining_pause_us(5e6, 2e6, True)) == 3e6
    assert float(waste.remaining_pause_us(5e6, 9e6, True)) == 0.0
    assert float(waste.remaining_pause_us(5e6, 2e6, False)) == 2e6
