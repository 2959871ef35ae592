"""Group baselines: unbiased, and better for a shared workload (sheet 2a)."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsched.envs.toys import TwoClassQueue
from jaxsched.errors import UserError
from jaxsched.networks import HeadSpec, SetNetworkConfig, SetPolicy
from jaxsched.xla import quick_compiler_options
from tests.train.bandits import Bandit
from train import rloo
from train.rollout import heads_of


def advantages_of(reward):
    """Episode advantages of groups [g, k] of one-step episodes."""
    to_go = np.asarray(reward, np.float32)[None]
    return np.asarray(jax.jit(rloo.group_advantages, static_argnums=2)(to_go, np.zeros_like(to_go), "episode"))[0]


def test_leaving_oneself_out_is_unbiased_and_shared_noise_cancels():
    """A Bernoulli bandit, p = .5, r = a, noise of deviation 10 on the reward, K = 4: E[(R - b)(a - p)] = p (1 - p)."""
    rng = np.random.default_rng(0)
    num, size, p = 400_000, 4, 0.5
    action = rng.random((num, size)) < p
    noise = 10 * rng.normal(size=(num, 1))
    score = action - p
    shared = (advantages_of(action + noise) * score).mean(1)
    own_left_in = ((action - action.mean(1, keepdims=True)) * score).mean(1)
    apart = (advantages_of(action + 10 * rng.normal(size=(num, size))) * score).mean(1)
    assert shared.mean() == pytest.approx(0.25, abs=0.001)
    assert own_left_in.mean() == pytest.approx(0.1875, abs=0.001)  # the common mistake
    assert apart.mean() == pytest.approx(0.25, abs=0.02)
    assert shared.std() == pytest.approx(0.10, abs=0.01) and apart.std() == pytest.approx(2.9, abs=0.1)


@pytest.mark.parametrize(("p", "bias"), [(0.5, 1.86), (0.1, 2.33), (0.02, 2.58)])
def test_the_expected_gradient_is_exact_and_dividing_by_the_groups_deviation_is_not(p, bias):
    """All 2^8 outcomes of a group of 8."""
    outcomes = np.asarray(list(itertools.product([0.0, 1.0], repeat=8)))
    probability = np.prod(np.where(outcomes == 1, p, 1 - p), axis=1)

    def expected(advantage):
        return float((probability * (advantage * (outcomes - p)).mean(1)).sum() / (p * (1 - p)))

    assert expected(advantages_of(outcomes)) == pytest.approx(1.0, abs=1e-4)
    deviation = outcomes.std(1, keepdims=True)
    divided = np.where(deviation > 0, (outcomes - outcomes.mean(1, keepdims=True)) / np.maximum(deviation, 1e-9), 0.0)
    assert expected(divided) == pytest.approx(bias, abs=0.03)


def test_baselines_are_read_at_the_same_time_on_other_clocks():
    """Two members, decisions at 0, 1, 2 s and at 0, 2, 4 s."""
    clock = np.asarray([[0.0, 0.0], [1.0, 2.0], [2.0, 4.0]], np.float32)[:, None]
    to_go = np.asarray([[6.0, 10.0], [4.0, 6.0], [1.0, 3.0]], np.float32)[:, None]
    advantage = np.asarray(rloo.group_advantages(jnp.asarray(to_go), jnp.asarray(clock), "time_aligned"))[:, 0]
    np.testing.assert_allclose(advantage[:, 0], [6 - 10, 4 - 8, 1 - 6])
    np.testing.assert_allclose(advantage[:, 1], [10 - 6, 6 - 1, 3 - 0])  # after its end a member has nothing to come


class Uniform:
    """The policy of the study at theta = 0: both classes alike."""

    heads = (HeadSpec("order", "order"),)

    def initial_carry(self, batch):
        return jnp.zeros((*batch, 0))

    def apply(self, params, obs, carry):
        return {"order": jnp.zeros(obs.item_mask.shape)}, jnp.zeros((*obs.item_mask.shape[:-1], 1)), carry


def test_a_shared_workload_cuts_the_variance_of_the_gradient_more_than_fivefold():
    """The queue of sheet 1, 1500 steps, K = 8; the score of a pick is +-1/2 for the parameter that favours class 1."""
    env = TwoClassQueue()
    hyper = rloo.RlooHyper(env=env.default_params)

    def deviation(baseline, shared):
        static = rloo.RlooStatic(
            num_groups=96, group_size=8, num_steps=1500, baseline=baseline, shared_workload=shared
        )  # fmt: skip
        steps, advantage, counts, _ = rloo.collect_groups(env, Uniform(), static, {}, jax.random.key(5), hyper)
        picked_second = steps.executed[..., 1] == 0
        score = jnp.where(steps.decided & counts, jnp.where(picked_second, 0.5, -0.5), 0.0)
        gradient = jnp.mean(jnp.sum(score.reshape(advantage.shape) * advantage, axis=0), axis=-1)  # one a group
        return jnp.std(gradient), jnp.mean(gradient)

    def all_four():
        return [deviation(b, s) for b in ("episode", "time_aligned") for s in (True, False)]

    (episode, _), (episode_apart, _), (aligned, mean), (aligned_apart, mean_apart) = jax.jit(all_four)()
    assert float(episode_apart / episode) ** 2 > 5
    assert float(aligned_apart / aligned) ** 2 > 5
    assert abs(float(mean - mean_apart)) < 4 * float(aligned_apart) / np.sqrt(96)  # the same mean


@pytest.mark.parametrize("baseline", ["time_aligned", "remax"])
def test_it_learns_the_better_arm_under_noise_a_hundred_times_the_difference(baseline):
    env = Bandit()
    policy = SetPolicy(SetNetworkConfig(heads_of(env), width=8))
    static = rloo.RlooStatic(num_groups=8, group_size=8, num_steps=1, num_iterations=80, baseline=baseline)
    env_params = env.default_params.replace(reward=jnp.asarray([0.1, 0.0]), noise=jnp.float32(10.0))
    hyper = rloo.RlooHyper(env=env_params, lr=2e-2, entropy_rate=0.0, temperature=1e-3)

    def train(key):
        state = rloo.init(env, policy, static, key, hyper)
        return jax.lax.scan(lambda s, _: rloo.update(env, policy, static, s, hyper), state, None, 80)[0]

    state = jax.jit(train, compiler_options=quick_compiler_options())(jax.random.key(1))
    obs, _ = env.reset(jax.random.key(0))
    p = jax.nn.softmax(policy.apply(state.params, obs, policy.initial_carry(()))[0]["arm"])
    assert float(p[0]) > 0.9


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"group_size": 1}, "the others' mean"), ({"num_groups": 0}, "num_groups is 0"), ({"baseline": "best"}, "'best'")],
)
def test_groups_that_make_no_sense_are_refused(settings, said):
    with pytest.raises(UserError, match=said):
        rloo.RlooStatic(**settings)
