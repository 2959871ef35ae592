"""Returns of semi-Markov decisions: time passes between them, so discounts are rates (docs/learning.md, section 2).

    a reward spread evenly over dt counts  R (1 - exp(-beta dt)) / (beta dt)
    delta = that + exp(-beta dt) V' - V
    A     = delta + exp(-(beta + kappa) dt) A'          (GAE of Schulman et al. 2016 with lambda = exp(-kappa dt))

so splitting an interval in which nothing is decided changes neither returns nor advantages of the decisions around it.
Bootstrapping follows Pardo et al. 2018: after a truncation the value of the last observation is used, after a
termination nothing.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def present_value(reward: Float[Array, "*s"], dt_s: Float[Array, "*s"], beta: Array | float) -> Float[Array, "*s"]:
    """Value at the start of an interval of a reward spread evenly over it.

    Args:
        reward: its integral over the interval.
        dt_s: length of the interval.
        beta: discount rate, 1/s; 0 discounts nothing.
    """
    x = beta * dt_s
    small = x < 1e-4
    safe = jnp.where(small, 1.0, x)
    return reward * jnp.where(small, 1.0 - 0.5 * x, -jnp.expm1(-safe) / safe)


def advantages(
    reward: Float[Array, "*tb v"],
    dt_s: Float[Array, "*tb"],
    value: Float[Array, "*tb v"],
    next_value: Float[Array, "*tb v"],
    done: Bool[Array, "*tb"],
    beta: Array | float,
    kappa: Array | float,
) -> Float[Array, "*tb v"]:
    """Generalised advantage estimates over time, for each of v reward streams.

    Args:
        reward: integrals over the intervals.
        dt_s: their lengths.
        value: of the observation at the start of each interval.
        next_value: of the observation at its end: 0 after a termination, after a truncation that of the episode's last.
        done: an episode ended with the interval, whichever way.
        beta: discount rate, 1/s.
        kappa: decay rate of the weight of later errors, 1/s (1/kappa is the time constant of lambda).
    """
    dt = dt_s[..., None]
    delta = present_value(reward, dt, beta) + jnp.exp(-beta * dt) * next_value - value
    weight = jnp.where(done[..., None], 0.0, jnp.exp(-(beta + kappa) * dt))
    return _accumulate(delta, weight)


def cost_to_go(
    reward: Float[Array, "*tb"], dt_s: Float[Array, "*tb"], done: Bool[Array, "*tb"], beta: Array | float
) -> Float[Array, "*tb"]:
    """Discounted sum of the rewards from each interval to the end of its episode (or of the recording)."""
    weight = jnp.where(done, 0.0, jnp.exp(-beta * dt_s))
    return _accumulate(present_value(reward, dt_s, beta), weight)


def _accumulate(x: Array, weight: Array) -> Array:
    """y_t = x_t + weight_t y_{t+1}, y beyond the end = 0."""

    def back(later: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        y = now[0] + now[1] * later
        return y, y

    return jax.lax.scan(back, jnp.zeros_like(x[0]), (x, jnp.broadcast_to(weight, x.shape)), reverse=True)[1]
