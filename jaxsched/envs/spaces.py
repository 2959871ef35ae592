"""What actions and observations look like: enough to sample, to check, and to convert to other libraries' spaces."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Discrete:
    """Choices ``0 .. n-1``, one or (with `shape`) an array of them."""

    n: int
    shape: tuple[int, ...] = ()

    dtype = jnp.int32

    def sample(self, key: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Uniform over the legal choices; `mask` is ``[*shape, n]``, True = legal."""
        logits = jnp.zeros((*self.shape, self.n)) if mask is None else jnp.where(mask, 0.0, -1e9)
        return jax.random.categorical(key, logits).astype(jnp.int32)

    def contains(self, value: Any) -> bool:
        """Whether a concrete value belongs to the space."""
        array = np.asarray(value)
        return array.shape == self.shape and array.dtype == np.int32 and bool(((array >= 0) & (array < self.n)).all())


@dataclasses.dataclass(frozen=True)
class Box:
    """float32 arrays between two bounds."""

    low: float
    high: float
    shape: tuple[int, ...]

    dtype = jnp.float32

    def sample(self, key: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Uniform in the box; standard normal where it has no bounds. Every score is legal, whatever `mask` says."""
        del mask
        if np.isinf(self.low) or np.isinf(self.high):
            return jax.random.normal(key, self.shape)
        return jax.random.uniform(key, self.shape, minval=self.low, maxval=self.high)

    def contains(self, value: Any) -> bool:
        """Whether a concrete value belongs to the space."""
        array = np.asarray(value)
        inside = bool(((self.low <= array) & (array <= self.high)).all())
        return array.shape == self.shape and array.dtype == np.float32 and inside


Space = Discrete | Box


def sample_action(spaces: Mapping[str, Space], key: jax.Array, masks: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """A random legal action: what a learner does before it has learned anything."""
    keys = jax.random.split(key, len(spaces))
    return {name: space.sample(k, masks.get(name)) for k, (name, space) in zip(keys, spaces.items(), strict=True)}
