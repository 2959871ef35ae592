"""Other libraries' interfaces show the same environment."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsched as js
from jaxsched.compat.flat import FlatView
from jaxsched.compat.timestep import FIRST, MID, TERMINATED, TimeStepView
from jaxsched.envs.spaces import Box, Discrete
from jaxsched.envs.toys import Cue


def test_flat_actions_are_the_combinations_of_choices_or_the_scores():
    env, params = js.make("Cue-v0")
    view = FlatView(env, params)
    assert view.num_actions == 2 and int(view.action(1)["choice"]) == 1
    queue, queue_params = js.make("TwoClassQueue-v0")
    scores = FlatView(queue, queue_params)
    assert scores.num_actions is None
    np.testing.assert_array_equal(scores.action(np.asarray([3.0, -99.0]))["order"], [3.0, -10.0])
    obs, _ = queue.reset(jax.random.key(0), queue_params)
    assert scores.observation(obs).shape == (scores.observation_size,)
    with pytest.raises(js.UserError, match=r"expected \[2\]"):
        scores.action(np.zeros(3))


def test_heads_that_make_no_flat_action_are_refused():
    class Mixed(Cue):
        def action_space(self, params=None):
            return {"choice": Discrete(2), "order": Box(-np.inf, np.inf, (1,))}

    class PerItem(Cue):
        def action_space(self, params=None):
            return {"retain": Discrete(2, (3,))}

    class TooMany(Cue):
        def action_space(self, params=None):
            return {"choice": Discrete(64), "gate": Discrete(64)}

    for cls, message in ((Mixed, "one flat action"), (PerItem, "one flat action"), (TooMany, "4096 combinations")):
        with pytest.raises(js.UserError, match=message):
            FlatView(cls(), Cue().default_params)


def test_time_steps_say_how_an_episode_ended():
    env, params = js.make("Cue-v0", delay=2)
    view = TimeStepView(env, params)
    state, step = view.reset(jax.random.key(0))
    kinds, discounts = [int(step.step_type)], [float(step.discount)]
    for _ in range(3):
        state, step = view.step(jax.random.key(0), state, {"choice": jnp.int32(0)})
        kinds.append(int(step.step_type))
        discounts.append(float(step.discount))
    assert kinds == [FIRST, MID, MID, TERMINATED] and discounts == [1.0, 1.0, 1.0, 0.0] and bool(step.last())


def test_gymnasium_vector_gives_numpy_and_keeps_final_observations():
    gymnasium = pytest.importorskip("gymnasium", reason="the extra `gym` is not installed")
    from jaxsched.compat import GymnasiumVector

    env, params = js.make("Cue-v0", delay=2)
    vector = GymnasiumVector(env, params, num_envs=4)
    assert vector.metadata["autoreset_mode"] == gymnasium.vector.AutoresetMode.SAME_STEP
    first, _ = vector.reset(seed=3)
    again, _ = vector.reset(seed=3)
    np.testing.assert_array_equal(first, again)
    cue = (first[:, -2] > 0).astype(np.int64)
    for i in range(3):
        obs, reward, terminated, truncated, info = vector.step(cue)
        assert all(type(x) is np.ndarray for x in (obs, reward, terminated, truncated))
        assert vector.observation_space.contains(obs) and obs.dtype == np.float32
        assert ("final_obs" in info) == (i == 2)
    assert terminated.all() and not truncated.any() and (reward == 1).all()
    assert info["_final_obs"].all() and all(last[-2] == 0.0 for last in info["final_obs"])  # of the old episode
    assert (np.abs(obs[:, -2]) == 1).all()  # of the new one: its cue
    with pytest.raises(js.UserError, match="actions of shape"):
        vector.step(np.zeros(3, np.int64))


def test_a_loop_in_the_style_of_cleanrl_trains_on_the_gymnasium_vector():
    """NumPy only: softmax policy gradients with a baseline, over episodes that begin anew within the step. The cue is
    shown when it is asked for: chance gives 0.5.
    """
    pytest.importorskip("gymnasium", reason="the extra `gym` is not installed")
    from jaxsched.compat import GymnasiumVector

    env, params = js.make("Cue-v0", delay=0, max_steps_in_episode=1)
    vector = GymnasiumVector(env, params, num_envs=32)
    random, (obs, _) = np.random.default_rng(0), vector.reset(seed=0)
    weights = np.zeros((obs.shape[1], vector.single_action_space.n))
    means = []
    for _ in range(60):
        logits = obs @ weights
        chances = np.exp(logits - logits.max(1, keepdims=True))
        chances /= chances.sum(1, keepdims=True)
        action = (random.random(len(obs))[:, None] > chances.cumsum(1)).sum(1)
        following, reward, terminated, truncated, _ = vector.step(action)
        assert (terminated | truncated).all()
        chosen = np.eye(weights.shape[1])[action]
        weights += 0.5 * obs.T @ ((chosen - chances) * (reward - reward.mean())[:, None]) / len(obs)
        obs = following
        means.append(reward.mean())
    assert abs(means[0] - 0.5) < 0.25 and np.mean(means[-10:]) > 0.95, means


def test_rejax_trains_on_the_five_value_view():
    """Released rejax, PPO and DQN, on an environment made for five values (needs the extra `compat`)."""
    rejax = pytest.importorskip("rejax", reason="rejax is not installed (extra `compat`)")
    pytest.importorskip("gymnax", reason="gymnax is not installed (extra `compat`)")
    from jaxsched.compat import gymnax5

    env, params = js.make("Cue-v0", delay=0, max_steps_in_episode=1)  # the cue is shown when it is asked for
    view = gymnax5(env, params)
    common = dict(env=view, env_params=view.default_params, num_envs=8, eval_freq=4096, max_grad_norm=10.0)
    ppo = rejax.PPO.create(
        **common, agent_kwargs={"hidden_layer_sizes": (16,)}, num_steps=16, num_epochs=4, num_minibatches=4,
        learning_rate=0.01, total_timesteps=8192, gamma=0.9, gae_lambda=0.9,
    )  # fmt: skip
    dqn = rejax.DQN.create(
        **common, total_timesteps=8192, buffer_size=2048, fill_buffer=512,
        batch_size=64, learning_rate=0.005, target_update_freq=64, gamma=0.9, eps_start=1.0, eps_end=0.05,
        exploration_fraction=0.5,
    )  # fmt: skip
    for algorithm in (ppo, dqn):
        _, (_, returns) = jax.jit(jax.vmap(algorithm.train))(jax.random.split(jax.random.key(0), 4))
        returns = np.asarray(returns).mean(axis=(0, 2))  # by evaluation: the first is untrained
        assert returns[-1] > 0.85 > returns[0] + 0.1, (type(algorithm).__name__, returns)
