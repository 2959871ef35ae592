"""The contract of an environment: a pure, jittable decision problem over simulated time.

    env, params = js.make("AgentSessions-v0")
    obs, state = env.reset(key, params)
    obs, state, reward, terminated, truncated, info = env.step(key, state, action, params)

Names and argument order are gymnax 1.0's, without depending on it. `step` begins a new episode when one ends (the
observation it returns is then the new episode's first, and ``info["final_observation"]`` the last of the old one);
`step_env` never does. All randomness of what happens to the system comes from the key given to `reset`, by identity
and not by call order: the same key is the same workload whatever the policy does. The key given to `step` only begins
new episodes.

Decisions are semi-Markov: a step lasts ``info["dt_s"]`` simulated seconds, and a reward is an integral over them.
"""

from __future__ import annotations

import abc
import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from jaxsched.envs.spaces import Box, Discrete, Space
from jaxsched.errors import UserError

S = TypeVar("S")
P = TypeVar("P")

Action = Mapping[str, Array]


class Observation(struct.PyTreeNode):
    """What a policy sees. Slots are unordered: permuting items permutes per-item decisions and changes nothing else."""

    items: Float[Array, "n f"]  # requests or programs; rows of absent items are 0
    item_mask: Bool[Array, " n"]  # True = there is an item
    instances: Float[Array, "m g"]
    globals: Float[Array, " d"]
    #: Head -> legal choices. A score per item ("order"): ``[n]``, the items that can be executed now (there may be
    #: none). A choice: ``[choices]``. A choice per item: ``[n, choices]``; an item with a single legal choice takes no
    #: decision. Choices always have a legal one; when an episode has ended all are.
    masks: dict[str, Bool[Array, ...]]


@dataclasses.dataclass(frozen=True)
class Environment(abc.ABC, Generic[S, P]):
    """An environment. Hashable: what is in it fixes the compiled program; what may vary between lanes is in `P`.

    Subclasses give `reset_env`, `step_env`, `action_space` and `default_params`; their parameters have
    ``max_steps_in_episode`` (int32, steps after which an episode is truncated).

    ``info`` of a step is a fixed dict: ``dt_s`` float32; ``decision_valid`` bool, whether any head had a choice at all;
    ``executed`` int32 ``[n]``, rank of the items that the "order" head's scores put into execution during the step, in
    that order (-1 = not executed); ``num_executed`` int32; ``costs`` float32 ``[len(cost_names)]``, integrals over the
    step.
    """

    name: ClassVar[str]
    cost_names: ClassVar[tuple[str, ...]]

    @property
    @abc.abstractmethod
    def default_params(self) -> P:
        """Parameters to begin with."""

    @abc.abstractmethod
    def reset_env(self, key: Array, params: P) -> tuple[Observation, S]:
        """Begin an episode."""

    @abc.abstractmethod
    def step_env(
        self, key: Array, state: S, action: Action, params: P
    ) -> tuple[Observation, S, Float[Array, ""], Bool[Array, ""], Bool[Array, ""], dict[str, Any]]:
        """One decision, without a new episode at the end: observation, state, reward, terminated, truncated, info."""

    @abc.abstractmethod
    def action_space(self, params: P | None = None) -> dict[str, Space]:
        """Head -> space of its action: `Box` = a score per item, `Discrete` = a choice, or one per item."""

    @property
    def heads(self) -> tuple[str, ...]:
        """Decisions that the action makes, in the order of `action_space`."""
        return tuple(self.action_space())

    def observation_space(self, params: P | None = None) -> Observation:
        """Shapes and types of an observation (`jax.ShapeDtypeStruct` leaves)."""
        params = self.default_params if params is None else params
        return jax.eval_shape(self.reset_env, jax.random.key(0), params)[0]

    def reset(self, key: Array, params: P | None = None) -> tuple[Observation, S]:
        """Begin an episode."""
        return self.reset_env(key, self.default_params if params is None else params)

    def step(
        self, key: Array, state: S, action: Action, params: P | None = None
    ) -> tuple[Observation, S, Float[Array, ""], Bool[Array, ""], Bool[Array, ""], dict[str, Any]]:
        """One decision; where the episode ends, the observation and state are those of the next one.

        Raises:
            UserError: a head is missing or unknown, or its action has another shape or type (found while tracing).
        """
        params = self.default_params if params is None else params
        action = check_action(self, action)
        obs, state, reward, terminated, truncated, info = self.step_env(key, state, action, params)
        first_obs, first_state = self.reset_env(key, params)
        done = terminated | truncated
        info = {**info, "final_observation": obs}
        obs, state = select(done, (first_obs, first_state), (obs, state))
        return obs, state, reward, terminated, truncated, info


def select(where: Bool[Array, ""], this: Any, that: Any) -> Any:
    """`this` where true, else `that`, leaf by leaf."""
    return jax.tree.map(lambda x, y: jnp.where(where, x, y), this, that)


def check_action(env: Environment, action: Any) -> dict[str, Array]:
    """The action as arrays, if it is one: heads, shapes and types are compared with the action space."""
    spaces = env.action_space()
    where = f"action of {env.name}"
    if not isinstance(action, Mapping):
        raise UserError(f"a {type(action).__name__}", where=where, expected=f"a dict with heads {', '.join(spaces)}")
    for head in action:
        if head not in spaces:
            near = difflib.get_close_matches(str(head), spaces, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else "Only heads that are learned take an action."
            raise UserError(f"unknown head {head!r}", where=where, expected=f"heads {', '.join(spaces)}", hint=hint)
    checked = {}
    for head, space in spaces.items():
        if head not in action:
            raise UserError(f"no action for head {head!r}", where=where, expected=f"heads {', '.join(spaces)}")
        value = jnp.asarray(action[head])
        if value.shape != space.shape or not jnp.issubdtype(value.dtype, _kind(space)):
            raise UserError(
                f"head {head!r} got {value.dtype}{list(value.shape)}",
                where=where,
                expected=f"{jnp.dtype(space.dtype).name}{list(space.shape)}",
                hint="Batches of environments are stepped through jax.vmap." if value.ndim > len(space.shape) else "",
            )
        checked[head] = value.astype(space.dtype)
    return checked


def _kind(space: Space) -> Any:
    return jnp.floating if isinstance(space, Box) else jnp.integer


__all__ = ["Action", "Box", "Discrete", "Environment", "Observation", "Space", "check_action", "select"]
