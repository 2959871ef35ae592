"""The prefix cache as a table of blocks: exact for any content, forks, duplicates, priority and caps included.

An entry is one findable block: what it holds (id and depth), since when (birth: the oldest copy of a content is the
one that is hit), who holds it (a bit per slot), and when it was let go (stamp). Blocks that cannot be found - partly
filled, or not yet registered - have no entry: they are counts. All updates are element-wise over the entries, so an
event costs in proportion to the pool (about 20 ns per block and micro-step on one CPU core); chains of runs, where
they apply, are the fast form.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

from jaxsched.sim.kv.base import Hit, KvCache, Pin
from jaxsched.sim.params import SimParams
from jaxsched.sim.requests import Requests
from jaxsched.sim.static import SimStatic

FREE = -1  # id of an unused entry
#: Rows of `entries` before the holder bits.
ID, DEPTH, BIRTH, STAMP, REF = range(5)
NUM_FIELDS = 5
#: Rows of `slots`.
REGISTERED, START = range(2)
#: Columns of `scalars`.
UNHASHED, DEBT, CLOCK, BIRTHS, AHEAD = range(5)


class BlockTableState(struct.PyTreeNode):
    """Block tables of all instances."""

    entries: Int[Array, "m f p"]  # id, depth, birth, stamp, ref, then one word of holder bits per 32 slots
    slots: Int[Array, "m 2 s"]  # per slot: blocks registered (or hit), where its ids begin in `Requests.content`
    scalars: Int[Array, "m 5"]  # free blocks without content, debt, release clock, births, taken ahead


def init_block_table(static: SimStatic, params: SimParams) -> BlockTableState:
    """An empty cache: every block is free and holds nothing."""
    m, p = static.num_instances, static.cache_entries
    words = (static.num_slots + 31) // 32
    entries = jnp.zeros((m, NUM_FIELDS + words, p), jnp.int32).at[:, ID].set(FREE)
    scalars = jnp.zeros((m, 5), jnp.int32).at[:, UNHASHED].set(params.usable_blocks)
    return BlockTableState(entries=entries, slots=jnp.zeros((m, 2, static.num_slots), jnp.int32), scalars=scalars)


class BlockTable(KvCache):
    """One instance's table during a micro-step."""

    def __init__(self, static: SimStatic, requests: Requests, m: Array, entries: Array, slots: Array, scalars: Array):
        self._static, self._requests, self._m = static, requests, m
        self.id, self.depth, self.birth, self.stamp, self.ref = (entries[i] for i in range(NUM_FIELDS))
        self.holders = [entries[i] for i in range(NUM_FIELDS, entries.shape[0])]
        self.registered, self.start = slots[REGISTERED], slots[START]
        self.unhashed, self.debt, self.clock, self.births, self.ahead = (scalars[i] for i in range(5))

    @classmethod
    def load(cls, static: SimStatic, requests: Requests, kv: BlockTableState, m: Array) -> BlockTable:
        """Read instance `m`."""
        row = lambda field: jax.lax.dynamic_index_in_dim(field, m, 0, keepdims=False)
        return cls(static, requests, m, row(kv.entries), row(kv.slots), row(kv.scalars))

    def store(self, kv: BlockTableState) -> BlockTableState:
        """Write it back."""
        entries = jnp.stack([self.id, self.depth, self.birth, self.stamp, self.ref, *self.holders])
        slots = jnp.stack([self.registered, self.start])
        scalars = jnp.stack([self.unhashed, self.debt, self.clock, self.births, self.ahead])
        put = lambda field, value: jax.lax.dynamic_update_index_in_dim(field, value, self._m, 0)
        return BlockTableState(
            entries=put(kv.entries, entries), slots=put(kv.slots, slots), scalars=put(kv.scalars, scalars)
        )

    @property
    def idle_mask(self) -> Bool[Array, " p"]:
        """Cached blocks that nobody holds."""
        return (self.id != FREE) & (self.ref == 0)

    def settle(self) -> None:
        """Evict as many of the longest released blocks as are owed."""
        idle, stamp, owed = self.idle_mask, self.stamp, self.debt

        def unsettled(bounds: tuple[Array, Array, Array]) -> Array:
            low, high, reached = bounds
            return (reached != owed) & (low < high)

        def halve(bounds: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            # Smallest threshold with `owed` stamps below it; stamps are unique.
            low, high, _ = bounds
            middle = low + ((high - low) >> 1)
            reached = jnp.sum((idle & (stamp < middle)).astype(jnp.int32))
            low = jnp.where(reached < owed, middle + 1, jnp.where(reached == owed, middle, low))
            high = jnp.where(reached > owed, middle, high)
            return low, high, reached

        # The threshold ends in `low`; nothing lies below 0.
        zero = jnp.zeros_like(owed)
        low, _, _ = jax.lax.while_loop(unsettled, halve, (zero, self.clock, zero))
        evicted = idle & (stamp < low) & (owed > 0)
        self.id = jnp.where(evicted, FREE, self.id)
        self.debt = jnp.zeros_like(owed)

    def flush(self, active: Bool[Array, ""], usable: Int[Array, ""]) -> None:
        """Forget everything; nobody holds a block."""
        self.id = jnp.where(active, FREE, self.id)
        self.unhashed = jnp.where(active, usable, self.unhashed)
        self.debt = jnp.where(active, 0, self.debt)

    def take_ahead(self, blocks: Int[Array, ""]) -> None:
        """Take the part of the next `take` that comes before a release."""
        ahead = jnp.maximum(blocks, self.ahead)
        more = ahead - self.ahead
        self.ahead = jnp.zeros_like(ahead)
        self.take(more)
        self.ahead = ahead

    def take(self, blocks: Int[Array, ""]) -> None:
        """Blocks without content first; the rest is owed."""
        done = jnp.minimum(blocks, self.ahead)
        blocks, self.ahead = blocks - done, self.ahead - done
        plain = jnp.minimum(blocks, self.unhashed)
        self.unhashed = self.unhashed - plain
        self.debt = self.debt + (blocks - plain)

    def register(self, running: Bool[Array, " s"], order: Int[Array, " s"], tokens: Int[Array, " s"]) -> None:
        """Entries for newly filled blocks, in list order. (The r-th new block goes to the r-th unused entry.)"""
        self.settle()  # or there might be no unused entry
        size = self.id.shape[0]
        target = tokens // self._static.block_size
        new = jnp.where(running, jnp.maximum(target - self.registered, 0), 0)
        earlier = order[None, :] < order[:, None]
        offset = jnp.sum(jnp.where(earlier, new[None, :], 0), axis=1)
        total = jnp.sum(new)
        # slot of the r-th new block: slots that register write their number where their blocks begin
        at = jnp.where(new > 0, offset, size)
        slot_index = jnp.arange(new.shape[0], dtype=jnp.int32)
        begins = jnp.full(size, -1, jnp.int32).at[at].set(offset, mode="drop")
        first = jax.lax.cummax(begins)  # offset at which the r-th new block's slot begins
        slot_at = jnp.zeros(size, jnp.int32).at[at].set(slot_index, mode="drop")

        chosen, rank = self._unused(total)
        begin = jnp.maximum(first[rank], 0)
        slot = slot_at[begin]
        self._enter(chosen, rank, slot, self.registered[slot] + rank - begin, self.start[slot])
        self.births = self.births + total
        self.registered = jnp.where(new > 0, target, self.registered)

    def register_one(self, slot: Int[Array, ""], active: Bool[Array, ""], tokens: Int[Array, ""]) -> None:
        """Entries for the newly filled blocks of one slot."""
        self.settle()
        here = (jnp.arange(self.registered.shape[0]) == slot) & active
        before, start = (jnp.sum(jnp.where(here, field, 0)) for field in (self.registered, self.start))
        new = jnp.where(active, jnp.maximum(tokens // self._static.block_size - before, 0), 0)
        chosen, rank = self._unused(new)
        self._enter(chosen, rank, slot, before + rank, start)
        self.births = self.births + new
        self.registered = self.registered + jnp.where(here, new, 0)

    def _unused(self, number: Int[Array, ""]) -> tuple[Bool[Array, " p"], Int[Array, " p"]]:
        """The first `number` unused entries, and the rank of each (0 elsewhere)."""
        unused = self.id == FREE
        rank = jnp.cumsum(unused.astype(jnp.int32)) - 1
        chosen = unused & (rank < number)
        return chosen, jnp.where(chosen, rank, 0)

    def _enter(self, chosen: Bool[Array, " p"], rank: Array, slot: Array, depth: Array, start: Array) -> None:
        """Write new blocks, held by `slot`, to the chosen entries."""
        content = self._requests.content
        assert content is not None
        ids = content[jnp.clip(start + depth, 0, content.shape[0] - 1)]
        self.id = jnp.where(chosen, ids, self.id)
        self.depth = jnp.where(chosen, depth, self.depth)
        self.birth = jnp.where(chosen, self.births + rank, self.birth)
        self.ref = jnp.where(chosen, 1, self.ref)
        for word in range(len(self.holders)):
            bit = jnp.where((slot >> 5) == word, jnp.left_shift(jnp.int32(1), slot & 31), 0)
            self.holders[word] = jnp.where(chosen, bit, self.holders[word])

    def _holds(self, slot: Int[Array, ""]) -> Bool[Array, " p"]:
        word, bit = slot >> 5, slot & 31
        chosen = self.holders[0]
        for i in range(1, len(self.holders)):
            chosen = jnp.where(word == i, self.holders[i], chosen)
        return ((chosen >> bit) & 1) > 0

    def release(
        self, slot: Int[Array, ""], active: Bool[Array, ""], held: Int[Array, ""], pin: Pin | None = None
    ) -> Int[Array, ""]:
        """Last block first: so the end of a request is evicted before its beginning."""
        here = (jnp.arange(self.registered.shape[0]) == slot) & active
        registered = jnp.sum(jnp.where(here, self.registered, 0))
        held_mask = self._holds(slot) & (self.id != FREE) & active
        self.ref = self.ref - held_mask
        freed = held_mask & (self.ref == 0)
        self.stamp = jnp.where(freed, self.clock + (registered - 1 - self.depth), self.stamp)
        self.clock = self.clock + registered
        bit = jnp.where(active, jnp.left_shift(jnp.int32(1), slot & 31), 0)
        for word in range(len(self.holders)):
            mask = jnp.where((slot >> 5) == word, bit, 0)
            self.holders[word] = jnp.where(held_mask, self.holders[word] & ~mask, self.holders[word])
        plain = jnp.where(active, held, 0) - registered
        self.unhashed = self.unhashed + plain
        self.registered = jnp.where(here, 0, self.registered)
        return plain + jnp.sum(freed.astype(jnp.int32))

    def lookup(self, row: Int[Array, ""], known: Int[Array, ""]) -> Hit:
        """Walk the request's blocks while a copy is cached; of several copies the oldest."""
        self.settle()
        content, starts = self._requests.content, self._requests.content_start
        assert content is not None and starts is not None
        most = (known - 1) // self._static.block_size
        length = self._static.max_blocks
        own = content[jnp.clip(starts[row] + self.depth, 0, content.shape[0] - 1)]
        match = (self.id == own) & (self.id != FREE) & (self.depth < most)
        never = jnp.int32(2**31 - 1)
        oldest = jnp.full(length + 1, never).at[jnp.where(match, self.depth, length)].min(self.birth)
        missing = (oldest == never) | (jnp.arange(length + 1, dtype=jnp.int32) >= most)
        blocks = jnp.min(jnp.where(missing, jnp.arange(length + 1, dtype=jnp.int32), length))
        where = match & (self.depth < blocks) & (self.birth == oldest[jnp.minimum(self.depth, length)])
        return Hit(blocks, jnp.sum((where & (self.ref == 0)).astype(jnp.int32)), where)

    def admit(
        self, slot: Int[Array, ""], active: Bool[Array, ""], row: Int[Array, ""], hit: Hit, new_blocks: Int[Array, ""]
    ) -> None:
        """Hold the blocks found."""
        starts = self._requests.content_start
        assert starts is not None
        here = (jnp.arange(self.registered.shape[0]) == slot) & active
        touched = hit.where & active
        self.ref = self.ref + touched
        bit = jnp.left_shift(jnp.int32(1), slot & 31)
        for word in range(len(self.holders)):
            mask = jnp.where((slot >> 5) == word, bit, 0)
            self.holders[word] = jnp.where(touched, self.holders[word] | mask, self.holders[word])
        self.registered = jnp.where(here, hit.blocks, self.registered)
        self.start = jnp.where(here, starts[row], self.start)
        self.take(jnp.where(active, new_blocks, 0))
