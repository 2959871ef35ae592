"""The toy environments have the known answers that learners are checked against, and keep the contract."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsched as js


def cost_rate(env, params, scores, num_lanes: int, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Cost and time of each lane under fixed class scores, without the first tenth of the steps."""

    def lane(key):
        def step(carry, _):
            _, state, reward, _, _, info = env.step_env(key, carry[1], {"order": scores}, params)
            return (carry[0], state), (reward, info["dt_s"])

        _, (reward, dt) = jax.lax.scan(step, env.reset_env(key, params), None, length=num_steps)
        kept = jnp.arange(num_steps) >= num_steps // 10
        return -jnp.sum(reward * kept), jnp.sum(dt * kept)

    costs, times = jax.jit(jax.vmap(lane))(jax.random.split(jax.random.key(1), num_lanes))
    return np.asarray(costs), np.asarray(times)


@pytest.mark.parametrize(("holding", "expected"), [((1.0, 4.0), (5.594, 4.816)), ((1.0, 2.0), (3.212, 3.472))])
def test_fixed_orders_of_the_queue_cost_what_theory_says(holding, expected, full_size):
    env, params = js.make("TwoClassQueue-v0", holding_cost=holding)
    lanes, steps = (3000, 6000) if full_size else (1000, 3000)
    rates = []
    for scores, known in zip(([1.0, 0.0], [0.0, 1.0]), expected, strict=True):
        costs, times = cost_rate(env, params, jnp.asarray(scores), lanes, steps)
        rate = costs.sum() / times.sum()
        error = np.std(costs - rate * times) / times.mean() / np.sqrt(lanes)
        assert abs(rate - known) < 4 * error + 0.005 * known, (rate, known, error)
        rates.append(rate)
    assert (rates[1] < rates[0]) == (expected[1] < expected[0])


def test_the_same_reset_key_is_the_same_workload_whatever_the_policy_does():
    env, params = js.make("TwoClassQueue-v0")

    def arrivals(score, noise):
        def step(state, key):
            before = jnp.sum(state.waiting) + (state.serving != 2)
            _, state, _, _, _, info = env.step_env(key, state, {"order": jnp.asarray([score, 0.0])}, params)
            del before
            return state, (info["dt_s"], state.waiting)

        _, state = env.reset(jax.random.key(3), params)
        return jax.lax.scan(step, state, jax.random.split(jax.random.key(noise), 400))[1]

    (first_dt, first), (second_dt, second) = arrivals(1.0, 0), arrivals(-1.0, 1)
    np.testing.assert_array_equal(first_dt, second_dt)
    assert np.any(np.asarray(first) != np.asarray(second)), "the policies differ, so must the queues"


def test_the_cue_is_paid_only_at_the_question_and_a_new_episode_follows():
    env, params = js.make("Cue-v0", delay=3)
    obs, state = env.reset(jax.random.key(0), params)
    cue = (obs.globals[0] > 0).astype(jnp.int32)
    rewards, ends = [], []
    for i in range(4):
        obs, state, reward, terminated, truncated, info = env.step(
            jax.random.key(9 + i), state, {"choice": cue}, params
        )
        rewards.append(float(reward))
        ends.append(bool(terminated | truncated))
    assert rewards == [0.0, 0.0, 0.0, 1.0] and ends == [False, False, False, True]
    assert int(state.step) == 0 and abs(float(obs.globals[0])) == 1.0
    assert float(info["final_observation"].globals[0]) == 0.0


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ({"ordre": jnp.zeros(2)}, "unknown head 'ordre'.*Did you mean 'order'"),
        ({}, "no action for head 'order'"),
        ({"order": jnp.zeros(3)}, r"float32\[3\].*expected float32\[2\]"),
        ({"order": jnp.zeros(2, jnp.int32)}, r"int32\[2\].*expected float32\[2\]"),
        ({"order": jnp.zeros((8, 2))}, "jax.vmap"),
        (jnp.zeros(2), "expected a dict with heads order"),
    ],
)
def test_a_wrong_action_is_refused_with_what_was_expected(action, message):
    env, params = js.make("TwoClassQueue-v0")
    _, state = env.reset(jax.random.key(0), params)
    with pytest.raises(js.UserError, match=message):
        env.step(jax.random.key(0), state, action, params)


def test_unknown_ids_and_overrides_name_the_nearest():
    with pytest.raises(js.UserError, match="Did you mean 'TwoClassQueue-v0'"):
        js.make("TwoClasQueue-v0")
    with pytest.raises(js.UserError, match="Did you mean 'holding_cost'"):
        js.make("TwoClassQueue-v0", holding_costs=(1, 2))
    with pytest.raises(js.UserError, match="shape"):
        js.make("TwoClassQueue-v0", holding_cost=(1, 2, 3))
