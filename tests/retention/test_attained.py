"""Attained-service levels, ATLAS on a tree of calls, and the anti-starvation rule."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsched.retention import attained
from jaxsched.retention.window import LARGEST

SECOND = 1_000_000
PARAMS = attained.attained_params()


def level_by_loop(service_us: int, quantum_us: int, num_levels: int) -> int:
    level = 0
    while level < num_levels - 1 and service_us >= quantum_us * 2**level:
        level += 1
    return level


def test_levels_by_hand():
    service = jnp.array(
        [0, 999_999, SECOND, 2 * SECOND - 1, 2 * SECOND, 100 * SECOND, 256 * SECOND, LARGEST], jnp.int32
    )
    np.testing.assert_array_equal(attained.service_level(service, PARAMS), [0, 0, 1, 1, 2, 7, 9, 9])


@settings(max_examples=200, deadline=None)
@given(st.integers(0, LARGEST), st.integers(1, LARGEST), st.integers(1, attained.MAX_LEVELS))
def test_levels_equal_a_loop_over_the_queues(service, quantum, num_levels):
    params = attained.attained_params(quantum_us=quantum, num_levels=num_levels)
    got = int(attained.service_level(jnp.int32(service), params))
    assert got == level_by_loop(service, quantum, num_levels)


def test_plas_sums_finished_calls():
    total = jnp.int32(0)
    for call in (3, 5, 7):
        total = attained.plas_after(total, jnp.int32(call * SECOND))
    assert int(total) == 15 * SECOND


def test_atlas_is_the_longest_chain_of_a_tree_of_calls():
    # Two threads: a (2 s) then b (3 s); c (4 s). d waits for both: it inherits 5 s, not 9.
    program = jnp.int32(0)
    after_a = attained.atlas_after(program, jnp.int32(0), jnp.int32(2 * SECOND))
    after_c = attained.atlas_after(after_a, jnp.int32(0), jnp.int32(4 * SECOND))
    after_b = attained.atlas_after(after_c, after_a, jnp.int32(3 * SECOND))
    assert [int(x) // SECOND for x in (after_a, after_c, after_b)] == [2, 4, 5]


def test_times_saturate_instead_of_wrapping():
    assert int(attained.add_us(jnp.int32(LARGEST - 5), jnp.int32(10))) == LARGEST
    assert int(attained.atlas_after(jnp.int32(0), jnp.int32(LARGEST), jnp.int32(LARGEST))) == LARGEST


def key(inherited=0, program=0, program_wait=0, call=0, call_wait=0, params=PARAMS):
    values = (jnp.int32(x * SECOND) for x in (inherited, program, program_wait, call, call_wait))
    level, promoted = attained.attained_key(*values, params)
    return int(level), bool(promoted)


def test_a_call_inherits_its_programs_level_and_moves_down_as_it_is_served():
    assert key(inherited=0) == (0, False)
    assert key(inherited=3, program=3) == (2, False)
    assert key(inherited=3, program=3, call=1) == (3, False)


def test_a_starving_call_is_promoted_at_the_ratio():
    params = attained.attained_params(starvation_ratio=4)
    assert key(inherited=10, program=10, program_wait=30, call_wait=9, params=params) == (4, False)
    assert key(inherited=10, program=10, program_wait=30, call_wait=10, params=params) == (0, True)
    assert key(inherited=10, program=10, program_wait=30, call=5, call_wait=10, params=params) == (4, False)


@settings(max_examples=200, deadline=None)
@given(*(st.integers(0, LARGEST) | st.integers(0, 1000) for _ in range(4)), st.integers(1, 2**20) | st.integers(1, 5))
def test_starvation_equals_exact_fractions(program_wait, call_wait, program, call, ratio):
    wait, service = min(program_wait + call_wait, LARGEST), min(program + call, LARGEST)
    times = (jnp.int32(x) for x in (program_wait, call_wait, program, call))
    got = attained.starves(*times, attained.attained_params(starvation_ratio=ratio))
    assert bool(got) == (wait > 0 and wait >= ratio * service)


@pytest.mark.parametrize("ratio", [4, 0])
def test_who_was_never_served_is_promoted_only_after_waiting(ratio):
    params = attained.attained_params(starvation_ratio=ratio)
    assert key(params=params) == (0, False)
    assert key(call_wait=1, params=params)[1] is (ratio > 0)


def test_a_promoted_call_starts_again_in_the_first_level():
    promoted = jnp.array([True, False])
    times = jnp.array([10, 10], jnp.int32) * SECOND
    inherited, call, wait = attained.promoted_state(promoted, times, times, times)
    for array in (inherited, call, wait):
        np.testing.assert_array_equal(array, [0, 10 * SECOND])
    assert key(inherited=0, program=10, program_wait=30, call=0, call_wait=0)[0] == 0
    assert key(inherited=0, program=10, program_wait=30, call=2, call_wait=0)[0] == 2
