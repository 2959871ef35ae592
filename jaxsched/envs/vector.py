"""Many lanes of an environment, and what happens when some of them end.

A new episode is needed rarely, and every strategy below gives the same episodes' law; they differ in what a step costs
(`benchmarks/environments.py` measures it):

- ``lazy``: all lanes are reset, and those that ended take it, but only in steps in which some lane ended (`lax.cond`).
  Under a `vmap` of the whole vector a condition is no branch: take ``optimistic`` there.
- ``resample``: every lane is reset in every step (what `Environment.step` does).
- ``cached``: `num_resets` first states are made once; a lane that ends takes one of them at random.
- ``optimistic``: `num_resets` resets per step; where more lanes end in one step, some share one.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from jaxsched.envs.base import Action, Environment, Observation, check_action, select
from jaxsched.errors import UserError

RESETS = ("lazy", "resample", "cached", "optimistic")
P = TypeVar("P")


class VectorState(struct.PyTreeNode):
    """States of all lanes."""

    lanes: Any  # leading axis: lane
    cache: Any = None  # first (observation, state) of `num_resets` episodes (``cached`` only)


@dataclasses.dataclass(frozen=True)
class VectorEnv(Generic[P]):
    """`num_envs` lanes stepped together; every array has a leading lane axis. The parameters are shared by all."""

    env: Environment[Any, P]
    num_envs: int
    resets: str = "lazy"
    num_resets: int = 8

    def __post_init__(self) -> None:
        if self.num_envs < 1:
            raise UserError(f"num_envs {self.num_envs}", where="VectorEnv", expected="at least 1 lane")
        if self.resets not in RESETS:
            raise UserError(f"resets {self.resets!r}", where="VectorEnv", expected=f"one of {', '.join(RESETS)}")
        if self.num_resets < 1:
            raise UserError(f"num_resets {self.num_resets}", where="VectorEnv", expected="at least 1")

    def _fresh(self, key: Array, num: int, params: P) -> tuple[Observation, Any]:
        return jax.vmap(self.env.reset_env, in_axes=(0, None))(jax.random.split(key, num), params)

    def reset(self, key: Array, params: P) -> tuple[Observation, VectorState]:
        """Begin an episode in every lane."""
        key, cache_key = jax.random.split(key)
        obs, lanes = self._fresh(key, self.num_envs, params)
        cache = self._fresh(cache_key, self.num_resets, params) if self.resets == "cached" else None
        return obs, VectorState(lanes, cache)

    def step(
        self, key: Array, state: VectorState, action: Action, params: P
    ) -> tuple[Observation, VectorState, Float[Array, " b"], Bool[Array, " b"], Bool[Array, " b"], dict[str, Any]]:
        """One decision in every lane; lanes that end begin again. ``info["final_observation"]``: before they did."""
        step_key, reset_key = jax.random.split(key)
        keys = jax.random.split(step_key, self.num_envs)

        def one(key, lane, action):
            return self.env.step_env(key, lane, check_action(self.env, action), params)

        obs, lanes, reward, terminated, truncated, info = jax.vmap(one)(keys, state.lanes, dict(action))
        done = terminated | truncated
        new_obs, new_lanes = self._begun_again(reset_key, done, (obs, lanes), state, params)
        info = {**info, "final_observation": obs}
        return new_obs, state.replace(lanes=new_lanes), reward, terminated, truncated, info

    def _begun_again(self, key: Array, done: Array, now: tuple[Any, Any], state: VectorState, params: P):
        taken = jax.vmap(select)
        if self.resets == "resample":
            return taken(done, self._fresh(key, self.num_envs, params), now)
        if self.resets == "lazy":
            reset = lambda: taken(done, self._fresh(key, self.num_envs, params), now)
            return jax.lax.cond(jnp.any(done), reset, lambda: now)
        if self.resets == "cached":
            which = jax.random.randint(key, (self.num_envs,), 0, self.num_resets)
            fresh = jax.tree.map(lambda x: x[which], state.cache)
        else:
            which = (jnp.cumsum(done.astype(jnp.int32)) - 1) % self.num_resets
            fresh = jax.tree.map(lambda x: x[which], self._fresh(key, self.num_resets, params))
        return taken(done, fresh, now)
