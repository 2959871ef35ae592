"""A Gymnasium vector environment, numpy in and out; new episodes begin in the step in which one ends (extra `gym`)."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxsched.compat.flat import LARGEST_SCORE, of
from jaxsched.envs.base import Environment
from jaxsched.envs.vector import VectorEnv, VectorState
from jaxsched.errors import UserError
from jaxsched.xla import compiler_options

try:
    import gymnasium
    from gymnasium.vector import AutoresetMode
    from gymnasium.vector import VectorEnv as Base
except ImportError:  # whoever makes one is told
    gymnasium, Base = None, object  # type: ignore[assignment, misc]


class GymnasiumVector(Base):  # type: ignore[valid-type, misc]
    """`num_envs` lanes on this machine's accelerator behind Gymnasium's interface.

    Observations and actions are those of `jaxsched.compat.FlatView`. ``info`` has ``dt_s``, ``costs`` and
    ``decision_valid`` of every lane, and where a lane ended ``final_obs`` (and the mask ``_final_obs``), as Gymnasium's
    `AutoresetMode.SAME_STEP` says.

    Args:
        env: the environment, and
        params: its parameters, as `js.make` returned them; None: its defaults.
        num_envs: lanes.
        seed: of the first `reset` if that gives none.

    Raises:
        UserError: gymnasium is not installed, or the heads do not make one flat action.
    """

    def __init__(self, env: Environment, params: Any = None, *, num_envs: int, seed: int = 0):
        if gymnasium is None:
            raise UserError(
                "gymnasium is not installed",
                where="jaxsched.compat.GymnasiumVector",
                expected="gymnasium 1.1 or later",
                hint="pip install 'jaxsched[gym]'",
            )
        self._view, self._params = of(env, params)
        self._vector = VectorEnv(env, num_envs)
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        size = (self._view.observation_size,)
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, size, np.float32)
        if self._view.num_actions is None:
            bound = np.float32(LARGEST_SCORE)
            self.single_action_space = gymnasium.spaces.Box(-bound, bound, (self._view.action_size,), np.float32)
        else:
            self.single_action_space = gymnasium.spaces.Discrete(self._view.num_actions)
        batch = gymnasium.vector.utils.batch_space
        self.observation_space = batch(self.single_observation_space, num_envs)
        self.action_space = batch(self.single_action_space, num_envs)
        self._key = jax.random.key(seed)
        self._state: VectorState | None = None
        flat, view = jax.vmap(self._view.observation), self._view

        def reset(key, params):
            obs, state = self._vector.reset(key, params)
            return flat(obs), state

        def step(key, state, action, params):
            by_head = jax.vmap(view.action)(action)
            obs, state, reward, terminated, truncated, info = self._vector.step(key, state, by_head, params)
            kept = {name: info[name] for name in ("dt_s", "costs", "decision_valid")}
            return flat(obs), state, reward, terminated, truncated, kept, flat(info["final_observation"])

        options = compiler_options()
        self._reset = jax.jit(reset, compiler_options=options)
        self._step = jax.jit(step, donate_argnums=1, compiler_options=options)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Begin an episode in every lane."""
        del options
        if seed is not None:
            self._key = jax.random.key(seed)
        self._key, key = jax.random.split(self._key)
        obs, self._state = self._reset(key, self._params)
        return np.asarray(obs), {}

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        """One decision in every lane."""
        if self._state is None:
            raise UserError("step before reset", where="GymnasiumVector", expected="reset first")
        array = np.asarray(actions)
        expected = (self.num_envs, *(self.single_action_space.shape or ()))
        if array.shape != expected:
            raise UserError(
                f"actions of shape {list(array.shape)}", where="GymnasiumVector", expected=f"shape {list(expected)}"
            )
        self._key, key = jax.random.split(self._key)
        out = self._step(key, self._state, array, self._params)
        obs, self._state, reward, terminated, truncated, info, final = out
        terminated, truncated = np.asarray(terminated), np.asarray(truncated)
        infos: dict[str, Any] = {}
        for name, value in info.items():
            infos[name], infos[f"_{name}"] = np.asarray(value), np.ones(self.num_envs, bool)
        done = terminated | truncated
        if done.any():
            last = np.full(self.num_envs, None, object)
            for lane in np.flatnonzero(done):
                last[lane] = np.asarray(final[lane])
            infos["final_obs"], infos["_final_obs"] = last, done
        return np.asarray(obs), np.asarray(reward), terminated, truncated, infos
