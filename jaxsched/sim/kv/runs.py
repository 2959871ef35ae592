"""The prefix cache as chains of runs: fast, and exact where contents are a shared group prefix and then an own chain.

What a running request holds follows from how far it has come, and what nobody holds are runs: consecutive blocks of one
chain, let go together, evicted from their end. Residency is closed towards the beginning of a chain (a resident block
has a resident parent), so a lookup is a maximum. Method and exactness: ../shared/research/prefix_cache_in_jax.md,
sections 1, 2 and 4.

What it cannot hold is reported in `flags`, never silently wrong: second copies of a block (`CACHE_COPIES`: a prompt
found whole recomputes its last block; two requests fill one group's prefix side by side; two turns of one chain run at
once), and more runs than the table has room for (`CACHE_ENTRIES`). The block table holds all of these.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

from jaxsched.sim.kv.base import Hit, KvCache
from jaxsched.sim.params import SimParams
from jaxsched.sim.requests import Requests
from jaxsched.sim.static import SimStatic

UNUSED = -1  # chain of an unused entry; own chains are >= 0, group g is -2 - g
#: Rows of `runs`.
CHAIN, LOW, HIGH, STAMP = range(4)
#: Rows of `slots`.
REGISTERED, OWN, GROUP, GROUP_BLOCKS = range(4)
#: Columns of `scalars`.
UNHASHED, DEBT, CLOCK, AHEAD = range(4)
#: Runs that one lookup can evict from; what is owed beyond is paid in further micro-steps.
PICKS = 2


class RunTableState(struct.PyTreeNode):
    """Idle runs of all instances, and what their running requests hold."""

    runs: Int[Array, "m f r"]  # chain, first block, end (blocks), stamp of release
    slots: Int[Array, "m 4 s"]  # per slot: blocks registered, own chain, group (as a chain), blocks of the group prefix
    scalars: Int[Array, "m 4"]  # free blocks without content, debt, release clock, taken ahead


def init_run_table(static: SimStatic, params: SimParams) -> RunTableState:
    """An empty cache."""
    m = static.num_instances
    return RunTableState(
        runs=jnp.zeros((m, 4, static.cache_entries), jnp.int32).at[:, CHAIN].set(UNUSED),
        slots=jnp.zeros((m, 4, static.num_slots), jnp.int32).at[:, OWN].set(UNUSED),
        scalars=jnp.zeros((m, 4), jnp.int32).at[:, UNHASHED].set(params.usable_blocks),
    )


class RunTable(KvCache):
    """One instance's runs during a micro-step."""

    def __init__(self, static: SimStatic, requests: Requests, m: Array, runs: Array, slots: Array, scalars: Array):
        self._static, self._requests, self._m = static, requests, m
        self.chain, self.low, self.high, self.stamp = (runs[i] for i in range(4))
        self.registered, self.own, self.group, self.group_blocks = (slots[i] for i in range(4))
        self.unhashed, self.debt, self.clock, self.ahead = (scalars[i] for i in range(4))
        self.copies = self.overflow = jnp.bool_(False)

    @classmethod
    def load(cls, static: SimStatic, requests: Requests, kv: RunTableState, m: Array) -> RunTable:
        """Read instance `m`."""
        row = lambda field: jax.lax.dynamic_index_in_dim(field, m, 0, keepdims=False)
        return cls(static, requests, m, row(kv.runs), row(kv.slots), row(kv.scalars))

    def store(self, kv: RunTableState) -> RunTableState:
        """Write it back."""
        runs = jnp.stack([self.chain, self.low, self.high, self.stamp])
        slots = jnp.stack([self.registered, self.own, self.group, self.group_blocks])
        scalars = jnp.stack([self.unhashed, self.debt, self.clock, self.ahead])
        put = lambda field, value: jax.lax.dynamic_update_index_in_dim(field, value, self._m, 0)
        return RunTableState(runs=put(kv.runs, runs), slots=put(kv.slots, slots), scalars=put(kv.scalars, scalars))

    @property
    def _running(self) -> Bool[Array, " s"]:
        return self.own != UNUSED

    @property
    def settled(self) -> Bool[Array, ""]:
        """The last lookup paid all that was owed."""
        return self.debt == 0

    def _settle(self) -> None:
        """Evict from the ends of the longest released runs."""
        for _ in range(PICKS):
            used = self.chain != UNUSED
            oldest = jnp.min(jnp.where(used, self.stamp, 2**31 - 1))
            here = used & (self.stamp == oldest) & (self.debt > 0)
            length = jnp.sum(jnp.where(here, self.high - self.low, 0))
            taken = jnp.minimum(self.debt, length)
            self.high = jnp.where(here, self.high - taken, self.high)
            self.debt = self.debt - taken
            self._drop_empty()

    def _drop_empty(self) -> None:
        self.chain = jnp.where(self.low >= self.high, UNUSED, self.chain)

    def take(self, blocks: Int[Array, ""]) -> None:
        """Blocks without content first; the rest is owed."""
        done = jnp.minimum(blocks, self.ahead)
        blocks, self.ahead = blocks - done, self.ahead - done
        plain = jnp.minimum(blocks, self.unhashed)
        self.unhashed = self.unhashed - plain
        self.debt = self.debt + (blocks - plain)

    def take_ahead(self, blocks: Int[Array, ""]) -> None:
        """Take the part of the next `take` that comes before a release."""
        ahead = jnp.maximum(blocks, self.ahead)
        more = ahead - self.ahead
        self.ahead = jnp.zeros_like(ahead)
        self.take(more)
        self.ahead = ahead

    def register(self, running: Bool[Array, " s"], order: Int[Array, " s"], tokens: Int[Array, " s"]) -> None:
        """Note how far each slot has come."""
        target = tokens // self._static.block_size
        self.registered = jnp.where(running, jnp.maximum(target, self.registered), self.registered)

    def register_one(self, slot: Int[Array, ""], active: Bool[Array, ""], tokens: Int[Array, ""]) -> None:
        """Note how far one slot has come."""
        here = (jnp.arange(self.registered.shape[0]) == slot) & active
        self.register(here, here, jnp.broadcast_to(tokens, here.shape))

    def _held_of_group(self, group: Int[Array, ""], others: Bool[Array, " s"]) -> Int[Array, ""]:
        """Blocks of a group's prefix that running requests hold."""
        same = others & (self.group == group) & self._running
        return jnp.max(jnp.where(same, jnp.minimum(self.registered, self.group_blocks), 0))

    def release(self, slot: Int[Array, ""], active: Bool[Array, ""], held: Int[Array, ""]) -> Int[Array, ""]:
        """A run of the own chain, then (so: evicted after it) one of the group's blocks that nobody else holds."""
        index = jnp.arange(self.registered.shape[0])
        here = index == slot
        pick = lambda field: jnp.sum(jnp.where(here, field, 0))
        registered, own, group, group_blocks = map(pick, (self.registered, self.own, self.group, self.group_blocks))
        registered = jnp.where(active, registered, 0)
        own_blocks = jnp.maximum(registered - group_blocks, 0)
        low = self._held_of_group(group, ~here)
        low = jnp.minimum(low, jnp.minimum(registered, group_blocks))
        shared_end = jnp.minimum(registered, group_blocks)
        self._append(active & (own_blocks > 0), own, group_blocks, registered, self.clock)
        self._append(active & (shared_end > low), group, low, shared_end, self.clock + 1)
        self.clock = self.clock + 2 * active
        plain = jnp.where(active, held, 0) - registered
        self.unhashed = self.unhashed + plain
        self.registered = jnp.where(here & active, 0, self.registered)
        self.own = jnp.where(here & active, UNUSED, self.own)
        return plain + own_blocks + jnp.where(active, shared_end - low, 0)

    def _append(self, active: Bool[Array, ""], chain: Array, low: Array, high: Array, stamp: Array) -> None:
        index = jnp.arange(self.chain.shape[0], dtype=jnp.int32)
        place = jnp.min(jnp.where(self.chain == UNUSED, index, self.chain.shape[0]))
        self.overflow = self.overflow | (active & (place == self.chain.shape[0]))
        here = (index == place) & active
        self.chain = jnp.where(here, chain, self.chain)
        self.low, self.high = jnp.where(here, low, self.low), jnp.where(here, high, self.high)
        self.stamp = jnp.where(here, stamp, self.stamp)

    def _content(self, row: Int[Array, ""]) -> tuple[Array, Array, Array]:
        """Own chain, group (as a chain) and blocks of the group prefix of a table row."""
        requests = self._requests
        assert requests.chain is not None and requests.group is not None and requests.group_tokens is not None
        group_blocks = jnp.where(requests.group[row] >= 0, requests.group_tokens[row] // self._static.block_size, 0)
        return requests.chain[row], -2 - requests.group[row], group_blocks

    def lookup(self, row: Int[Array, ""], known: Int[Array, ""]) -> Hit:
        """The own chain's run says all; without one, how much of the group's prefix is held or idle."""
        self._settle()
        own, group, group_blocks = self._content(row)
        is_own, is_group = self.chain == own, (self.chain == group) & (group_blocks > 0)
        own_high = jnp.max(jnp.where(is_own, self.high, 0))
        running = self._running
        group_high = jnp.maximum(jnp.max(jnp.where(is_group, self.high, 0)), self._held_of_group(group, running))
        resident = jnp.where(own_high > 0, own_high, jnp.minimum(group_high, group_blocks))
        blocks = jnp.minimum(resident, (known - 1) // self._static.block_size)
        overlap = jnp.maximum(jnp.minimum(self.high, blocks) - self.low, 0)
        idle = jnp.sum(jnp.where(is_own | is_group, overlap, 0))
        unfinished = running & (self.group == group) & (self.registered < self.group_blocks)
        copies = resident > blocks
        copies |= (group_blocks > 0) & (blocks < group_blocks) & jnp.any(unfinished)
        copies |= jnp.any(running & (self.own == own))
        return Hit(blocks, idle, (own, group, group_blocks, copies))

    def admit(
        self, slot: Int[Array, ""], active: Bool[Array, ""], row: Int[Array, ""], hit: Hit, new_blocks: Int[Array, ""]
    ) -> None:
        """Hold the blocks found."""
        own, group, group_blocks, copies = hit.where
        self.copies = self.copies | (active & copies)
        mine = active & ((self.chain == own) | ((self.chain == group) & (group_blocks > 0)))
        self.low = jnp.where(mine, jnp.maximum(self.low, jnp.minimum(self.high, hit.blocks)), self.low)
        self._drop_empty()
        here = (jnp.arange(self.registered.shape[0]) == slot) & active
        self.registered = jnp.where(here, hit.blocks, self.registered)
        self.own, self.group = jnp.where(here, own, self.own), jnp.where(here, group, self.group)
        self.group_blocks = jnp.where(here, group_blocks, self.group_blocks)
        self.take(jnp.where(active, new_blocks, 0))
