"""Observations and actions as single arrays, for trainers that know nothing else."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsched.envs.base import Environment, Observation
from jaxsched.envs.spaces import Box, Discrete, Space
from jaxsched.errors import UserError

#: Largest product of several choices that is offered as one.
MOST_CHOICES = 1024
#: Scores are clipped here, for trainers that want bounds.
LARGEST_SCORE = 10.0


@dataclasses.dataclass(frozen=True)
class FlatView:
    """How an environment's observation and action become one array each.

    Observation: item features (rows of absent items are 0), the item mask, instances and globals, one after the other.
    Action: with heads that are choices (one each), the number of their combination; with heads that are scores, the
    scores in [-10, 10]. Masks do not come along: every combination of scalar choices is legal in these environments.
    """

    env: Environment
    params: Any = dataclasses.field(compare=False, repr=False)

    def __post_init__(self) -> None:
        spaces = self.env.action_space(self.params)
        scalar = all(isinstance(s, Discrete) and s.shape == () for s in spaces.values())
        scores = all(isinstance(s, Box) for s in spaces.values())
        if not (scalar or scores):
            raise UserError(
                f"heads {', '.join(spaces)} do not make one flat action",
                where=f"flat view of {self.env.name}",
                expected="heads that are all single choices (gate, batch, route) or all scores (order)",
                hint='For example js.make("AgentSessions-v0", heads=("gate",)).',
            )
        if scalar and (num := math.prod(s.n for s in spaces.values() if isinstance(s, Discrete))) > MOST_CHOICES:
            raise UserError(f"{num} combinations of choices", where=f"flat view of {self.env.name}",
                            expected=f"at most {MOST_CHOICES}", hint="Learn fewer heads.")  # fmt: skip

    @property
    def spaces(self) -> dict[str, Space]:
        return self.env.action_space(self.params)

    @property
    def num_actions(self) -> int | None:
        """Number of combinations of choices; None where actions are scores."""
        sizes = [s.n for s in self.spaces.values() if isinstance(s, Discrete)]
        return math.prod(sizes) if sizes else None

    @property
    def action_size(self) -> int:
        """Length of a vector of scores (0 where actions are choices)."""
        return sum(math.prod(s.shape) for s in self.spaces.values() if isinstance(s, Box))

    @property
    def observation_size(self) -> int:
        """Length of a flat observation."""
        obs = self.env.observation_space(self.params)
        return sum(math.prod(x.shape) for x in (obs.items, obs.item_mask, obs.instances, obs.globals))

    def observation(self, obs: Observation) -> Float[Array, " k"]:
        """One vector."""
        mask = obs.item_mask.astype(jnp.float32)
        return jnp.concatenate([obs.items.reshape(-1), mask, obs.instances.reshape(-1), obs.globals])

    def action(self, flat: Any) -> dict[str, Array]:
        """The action by heads of a combination's number, or of a vector of scores."""
        flat = jnp.asarray(flat)
        if self.num_actions is None:
            if flat.shape != (self.action_size,):
                raise UserError(f"action of shape {list(flat.shape)}", where=f"flat view of {self.env.name}",
                                expected=f"[{self.action_size}]")  # fmt: skip
            scores = jnp.clip(flat.astype(jnp.float32), -LARGEST_SCORE, LARGEST_SCORE)
            ends = [math.prod(s.shape) for s in self.spaces.values()]
            at = [sum(ends[:i]) for i in range(1, len(ends))]
            parts = jnp.split(scores, at)
            return {h: p.reshape(s.shape) for (h, s), p in zip(self.spaces.items(), parts, strict=True)}
        if flat.shape != ():
            raise UserError(f"action of shape {list(flat.shape)}", where=f"flat view of {self.env.name}",
                            expected="one whole number")  # fmt: skip
        rest = jnp.clip(flat.astype(jnp.int32), 0, self.num_actions - 1)
        action: dict[str, Array] = {}
        for head, space in reversed(list(self.spaces.items())):
            assert isinstance(space, Discrete)
            action[head] = rest % space.n
            rest = rest // space.n
        return {head: action[head] for head in self.spaces}


def of(env: Environment, params: Any) -> tuple[FlatView, Any]:
    """The view, and the parameters to use with it (the environment's own if None)."""
    params = env.default_params if params is None else params
    return FlatView(env, params), params


__all__ = ["FlatView", "of"]
