"""Eviction from the end of the oldest entries of a table: which blocks go so that a given number go in all."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxsched.sim.clock import NEVER_US
from jaxsched.sim.rows import earliest


def take_oldest(
    key: Int[Array, " e"], length: Int[Array, " e"], owed: Int[Array, ""], ties: Int[Array, " e"] | None = None
) -> Int[Array, " e"]:
    """Blocks to drop from each entry so that `owed` are dropped in all, smallest keys first.

    Keys of entries with a length are unique, or, of equal keys, the smallest `ties` go first and those are unique.
    `owed` is at most the sum of the lengths. The threshold is found by bisection: no sort.
    """

    def unsettled(bounds: tuple[Array, Array]) -> Array:
        low, high = bounds
        return low < high

    def halve(bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = high - ((high - low) >> 1)
        below = jnp.sum(jnp.where(key < middle, length, 0))
        return jnp.where(below <= owed, middle, low), jnp.where(below <= owed, high, middle - 1)

    there = length > 0
    most = jnp.max(jnp.where(there, key, -(2**30))) + 1
    least = jnp.min(jnp.where(there, key, 2**30))
    threshold, _ = jax.lax.while_loop(unsettled, halve, (jnp.where(owed > 0, jnp.minimum(least, most), most), most))
    whole = there & (key < threshold)
    rest = owed - jnp.sum(jnp.where(whole, length, 0))
    at = there & (key == threshold)
    if ties is not None:
        part = take_oldest(ties, jnp.where(at, length, 0), jnp.where(owed > 0, rest, 0))
        return jnp.where(owed > 0, jnp.where(whole, length, part), 0)
    return jnp.where(owed > 0, jnp.where(whole, length, jnp.where(at, jnp.minimum(rest, length), 0)), 0)


def take_oldest_runs(
    key: Int[Array, " e"], length: Int[Array, " e"], owed: Int[Array, ""], ties: Int[Array, " e"] | None = None
) -> Int[Array, " e"]:
    """`take_oldest` where few entries are touched (each holds many blocks): entry by entry, not by bisection."""

    def owes(left: tuple[Array, Array]) -> Array:
        return left[1] > 0

    def take(left: tuple[Array, Array]) -> tuple[Array, Array]:
        blocks, owed = left
        oldest = earliest(blocks > 0, key)
        here = (blocks > 0) & (key == oldest)
        if ties is not None:
            here &= ties == earliest(here, ties)
        taken = jnp.where(here, jnp.minimum(blocks, owed), 0)
        return blocks - taken, jnp.where(oldest == NEVER_US, 0, owed - jnp.sum(taken))

    blocks, _ = jax.lax.while_loop(owes, take, (length, owed))
    return length - blocks
