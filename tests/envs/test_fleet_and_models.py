"""FleetScaling and ModelRouting against episodes worked out by hand, and against the plain cluster."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsched as js
from jaxsched.envs import fleet_scaling, model_routing
from jaxsched.envs.cluster import ClusterEnv
from jaxsched.envs.model_routing import ServedModel
from jaxsched.errors import UserError
from jaxsched.policies.routers import least_outstanding
from jaxsched.timing.step_time import affine, scale
from jaxsched.xla import quick_compiler_options

#: Every step takes 10 ms, and 10 us per token.
TIMING = affine(10_000, 10, 0)
SMALL = {"seeds": 1, "num_slots": 16, "max_num_seqs": 8, "num_items": 16}


def with_requests(params, arrival_s, prompt, output):
    """The parameters with a workload by hand."""
    as_int = lambda x: jnp.asarray(np.asarray(x), jnp.int32)
    arrival = as_int(np.round(np.asarray(arrival_s) * 1e6))
    table = params.pool.requests.replace(
        arrival_epoch=0 * arrival, arrival_us=arrival, prompt_tokens=as_int(prompt), output_tokens=as_int(output)
    )
    return params.replace(pool=params.pool.replace(requests=table))


def alone_s(prompt: int, output: int) -> float:
    """Time of a request that is alone on its instance: one prefill step, then decode steps of one token."""
    return (10_000 + 10 * prompt + (output - 1) * 10_010) * 1e-6


def recorded(env):
    return dataclasses.replace(env, static=dataclasses.replace(env.static, record=True))


def absolute_s(pair) -> np.ndarray:
    return np.asarray(pair).astype(np.float64) @ [2**30, 1] * 1e-6


def run(env, params, head, actions):
    """Lanes of actions ``[lane, step]``: final state, and rewards, durations, costs and masks by step."""

    def episode(actions):
        def step(carry, choice):
            obs, state = carry
            obs, state, reward, done, _, info = env.step_env(None, state, {head: choice} if head else {}, params)
            return (obs, state), (reward, info["dt_s"], info["costs"], done, obs)

        (_, state), out = jax.lax.scan(step, env.reset_to(jnp.int32(0), params), actions)
        return state, out

    return jax.device_get(jax.jit(jax.vmap(episode), compiler_options=quick_compiler_options())(jnp.asarray(actions)))


@pytest.mark.slow
def test_instances_start_late_drain_and_cost_what_they_are_there():
    """Ticks of 0.5 s, starting takes 0.7 s.

    The second instance is off at first; on at 0.5 s and ready at 1.2 s, so it takes requests from the decision at 1.5 s
    on; off at 2 s, while it holds the third request, which ends at 1.6 s + 1.012 s. In the second lane it is on again
    at 2.5 s, and takes the last request at once.
    """
    scenario = dataclasses.replace(fleet_scaling.default_scenario(), num_instances=2, timing=TIMING)
    env, params = js.make(
        "FleetScaling-v0", scenario=scenario, num_programs=5, tick_ms=500, burst=128, startup_s=0.7, price=3.0, **SMALL
    )
    arrival, output = [1.0, 1.3, 1.6, 2.55, 2.56], [11, 201, 101, 11, 11]
    params = with_requests(params, arrival, [100] * 5, output)
    off, on = 0, 1
    actions = [[off, on, on, on, off, off, off, off], [off, on, on, on, off, on, on, off]]
    env = recorded(env)
    state, (reward, dt, costs, done, obs) = run(env, params, "scale", actions)
    assert done[:, -1].all() and not state.machine.flags.any() and not state.short_ticks.any()
    np.testing.assert_array_equal(state.machine.record.instance, [[0, 0, 1, 0, 0], [0, 0, 1, 0, 1]])
    finish = absolute_s(state.machine.record.finish)
    np.testing.assert_allclose(finish[:, 0], 1.0 + alone_s(100, 11), atol=1e-6)
    np.testing.assert_allclose(finish[0, 2], 1.6 + alone_s(100, 101), atol=1e-6)
    assert alone_s(100, 101) == pytest.approx(1.012)
    instance_s = costs[:, :, env.cost_names.index("instance_s")]
    end = finish.max(axis=1)  # of the last request: nothing is charged after it
    tail = lambda lane, begin: np.clip(end[lane] - np.asarray(begin), 0, 0.5)
    first = [0.5, 1.0, 1.0, 1.0, 1.0, 0.5 + 0.112, *tail(0, [3.0, 3.5])]
    np.testing.assert_allclose(instance_s[0], first, atol=2e-6)
    # In the second lane both are on from 2.5 s to the end.
    second = [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, *2 * tail(1, [3.0, 3.5])]
    np.testing.assert_allclose(instance_s[1], second, atol=2e-6)
    np.testing.assert_allclose(reward, -costs[:, :, 0] - 3.0 * instance_s, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(costs[:, :, 0].sum(axis=1), (finish - arrival).sum(axis=1), rtol=1e-5)
    starts = np.asarray(obs.instances)[0, :, 1, -2]
    np.testing.assert_array_equal(starts[:5], [0, 1, 0, 0, 0])
    np.testing.assert_allclose(dt[:, :6], 0.5, atol=1e-6)


@pytest.mark.slow
def test_a_fleet_that_is_all_on_is_the_cluster_and_a_smaller_one_is_not():
    env, params = js.make("FleetScaling-v0", num_programs=60, burst=64, **SMALL)
    env = recorded(env)
    most = env.static.num_instances - 1
    actions = np.repeat([[most], [1]], 64, axis=1)
    state, (_, dt, costs, done, _) = run(env, params, "scale", actions)
    fields = {field.name: getattr(env, field.name) for field in dataclasses.fields(env)}
    plain = ClusterEnv(**{**fields, "learned": (), "static": dataclasses.replace(env.static, route=least_outstanding)})
    same, _ = run(plain, params.replace(own=None), "", actions[:1])
    assert done[:, -1].all()
    np.testing.assert_array_equal(state.machine.record.finish[0], same.machine.record.finish[0])
    assert (state.machine.record.finish[1] != same.machine.record.finish[0]).any()
    assert set(state.machine.record.instance[1][:60]) == {0, 1}
    np.testing.assert_allclose(costs[0, :, -1], 4 * dt[0], rtol=1e-5)


@pytest.mark.slow
def test_an_instance_twice_as_slow_takes_twice_the_time_and_answers_earn_their_quality():
    scenario = dataclasses.replace(model_routing.default_scenario(), num_instances=2)
    models = ServedModel("fast", TIMING, (0.5,)), ServedModel("slow", scale(TIMING, 2.0), (0.75, 1.0))
    env, params = js.make("ModelRouting-v0", scenario=scenario, models=models, num_programs=4, price=0.125, **SMALL)
    arrival = np.asarray([1.0, 2.0, 5.0, 9.0])
    params = with_requests(params, arrival, [100] * 4, [51, 51, 101, 101])
    requests = params.pool.requests.replace(klass=jnp.asarray([0, 0, 1, 1], jnp.int32))
    params = params.replace(pool=params.pool.replace(requests=requests))
    env = recorded(env)

    def episode(route):
        def step(carry, _):
            obs, state = carry
            choice = route[jnp.minimum(state.machine.arrivals, 3)]
            klass = obs.globals[-2:]
            obs, state, reward, done, _, info = env.step_env(None, state, {"route": choice}, params)
            return (obs, state), (reward, info["costs"], done, klass, info["decision_valid"])

        (_, state), out = jax.lax.scan(step, env.reset_to(jnp.int32(0), params), None, length=40)
        return state, out

    routes = jnp.asarray([[0, 1, 0, 1], [1, 0, 1, 1]], jnp.int32)
    run = jax.jit(jax.vmap(episode), compiler_options=quick_compiler_options())
    state, (reward, costs, done, klass, valid) = jax.device_get(run(routes))
    assert done[:, -1].all() and not state.machine.flags.any()
    np.testing.assert_array_equal(state.machine.record.instance, routes)
    took = absolute_s(state.machine.record.finish) - arrival
    alone = np.asarray([alone_s(100, output) for output in (51, 51, 101, 101)])
    np.testing.assert_allclose(took, alone * (1 + np.asarray(routes)), atol=2e-6)
    quality = np.asarray([[0.5, 0.75, 0.5, 1.0], [0.75, 0.5, 1.0, 1.0]])
    np.testing.assert_allclose(costs[:, :, -1].sum(axis=1), quality.sum(axis=1), rtol=1e-6)
    np.testing.assert_allclose(reward.sum(axis=1), (quality - 0.125 * took).sum(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(klass[0][valid[0]], np.eye(2)[[0, 0, 1, 1]])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["FleetScaling-v0", "ModelRouting-v0"])
def test_both_keep_the_contract(name):
    js.check_env(*js.make(name, num_programs=8, burst=4, **SMALL), num_steps=24)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("FleetScaling-v0", {"heads": ("route",)}, "unknown head 'route'"),
        ("FleetScaling-v0", {"price": -1.0}, "price -1"),
        ("FleetScaling-v0", {"startup_s": float("nan")}, "startup_s nan"),
        ("ModelRouting-v0", {"residual_s": float("nan")}, "residual_s nan"),
        ("ChatServing-v0", {"heads": ("ratio",), "policy": "vllm+h2o", "loss_cost": -1.0}, "loss_cost -1"),
        (
            "ChatServing-v0",
            {"heads": ("draft",), "policy": "vllm+spec", "num_speculative_tokens": 2},
            "num_speculative_tokens with head 'draft'",
        ),
        ("ModelRouting-v0", {"models": ()}, "0 models for 4 instances"),
        ("ModelRouting-v0", {"price": float("inf")}, "price inf"),
        ("ModelRouting-v0", {"models": (ServedModel("a", TIMING, (1.0, 2.0, 3.0)),) * 4}, "quality .* of model a"),
    ],
)
def test_bad_input_is_refused(name, arguments, message):
    with pytest.raises(UserError, match=message):
        js.make(name, **{"num_programs": 4, "seeds": 1, **arguments})
