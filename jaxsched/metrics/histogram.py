"""Streaming histograms with a bounded relative error, updated with two integer operations per value.

A bin is the exponent and the top `PRECISION_BITS` mantissa bits of the value as a float32 (the layout of HdrHistogram,
G. Tene; DDSketch bounds the same error with logarithms): 32 equal bins per octave, so a bin's width is between 1/64
and 1/32 of its value, and its midpoint is within 1.6 % of every value in it. Range 2^LOW_EXPONENT us .. 2^HIGH_EXPONENT
us; smaller and larger values go to the first and last bin.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

PRECISION_BITS = 5
LOW_EXPONENT = 7  # 128 us
HIGH_EXPONENT = 33  # 8590 s
NUM_BINS = (HIGH_EXPONENT - LOW_EXPONENT) << PRECISION_BITS
RELATIVE_ERROR = 2.0 ** -(PRECISION_BITS + 1)

_SHIFT = 23 - PRECISION_BITS
_BIAS = (127 + LOW_EXPONENT) << PRECISION_BITS


def bin_of(value_us: Float[Array, "*n"]) -> Int[Array, "*n"]:
    """Bin index of each value (microseconds, float32, >= 0)."""
    bits = jax.lax.bitcast_convert_type(value_us, jnp.int32)
    return jnp.clip((bits >> _SHIFT) - _BIAS, 0, NUM_BINS - 1)


def bin_end_us(index: Int[Array, "*n"]) -> Float[Array, "*n"]:
    """Float32 value from which on values are in a later bin than `index`; infinity for the last one and beyond.

    Exactly where `bin_of` has it: ``value < bin_end_us(b)`` if and only if ``bin_of(value) <= b``.
    """
    bits = (index + (1 + _BIAS)) << _SHIFT
    edge = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return jnp.where(index >= NUM_BINS - 1, jnp.inf, edge)


def upper_edges_us() -> np.ndarray:
    """Upper edge of every bin, float64 microseconds."""
    index = np.arange(1, NUM_BINS + 1)
    octave, step = index >> PRECISION_BITS, index & ((1 << PRECISION_BITS) - 1)
    return 2.0 ** (LOW_EXPONENT + octave) * (1.0 + step / (1 << PRECISION_BITS))


def quantile_us(counts: np.ndarray, q: float) -> np.ndarray:
    """Quantile of histograms ``[..., NUM_BINS]``, linear inside the bin; NaN where a histogram is empty."""
    counts = np.asarray(counts, np.float64)
    cumulative = np.cumsum(counts, axis=-1)
    total = cumulative[..., -1]
    target = q * total
    index = np.minimum((cumulative < target[..., None]).sum(-1), NUM_BINS - 1)
    upper = upper_edges_us()
    lower = np.concatenate([[0.0], upper[:-1]])
    below = np.take_along_axis(cumulative, np.maximum(index - 1, 0)[..., None], -1)[..., 0] * (index > 0)
    inside = np.take_along_axis(counts, index[..., None], -1)[..., 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        value = lower[index] + (upper[index] - lower[index]) * np.clip((target - below) / inside, 0.0, 1.0)
    return np.where(total > 0, value, np.nan)


def mean_us(counts: np.ndarray) -> np.ndarray:
    """Mean of histograms ``[n, bins]``, every value at the middle of its bin; NaN when empty."""
    upper = upper_edges_us()
    middle = (upper + np.concatenate([[0.0], upper[:-1]])) / 2
    total = counts.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, counts @ middle / total, np.nan)
