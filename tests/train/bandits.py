"""The smallest decision problems: one step, one choice."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from jaxsched.envs.base import Environment, Observation
from jaxsched.envs.spaces import Discrete


class BanditParams(struct.PyTreeNode):
    """What each arm pays and costs."""

    reward: jax.Array
    cost: jax.Array
    noise: jax.Array  # deviation of a term that the workload adds to every reward
    is_cut: jax.Array  # the episode is truncated after its step instead of being over
    max_steps_in_episode: jax.Array


@dataclasses.dataclass(frozen=True)
class Bandit(Environment[jax.Array, BanditParams]):
    """Choose an arm; the episode ends. Its noise is the workload's: the same key is the same noise for any arm."""

    name: ClassVar[str] = "Bandit-v0"
    cost_names: ClassVar[tuple[str, ...]] = ("toll",)
    num_arms: int = 2

    @property
    def default_params(self):
        arms = jnp.linspace(0.0, 1.0, self.num_arms)
        return BanditParams(arms, jnp.zeros(self.num_arms), jnp.float32(0.0), jnp.bool_(False), jnp.int32(1))

    def action_space(self, params=None):
        return {"arm": Discrete(self.num_arms)}

    def reset_env(self, key, params):
        obs = Observation(
            items=jnp.zeros((1, 1)), item_mask=jnp.ones(1, bool), instances=jnp.zeros((1, 1)), globals=jnp.ones(1),
            masks={"arm": jnp.ones(self.num_arms, bool)},
        )  # fmt: skip
        return obs, jax.random.normal(key, ())

    def step_env(self, key, state, action, params):
        obs, _ = self.reset_env(jax.random.key(0), params)
        arm = action["arm"]
        info = {
            "dt_s": jnp.float32(1.0), "decision_valid": jnp.bool_(True), "executed": jnp.full(1, -1, jnp.int32),
            "num_executed": jnp.int32(0), "costs": params.cost[arm].reshape(1),
        }  # fmt: skip
        reward = params.reward[arm] + params.noise * state
        return obs, state, reward, ~params.is_cut, params.is_cut, info
