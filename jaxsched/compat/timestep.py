"""Reset and step that return a `TimeStep`, in the manner of dm_env, jumanji and Stoa."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from jaxsched.envs.base import Action, Environment, Observation, check_action

FIRST, MID, TERMINATED, TRUNCATED = range(4)


class TimeStep(struct.PyTreeNode):
    """What one decision led to."""

    step_type: Int[Array, ""]  # FIRST, MID, TERMINATED or TRUNCATED
    reward: Float[Array, ""]  # 0 at the first
    discount: Float[Array, ""]  # 0 where the episode terminated, else 1; time is in extras["dt_s"]
    observation: Observation
    extras: dict[str, Any]  # the environment's info; empty at the first

    def last(self) -> Array:
        """Whether the episode is over."""
        return self.step_type >= TERMINATED


@dataclasses.dataclass(frozen=True)
class TimeStepView:
    """An environment whose `reset` and `step` return (state, `TimeStep`). No new episode begins by itself."""

    env: Environment
    params: Any = dataclasses.field(compare=False, repr=False)

    def reset(self, key: Array) -> tuple[Any, TimeStep]:
        """Begin an episode."""
        obs, state = self.env.reset_env(key, self.params)
        return state, TimeStep(jnp.int32(FIRST), jnp.float32(0.0), jnp.float32(1.0), obs, {})

    def step(self, key: Array, state: Any, action: Action) -> tuple[Any, TimeStep]:
        """One decision."""
        checked = check_action(self.env, action)
        obs, state, reward, terminated, truncated, info = self.env.step_env(key, state, checked, self.params)
        kind = jnp.where(terminated, TERMINATED, jnp.where(truncated, TRUNCATED, MID)).astype(jnp.int32)
        return state, TimeStep(kind, reward, jnp.where(terminated, 0.0, 1.0).astype(jnp.float32), obs, info)
