"""ChatServing with tenants: costs weigh every class as told, and the budget in force is the one chosen."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsched as js
from jaxsched.envs import features
from jaxsched.envs.chat_serving import default_scenario
from jaxsched.envs.controls import TOKEN_BUDGETS
from jaxsched.sim.state import Count
from jaxsched.workloads import get_preset
from jaxsched.xla import quick_compiler_options

NUM = 48
pytestmark = pytest.mark.slow


def test_costs_are_those_of_the_records_by_class_and_budgets_are_kept():
    scenario = dataclasses.replace(default_scenario(), workload=get_preset("arena"), rate_per_s=12.0)
    env, params = js.make(
        "ChatServing-v0", scenario=scenario, num_programs=NUM, seeds=2, num_slots=64, max_num_seqs=12, num_items=64,
        burst=8, reward="latency", length_error=0.5,
    )  # fmt: skip
    env = dataclasses.replace(env, static=dataclasses.replace(env.static, record=True))
    weight = np.random.default_rng(0).uniform(0.5, 2.0, env.static.num_classes).astype(np.float32)
    params = params.replace(class_weight=jnp.asarray(weight))
    predicted = features.ITEM_FEATURES.index("predicted_output")

    def episode(bucket, sign):
        def step(carry, _):
            obs, state = carry
            action = {"order": sign * obs.items[:, predicted], "batch": bucket}
            before = state.machine.metrics.counts
            obs, state, reward, done, _, info = env.step_env(None, state, action, params)
            tokens = (state.machine.metrics.counts - before)[jnp.asarray([Count.SCHEDULED_TOKENS, Count.ENGINE_STEPS])]
            return (obs, state), (reward, done, info["costs"], tokens)

        (_, state), out = jax.lax.scan(step, env.reset_to(jnp.int32(1), params), None, length=400)
        return state, out

    run = jax.jit(jax.vmap(episode), compiler_options=quick_compiler_options())
    buckets = np.asarray([0, 3, 3], np.int32)
    state, (reward, done, costs, tokens) = jax.device_get(run(buckets, np.asarray([-1.0, -1.0, 1.0], np.float32)))
    assert done[:, -1].all() and not state.machine.flags.any()
    requests, first = jax.device_get(params.pool.requests), int(params.pool.first[1])
    rows = np.arange(first, first + NUM)
    klass = requests.klass[rows]
    assert len(np.unique(klass)) > 3, "several tenants are there"
    record = state.machine.record
    for lane in range(3):
        time = (record.finish[lane][rows] - record.arrival[lane][rows]).astype(np.float64) @ [2**30, 1] * 1e-6
        assert (record.finish[lane][rows, 0] >= 0).all()
        np.testing.assert_allclose(-reward[lane].astype(np.float64).sum(), (weight[klass] * time).sum(), rtol=1e-4)
        np.testing.assert_allclose(costs[lane, :, 0].astype(np.float64).sum(), time.sum(), rtol=1e-4)
        assert costs[lane, :, 1].sum() == NUM
        good = state.machine.metrics.class_good[lane].sum()
        assert costs[lane, :, 2].sum() == good
        assert tokens[lane, :, 0].sum() == costs[lane, :, 3].sum()
    # A step of the engine never has more tokens than its budget.
    # (Tokens are counted when a step is formed, steps when they end.)
    small = np.cumsum(tokens[0], axis=0)
    assert (small[:, 0] <= TOKEN_BUDGETS[0] * (small[:, 1] + 1)).all()
    assert tokens[0, :, 1].tolist() != tokens[1, :, 1].tolist(), "another budget, other steps"
    # Short answers first is better on average than long ones first, though lengths are only guessed.
    assert reward[1].sum() > reward[2].sum()
