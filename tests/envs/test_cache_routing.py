"""CacheRouting: a request goes where the action says, decided when it arrives; what is shown as cached it finds."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsched as js
from jaxsched.envs.cache_routing import ROUTER_FEATURES, default_scenario
from jaxsched.xla import quick_compiler_options

NUM = 40
pytestmark = pytest.mark.slow


def test_requests_go_where_they_are_sent_and_find_what_was_shown():
    scenario = dataclasses.replace(default_scenario(), num_instances=3, usable_blocks=4000, rate_per_s=0.8)
    env, params = js.make(
        "CacheRouting-v0", scenario=scenario, num_programs=NUM, seeds=2, num_slots=48, max_num_seqs=8, num_items=16,
        cache_runs=128, burst=8,
    )  # fmt: skip
    env = dataclasses.replace(env, static=dataclasses.replace(env.static, record=True))
    matched = obs_width(env, params) - len(ROUTER_FEATURES) + ROUTER_FEATURES.index("matched")

    def episode(workload, prefers_cached):
        def step(carry, key):
            obs, state = carry
            anywhere = jax.random.randint(key, (), 0, 3)
            best = jnp.argmax(obs.instances[:, matched]).astype(jnp.int32)
            route = jnp.where(prefers_cached, best, anywhere)
            shown, row = obs.instances[:, matched], state.machine.arrivals
            obs, state, reward, done, _, info = env.step_env(key, state, {"route": route}, params)
            return (obs, state), (route, shown, row, reward, done, info["decision_valid"], state.machine.arrivals)

        (_, state), out = jax.lax.scan(step, env.reset_to(workload, params), jax.random.split(jax.random.key(1), 320))
        return state, out

    run = jax.jit(jax.vmap(episode), compiler_options=quick_compiler_options())
    state, (route, shown, row, reward, done, valid, after) = jax.device_get(
        run(jnp.asarray([0, 1, 1]), jnp.asarray([False, False, True]))
    )
    assert done[:, -1].all() and not state.machine.flags.any()
    at_once_found = 0
    for lane in range(3):
        decided = valid[lane]
        assert decided.sum() == NUM and (after[lane] - row[lane])[decided].tolist() == [1] * NUM
        assert not (after[lane] - row[lane])[~decided].any()
        rows = row[lane][decided]
        np.testing.assert_array_equal(state.machine.record.instance[lane][rows], route[lane][decided])
        # What it finds at its admission is at least what was cached when it arrived, if it had not to wait.
        at_once = shown[lane][decided, route[lane][decided]]
        found = state.machine.record.cached_first[lane][rows]
        waited = _waited(state, lane, rows)
        np.testing.assert_allclose(np.expm1(at_once * 10)[~waited], found[~waited], rtol=1e-3, atol=0.5)
        at_once_found += int((found[~waited] > 0).sum())
    assert at_once_found > 5, "some were admitted at once and found what was shown"
    first = int(params.pool.first[1])
    cached = state.machine.record.cached_first[:, first : first + NUM].sum(axis=1)
    assert cached[2] > cached[1] and reward[2].sum() != reward[1].sum()


def obs_width(env, params) -> int:
    return env.observation_space(params).instances.shape[1]


def _waited(state, lane: int, rows: np.ndarray) -> np.ndarray:
    record = state.machine.record
    return (record.first_scheduled[lane][rows] != record.arrival[lane][rows]).any(axis=1)
