"""`check_env`: whether an environment keeps the contract of `jaxsched.envs.base`. For third-party ones too."""

from __future__ import annotations

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsched.envs.base import Environment, Observation
from jaxsched.envs.spaces import Box, Discrete, sample_action
from jaxsched.errors import UserError
from jaxsched.xla import quick_compiler_options

_LANES = 3
_INFO = ("dt_s", "decision_valid", "executed", "num_executed", "costs")


class EnvError(UserError):
    """An environment breaks the contract; says how, one line per finding."""

    def __init__(self, name: str, problems: list[str]):
        self.problems = tuple(problems)
        super().__init__(
            f"{len(problems)} problem{'s' if len(problems) > 1 else ''}:\n- " + "\n- ".join(problems),
            where=f"environment {name}",
        )


def check_env(env: Environment, params: Any = None, *, num_steps: int = 64, seed: int = 0) -> None:
    """Run random legal actions and compare what happens with the contract.

    Checked: types and shapes that a `scan` and a `vmap` need; the declared spaces; masks; that equal keys give equal
    episodes, and lanes of a `vmap` the same as single ones; that rewards are finite, durations not negative, and that
    episodes end in the way they say.

    Raises:
        EnvError: everything that was found.
    """
    name = getattr(env, "name", type(env).__name__)
    params = env.default_params if params is None else params
    problems = _static_problems(env, params)
    if problems:  # nothing can be run
        raise EnvError(name, problems)
    problems = _running_problems(env, params, num_steps, seed)
    if problems:
        raise EnvError(name, problems)


def _static_problems(env: Any, params: Any) -> list[str]:
    """What can be seen without running anything."""
    problems = []
    for method in ("reset", "step", "reset_env", "step_env", "action_space"):
        if not callable(getattr(env, method, None)):
            problems.append(f"no method {method}")
    if not hasattr(params, "max_steps_in_episode"):
        problems.append("parameters without max_steps_in_episode (trainers read it)")
    try:
        hash(env)
    except TypeError:
        problems.append("not hashable: make it a frozen dataclass of hashable fields")
    try:
        copy.deepcopy(env)
    except Exception as error:
        problems.append(f"cannot be deep-copied: {error}")
    if problems:
        return problems
    spaces = env.action_space(params)
    if not isinstance(spaces, dict) or not all(isinstance(s, Box | Discrete) for s in spaces.values()):
        return ["action_space is not a dict from heads to Box or Discrete"]
    try:
        obs, state = jax.eval_shape(env.reset, jax.random.key(0), params)
    except Exception as error:
        return [f"reset cannot be traced: {_short(error)}"]
    if not isinstance(obs, Observation):
        return [f"reset returns a {type(obs).__name__} as observation, not jaxsched.envs.Observation"]
    problems += _typed("observation of reset", obs) + _typed("state of reset", state)
    problems += _mask_shapes(spaces, obs)
    action = {head: jax.ShapeDtypeStruct(space.shape, space.dtype) for head, space in spaces.items()}
    try:
        after = jax.eval_shape(env.step, jax.random.key(0), state, action, params)
    except Exception as error:
        return [*problems, f"step cannot be traced: {_short(error)}"]
    if not isinstance(after, tuple) or len(after) != 6:
        return [*problems, "step must return obs, state, reward, terminated, truncated, info"]
    new_obs, new_state, reward, terminated, truncated, info = after
    problems += _same("observation", obs, new_obs) + _same("state", state, new_state)
    for what, value, dtype in (
        ("reward", reward, jnp.float32), ("terminated", terminated, jnp.bool_), ("truncated", truncated, jnp.bool_),
    ):  # fmt: skip
        if value.shape != () or value.dtype != dtype:
            problems.append(f"{what} is {value.dtype}{list(value.shape)}, expected a {jnp.dtype(dtype).name} scalar")
    missing = [key for key in (*_INFO, "final_observation") if key not in info]
    if missing:
        problems.append(f"info lacks {', '.join(missing)}")
    elif info["executed"].shape != obs.item_mask.shape:
        problems.append(f"info['executed'] has shape {list(info['executed'].shape)}, items {list(obs.item_mask.shape)}")
    return problems + _typed("info", info)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _typed(what: str, tree: Any) -> list[str]:
    """Leaves must be strongly typed 32-bit numbers, bools or keys: `scan` refuses a carry that changes type."""
    problems = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = f"{what}{jax.tree_util.keystr(path)}"
        if getattr(leaf, "weak_type", False):
            problems.append(f"{name} has a weak type: give a dtype where it is made")
        elif not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) and leaf.dtype not in (
            jnp.float32, jnp.int32, jnp.uint32, jnp.bool_,
        ):  # fmt: skip
            problems.append(f"{name} is {leaf.dtype}, expected float32, int32, uint32, bool or a key")
    return problems


