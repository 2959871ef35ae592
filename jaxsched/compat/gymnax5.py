"""The five-value interface of gymnax before 1.0, which rejax and purejaxrl train on (extra ``compat``).

    env, params = js.make("AgentSessions-v0", heads=("gate",), num_items=32)
    view = jaxsched.compat.gymnax5(env, params)
    ppo = rejax.PPO.create(env=view, env_params=view.default_params, ...)

The spaces are gymnax's own objects, since these libraries ask for their type. `step` begins a new episode where one
ends, as they expect; whether it was terminated or truncated is in ``info``.
"""

from __future__ import annotations

import importlib
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jaxsched.compat.flat import FlatView, of
from jaxsched.envs.base import Environment
from jaxsched.errors import UserError


def gymnax5(env: Environment, params: Any = None) -> Gymnax5:
    """The five-value flat view of an environment; `params` as `js.make` returned them.

    Raises:
        UserError: gymnax is not installed, or the heads do not make one flat action.
    """
    try:
        spaces = importlib.import_module("gymnax.environments").spaces
    except ImportError:
        raise UserError(
            "gymnax is not installed",
            where="jaxsched.compat.gymnax5",
            expected="its space objects",
            hint="pip install 'jaxsched[compat]'",
        ) from None
    view, params = of(env, params)
    return Gymnax5(view, params, spaces)


class Gymnax5:
    """See `gymnax5`. Methods and argument order are gymnax 0.x's."""

    def __init__(self, view: FlatView, params: Any, spaces: Any):
        self._view, self._params = view, params
        size = (view.observation_size,)
        self._observation = spaces.Box(-jnp.inf, jnp.inf, size, jnp.float32)
        self._action = (
            spaces.Discrete(view.num_actions)
            if view.num_actions is not None
            else spaces.Box(-10.0, 10.0, (view.action_size,), jnp.float32)
        )

    def __deepcopy__(self, memo: dict) -> Gymnax5:
        return self  # nothing in it changes, and trainers copy environments freely

    @property
    def name(self) -> str:
        return self._view.env.name

    @property
    def default_params(self) -> Any:
        return self._params

    @property
    def num_actions(self) -> int:
        return self._view.num_actions or self._view.action_size

    def observation_space(self, params: Any = None) -> Any:
        return self._observation

    def action_space(self, params: Any = None) -> Any:
        return self._action

    def reset(self, key: Array, params: Any = None) -> tuple[Array, Any]:
        """Begin an episode: flat observation, state."""
        obs, state = self._view.env.reset_env(key, self._params if params is None else params)
        return self._view.observation(obs), state

    def step(self, key: Array, state: Any, action: Any, params: Any = None) -> tuple[Array, Any, Array, Array, dict]:
        """One decision: observation, state, reward, done, info (terminated, truncated, dt_s, costs)."""
        params = self._params if params is None else params
        obs, state, reward, terminated, truncated, info = self._view.env.step(
            key, state, self._view.action(action), params
        )
        kept = {"terminated": terminated, "truncated": truncated, "dt_s": info["dt_s"], "costs": info["costs"]}
        return self._view.observation(obs), state, reward, terminated | truncated, kept


__all__ = ["Gymnax5", "gymnax5"]
