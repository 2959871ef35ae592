"""PID-Lagrangian constraints (Stooke, Achiam and Abbeel 2020; sheet 5a).

    maximise reward - sum_i lambda_i (cost_i - limit_i)
    e = (measured - limit) / limit
    I <- max(0, I + ki e),    lambda = min(cap, max(0, I + kp e + kd (e - e_before)))

The integral alone (kp = 0, ordinary dual ascent) finds the right cost on average but swings around it; the proportional
term damps that. The advantage is (A_0 - sum lambda_i A_i) / (1 + sum lambda_i), so a large multiplier does not
enlarge the step. Constraints are rates: a cost per second, or per unit of another cost ("late turns per turn").
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from jaxsched.errors import UserError
from train.running import Running


@dataclass(frozen=True)
class Constraint:
    """``cost / per <= limit``: which entries of ``info["costs"]`` are compared.

    Attributes:
        cost: name of the cost that is limited.
        per: name of the cost it is counted per; empty: per second.
    """

    cost: str
    per: str = ""


class PidGains(struct.PyTreeNode):
    """Gains (traced).

    Attributes:
        limit: f32[k] the largest rate allowed.
        kp, ki, kd: f32 gains on the error relative to the limit.
        cap: f32 largest multiplier.
        warmup: i32 updates during which the multipliers stay 0.
        decay: f32 of the moving averages of the measured rates; 0: the last batch alone.
    """

    limit: Float[Array, " k"]
    kp: Float[Array, ""] | float = 1.0
    ki: Float[Array, ""] | float = 0.02
    kd: Float[Array, ""] | float = 0.0
    cap: Float[Array, ""] | float = 50.0
    warmup: Array | int = 10
    decay: Float[Array, ""] | float = 0.9


class PidState(struct.PyTreeNode):
    """What the controller remembers.

    Attributes:
        integral, previous, multiplier: f32[k].
        cost, per: running means of what is divided by each other to a rate.
        count: i32 updates so far.
    """

    integral: Float[Array, " k"]
    previous: Float[Array, " k"]
    multiplier: Float[Array, " k"]
    cost: Running
    per: Running
    count: Array

    @classmethod
    def zeros(cls, num: int) -> PidState:
        """At the start, all multipliers 0."""
        none = jnp.zeros(num, jnp.float32)
        return cls(none, none, none, Running.zeros(num), Running.zeros(num), jnp.zeros((), jnp.int32))

    def rate(self) -> Float[Array, " k"]:
        """Measured rates."""
        return self.cost.mean(0.0) / jnp.maximum(self.per.mean(0.0), 1e-12)


def pid_update(state: PidState, gains: PidGains, cost: Float[Array, " k"], per: Float[Array, " k"]) -> PidState:
    """One step of the controller.

    Args:
        state: as it was.
        gains: settings.
        cost: total of each limited cost in the last batch.
        per: total of what it is counted per (seconds or another cost).
    """
    means = state.replace(cost=state.cost.push(cost, gains.decay), per=state.per.push(per, gains.decay))
    error = (means.rate() - gains.limit) / jnp.maximum(gains.limit, 1e-6)
    on = state.count >= gains.warmup
    integral = jnp.where(on, jnp.clip(state.integral + gains.ki * error, 0.0, gains.cap), 0.0)
    slope = jnp.where(on, error - state.previous, 0.0)
    multiplier = jnp.clip(integral + gains.kp * error + gains.kd * slope, 0.0, gains.cap)
    return means.replace(
        integral=integral, previous=error, multiplier=jnp.where(on, multiplier, 0.0), count=state.count + 1
    )


def combine(advantage: Float[Array, "*s v"], multiplier: Float[Array, " k"]) -> Float[Array, "*s"]:
    """One advantage from that of the reward (first) and of the constraints' costs."""
    return (advantage[..., 0] - jnp.sum(multiplier * advantage[..., 1:], axis=-1)) / (1.0 + jnp.sum(multiplier))


def constraint_columns(constraints: tuple[Constraint, ...], cost_names: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    """For each constraint the column of its cost and that of what it is counted per (-1: seconds).

    Raises:
        UserError: an environment has no such cost.
    """
    columns = []
    for constraint in constraints:
        for name in (constraint.cost, constraint.per):
            if name and name not in cost_names:
                raise UserError(
                    f"unknown cost {name!r}", where="constraint", expected=f"one of {', '.join(cost_names)}"
                )
        columns.append((cost_names.index(constraint.cost), cost_names.index(constraint.per) if constraint.per else -1))
    return tuple(columns)
