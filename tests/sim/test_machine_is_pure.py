"""The machine is a pure function of its arguments: compiled or not, batched or not, in one go or with a break."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsched.sim.machine import advance, init_state, is_done, micro_step
from jaxsched.sim.state import Count
from tests.sim.clusters import ADMISSIONS, ENGINES, SMALL, Size, Variant, lane_inputs, random_lane
from tests.sim.harness import (
    CHUNK,
    TRACES,
    advance_lanes,
    assert_same_trees,
    finish_lanes,
    start_lanes,
)

VARIANT = Variant("vllm", "least_kv", turns=True, size=SMALL)
LANES = 16


def inputs(first_seed: int = 0, variant: Variant = VARIANT):
    return lane_inputs(variant, [random_lane(variant, first_seed + i) for i in range(LANES)])


def lane_of(tree, i: int):
    return jax.tree.map(lambda x: jnp.asarray(x[i]), tree)


def test_compiled_and_uncompiled_micro_steps_are_equal() -> None:
    variant = Variant("vllm", "least_outstanding", timeouts=True, size=Size(2, 4, 6, 40, 6, (100,)))
    params, requests = (lane_of(tree, 1) for tree in inputs(variant=variant))
    static = variant.static()
    step = jax.jit(lambda state: micro_step(static, params, requests, state)[0])
    state = init_state(static, params, 6)
    for _ in range(30):
        compiled = step(state)
        with jax.disable_jit():
            plain = micro_step(static, params, requests, state)[0]
        assert_same_trees(compiled, plain)
        state = compiled
    assert int(state.metrics.counts[Count.ENGINE_STEPS]) >= 5 and int(state.metrics.counts[Count.FINISHED]) >= 1


@pytest.mark.slow
def test_a_batch_of_lanes_equals_a_loop_over_lanes() -> None:
    static = VARIANT.static()
    params, requests = inputs()
    together = finish_lanes(static, params, requests)

    @jax.jit
    def chunk(p, r, state):
        state = advance(static, p, r, state, CHUNK)
        return state, is_done(static, p, r, state)

    # Lanes of a batch go on until all are done, so a lane that is done must stay as it is.
    for i in range(0, LANES, 4):
        p, r = lane_of(params, i), lane_of(requests, i)
        state, done = init_state(static, p, SMALL.num_rows), False
        while not done:
            state, done = chunk(p, r, state)
        assert_same_trees(state, lane_of(together, i))


def test_a_permutation_of_the_lanes_permutes_the_results() -> None:
    static = VARIANT.static()
    params, requests = inputs()
    order = np.random.default_rng(0).permutation(LANES)
    permuted = finish_lanes(static, *jax.tree.map(lambda x: np.asarray(x)[order], (params, requests)))
    straight = finish_lanes(static, params, requests)
    assert_same_trees(permuted, jax.tree.map(lambda x: x[order], straight))


def test_an_episode_saved_and_restored_in_the_middle_goes_on_as_if_nothing_had_happened(tmp_path) -> None:
    static = VARIANT.static()
    params, requests = inputs()
    whole = finish_lanes(static, params, requests)

    middle, done = advance_lanes(static, params, requests, start_lanes(static, params, requests))
    finished = np.asarray(middle.metrics.counts)[:, Count.FINISHED]
    assert not done and finished.any()
    assert (finished < np.asarray(whole.metrics.counts)[:, Count.FINISHED]).any()
    leaves, structure = jax.tree.flatten(middle)
    np.savez(tmp_path / "middle.npz", *[np.asarray(leaf) for leaf in leaves])
    with np.load(tmp_path / "middle.npz") as saved:
        restored = jax.tree.unflatten(structure, [jnp.asarray(saved[f"arr_{i}"]) for i in range(len(leaves))])
    assert_same_trees(finish_lanes(static, params, requests, restored), whole)


def test_other_parameters_and_workloads_need_no_new_trace() -> None:
    static = VARIANT.static()
    finish_lanes(static, *inputs())
    traces = TRACES[static]
    assert traces >= 1
    params, requests = inputs(first_seed=100)
    scheduler = params.scheduler.replace(token_budget=params.scheduler.token_budget + 7)
    finish_lanes(static, params.replace(scheduler=scheduler, max_queue=params.max_queue * 0), requests)
    assert TRACES[static] == traces


@pytest.mark.parametrize("scheduler", [*ENGINES, *ADMISSIONS])
def test_a_chunk_keeps_structure_shapes_and_dtypes_and_makes_nothing_weakly_typed(scheduler: str) -> None:
    variant = Variant(scheduler, "least_kv", turns=True, timeouts=True, delay=True, size=SMALL)
    static = variant.static()
    params, requests = (lane_of(tree, 0) for tree in inputs(variant=variant))
    before = jax.eval_shape(lambda p: init_state(static, p, SMALL.num_rows), params)
    after = jax.eval_shape(lambda p, r, s: advance(static, p, r, s, 2), params, requests, before)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True):
        name = jax.tree_util.keystr(path)
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        assert not a.weak_type and not b.weak_type, name
        assert a.dtype in (jnp.int32, jnp.float32), name
