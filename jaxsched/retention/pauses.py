"""How long pauses last: tabulated survival functions per tool, from laws, samples, or what was seen so far.

A table holds S(t) = P(pause > t) at K knots per tool and reads as piecewise linear between them (uniform density inside
a cell). Equal times with different survival are a jump: a deterministic pause is the knots (0, 1), (D, 1), (D, 0), and
nothing about it is approximate. Survival left at the last knot belongs to pauses that never end.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float
from scipy.special import ndtr

from jaxsched.retention.ttl import ToolHistory, TtlParams, ttl_params
from jaxsched.retention.window import held


class PauseTable(struct.PyTreeNode):
    """Survival functions of the pauses of each tool."""

    time_us: Float[Array, "tools K"]  # knots, not decreasing, the first 0
    survival: Float[Array, "tools K"]  # P(pause > time), not increasing; the first knot has 1
    area_us: Float[Array, "tools K"]  # integral of S from 0 to the knot: E[min(pause, time)]


def pause_table(time_us: Float[Array, "tools K"], survival: Float[Array, "tools K"]) -> PauseTable:
    """A table from its knots (not checked; see the fields of `PauseTable`)."""
    time_us = jnp.asarray(time_us, jnp.float32)
    survival = jnp.asarray(survival, jnp.float32)
    cells = 0.5 * (survival[:, 1:] + survival[:, :-1]) * jnp.diff(time_us, axis=1)
    area = jnp.concatenate([jnp.zeros_like(cells[:, :1]), jnp.cumsum(cells, axis=1)], axis=1)
    return PauseTable(time_us, survival, area)


# --- laws (host side, float64) ------------------------------------------------------------------------------------


class PauseLaw:
    """A distribution of pauses in microseconds: what `tables_from_laws` reads."""

    def survival(self, time_us: np.ndarray) -> np.ndarray:
        """P(pause > time), right-continuous."""
        raise NotImplementedError

    def atoms(self) -> tuple[float, ...]:
        """Times at which the survival function jumps."""
        return ()


@dataclasses.dataclass(frozen=True)
class Exponential(PauseLaw):
    """Exponential with mean `mean_us`."""

    mean_us: float

    def survival(self, time_us):
        return np.exp(-np.asarray(time_us, np.float64) / self.mean_us)


@dataclasses.dataclass(frozen=True)
class Lomax(PauseLaw):
    """Pareto type II: survival ``(1 + t / scale)^-shape``; hazard ``shape / (scale + t)``."""

    shape: float
    scale_us: float

    def survival(self, time_us):
        return (1.0 + np.asarray(time_us, np.float64) / self.scale_us) ** -self.shape


@dataclasses.dataclass(frozen=True)
class LogNormal(PauseLaw):
    """exp of a normal with the given median and standard deviation of the log."""

    median_us: float
    log_sd: float

    def survival(self, time_us):
        with np.errstate(divide="ignore"):
            score = np.log(np.asarray(time_us, np.float64) / self.median_us) / self.log_sd
        return ndtr(-score)


@dataclasses.dataclass(frozen=True)
class Deterministic(PauseLaw):
    """Always `value_us`."""

    value_us: float

    def survival(self, time_us):
        return (np.asarray(time_us, np.float64) < self.value_us).astype(np.float64)

    def atoms(self):
        return (self.value_us,)


@dataclasses.dataclass(frozen=True)
class Mixture(PauseLaw):
    """`laws[i]` with probability proportional to `weights[i]`."""

    weights: tuple[float, ...]
    laws: tuple[PauseLaw, ...]

    def survival(self, time_us):
        parts = [w * law.survival(time_us) for w, law in zip(self.weights, self.laws, strict=True)]
        return np.sum(parts, axis=0) / sum(self.weights)

    def atoms(self):
        return tuple(sorted({atom for law in self.laws for atom in law.atoms()}))


def tables_from_laws(laws: Sequence[PauseLaw], knots: int = 512, tail: float = 1e-6) -> PauseTable:
    """One row of `knots` knots per law between its quantiles 0.001 and 1 - `tail`, and both sides of its jumps.

    Half of the knots are logarithmic in time (which suits heavy tails), half in survival (which suits light ones); 512
    err in the hazard of the laws tried by at most 4 %. Pauses beyond the last knot (`tail` of all) count as endless.
    """
    times, survivals = zip(*(_law_knots(law, knots, tail) for law in laws), strict=True)
    return pause_table(jnp.asarray(np.stack(times), jnp.float32), jnp.asarray(np.stack(survivals), jnp.float32))


def _law_knots(law: PauseLaw, knots: int, tail: float) -> tuple[np.ndarray, np.ndarray]:
    jumps = np.asarray(law.atoms(), np.float64)
    if knots < 2 * len(jumps) + 5:
        raise ValueError(f"{knots} knots are too few for a law with {len(jumps)} jumps")
    num_smooth = knots - 1 - 2 * len(jumps)
    by_survival = _quantiles(law, np.geomspace(0.999, tail, num_smooth // 2))
    by_time = np.geomspace(by_survival[0], by_survival[-1], num_smooth - num_smooth // 2)
    smooth = np.concatenate([by_survival, by_time])
    times = np.concatenate([[0.0], smooth, jumps, jumps])
    before, after = law.survival(np.nextafter(jumps, 0.0)), law.survival(jumps)
    survival = np.concatenate([[1.0], law.survival(smooth), before, after])
    order = np.lexsort((-survival, times))
    return times[order], survival[order]


def _quantiles(law: PauseLaw, survival: np.ndarray) -> np.ndarray:
    """The smallest times (1 us to 30 years) at which at most `survival` of the pauses still last, by bisection."""
    low, high = np.zeros_like(survival), np.full_like(survival, math.log(1e15))
    for _ in range(80):
        middle = 0.5 * (low + high)
        over = law.survival(np.exp(middle)) > survival
        low, high = np.where(over, middle, low), np.where(over, high, middle)
    return np.exp(high)


# --- samples ------------------------------------------------------------------------------------------------------


def tables_from_samples(samples_us: Sequence[np.ndarray], knots: int = 17) -> PauseTable:
    """One row per tool from its samples (each non-empty), host side: knots at evenly spaced order statistics.

    S after the i-th smallest of n is ``1 - i / (n + 1)``. Knots far fewer than samples smooth the density: between
    neighbouring samples it is noise, and an index that takes a supremum over it is biased upwards.
    """
    times, survivals = [], []
    for values in samples_us:
        ordered = np.sort(np.asarray(values, np.float64))
        rank = _ranks(len(ordered), knots)
        times.append(np.concatenate([[0.0], ordered[rank - 1]]))
        survivals.append(np.concatenate([[1.0], 1.0 - rank / (len(ordered) + 1.0)]))
    return pause_table(jnp.asarray(np.stack(times), jnp.float32), jnp.asarray(np.stack(survivals), jnp.float32))


def _ranks(num: int, knots: int) -> np.ndarray:
    if num < 1:
        raise ValueError("a table needs at least one sample of every tool")
    return np.maximum((np.arange(1, knots) * num) // (knots - 1), 1)


def tables_from_history(history: ToolHistory, knots: int = 17, params: TtlParams | None = None) -> PauseTable:
    """One row per tool, then one for all, from what was seen so far; jittable, O(tools * knots), no sort.

    Sources as Continuum chooses them (`ttl.best_ttl`): the tool's own samples if it has more than `min_samples`, else
    those of all tools, else the exponential prior.
    """
    params = params or ttl_params()
    window = history.durations
    last = window.count.shape[0] - 1
    trusted = window.count > params.min_samples
    row = jnp.where(trusted, jnp.arange(last + 1, dtype=jnp.int32), last)
    num = held(window)[row][:, None]
    step = jnp.arange(1, knots, dtype=jnp.int32)[None, :]
    rank = jnp.maximum(step * num // (knots - 1), 1)
    seen = jnp.take_along_axis(window.ordered[row], rank - 1, axis=1).astype(jnp.float32)
    seen_survival = 1.0 - rank.astype(jnp.float32) / (num.astype(jnp.float32) + 1.0)
    # The prior at the same number of knots, evenly spaced in probability down to 1 / (W + 1) as a full window would be.
    share = 1.0 - step.astype(jnp.float32) / (knots - 1) * (window.ring.shape[1] / (window.ring.shape[1] + 1.0))
    prior = -params.prior_mean_us * jnp.log(share)
    time = jnp.where(trusted[last], seen, prior)
    survival = jnp.where(trusted[last], seen_survival, share)
    ones = jnp.ones_like(time[:, :1])
    return pause_table(jnp.concatenate([0.0 * ones, time], axis=1), jnp.concatenate([ones, survival], axis=1))
