"""The last `W` samples of a stream, kept both in order of arrival and in order of size.

Keeping the sizes sorted costs one O(W) pass per sample, without a sort, and makes an empirical distribution function a
position: what reads it (a TTL, a quantile, a knot of a hazard table) is then O(W) vector work as well.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

#: Fills unused places of `Window.ordered`, and is where durations saturate (35 min 47 s in microseconds).
LARGEST = 2**31 - 1


class Window(struct.PyTreeNode):
    """`rows` independent windows of the last `W` int32 samples each."""

    ring: Int[Array, "rows W"]  # by arrival: sample number s (from 0) is at place s mod W
    ordered: Int[Array, "rows W"]  # the same samples, smallest first, then `LARGEST`
    count: Int[Array, " rows"]  # samples ever recorded, not only those still held


def empty_window(rows: int, size: int) -> Window:
    """`rows` windows of `size` places without samples."""
    if not 0 < size < 2**15:
        raise ValueError(f"a window holds 1 to 32767 samples, not {size}")
    return Window(
        ring=jnp.full((rows, size), LARGEST, jnp.int32),
        ordered=jnp.full((rows, size), LARGEST, jnp.int32),
        count=jnp.zeros((rows,), jnp.int32),
    )


def held(window: Window) -> Int[Array, " rows"]:
    """Samples each window holds: all it was given, at most its size."""
    return jnp.minimum(window.count, window.ring.shape[1])


def push(window: Window, rows: Int[Array, " n"], value: Int[Array, ""], mask: Bool[Array, " n"]) -> Window:
    """Record `value` (>= 0) in each of the distinct `rows` where `mask`; rows outside the table are left out.

    O(n W): the oldest sample of a full window is taken out of the sorted copy and the new one put in by two shifts.
    """
    num_rows, size = window.ring.shape
    value = jnp.asarray(value, jnp.int32)
    kept = mask & (rows >= 0) & (rows < num_rows)
    row = jnp.where(kept, rows, 0)
    count = window.count[row]
    cursor = jax.lax.rem(count, jnp.full_like(count, size))
    oldest = jnp.where(count >= size, window.ring[row, cursor], LARGEST)
    ordered = jax.vmap(_replaced, in_axes=(0, 0, 0, None))(window.ordered[row], oldest, count >= size, value)
    target = jnp.where(kept, rows, num_rows)  # out of bounds: dropped
    return Window(
        ring=window.ring.at[target, cursor].set(value, mode="drop"),
        ordered=window.ordered.at[target].set(ordered, mode="drop"),
        count=window.count.at[target].set(jnp.minimum(count, LARGEST - 1) + 1, mode="drop"),
    )


def _replaced(
    ordered: Int[Array, " W"], oldest: Int[Array, ""], full: Bool[Array, ""], value: Int[Array, ""]
) -> Int[Array, " W"]:
    """The sorted row without `oldest` (if `full`) and with `value`."""
    place = jnp.arange(ordered.shape[0], dtype=jnp.int32)
    pad = jnp.full((1,), LARGEST, jnp.int32)
    out = jnp.sum((ordered < oldest).astype(jnp.int32))
    ordered = jnp.where(full & (place >= out), jnp.concatenate([ordered[1:], pad]), ordered)
    into = jnp.sum((ordered < value).astype(jnp.int32))
    later = jnp.concatenate([pad, ordered[:-1]])
    return jnp.where(place < into, ordered, jnp.where(place == into, value, later))
