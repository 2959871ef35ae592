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

#: Times or durations as two int32 arrays: epochs of 2**30 us, and microseconds.
TimePairs = tuple[Int[Array, " n"], Int[Array, " n"]]

_TICK_BITS = 24
_TICK_MASK = (1 << _TICK_BITS) - 1


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

    def gap_times(self, key: Array, num: int, mean_gap_us: Float[Array, ""]) -> TimePairs:
        """int32 ``(epoch, us)`` of the gaps, to the nearest microsecond, for a mean gap that may be traced."""
        return split_gap(self.gaps(key, num) * mean_gap_us)


@dataclass(frozen=True)
class Renewal(ArrivalProcess):
    """Independent gaps from one law (of any mean: it is normalised)."""

    gap: Law

    def gaps(self, key: Array, num: int) -> Float[Array, " num"]:
        words = draw(stream_key(key, GAP), jnp.arange(num, dtype=jnp.int32))
        return self.gap.sample(words) * jnp.float32(1.0 / self.gap.mean)


@dataclass(frozen=True)
class AtOnce(ArrivalProcess):
    """All programs at time 0: a list of jobs. It has no rate."""

    def gaps(self, key: Array, num: int) -> Float[Array, " num"]:
        del key
        return jnp.zeros(num, jnp.float32)


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
        return self._ticks_passed(key, num).astype(jnp.float32) * jnp.float32(self.batch_mean)

    def gap_times(self, key: Array, num: int, mean_gap_us: Float[Array, ""]) -> TimePairs:
        passed = self._ticks_passed(key, num)
        tick_epoch, tick_us = split_gap(self.batch_mean * mean_gap_us)
        high, low = passed * (tick_us >> 15), passed * (tick_us & 0x7FFF)  # passed * tick_us without overflow
        return passed * tick_epoch + (high >> 15), ((high & 0x7FFF) << 15) + low

    def _ticks_passed(self, key: Array, num: int) -> Int[Array, " num"]:
        """Ticks between successive arrivals. Counted in 2**-24 of a tick, so the batches are the same at every load."""
        part = self.inner.gaps(key, num) * jnp.float32(2**_TICK_BITS / self.batch_mean)
        part = jnp.minimum(jnp.rint(part), jnp.float32(2**31 - 128)).astype(jnp.int32)

        tick, _ = _carrying_sum(part >> _TICK_BITS, part & _TICK_MASK, _TICK_BITS)
        return tick - jnp.concatenate([jnp.zeros(1, jnp.int32), tick[:-1]])


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


def split_gap(gap_us: Float[Array, "*n"]) -> tuple[Int[Array, "*n"], Int[Array, "*n"]]:
    """float32 microseconds >= 0 to int32 ``(epoch, us)``, 0 <= us <= 2**30; both steps are exact in float32."""
    epoch = jnp.floor(gap_us * jnp.float32(1.0 / EPOCH_US))
    return epoch.astype(jnp.int32), jnp.rint(gap_us - epoch * jnp.float32(EPOCH_US)).astype(jnp.int32)


def accumulate(gaps: TimePairs) -> TimePairs:
    """Exact running sum of gaps ``(epoch, us)`` with 0 <= us < 2**31, normalised to us < 2**30."""
    return _carrying_sum(gaps[0], gaps[1], EPOCH_BITS)


def _carrying_sum(high: Int[Array, " n"], low: Int[Array, " n"], bits: int) -> TimePairs:
    """Running sums of ``high * 2**bits + low`` as the same kind of pair, with low < 2**bits.

    The low parts are summed modulo 2**32 in uint32; each is below 2**32, so a wrap shows as a sum smaller than the one
    before it.
    """
    total = jnp.cumsum(low.astype(jnp.uint32))
    before = jnp.concatenate([jnp.zeros(1, jnp.uint32), total[:-1]])
    wraps = (total < before).astype(jnp.int32)
    carried = jnp.cumsum(high + wraps * (1 << (32 - bits))) + (total >> bits).astype(jnp.int32)
    return carried, (total & jnp.uint32((1 << bits) - 1)).astype(jnp.int32)
