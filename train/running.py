"""Numbers that training keeps an eye on: running means, the temperature of the entropy bonus."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

#: Bounds of the weight of the entropy bonus (sheet 2f: with advantages of unit variance it settles at about 1).
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 1e-5, 10.0


class Running(struct.PyTreeNode):
    """Exponential moving averages, exact from the first value on (as Adam corrects its moments).

    Attributes:
        total: f32, the uncorrected average.
        weight: f32, what a constant 1 would have given.
    """

    total: Float[Array, "*n"]
    weight: Float[Array, ""]

    @classmethod
    def zeros(cls, *shape: int) -> Running:
        """Before the first value."""
        return cls(jnp.zeros(shape, jnp.float32), jnp.zeros((), jnp.float32))

    def push(self, value: Array, decay: Array | float) -> Running:
        """With one more value."""
        return Running(decay * self.total + (1.0 - decay) * value, decay * self.weight + (1.0 - decay))

    def mean(self, otherwise: float) -> Float[Array, "*n"]:
        """The average; `otherwise` before the first value."""
        return jnp.where(self.weight > 0, self.total / jnp.where(self.weight > 0, self.weight, 1.0), otherwise)


def spread(mean: Array, mean_of_squares: Array) -> Array:
    """Standard deviation from two averages."""
    return jnp.sqrt(jnp.maximum(mean_of_squares - mean * mean, 0.0))


def steer_entropy(
    log_temperature: Mapping[str, Array], entropy: Mapping[str, Array], target: Array | float, rate: Array | float
) -> dict[str, Array]:
    """One step of the controller that keeps each head's relative entropy at a target.

        log a <- log a + rate (target - h),   1e-5 <= a <= 10

    Args:
        log_temperature: head -> log of the weight a of its entropy bonus.
        entropy: head -> h, mean of entropy / log(number of legal options) over choices with two options or more; NaN
            where there were none (nothing changes then).
        target: wanted h, 0 to 1.
        rate: step; must be faster than the policy (sheet 2f: .02 holds, .005 lets it collapse).
    """

    def steer(log_a: Array, h: Array) -> Array:
        step = jnp.where(jnp.isfinite(h), rate * (target - h), 0.0)
        return jnp.clip(log_a + step, jnp.log(LOWEST_TEMPERATURE), jnp.log(HIGHEST_TEMPERATURE))

    return {head: steer(log_temperature[head], entropy[head]) for head in log_temperature}


def clip_by_norm(grads: Any, limit: Array | float) -> tuple[Any, Float[Array, ""]]:
    """Gradients scaled to a global norm of at most `limit` (which may be traced), and the norm before."""
    norm = jnp.sqrt(jnp.sum(jnp.stack([jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(grads)])))
    scale = jnp.minimum(1.0, limit / jnp.maximum(norm, 1e-12))
    return jax.tree.map(lambda g: g * scale, grads), norm


def nonfinite(leaves: list[Array]) -> Float[Array, ""]:
    """1 if anything in there is NaN or infinite, else 0."""
    bad = [~jnp.all(jnp.isfinite(leaf)) for leaf in leaves]
    return jnp.any(jnp.stack(bad)).astype(jnp.float32) if bad else jnp.zeros((), jnp.float32)


def mean_over(axis: str | None) -> Callable[[Any], Any]:
    """The mean of any pytree over the devices of an axis; nothing to do on one device."""
    return (lambda x: x) if axis is None else (lambda x: jax.lax.pmean(x, axis))
