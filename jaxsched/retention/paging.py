"""Classical paging on a known request sequence: MIN, LRU, FIFO; and Belady's rule on prefix caches. Offline bounds.

MIN (Belady 1966; Mattson et al. 1970) evicts the page whose next use is farthest and is optimal for equal sizes and
costs. In a prefix cache a request uses a whole chain of blocks, from the root of a tree down, and only leaves may be
evicted; `belady_leaf` evicts the resident leaf whose next use is farthest.

Each function is one `lax.scan` over the sequence, jittable and vmappable over sequences of one length.
"""

from __future__ import annotations

import enum

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

NEVER = 2**31 - 1  # the next use of what is not used again


class Replacement(enum.Enum):
    """Which page leaves a full memory on a fault."""

    MIN = "min"  # farthest next use
    LRU = "lru"  # least recently used
    FIFO = "fifo"  # first loaded


class _Frames(struct.PyTreeNode):
    page: Int[Array, " frames"]  # -1: empty
    rank: Int[Array, " frames"]  # the largest leaves


def next_use(pages: Int[Array, " N"], num_pages: int) -> Int[Array, " N"]:
    """Position of the next request of the same page, `NEVER` if there is none."""

    def step(upcoming, item):
        position, page = item
        return upcoming.at[page].set(position), upcoming[page]

    positions = jnp.arange(pages.shape[0], dtype=jnp.int32)
    start = jnp.full((num_pages,), NEVER, jnp.int32)
    return jax.lax.scan(step, start, (positions, pages), reverse=True)[1]


def faults(
    pages: Int[Array, " N"], num_frames: int, num_pages: int, rule: Replacement
) -> tuple[Int[Array, ""], Bool[Array, " N"]]:
    """Number of faults of a cold start (loads into empty frames count), and which requests faulted.

    `pages`: ids in [0, num_pages); `num_frames`, `num_pages`, `rule`: static. Demand paging; ties to the first frame.
    """
    pages = jnp.asarray(pages, jnp.int32)
    following = next_use(pages, num_pages)

    def step(frames: _Frames, item):
        position, page, upcoming = item
        hit_at = frames.page == page
        hit = jnp.any(hit_at)
        # Empty frames first; NEVER itself may rank a page, hence the explicit order of the two.
        victim = jnp.argmax(jnp.where(frames.page < 0, NEVER, jnp.minimum(frames.rank, NEVER - 1)))
        at = jnp.where(hit, jnp.argmax(hit_at), victim)
        if rule is Replacement.MIN:
            rank = upcoming
        elif rule is Replacement.LRU:
            rank = -position
        else:
            rank = jnp.where(hit, frames.rank[at], -position)
        return _Frames(frames.page.at[at].set(page), frames.rank.at[at].set(rank)), ~hit

    start = _Frames(jnp.full((num_frames,), -1, jnp.int32), jnp.zeros((num_frames,), jnp.int32))
    positions = jnp.arange(pages.shape[0], dtype=jnp.int32)
    _, missed = jax.lax.scan(step, start, (positions, pages, following))
    return jnp.sum(missed.astype(jnp.int32)), missed


def belady_leaf(
    chains: Int[Array, "N L"], num_blocks: int, capacity: Int[Array, ""] | int
) -> tuple[Int[Array, ""], Int[Array, " N"]]:
    """Blocks missed in all and per request by Belady's rule on a prefix cache of `capacity` blocks.

    `chains`: each request's blocks in [0, num_blocks) from the root down, filled up with -1. A block has one place in
    one tree (its id stands for the whole prefix up to it). A request hits the resident prefix of its chain; the rest is
    loaded, as far as the cache can hold the chain; its own blocks are not evicted for it.

    No list of leaves is needed: a block's next use is never after that of a child, so of the blocks with the farthest
    next use the deepest is a leaf. O(num_blocks) per evicted block.
    """
    chains = jnp.asarray(chains, jnp.int32)
    length = chains.shape[1]
    depth = jnp.arange(length, dtype=jnp.int32)
    capacity = jnp.asarray(capacity, jnp.int32)
    target = jnp.where(chains >= 0, chains, num_blocks)  # out of bounds: dropped

    def look_ahead(upcoming, item):
        position, blocks = item
        return upcoming.at[blocks].set(position, mode="drop"), upcoming.at[blocks].get(mode="fill", fill_value=NEVER)

    positions = jnp.arange(chains.shape[0], dtype=jnp.int32)
    never = jnp.full((num_blocks,), NEVER, jnp.int32)
    _, following = jax.lax.scan(look_ahead, never, (positions, target), reverse=True)

    def step(state, item):
        resident, upcoming, level = state
        blocks, uses = item
        used = blocks < num_blocks
        held = used & resident.at[blocks].get(mode="fill", fill_value=False)
        hit = jnp.cumprod(held.astype(jnp.int32)) > 0  # a block whose parent is gone is of no use
        kept = jnp.where(used & (depth < capacity), blocks, num_blocks)
        own = jnp.zeros((num_blocks,), bool).at[kept].set(True, mode="drop")
        upcoming = upcoming.at[blocks].set(uses, mode="drop")
        level = level.at[blocks].set(depth, mode="drop")

        def too_full(resident):
            return jnp.sum((resident | own).astype(jnp.int32)) > capacity

        def evict(resident):
            others = resident & ~own
            farthest = others & (upcoming == jnp.max(jnp.where(others, upcoming, -1)))
            leaf = jnp.argmax(jnp.where(farthest, level, -1))
            return resident.at[leaf].set(False)

        resident = jax.lax.while_loop(too_full, evict, resident) | own
        missed = jnp.sum((used & ~hit).astype(jnp.int32))
        return (resident, upcoming, level), missed

    start = (jnp.zeros((num_blocks,), bool), never, jnp.zeros((num_blocks,), jnp.int32))
    _, missed = jax.lax.scan(step, start, (target, following))
    return jnp.sum(missed), missed
