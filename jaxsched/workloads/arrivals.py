"""Arrival processes on device: gaps keyed by request index, summed into exact int32 ``(epoch, us)`` pairs.

A process gives gaps in units of the mean gap. Dividing by the rate compresses time as a whole (bursts, drifts and
silences too), so two loads of one seed are the same workload at two speeds.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxsched.sim.clock import EPOCH_BITS, EPOCH_US
from jaxsched.workloads.keyed import DRIFT, EVENT, GAP, draw, normal, stream_key, uniform
from jaxsched.workloads.laws import Law

#: Longest gap: the largest float32 below 2**31.
MAX_GAP_US = 2147483520.0


class ArrivalProcess:
    """Stationary gaps with mean 1."""

    #: Whether the rate drifts slowly, with a strength that `with_drift` sets.
    drifts: ClassVar[bool] = False

    def with_drift(self, sigma: float) -> ArrivalProcess:
        """The process with another log-sd of its drift; only where `drifts`."""
        raise NotImplementedError

    def gaps(self, key: Array, num: int) -> Float[Array, " num"]:
        """float32 gaps before arrivals 0..num-1, in units of the mean gap."""
        raise NotImplementedError

    def gaps_us(self, key: Array, num: int, mean_gap_us: Float[Array, ""]) -> Int[Array, " num"]:
        """int32 gaps in microseconds (at most `MAX_GAP_US`), for a mean gap that may be traced."""
        gap = self.gaps(key, num) * mean_gap_us
        return jnp.minimum(jnp.rint(gap), jnp.float32(MAX_GAP_US)).astype(jnp.int32)


@dataclass(frozen=True)
class Renewal(ArrivalProcess):
    """Independent gaps from one law (of any mean: it is normalised)."""

    gap: Law

    def gaps(self, key: Array, num: int) -> Float[Array, " num"]:
        words = draw(stream_key(key, GAP), jnp.arange(num, dtype=jnp.int32))
        return self.gap.sample(words) * jnp.float32(1.0 / self.gap.mean)


@dataclass(frozen=True)
class DriftingRenewal(ArrivalProcess):
    """A renewal process whose rate drifts slowly: gaps times ``exp(x - sigma^2 / 2)``, x a stationary Gaussian AR(1).

    The drift moves once per block of requests; `memory_requests` is its correlation time counted in requests.
    """

    gap: Law
    sigma: float
    memory_requests: float
    block_requests: int = 64

    drifts: ClassVar[bool] = True

    def with_drift(self, sigma: float) -> DriftingRenewal:
        return replace(self, sigma=sigma)

    def gaps(self, key: Array, num: int) -> Float[Array, " num"]:
        return Renewal(self.gap).gaps(key, num) * drift(key, num, self.sigma, self.memory_requests, self.block_requests)


@dataclass(frozen=True)
class OnOff(ArrivalProcess):
    """A two-state Markov-modulated process: bursts (ON) with gaps from `on`, silences (OFF) drawn from `off`.

    A burst has a geometric number of requests with mean `burst_requests`; then one silent period follows. With
    exponential laws this is the interrupted Poisson process (an MMPP-2 whose OFF rate is zero). The rate inside bursts
    drifts as in `DriftingRenewal`. `on` and `off` share one unit of time.
    """

    on: Law
    off: Law
    burst_requests: float
    sigma: float = 0.0
    memory_requests: float = 200.0
    block_requests: int = 16

    drifts: ClassVar[bool] = True

    def with_drift(self, sigma: float) -> OnOff:
        return replace(self, sigma=sigma)

    @functools.cached_property
    def mean_gap(self) -> float:
        """Mean gap in the unit of the two laws."""
        silent = 1.0 / self.burst_requests
        return (1.0 - silent) * self.on.mean + silent * self.off.mean

    def gaps(self, key: Array, num: int) -> Float[Array, " num"]:
        index = jnp.arange(num, dtype=jnp.int32)
        words = draw(stream_key(key, GAP), index)
        silent = uniform(draw(stream_key(key, EVENT), index)[0]) < jnp.float32(1.0 / self.burst_requests)
        speed = drift(key, num, self.sigma, self.memory_requests, self.block_requests)
        gap = jnp.where(silent, self.off.sample(words), self.on.sample(words) * speed)
        return gap * jnp.float32(1.0 / self.mean_gap)


@dataclass(frozen=True)
class TickBatches(ArrivalProcess):
    """A process observed by a clock of coarse ticks: arrivals of one tick come together, `batch_mean` of them on
    average.

    Over Poisson arrivals the batches are Poisson, which is how the Mooncake traces (3 s ticks) look.
    """

    inner: ArrivalProcess
    batch_mean: float

    def gaps(self, key: Array, num: int) -> Float[Array, " num"]:
        return self.gaps_us(key, num, jnp.float32(1e6)).astype(jnp.float32) / jnp.float32(1e6)

    def gaps_us(self, key: Array, num: int, mean_gap_us: Float[Array, ""]) -> Int[Array, " num"]:
        tick_us = jnp.maximum(jnp.rint(self.batch_mean * mean_gap_us), 1.0).astype(jnp.int32)
        gap_us = self.inner.gaps_us(key, num, mean_gap_us)
        ticks, rest = gap_us // tick_us, gap_us % tick_us

        def add(a, b):
            rest = a[1] + b[1]
            carry = (rest >= tick_us).astype(jnp.int32)
            return a[0] + b[0] + carry, rest - carry * tick_us

        tick, _ = jax.lax.associative_scan(add, (ticks, rest))
        passed = tick - jnp.concatenate([jnp.zeros(1, jnp.int32), tick[:-1]])
        return passed * tick_us


def drift(key: Array, num: int, sigma: float, memory_requests: float, block_requests: int) -> Float[Array, " num"]:
    """float32 [num], mean 1: ``exp(x - sigma^2 / 2)``, constant over a block of requests; x is AR(1) over blocks."""
    blocks = -(-num // block_requests)
    shock = normal(draw(stream_key(key, DRIFT), jnp.arange(blocks, dtype=jnp.int32))[0])
    phi = np.float32(np.exp(-block_requests / memory_requests))
    innovation = np.float32(np.sqrt(1.0 - phi * phi))

    def step(x, z):
        x = phi * x + innovation * z
        return x, x

    _, later = jax.lax.scan(step, shock[0], shock[1:])
    level = jnp.concatenate([shock[:1], later])
    return jnp.repeat(jnp.exp(jnp.float32(sigma) * level - jnp.float32(0.5 * sigma**2)), block_requests)[:num]


def accumulate_us(gap_us: Int[Array, " n"]) -> tuple[Int[Array, " n"], Int[Array, " n"]]:
    """Exact running sum of int32 gaps in ``[0, 2**31)``, as int32 ``(epoch, us)``.

    The sum is taken modulo 2**32 in uint32; one gap cannot pass 2**32, so a wrap shows as a sum smaller than the one
    before.
    """
    low = jnp.cumsum(gap_us.astype(jnp.uint32))
    before = jnp.concatenate([jnp.zeros(1, jnp.uint32), low[:-1]])
    wraps = jnp.cumsum((low < before).astype(jnp.int32))
    epoch = wraps * (1 << (32 - EPOCH_BITS)) + (low >> EPOCH_BITS).astype(jnp.int32)
    return epoch, (low & jnp.uint32(EPOCH_US - 1)).astype(jnp.int32)
