"""Imitation: the clone does what the expert does (sheet 9a)."""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import numpy as np

from jaxsched.envs.toys import TwoClassQueue
from jaxsched.networks import HeadSpec, SetNetworkConfig, SetPolicy, evaluate, greedy
from jaxsched.xla import quick_compiler_options
from train import bc
from train.rollout import heads_of


def longest_queue(key, obs, env_state, env_params):
    """Serve the longer queue (ties: the second class): depends on the state, unlike the c-mu rule."""
    waiting = env_state.waiting.astype(jnp.float32)
    return {"order": waiting + jnp.asarray([0.0, 0.5])}


def test_a_clone_agrees_with_its_expert_in_states_of_its_own():
    """At least 98 % of the decisions, in states that the clone itself comes to; untrained it is about half."""
    env = TwoClassQueue()
    policy = SetPolicy(SetNetworkConfig(heads_of(env), width=16))
    static = bc.BcStatic(num_lanes=32, num_steps=64, num_minibatches=4, num_iterations=40)
    hyper = bc.BcHyper(env=env.default_params, lr=2e-2)

    def train_and_compare(key):
        first = bc.init(env, policy, static, key, hyper)
        last, metrics = jax.lax.scan(
            lambda s, _: bc.update(env, policy, longest_queue, static, s, hyper), first, None, static.num_iterations
        )  # fmt: skip

        def agreement(state):
            acting = hyper.replace(share_start=0.0, share_end=0.0)
            _, lesson, _ = bc.collect(env, policy, longest_queue, static, state, acting, jax.random.key(9))
            own = greedy(
                policy.heads, policy.unroll(state.params, lesson.obs, lesson.carry[0], lesson.start)[0], lesson.obs
            )
            choice = jnp.all(lesson.obs.masks["order"], axis=-1)
            same = (own["order"][..., 0] > own["order"][..., 1]) == (
                lesson.action["order"][..., 0] > lesson.action["order"][..., 1]
            )
            return jnp.sum(same & choice) / jnp.sum(choice)

        return agreement(first), agreement(last), metrics["loss"]

    before, after, loss = jax.jit(train_and_compare, compiler_options=quick_compiler_options())(jax.random.key(0))
    assert float(after) >= 0.98 and float(before) < 0.9
    assert float(loss[-1]) < 0.25 * float(loss[0])


def test_only_the_first_picks_count():
    policy = types.SimpleNamespace(heads=(HeadSpec("order", "order"),))
    obs = types.SimpleNamespace(item_mask=np.ones(3, bool), masks={"order": np.ones(3, bool)})
    action = {"order": np.float32([0.1, 0.7, 0.4])}
    outputs = {"order": np.float32([0.0, 2.0, 1.0])}

    def both():
        picks = [bc.first_picks(policy, obs, action, num) for num in (0, 1)]
        return picks, evaluate(policy.heads, outputs, obs, action, picks[1])["order"].log_prob

    (every, first), log_prob = jax.jit(both)()
    np.testing.assert_array_equal(every, [2, 0, 1])
    np.testing.assert_array_equal(first, [-1, 0, -1])
    np.testing.assert_allclose(log_prob, [2 - np.log(1 + np.e + np.e**2), 0.0, 0.0], rtol=1e-5)
