"""Integer time: microseconds inside an epoch of 2**30 us (about 18 minutes), and an int32 epoch counter.

A time is the pair ``(epoch, us)`` with ``0 <= us < EPOCH_US``; absolute microseconds are ``epoch * EPOCH_US + us``.
An int32 pair covers 73,000 years without drift and gives the same bits on CPU, GPU and TPU, where int64 is not to be
had without switching all of JAX to x64.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

EPOCH_BITS = 30
EPOCH_US = 1 << EPOCH_BITS
#: "Never", as an offset from the current epoch: later than any time that can be expressed relative to it.
NEVER_US = np.int32(2**31 - 1)


def split_us(absolute_us: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Host side: int64 absolute microseconds to int32 ``(epoch, us)``."""
    absolute_us = np.asarray(absolute_us, np.int64)
    return (absolute_us >> EPOCH_BITS).astype(np.int32), (absolute_us & (EPOCH_US - 1)).astype(np.int32)


def join_us(epoch: np.ndarray, us: np.ndarray) -> np.ndarray:
    """Host side: ``(epoch, us)`` to int64 absolute microseconds."""
    return np.asarray(epoch, np.int64) * EPOCH_US + np.asarray(us, np.int64)


def relative_us(epoch: Int[Array, "*n"], us: Int[Array, "*n"], now_epoch: Int[Array, ""]) -> Int[Array, "*n"]:
    """Offset of ``(epoch, us)`` from the start of epoch ``now_epoch``; two or more epochs ahead
    saturates at `NEVER_US`, more than two epochs ago at two."""
    ahead = epoch - now_epoch
    near = jnp.clip(ahead, -2, 1) * EPOCH_US + us
    return jnp.where(ahead >= 2, NEVER_US, near)


def elapsed_us(
    now_epoch: Int[Array, ""], now_us: Int[Array, ""], epoch: Int[Array, "*n"], us: Int[Array, "*n"]
) -> Float[Array, "*n"]:
    """Time since ``(epoch, us)`` in microseconds, float32: exact below 2**24 us (16.8 s), to 6e-8 relative beyond."""
    return (now_epoch - epoch).astype(jnp.float32) * jnp.float32(EPOCH_US) + (now_us - us).astype(jnp.float32)


def add_us(
    epoch: Int[Array, "*n"], us: Int[Array, "*n"], delta_epoch: Int[Array, "*n"], delta_us: Int[Array, "*n"]
) -> tuple[Int[Array, "*n"], Int[Array, "*n"]]:
    """Sum of two ``(epoch, us)`` pairs, normalised."""
    total = us + delta_us
    carry = jax.lax.shift_right_logical(total, EPOCH_BITS)
    return epoch + delta_epoch + carry, total & (EPOCH_US - 1)
