"""A table of copies of contexts outside HBM: what one tier (an instance's host memory, the remote pool) holds.

A copy is a run of leading blocks of one program's own chain (docs/semantics.md, section 10). Room is made by dropping
the ends of the copies that were used longest ago; a copy that a transfer reads or writes is left alone until it ends.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxsched.sim.oldest import take_oldest_runs

#: Chain of an unused entry, and of a copy that nobody will read again (dropped once no transfer needs it).
UNUSED, DISCARDED = -1, -2
#: Rows of a table: chain, first block, end (blocks), stamp of the last use, time from which it can be read, time until
#: which a transfer needs it (both in us relative to the epoch).
CHAIN, LOW, HIGH, STAMP, READY, BUSY = range(6)
NUM_FIELDS = 6
#: A time that has always been.
LONG_AGO = -(2**30)


def empty_table(num_entries: int) -> Int[Array, "6 e"]:
    """A tier that holds nothing."""
    table = jnp.zeros((NUM_FIELDS, num_entries), jnp.int32)
    return table.at[CHAIN].set(UNUSED).at[READY].set(LONG_AGO).at[BUSY].set(LONG_AGO)


class Copies:
    """One tier's table during a micro-step: attributes are replaced, `fields` gives it back."""

    def __init__(self, table: Sequence[Array] | Int[Array, "6 e"], clock: Int[Array, ""], capacity: Int[Array, ""]):
        self.chain, self.low, self.high, self.stamp, self.ready, self.busy = (table[i] for i in range(NUM_FIELDS))
        self.clock, self.capacity = clock, capacity  # stamp of the next use; blocks the tier has
        self.overflow = jnp.bool_(False)

    @property
    def fields(self) -> list[Int[Array, " e"]]:
        """The rows of the table as they are now."""
        return [self.chain, self.low, self.high, self.stamp, self.ready, self.busy]

    @property
    def _length(self) -> Int[Array, " e"]:
        return jnp.where(self.chain != UNUSED, self.high - self.low, 0)

    def find(self, chain: Int[Array, ""]) -> tuple[Int[Array, ""], Int[Array, ""]]:
        """End of the copy of a chain in blocks (0: there is none), and when it can be read."""
        mine = self.chain == chain
        return jnp.max(jnp.where(mine, self.high, 0)), jnp.max(jnp.where(mine, self.ready, LONG_AGO))

    def room(self, chain: Int[Array, ""], now: Int[Array, ""]) -> Int[Array, ""]:
        """Blocks that could be added to the copy of a chain."""
        others = (self.chain != chain) & (self.busy <= now)
        kept = jnp.sum(jnp.where(others, 0, self._length))
        return jnp.maximum(self.capacity - kept, 0)

    def put(
        self, active: Bool[Array, ""], chain: Array, low: Array, add: Array, now: Array, ready: Array, busy: Array
    ) -> None:
        """Add `add` blocks (at most `room`) to the copy of a chain that begins at block `low`; it becomes the newest.

        `ready` and `busy` are the end of the transfer that writes it; with nothing to add it is only touched.
        """
        # (What was discarded goes first anyway. It goes now, or its entries would pile up where there is room for all.)
        self.chain = jnp.where((self.chain == DISCARDED) & (self.busy <= now), UNUSED, self.chain)
        add = jnp.where(active, add, 0)
        mine = self.chain == chain
        owed = jnp.maximum(add - (self.capacity - jnp.sum(self._length)), 0)
        droppable = (self.chain != UNUSED) & ~mine & (self.busy <= now)
        self.high = self.high - take_oldest_runs(self.stamp, jnp.where(droppable, self._length, 0), owed)
        self.chain = jnp.where(self.high > self.low, self.chain, UNUSED)

        index = jnp.arange(mine.shape[0], dtype=jnp.int32)
        exists = jnp.any(mine)
        place = jnp.min(jnp.where(self.chain == UNUSED, index, mine.shape[0]))
        here = jnp.where(exists, mine, index == place) & active & (exists | (add > 0))
        self.overflow = self.overflow | (active & ~exists & (add > 0) & (place == mine.shape[0]))
        written = here & (add > 0)
        self.high = jnp.where(written, jnp.where(mine, self.high, low) + add, self.high)
        self.low = jnp.where(here & ~mine, low, self.low)
        self.ready = jnp.where(written, ready, self.ready)
        self.busy = jnp.where(written, jnp.maximum(jnp.where(mine, self.busy, LONG_AGO), busy), self.busy)
        self.chain = jnp.where(here, chain, self.chain)
        self.stamp = jnp.where(here, self.clock, self.stamp)
        self.clock = self.clock + active

    def hold(self, active: Bool[Array, ""], chain: Array, until: Array) -> None:
        """A transfer needs the copy of a chain until then."""
        mine = (self.chain == chain) & active
        self.busy = jnp.where(mine, jnp.maximum(self.busy, until), self.busy)

    def read(self, active: Bool[Array, ""], chain: Array, until: Array, keep: Array) -> None:
        """A transfer reads the copy of a chain until then; without `keep` it is of no use afterwards."""
        self.hold(active, chain, until)
        mine = (self.chain == chain) & active
        self.stamp = jnp.where(mine, self.clock, self.stamp)
        self.clock = self.clock + active
        self.chain = jnp.where(mine & (keep == 0), DISCARDED, self.chain)
