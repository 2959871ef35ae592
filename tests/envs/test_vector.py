"""Lanes begin again by themselves under every strategy, with the last observation kept."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsched as js
from jaxsched.envs.vector import RESETS, VectorEnv


@pytest.mark.parametrize("resets", RESETS)
def test_lanes_that_end_begin_again_and_the_others_go_on(resets):
    env, params = js.make("Cue-v0", delay=3)
    vector = VectorEnv(env, num_envs=6, resets=resets, num_resets=4)
    obs, state = vector.reset(jax.random.key(0), params)
    # Half of the lanes are two steps ahead of the others.
    ahead = state.lanes.replace(step=jnp.asarray([0, 0, 0, 2, 2, 2], jnp.int32))
    state = state.replace(lanes=ahead)

    def step(carry, key):
        obs, state = carry
        obs, state, reward, terminated, truncated, info = vector.step(
            key, state, {"choice": jnp.zeros(6, jnp.int32)}, params
        )
        del reward, truncated
        return (obs, state), (terminated, state.lanes.step, obs.globals, info["final_observation"].globals)

    _, (ended, steps, first, final) = jax.lax.scan(step, (obs, state), jax.random.split(jax.random.key(1), 8))
    np.testing.assert_array_equal(np.asarray(ended[:, 0]), [False, False, False, True] * 2)
    np.testing.assert_array_equal(np.asarray(ended[:, 5]), [False, True, False, False, False, True, False, False])
    ended, steps = np.asarray(ended), np.asarray(steps)
    assert (steps[ended] == 0).all() and (steps[~ended] > 0).all()
    assert (np.abs(np.asarray(first)[ended][:, 0]) == 1).all(), "the first observation of a new episode shows its cue"
    assert (np.asarray(final)[ended][:, 0] == 0).all(), "the last of the old one does not"
    assert len(np.unique(np.asarray(first)[ended][:, 0])) == 2, "new episodes differ"


def test_optimistic_resets_hand_out_different_episodes():
    env, params = js.make("Cue-v0", delay=0)
    vector = VectorEnv(env, num_envs=64, resets="optimistic", num_resets=16)
    _, state = vector.reset(jax.random.key(0), params)
    action = {"choice": jnp.zeros(64, jnp.int32)}
    _, state, *_ = vector.step(jax.random.key(1), state, action, params)
    cues = np.asarray(state.lanes.cue)
    assert 0 < cues.sum() < 64
    np.testing.assert_array_equal(cues[:16], cues[16:32])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"num_envs": 0}, "at least 1 lane"), ({"num_envs": 2, "resets": "never"}, "lazy, resample"),
     ({"num_envs": 2, "num_resets": 0}, "num_resets 0")],
)  # fmt: skip
def test_impossible_vectors_are_refused(arguments, message):
    env, _ = js.make("Cue-v0")
    with pytest.raises(js.UserError, match=message):
        VectorEnv(env, **arguments)
