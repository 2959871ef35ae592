"""Distributions as small frozen (hashable, hence static under jit) objects that turn random words into float32 values.

Every law takes exactly the two words of one element (`keyed.draw`), so a value never depends on how many others are
made.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import gammaincinv, ndtri

from jaxsched.workloads.keyed import Words, exponential, normal, uniform

_GRID = 200_001  # points of the host-side integrals


class Law:
    """A non-negative distribution: `sample` on device, `mean` on host."""

    def sample(self, words: Words) -> Float[Array, "*n"]:
        """float32 values, one per pair of words."""
        raise NotImplementedError

    @property
    def mean(self) -> float:
        """Exact or numerically integrated mean, before any rounding and clipping by the caller."""
        raise NotImplementedError


@dataclass(frozen=True)
class Constant(Law):
    """Always `value`."""

    value: float = 1.0

    def sample(self, words: Words) -> Float[Array, "*n"]:
        return jnp.full(words[0].shape, self.value, jnp.float32)

    @property
    def mean(self) -> float:
        return self.value


@dataclass(frozen=True)
class Uniform(Law):
    """Uniform between `low` and `high`."""

    low: float
    high: float

    def sample(self, words: Words) -> Float[Array, "*n"]:
        return jnp.float32(self.low) + jnp.float32(self.high - self.low) * uniform(words[0])

    @property
    def mean(self) -> float:
        return 0.5 * (self.low + self.high)


@dataclass(frozen=True)
class Exponential(Law):
    """Exponential with mean `scale`."""

    scale: float = 1.0

    def sample(self, words: Words) -> Float[Array, "*n"]:
        return jnp.float32(self.scale) * exponential(words[0])

    @property
    def mean(self) -> float:
        return self.scale


@dataclass(frozen=True)
class Hyperexponential(Law):
    """Two-phase hyperexponential with mean `scale`, squared coefficient of variation `scv` > 1, balanced means.

    Phase 1 has probability ``p = (1 + sqrt((scv - 1) / (scv + 1))) / 2`` and rate ``2p``, phase 2 the rest (Tijms,
    "A First Course in Stochastic Models", appendix B).
    """

    scv: float = 4.0
    scale: float = 1.0

    def sample(self, words: Words) -> Float[Array, "*n"]:
        p = 0.5 * (1.0 + math.sqrt((self.scv - 1.0) / (self.scv + 1.0)))
        phase_mean = jnp.where(uniform(words[1]) < p, jnp.float32(0.5 / p), jnp.float32(0.5 / (1.0 - p)))
        return jnp.float32(self.scale) * phase_mean * exponential(words[0])

    @property
    def mean(self) -> float:
        return self.scale


@dataclass(frozen=True)
class LogNormalMixture(Law):
    """Mixture of lognormals: tuples of (weight, log-mean, log-sd); values clipped to ``[low, high]``."""

    components: tuple[tuple[float, float, float], ...]
    low: float = 0.0
    high: float = math.inf

    def sample(self, words: Words) -> Float[Array, "*n"]:
        return self.stretched(words, jnp.float32(1.0))

    def stretched(self, words: Words, tail: Float[Array, ""]) -> Float[Array, "*n"]:
        """The law with every component's log-sd times `tail` (which may be traced): same medians, other tails."""
        weights = np.array([c[0] for c in self.components])
        edges = np.cumsum(weights / weights.sum())[:-1]
        u, z = uniform(words[0]), normal(words[1]) * tail
        _, mu, sigma = self.components[0]
        log_value = jnp.float32(mu) + jnp.float32(sigma) * z
        for edge, (_, mu, sigma) in zip(edges, self.components[1:], strict=True):
            log_value = jnp.where(u >= jnp.float32(edge), jnp.float32(mu) + jnp.float32(sigma) * z, log_value)
        return jnp.clip(jnp.exp(log_value), self.low, self.high)

    @functools.cached_property
    def mean(self) -> float:
        z = ndtri((np.arange(_GRID) + 0.5) / _GRID)
        weights = np.array([c[0] for c in self.components])
        means = [np.clip(np.exp(mu + sigma * z), self.low, self.high).mean() for _, mu, sigma in self.components]
        return float(np.dot(weights / weights.sum(), means))


