"""Exact integer arithmetic in int32, the same bits on every backend."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

#: Added to a float32 between -2^22 and 2^22 it leaves the nearest integer in the low bits.
_ROUNDING = 1.5 * 2**23
_ROUNDING_BITS = int(np.float32(_ROUNDING).view(np.int32))


def floor_div(x: Int[Array, "*n"], den: Int[Array, ""]) -> Int[Array, "*n"]:
    """``x // den`` for ``0 <= x < 2**31`` and ``2**9 <= den``.

    CPUs have no vector integer division. A float32 quotient is off by at most one in this range; the remainder says
    which way, so the result is exact whatever the rounding of the backend. It is read off the mantissa of a sum with
    1.5 * 2**23, which rounds it: a conversion would first have to look for NaN and for what is out of range.
    """
    quotient = (x - (den >> 1)).astype(jnp.float32) * (jnp.float32(1.0) / den.astype(jnp.float32))
    q = jax.lax.bitcast_convert_type(quotient + jnp.float32(_ROUNDING), jnp.int32) - _ROUNDING_BITS
    r = x - q * den
    return q + (r >= den).astype(jnp.int32) - (r < 0).astype(jnp.int32)


def scaled_floor(x: Int[Array, "*n"], num: Int[Array, ""], den: Int[Array, ""]) -> Int[Array, "*n"]:
    """``floor(num * x / den)`` without overflow, for ``num * den < 2**31`` and a result below 2**31."""
    q = floor_div(x, den)
    return num * q + floor_div(num * (x - q * den), den)
