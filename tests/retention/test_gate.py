"""The admission gate: who counts, where it closes, and that it cannot lock an instance."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsched.retention.gate import gate_open, resident_tokens

#: Programs: running, waiting, paused and kept, paused and given up, not begun.
CONTEXT = jnp.array([100, 200, 400, 800, 1600], jnp.int32)
BEGUN = jnp.array([True, True, True, True, False])
PAUSED = jnp.array([False, False, True, True, False])
KEEP = jnp.array([False, False, True, False, True])


def test_expected_residents_are_those_at_work_and_the_kept():
    assert float(resident_tokens(CONTEXT, BEGUN, PAUSED, KEEP)) == 700
    assert float(resident_tokens(CONTEXT, BEGUN, PAUSED, KEEP | True)) == 1500  # plain LRU: all begun
    chance = jnp.array([0.0, 0.0, 0.5, 0.25, 1.0], jnp.float32)
    assert float(resident_tokens(CONTEXT, BEGUN, PAUSED, chance)) == 700


@pytest.mark.parametrize(("candidate", "expected"), [(0, True), (99, True), (100, False), (1000, False)])
def test_the_gate_closes_at_its_fraction_of_the_pool(candidate, expected):
    # 700 expected, pool 1,000: below 800 with the candidate.
    opened = gate_open(CONTEXT, BEGUN, PAUSED, KEEP, jnp.int32(candidate), jnp.int32(1000))
    assert bool(opened) is expected


def test_final_contexts_and_a_larger_fraction_are_the_peak_bound():
    final = jnp.array([500, 300, 400, 800, 0], jnp.int32)
    for candidate, expected in ((199, True), (201, False)):
        opened = gate_open(final, BEGUN, PAUSED, KEEP, jnp.int32(candidate), jnp.int32(1000), 1.4)
        assert bool(opened) is expected


def test_an_instance_where_nobody_is_at_work_lets_any_program_in():
    nobody = jnp.zeros(5, bool)
    huge = jnp.int32(10**6)
    assert bool(gate_open(CONTEXT, nobody, nobody, KEEP, huge, jnp.int32(1000)))
    asleep = BEGUN & PAUSED
    assert bool(gate_open(CONTEXT, asleep, PAUSED, KEEP | True, huge, jnp.int32(1000)))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 900), st.sampled_from(["run", "pause", "pause, kept"])), max_size=12),
    st.integers(1, 1000),
    st.integers(1, 2000),
)
def test_open_means_below_the_fraction_or_nobody_at_work(programs, candidate, pool):
    slots = 12
    context, begun, paused, keep = (
        np.full(slots, 77),
        np.zeros(slots, bool),
        np.zeros(slots, bool),
        np.ones(slots, bool),
    )
    for slot, (tokens, state) in enumerate(programs):
        context[slot], begun[slot], paused[slot], keep[slot] = tokens, True, state != "run", state == "pause, kept"
    arrays = (jnp.asarray(context, jnp.int32), jnp.asarray(begun), jnp.asarray(paused), jnp.asarray(keep))
    opened = jax.jit(gate_open)(*arrays, jnp.int32(candidate), jnp.int32(pool))
    resident = sum(tokens for tokens, state in programs if state != "pause")
    at_work = any(state == "run" for _, state in programs)
    assert bool(opened) == (not at_work or resident + candidate < 0.8 * pool)