@dataclass(frozen=True)
class QuantileTable(Law):
    """Piecewise-linear log quantile function of the normal score: the shape of an empirical CDF in a dozen knots.

    `log_values[k]` is the log of the quantile at probability ``Phi(scores[k])``; beyond the outer knots the value is
    flat, so the law is bounded. Evaluated as a sum of clipped ramps: no gather, no search.
    """

    scores: tuple[float, ...]
    log_values: tuple[float, ...]

    def sample(self, words: Words) -> Float[Array, "*n"]:
        return jnp.exp(_ramps(normal(words[0]), self.scores, self.log_values))

    @functools.cached_property
    def mean(self) -> float:
        z = np.linspace(-6.0, 6.0, _GRID)
        weight = np.exp(-0.5 * z * z)
        return float(np.sum(np.exp(np.interp(z, self.scores, self.log_values)) * weight) / weight.sum())

    def quantile(self, probability: float) -> float:
        """Value at a probability (host side)."""
        return float(np.exp(np.interp(ndtri(probability), self.scores, self.log_values)))


@dataclass(frozen=True)
class Gamma(Law):
    """Gamma with mean `scale` and coefficient of variation `cv`, through a table of 40 exact quantiles.

    The log of the quantile is nearly linear in the log of the exponential score ``-log(1 - u)`` (slope 1/shape at small
    values, 1 in the tail), so linear interpolation between knots of the two is accurate for any shape: the error of the
    distribution function is below 0.002 for gaps above 1e-4 of the mean. The table is scaled to the exact mean.
    """

    cv: float
    scale: float = 1.0

    def sample(self, words: Words) -> Float[Array, "*n"]:
        knots, log_values = self._table
        return jnp.float32(self.scale) * jnp.exp(_ramps(jnp.log(exponential(words[0])), knots, log_values))

    @functools.cached_property
    def _table(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        shape = self.cv**-2.0
        # All scores that 23-bit uniforms can give; finer where the slope turns.
        knots = np.concatenate(
            [np.linspace(np.log(5e-8), np.log(0.02), 10), np.linspace(np.log(0.02), np.log(17.0), 31)[1:]]
        )
        values = gammaincinv(shape, -np.expm1(-np.exp(knots))) / shape
        log_values = np.log(np.maximum(values, 1e-30))
        score = -np.log1p(-(np.arange(_GRID) + 0.5) / _GRID)
        mean = np.exp(np.interp(np.log(score), knots, log_values)).mean()
        return tuple(knots.tolist()), tuple((log_values - np.log(mean)).tolist())

    @property
    def mean(self) -> float:
        return self.scale


@dataclass(frozen=True)
class Discrete(Law):
    """Integers 1, 2, 3, ... with the given probabilities (normalised)."""

    probabilities: tuple[float, ...]

    def sample(self, words: Words) -> Float[Array, "*n"]:
        edges = np.cumsum(np.array(self.probabilities) / sum(self.probabilities))[:-1]
        u = uniform(words[0])
        value = jnp.ones(u.shape, jnp.float32)
        for edge in edges:
            value = value + (u >= jnp.float32(edge)).astype(jnp.float32)
        return value

    @property
    def mean(self) -> float:
        weights = np.array(self.probabilities) / sum(self.probabilities)
        return float(np.dot(weights, 1 + np.arange(len(weights))))


def zipf(num_items: int, exponent: float) -> Discrete:
    """Zipf over 1..num_items: probability proportional to ``rank ** -exponent``."""
    return Discrete(tuple(float((k + 1) ** -exponent) for k in range(num_items)))


def _ramps(x: Float[Array, "*n"], knots: tuple[float, ...], values: tuple[float, ...]) -> Float[Array, "*n"]:
    """Linear interpolation of (knots, values) at x, flat outside, as a sum of clipped ramps."""
    total = jnp.full(x.shape, values[0], jnp.float32)
    for left, right, low, high in zip(knots[:-1], knots[1:], values[:-1], values[1:], strict=True):
        if high != low:
            part = jnp.clip((x - jnp.float32(left)) * jnp.float32(1.0 / (right - left)), 0.0, 1.0)
            total = total + jnp.float32(high - low) * part
    return total
