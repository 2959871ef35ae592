"""Idle runs that a copy to or from a memory tier needs (sim/tiers.py): their blocks are not free until it ends."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxsched.sim.kv.base import KvCache
from jaxsched.sim.rows import earliest, latest, matches

UNUSED = -1  # chain of an unused entry; own chains are >= 0, group g is -2 - g
NOBODY = -2  # a row of the workload that no turn has, nor -1
#: End of the copy (`copying`) of a run that no copy needs.
NO_COPY = -(2**31)


class RunsInCopy(KvCache):
    """What `RunTable` knows of them. Fields: `RunTableState.runs`."""

    chain: Int[Array, " r"]
    low: Int[Array, " r"]
    high: Int[Array, " r"]
    next: Int[Array, " r"]
    copying: Int[Array, " r"]
    loading: Int[Array, " r"]
    unhashed: Int[Array, ""]
    debt: Int[Array, ""]

    def _eviction(self) -> tuple[Int[Array, " r"], Int[Array, " r"]]:
        raise NotImplementedError

    @property
    def in_copy(self) -> Bool[Array, " r"]:
        """Runs that a copy needs: their blocks are not free until it ends."""
        return (self.chain != UNUSED) & (self.copying != NO_COPY)

    def end_copies(self, ended: Bool[Array, " r"]) -> Int[Array, ""]:
        """These copies are over (debts are paid): returns how many blocks are free now."""
        ended &= self.in_copy
        self.copying = jnp.where(ended, NO_COPY, self.copying)
        self.loading = jnp.where(ended, 0, self.loading)
        return jnp.sum(jnp.where(ended, self.high - self.low, 0))

    def last_copy(self) -> Int[Array, ""]:
        """End of the last copy under way."""
        return latest(self.in_copy, self.copying)

    def next_copy(self, after: Int[Array, ""] | int = NO_COPY) -> Int[Array, ""]:
        """End of the next copy under way that ends later than `after`; `NEVER_US` if there is none."""
        return earliest((self.chain != UNUSED) & (self.copying > after), self.copying)

    def ending_blocks(self, time: Int[Array, ""]) -> Int[Array, ""]:
        """Blocks whose copy ends then."""
        return jnp.sum(jnp.where((self.chain != UNUSED) & (self.copying == time), self.high - self.low, 0))

    def outlasts(self, time: Int[Array, ""], taken: Int[Array, ""]) -> Bool[Array, ""]:
        """Whether copies that end at `time` are out of HBM, and `taken` more blocks come from what goes before."""
        ending = (self.chain != UNUSED) & (self.copying == time)
        key, length = self._eviction()
        before = jnp.sum(jnp.where(key < earliest(ending, key), length, 0))
        loads = jnp.sum((ending & (self.loading > 0)).astype(jnp.int32))
        return (loads == 0) & (taken + self.debt <= self.unhashed + before)

    def leaving_blocks(self) -> Int[Array, ""]:
        """Blocks that will be free when the copies out of HBM have ended."""
        return jnp.sum(jnp.where(self.in_copy & (self.loading == 0), self.high - self.low, 0))

    def is_loading(self, rows: Int[Array, " s"]) -> Bool[Array, " s"]:
        """Whether the context of each of these turns is on its way into HBM."""
        return matches(rows, jnp.where(self.in_copy & (self.loading > 0), self.next, NOBODY))
