"""What the machine relies on: explicit dtypes, one trace, and batching, for every function event code may call."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsched.retention import attained, gate, index, pauses, peak, reload, ttl, waste

S, LANES = 70, 3  # slots: more than two blocks of the peak
i32, f32, flag = jnp.int32(3), jnp.float32(2e6), jnp.array(True)
ints, floats, flags = jnp.arange(S, dtype=jnp.int32), jnp.linspace(0.0, 0.9, S, dtype=jnp.float32), jnp.ones(S, bool)
history = ttl.empty_history(4)
words = jnp.linspace(0, 2**peak.WORD_BITS - 1, S).astype(jnp.int32)
lengths = peak.empty_lengths(500)
table = pauses.tables_from_laws([pauses.Exponential(1e6), pauses.Deterministic(2e6)], knots=32)
ages = index.age_table(table, steps=4, octaves=8)
levels = attained.attained_params()

CALLS = {
    "record": (ttl.record, (history, i32, i32, flag)),
    "record_wait": (ttl.record_wait, (history, i32, flag)),
    "record_program": (ttl.record_program, (history, i32, flag)),
    "eta": (ttl.eta, (history,)),
    "best_ttl": (ttl.best_ttl, (history, i32, i32)),
    "tables_from_history": (pauses.tables_from_history, (history,)),
    "return_rate": (index.return_rate, (table, jnp.int32(1), f32)),
    "rate_at": (index.rate_at, (ages, ints % 2, floats)),
    "index": (index.index, (ages, floats, ints % 2, floats, ints, f32)),
    "optimal_eviction_age": (index.optimal_eviction_age, (table, jnp.int32(1), f32, jnp.float32(1.0))),
    "recompute_us": (reload.recompute_us, (reload.prefill_curve(), ints)),
    "transfer_us": (reload.transfer_us, (reload.link(), ints)),
    "increment_tokens": (reload.increment_tokens, (ints, ints)),
    "preserve_waste": (waste.preserve_waste, (ints, floats)),
    "discard_waste": (waste.discard_waste, (ints, floats, i32)),
    "swap_waste": (waste.swap_waste, (floats, i32)),
    "chunked_discard_waste": (waste.chunked_discard_waste, (ints, i32, i32)),
    "remaining_pause_us": (waste.remaining_pause_us, (floats, floats, flags)),
    "least_waste": (waste.least_waste, (floats, floats, floats)),
    "record_output": (peak.record_output, (lengths, i32, flag)),
    "remaining_output": (peak.remaining_output, (lengths, ints, ints, flags, words)),
    "future_peak": (peak.future_peak, (ints, ints, flags)),
    "past_future_peak": (peak.past_future_peak, (lengths, ints, ints, ints, flags, ~flags, jnp.stack([words] * 5))),
    "fits": (peak.fits, (i32, i32, i32, f32)),
    "aggressive_fits": (peak.aggressive_fits, (ints, flags, i32)),
    "conservative_fits": (peak.conservative_fits, (ints, ints, ints, flags, i32)),
    "heuristic_output": (peak.heuristic_output, (ints, ints, flag)),
    "plas_after": (attained.plas_after, (ints, ints)),
    "atlas_after": (attained.atlas_after, (ints, ints, ints)),
    "attained_key": (attained.attained_key, (ints, ints, ints, ints, ints, levels)),
    "promoted_state": (attained.promoted_state, (flags, ints, ints, ints)),
    "resident_tokens": (gate.resident_tokens, (ints, flags, flags, flags)),
    "gate_open": (gate.gate_open, (ints, flags, flags, floats, i32, i32)),
}


@pytest.mark.parametrize("name", CALLS)
def test_results_are_int32_float32_or_bool_never_weak(name):
    function, args = CALLS[name]
    for leaf in jax.tree.leaves(jax.eval_shape(function, *args)):
        assert leaf.dtype in (jnp.int32, jnp.float32, jnp.bool_)
        assert not leaf.weak_type


@pytest.mark.parametrize("name", CALLS)
def test_a_batch_of_lanes_gives_what_each_lane_gives(name):
    function, args = CALLS[name]
    stacked = jax.tree.map(lambda x: jnp.stack([x] * LANES), args)
    together = jax.jit(jax.vmap(function))(*stacked)
    alone = jax.jit(function)(*args)
    for batch, single in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        for lane in batch:
            np.testing.assert_allclose(lane, single, rtol=1e-5)


@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_sorted_or_looped(name):
    function, args = CALLS[name]
    text = str(jax.make_jaxpr(function)(*args))
    blocks = ("scan[",) if name in ("future_peak", "past_future_peak") else ()  # theirs is over four blocks of slots
    for primitive in {"sort[", "while[", "scan[", "top_k["}.difference(blocks):
        assert primitive not in text


@pytest.mark.parametrize("name", ["record", "record_wait", "record_program", "record_output"])
def test_updates_keep_the_structure_of_their_state(name):
    function, args = CALLS[name]
    before, after = jax.eval_shape(lambda x: x, args[0]), jax.eval_shape(function, *args)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert (old.shape, old.dtype, old.weak_type) == (new.shape, new.dtype, new.weak_type)
