"""PPO: exact on its first minibatch, right about time, and it finds what is known to be optimal (sheet 1)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsched.envs.toys import Cue, TwoClassQueue
from jaxsched.networks import SetNetworkConfig, SetPolicy, evaluate, greedy
from jaxsched.xla import quick_compiler_options
from tests.train.bandits import Bandit
from train import ppo
from train.devices import AXIS, over_devices
from train.pid_lagrangian import Constraint, PidGains
from train.rollout import collect, heads_of, sequences, start_lanes

QUEUE = TwoClassQueue()


def quick_jit(function):
    """For programs that take longer to compile than to run."""
    return jax.jit(function, compiler_options=quick_compiler_options())


def policy_for(env, **settings):
    return SetPolicy(SetNetworkConfig(heads_of(env), **{"width": 16, **settings}))


def trainer(env, policy, static):
    """``train(key, hyper) -> (learner, metrics by iteration)`` as one program."""

    def train(key, hyper):
        state = ppo.init(env, policy, static, key, hyper)
        return jax.lax.scan(
            lambda s, _: ppo.update(env, policy, static, s, hyper), state, None, static.num_iterations
        )  # fmt: skip

    return train


def test_the_first_update_starts_at_ratios_of_one_with_memory_pieces_and_resets():
    """Log-probabilities from acting one step at a time are those of the unrolled pieces with their stored memory."""
    policy = policy_for(QUEUE, recurrent=True)
    params_of_env = QUEUE.default_params.replace(
        arrival_rate=jnp.asarray([3.0, 3.0]), service_rate=jnp.asarray([6.0, 4.0]), max_steps_in_episode=jnp.int32(21)
    )  # busy: many decisions

    def gap(key):
        keys = jax.random.split(key, 16)
        lanes = start_lanes(QUEUE, policy, keys, params_of_env)
        params = policy.init(key, lanes.obs)
        params["head_order"]["kernel"] *= 300.0  # far from uniform
        _, steps = collect(QUEUE, policy, params, lanes, 64, params_of_env, keys, keys)
        data = jax.tree.map(lambda x: sequences(x, 16), steps)
        outputs, _, _ = policy.unroll(params, data.obs, data.carry[0], data.start)
        token = evaluate(policy.heads, outputs, data.obs, data.action, data.executed)["order"]
        ratio = jnp.exp(token.log_prob - data.log_prob["order"])
        return jnp.max(jnp.abs(ratio - 1.0)), jnp.sum(token.mask), jnp.min(token.log_prob), jnp.sum(data.start)

    largest, num_tokens, least, num_starts = quick_jit(gap)(jax.random.key(3))
    assert float(largest) < 1e-5
    assert int(num_tokens) > 50 and float(least) < -1.0 and int(num_starts) > 16


def cost_rate(choose, holding_cost, keys, num_steps=6000):
    """Mean cost per second of ``choose(obs) -> scores`` over the same workloads for everyone."""
    env_params = QUEUE.default_params.replace(holding_cost=holding_cost)

    def run(key):
        def step(now, _):
            obs, state = now
            obs, state, reward, _, _, info = QUEUE.step_env(key, state, {"order": choose(obs)}, env_params)
            return (obs, state), (reward, info["dt_s"])

        _, (reward, dt) = jax.lax.scan(step, QUEUE.reset_env(key, env_params), None, num_steps)
        return -jnp.sum(reward), jnp.sum(dt)

    cost, time = jax.vmap(run)(keys)
    return jnp.sum(cost) / jnp.sum(time)


@pytest.mark.slow
def test_the_learned_order_flips_with_the_costs_and_costs_what_the_optimal_one_does():
    """Check A of sheet 1, both cost vectors and a learner with rate 0 as lanes of one program (settings are traced)."""
    policy = policy_for(QUEUE)
    static = ppo.PpoStatic(num_lanes=64, num_steps=128, num_minibatches=4, num_epochs=2, num_iterations=60)
    costs = jnp.asarray([[1.0, 4.0], [1.0, 2.0], [1.0, 2.0]])
    rates = jnp.asarray([1e-2, 1e-2, 0.0])

    def learn(cost, lr):
        hyper = ppo.PpoHyper(env=QUEUE.default_params.replace(holding_cost=cost), lr=lr, beta=0.05, kappa=0.05)
        return trainer(QUEUE, policy, static)(jax.random.key(7), hyper)[0].params

    params = jax.jit(jax.vmap(learn))(costs, rates)

    def compare(params, cost):
        keys = jax.random.split(jax.random.key(99), 100)
        carry = policy.initial_carry(())
        learned = lambda obs: greedy(policy.heads, policy.apply(params, obs, carry)[0], obs)["order"]
        fixed = [lambda obs, w=w: jnp.asarray(w) for w in ([1.0, 0.0], [0.0, 1.0])]
        return jnp.stack([cost_rate(choose, cost, keys) for choose in (learned, *fixed)])

    one_and_four, one_and_two, _ = np.asarray(jax.jit(jax.vmap(compare))(params, costs))
    assert one_and_four[1] > 1.1 * one_and_four[2] and one_and_two[2] > 1.05 * one_and_two[1]  # the order matters
    assert one_and_four[0] < 1.015 * one_and_four[2]
    assert one_and_two[0] < 1.015 * one_and_two[1]
    np.testing.assert_allclose(one_and_four[1:], [5.594, 4.816], rtol=0.02)  # Cobham's formula
    untrained = policy.init(jax.random.split(jax.random.key(7), 3)[0], QUEUE.reset(jax.random.key(0))[0])
    for trained, fresh in zip(jax.tree.leaves(params), jax.tree.leaves(untrained), strict=True):
        np.testing.assert_allclose(trained[2], fresh, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_memory_answers_the_cue_and_no_memory_cannot():
    """Check C: the right action at step 20 was shown at step 0."""
    env = Cue()
    static = ppo.PpoStatic(num_lanes=64, num_steps=21, num_minibatches=2, num_epochs=4, num_iterations=35)
    hyper = ppo.PpoHyper(
        env=env.default_params, lr=5e-3, beta=0.001, kappa=0.01, temperature=0.05, entropy_start=0.3, entropy_end=0.0
    )
    success = {}
    for recurrent in (True, False):
        policy = policy_for(env, recurrent=recurrent)
        _, metrics = jax.jit(trainer(env, policy, static))(jax.random.key(0), hyper)
        success[recurrent] = 21 * float(jnp.mean(metrics["reward_per_s"][-10:]))  # one question in 21 s
    assert success[True] > 0.95
    assert success[False] == pytest.approx(0.5, abs=0.06)  # 640 questions: 3 standard errors


@pytest.fixture(scope="module")
def bandits():
    """Four learners on bandits in one program, metrics by iteration [learner, 1200].

    0, 1: arms paying (1, .4) at costs (1, 0), at most .3, with and without the controller's proportional part.
    2, 3: a reward of 1 per second, discounted by .1 per second, in episodes that are cut after a second or over then.
    """
    env = Bandit()
    static = ppo.PpoStatic(
        num_lanes=256, num_steps=4, num_minibatches=1, num_epochs=1, num_iterations=1200, schedule="constant",
        constraints=(Constraint("toll"),),
    )  # fmt: skip
    train = trainer(env, policy_for(env, width=8, num_values=2), static)

    def learn(reward, cost, kp, beta, is_cut):
        gains = PidGains(limit=jnp.asarray([0.3]), kp=kp, ki=0.02, decay=0.0)
        env_params = env.default_params.replace(reward=reward, cost=cost, is_cut=is_cut)
        hyper = ppo.PpoHyper(
            env=env_params, lr=1e-2, beta=beta, kappa=0.0, entropy_rate=0.0, temperature=1e-5, gains=gains
        )
        return train(jax.random.key(0), hyper)[1]

    reward = np.float32([[1, 0.4], [1, 0.4], [1, 1], [1, 1]])
    cost = np.float32([[1, 0], [1, 0], [0, 0], [0, 0]])
    settings = (
        reward,
        cost,
        np.float32([1, 0, 0, 0]),
        np.float32([0, 0, 0.1, 0.1]),
        np.asarray([False, False, True, False]),
    )
    return jax.device_get(quick_jit(jax.vmap(learn))(*settings))


def test_the_multiplier_finds_the_price_of_a_constraint_and_needs_its_proportional_part(bandits):
    """Sheet 5a: the multiplier that makes both arms equal is .60; the first arm is played with its limit, .30."""
    rate, multiplier = (bandits[name][:2, 400:] for name in ("cost_per_s/toll", "constraint/toll/multiplier"))
    assert rate[0].mean() == pytest.approx(0.299, abs=0.005)
    assert multiplier[0].mean() == pytest.approx(0.598, abs=0.03)
    assert multiplier[0].std() < 0.1
    assert multiplier[1].std() > 0.38  # the integral alone swings


def test_a_truncation_is_bootstrapped_and_a_termination_is_not(bandits):
    """A reward of 1 per second for ever is worth 1/beta = 10, for one second (1 - exp(-.1)) / .1 = .952."""
    worth = bandits["value_target_mean"][2:, -1]
    assert worth[0] == pytest.approx(10.0, rel=0.01)
    assert worth[1] == pytest.approx(0.9516, rel=0.001)


def test_two_devices_hold_one_learner_and_their_own_lanes_also_in_two_programs():
    policy = policy_for(QUEUE, width=4)
    static = ppo.PpoStatic(
        num_lanes=2, num_steps=8, num_minibatches=1, num_epochs=1, num_iterations=5, axis=AXIS
    )  # fmt: skip
    hyper = ppo.PpoHyper(env=QUEUE.default_params, lr=1e-2)
    algorithm = over_devices(ppo.ppo(QUEUE, policy, {}, static, hyper, {}), 2)
    state = quick_jit(algorithm.init)(jax.random.key(0), hyper)
    before = state.params
    state, data = quick_jit(algorithm.act)(state, hyper)
    state, metrics = quick_jit(algorithm.learn)(state, hyper, data)  # the same as `update`, in two programs
    assert algorithm.decisions == 2 * 2 * 8
    assert state.lanes.start.shape == (4,) and len(set(np.asarray(state.lanes.env_state.waiting).sum(1))) > 1
    changed = False
    for leaf, old in zip(jax.tree.leaves(state.params), jax.tree.leaves(before), strict=True):
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(copies) == 2 and np.array_equal(*copies)
        changed |= not np.array_equal(leaf, old)
    assert changed
    assert np.isfinite(float(metrics["loss"]))