def _same(what: str, before: Any, after: Any) -> list[str]:
    """The same tree, shapes and types."""
    if jax.tree.structure(before) != jax.tree.structure(after):
        return [f"{what} of step has another structure than that of reset"]
    problems = []
    pairs = zip(
        jax.tree_util.tree_flatten_with_path(before)[0], jax.tree_util.tree_flatten_with_path(after)[0], strict=True
    )
    for (path, x), (_, y) in pairs:
        if x.shape != y.shape or x.dtype != y.dtype:
            where = jax.tree_util.keystr(path)
            problems.append(
                f"{what}{where} is {x.dtype}{list(x.shape)} after reset, {y.dtype}{list(y.shape)} after step"
            )
    return problems


def _mask_shapes(spaces: dict[str, Any], obs: Any) -> list[str]:
    problems = []
    for head, space in spaces.items():
        if head not in obs.masks:
            problems.append(f"masks has no entry for head {head!r}")
            continue
        mask = obs.masks[head]
        expected = space.shape if isinstance(space, Box) else (*space.shape, space.n)
        if mask.shape != expected or mask.dtype != jnp.bool_:
            problems.append(f"mask of {head!r} is {mask.dtype}{list(mask.shape)}, expected bool{list(expected)}")
    for head in obs.masks:
        if head not in spaces:
            problems.append(f"mask of {head!r}, which is no head")
    return problems


def _running_problems(env: Any, params: Any, num_steps: int, seed: int) -> list[str]:
    """What shows only in episodes."""
    spaces = env.action_space(params)

    def episode(key):
        def step(carry, key):
            obs, state = carry
            act_key, step_key = jax.random.split(key)
            action = sample_action(spaces, act_key, obs.masks)
            new_obs, state, reward, terminated, truncated, info = env.step(step_key, state, action, params)
            return (new_obs, state), (obs, reward, terminated, truncated, info)

        reset_key, key = jax.random.split(key)
        (_, state), steps = jax.lax.scan(step, env.reset(reset_key, params), jax.random.split(key, num_steps))
        return state, steps

    keys = jax.random.split(jax.random.key(seed), _LANES)
    options = quick_compiler_options()
    single = jax.jit(episode, compiler_options=options)
    try:
        lanes = jax.device_get(jax.jit(jax.vmap(episode), compiler_options=options)(keys))
        first, again = jax.device_get(single(keys[0])), jax.device_get(single(keys[0]))
    except Exception as error:
        return [f"{num_steps} random steps fail: {_short(error)}"]
    problems = []
    if not _equal(first, again):
        problems.append("the same key gives different episodes: something other than the key is random")
    if not _equal(first, jax.tree.map(lambda x: x[0], lanes), close=True):
        problems.append("a lane of a vmap differs from the same lane alone")
    _, (obs, reward, terminated, truncated, info) = lanes
    for what, tree in (("observation", obs), ("reward", reward), ("info", info)):
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            if np.issubdtype(leaf.dtype, np.floating) and not np.isfinite(leaf).all():
                problems.append(f"{what}{jax.tree_util.keystr(path)} is not finite")
    if (info["dt_s"] < 0).any():
        problems.append("info['dt_s'] is negative")
    if (terminated & truncated).any():
        problems.append("a step is terminated and truncated at once")
    for head, space in spaces.items():
        mask = obs.masks[head]
        if isinstance(space, Discrete) and not mask.any(axis=-1).all():
            problems.append(f"mask of {head!r} leaves no legal choice")
        if isinstance(space, Box) and mask.shape == obs.item_mask.shape and (mask & ~obs.item_mask).any():
            problems.append(f"mask of {head!r} offers items that are not there")
        final = info["final_observation"].masks[head]
        if isinstance(space, Discrete) and not final[terminated].all():
            problems.append(f"mask of {head!r} is not all true when an episode has terminated")
    ranks = info["executed"]
    if (np.sum(ranks >= 0, axis=-1) != info["num_executed"]).any():
        problems.append("info['num_executed'] is not the number of ranks in info['executed']")
    absent = ~obs.item_mask
    if absent.any() and np.abs(np.where(absent[..., None], obs.items, 0)).max() > 0:
        problems.append("rows of absent items are not zero")
    return problems


def _equal(this: Any, that: Any, close: bool = False) -> bool:
    """Whether two trees hold the same numbers (floats nearly, if `close`)."""

    def same(x: Any, y: Any) -> bool:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        if close and np.issubdtype(x.dtype, np.floating):
            return bool(np.allclose(x, y, rtol=1e-4, atol=1e-5, equal_nan=True))
        return bool(np.array_equal(x, y, equal_nan=np.issubdtype(x.dtype, np.floating)))

    return all(same(x, y) for x, y in zip(jax.tree.leaves(this), jax.tree.leaves(that), strict=True))
