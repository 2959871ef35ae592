"""Exact integer arithmetic in int32, the same bits on every backend."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Int


def floor_div(x: Int[Array, "*n"], den: Int[Array, ""]) -> Int[Array, "*n"]:
    """``x // den`` for ``0 <= x < 2**31`` and ``2**9 <= den``.

    CPUs have no vector integer division. A float32 quotient is off by at most one in this range; the remainder says
    which way, so the result is exact whatever the rounding of the backend.
    """
    q = (x.astype(jnp.float32) * (jnp.float32(1.0) / den.astype(jnp.float32))).astype(jnp.int32)
    r = x - q * den
    return q + (r >= den).astype(jnp.int32) - (r < 0).astype(jnp.int32)


def scaled_floor(x: Int[Array, "*n"], num: Int[Array, ""], den: Int[Array, ""]) -> Int[Array, "*n"]:
    """``floor(num * x / den)`` without overflow, for ``num * den < 2**31`` and a result below 2**31."""
    q = floor_div(x, den)
    return num * q + floor_div(num * (x - q * den), den)
