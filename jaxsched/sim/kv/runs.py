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

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

from jaxsched.sim.clock import EPOCH_US
from jaxsched.sim.kv.base import Hit, Pin
from jaxsched.sim.kv.copying import NO_COPY, NOBODY, UNUSED, RunsInCopy
from jaxsched.sim.oldest import take_oldest_runs
from jaxsched.sim.params import SimParams
from jaxsched.sim.requests import Requests
from jaxsched.sim.rows import earliest, matches, read_row, write_row
from jaxsched.sim.static import SimStatic

Rows = Sequence[Array] | Array  # a row of each field


#: Rows of `runs`.
CHAIN, LOW, HIGH, STAMP, NEXT, PROGRAM, DUE_EPOCH, DUE_US, PINNED = range(9)
#: ... and with memory tiers: end of the copy that needs the run (relative to the epoch), 1 while it comes into HBM.
COPYING, LOADING = 9, 10
#: ... and, last, where contexts are ranked (sim/worth.py), three: when the pause began (epoch, us), place in the order.
#: Rows of `slots`.
REGISTERED, OWN, GROUP, GROUP_BLOCKS = range(4)
#: Columns of `scalars`.
UNHASHED, DEBT, CLOCK, AHEAD = range(4)
NUM_FIELDS, NUM_TIER_FIELDS, NUM_RANK_FIELDS = 9, 2, 3
#: Eviction key of pinned runs: behind all stamps, the latest program first; a group's prefix (odd) behind the last of
#: the contexts that it is pinned for.
PINNED_KEY = 2**30
MOST_PROGRAMS = 2**28
#: ... and of contexts that are ranked and not pinned. A context that has no rank yet goes after those that have one.
RANKED_KEY, UNRANKED = 2**29, 2**20


class RunTableState(struct.PyTreeNode):
    """Idle runs of all instances, and what their running requests hold."""

    #: Chain, first block, end (blocks), stamp of release; and, for the context of a paused program: row of the next
    #: turn (-1: none), program (row of its first turn; of graphs, of the chain's), end of its time to live (epoch, us),
    #: 1 while pinned; then what tiers and ranks add.
    runs: Int[Array, "m f r"]
    slots: Int[Array, "m 4 s"]  # per slot: blocks registered, own chain, group (as a chain), blocks of the group prefix
    scalars: Int[Array, "m 4"]  # free blocks without content, debt, release clock, taken ahead


def init_run_table(static: SimStatic, params: SimParams) -> RunTableState:
    """An empty cache."""
    m = static.num_instances
    runs = jnp.zeros((m, _num_fields(static), static.cache_entries), jnp.int32).at[:, CHAIN].set(UNUSED)
    return RunTableState(
        runs=runs.at[:, COPYING].set(NO_COPY) if static.tiered else runs,
        slots=jnp.zeros((m, 4, static.num_slots), jnp.int32).at[:, OWN].set(UNUSED),
        scalars=jnp.zeros((m, 4), jnp.int32).at[:, UNHASHED].set(params.usable_blocks),
    )


def _num_fields(static: SimStatic) -> int:
    return NUM_FIELDS + NUM_TIER_FIELDS * static.tiered + NUM_RANK_FIELDS * static.ranks


class RunTable(RunsInCopy):
    """One instance's runs during a micro-step."""

    def __init__(self, static: SimStatic, requests: Requests, m: Array, runs: Rows, slots: Rows, scalars: Array):
        self._static, self._requests, self._m = static, requests, m
        self.chain, self.low, self.high, self.stamp = (runs[i] for i in range(4))
        self.next, self.program, self.due_epoch, self.due_us, self.pinned = (runs[i] for i in range(4, NUM_FIELDS))
        if static.tiered:
            self.copying, self.loading = runs[COPYING], runs[LOADING]
        if static.ranks:
            self.since_epoch, self.since_us, self.rank = (runs[i] for i in range(-NUM_RANK_FIELDS, 0))
        self.registered, self.own, self.group, self.group_blocks = (slots[i] for i in range(4))
        self.unhashed, self.debt, self.clock, self.ahead = (scalars[i] for i in range(4))
        self.copies = self.overflow = jnp.bool_(False)

    @classmethod
    def load(cls, static: SimStatic, requests: Requests, kv: RunTableState, m: Array) -> RunTable:
        """Read instance `m`."""
        scalars = jax.lax.dynamic_index_in_dim(kv.scalars, m, 0, keepdims=False)
        return cls(static, requests, m, read_row(kv.runs, m), read_row(kv.slots, m), scalars)

    @classmethod
    def seen(cls, static: SimStatic, requests: Requests, chain: Array, high: Array, slots: Array) -> RunTable:
        """A table to ask what is findable, and nothing else (sim/kv/seen.py)."""
        zero: Array = jnp.int32(0)
        runs = [chain, jnp.zeros_like(high), high] + [jnp.zeros_like(high)] * (_num_fields(static) - 3)
        return cls(static, requests, zero, runs, slots, jnp.zeros(4, jnp.int32))

    def store(self, kv: RunTableState) -> RunTableState:
        """Write it back."""
        runs = [
            self.chain, self.low, self.high, self.stamp,
            self.next, self.program, self.due_epoch, self.due_us, self.pinned,
            *([self.copying, self.loading] if self._static.tiered else []),
            *([self.since_epoch, self.since_us, self.rank] if self._static.ranks else []),
        ]  # fmt: skip
        slots = [self.registered, self.own, self.group, self.group_blocks]
        scalars = jnp.stack([self.unhashed, self.debt, self.clock, self.ahead])
        return RunTableState(
            runs=write_row(kv.runs, self._m, runs),
            slots=write_row(kv.slots, self._m, slots),
            scalars=jax.lax.dynamic_update_index_in_dim(kv.scalars, scalars, self._m, 0),
        )

    @property
    def _running(self) -> Bool[Array, " s"]:
        return self.own != UNUSED

    def settle(self) -> None:
        """Evict from the ends of the longest released runs; of pinned ones last, the latest program first."""
        key, length = self._eviction()
        ties = self.stamp if self._static.pins_prefixes else None  # of runs of one prefix
        self.high = self.high - take_oldest_runs(key, length, self.debt, ties)
        self.debt = jnp.zeros_like(self.debt)
        self._drop_empty()

    def _eviction(self) -> tuple[Int[Array, " r"], Int[Array, " r"]]:
        """Place of each run in the order of eviction, and how many of its blocks can be evicted."""
        used = self.chain != UNUSED
        if self._static.tiered:
            used &= self.copying == NO_COPY
        length = jnp.where(used, self.high - self.low, 0)
        key = self.stamp
        if self._static.ranks:  # those without a program that returns first, then the least worth
            last = jnp.where(self.pinned > 0, PINNED_KEY, RANKED_KEY) + 2 * self.rank
            key = jnp.where((self.next >= 0) | (self.pinned > 0), last + (self.next < 0), key)
        elif self._static.pins:
            last = PINNED_KEY + 2 * (MOST_PROGRAMS - self.program) + (self.next < 0)
            key = jnp.where(self.pinned > 0, last, key)
        return key, length

    # -- pins ----------------------------------------------------------------------------------------------------------

    def refresh_pins(
        self, active: Bool[Array, ""], epoch: Array, now: Array, waiting: Bool[Array, " s"], rows: Array
    ) -> None:
        """At the start of a schedule() call: which runs are pinned.

        A pin holds until its time is over, and on while the program's next turn waits (`rows` of the `waiting` slots).
        Debts have been paid, by the pins as they were.
        """
        due = (self.due_epoch > epoch) | ((self.due_epoch == epoch) & (self.due_us >= now))
        waits = matches(self.next, jnp.where(waiting, rows, NOBODY))
        pinned = (self.chain != UNUSED) & (self.next >= 0) & (due | (waits & (self.pinned > 0)))
        if self._static.pins_prefixes:
            stands = self._stands_on(pinned)
            owner = jnp.min(jnp.where(stands, self.program[None, :], MOST_PROGRAMS), axis=1)
            self.program = jnp.where(active & (owner < MOST_PROGRAMS), owner, self.program)
            pinned |= owner < MOST_PROGRAMS
        self.pinned = jnp.where(active, pinned.astype(jnp.int32), self.pinned)

    def _stands_on(self, contexts: Bool[Array, " r"]) -> Bool[Array, "r r"]:
        """Whether the first run is of the group's prefix below the second one, which is one of `contexts`."""
        _, group, group_blocks = self.content(jnp.maximum(self.next, 0))
        return (self.chain[:, None] == group[None, :]) & (contexts & (group_blocks > 0))[None, :]

    def rank_prefixes(self, active: Bool[Array, ""]) -> None:
        """What is pinned of a group's prefix goes behind the last of the contexts that it is pinned for."""
        last = jnp.max(jnp.where(self._stands_on((self.pinned > 0) & (self.next >= 0)), self.rank[None, :], -1), axis=1)
        self.rank = jnp.where(active & (last >= 0), last, self.rank)

    def pinned_blocks(self) -> Int[Array, ""]:
        """Idle blocks that are pinned."""
        pinned = self.pinned > 0
        if self._static.tiered:
            pinned &= ~self.in_copy
        return jnp.sum(jnp.where(pinned, self.high - self.low, 0))

    def next_expiry(self, epoch: Array, us: Array) -> Int[Array, ""]:
        """Time of the next end of a pin, in us since the start of `epoch` (2^31 - 1: none in it or the next)."""
        near = (self.pinned > 0) & (self.next >= 0) & ((self.due_epoch == epoch) | (self.due_epoch == epoch + 1))
        due = self.due_us + jnp.where(self.due_epoch == epoch, 0, EPOCH_US)
        return earliest(near & (due >= us), due)

    def kept_blocks(self) -> Int[Array, ""]:
        """Idle blocks of programs that will go on, or pinned."""
        kept = (self.chain != UNUSED) & ((self.next >= 0) | (self.pinned > 0))
        return jnp.sum(jnp.where(kept, self.high - self.low, 0))

    def paused_rows(self, rows: Int[Array, " s"]) -> Int[Array, " r"]:
        """Of each run that is the context of a program whose next turn is none of these: that turn; else -1."""
        waits = matches(self.next, rows)
        return jnp.where((self.chain != UNUSED) & ~waits, self.next, -1)

    def found_own(self, hit: Hit) -> Bool[Array, ""]:
        """Whether a lookup found anything of the own chain."""
        return hit.blocks > hit.where[2]

    def is_pinned(self, rows: Int[Array, " s"]) -> Bool[Array, " s"]:
        """Whether the context of each of these turns is pinned here."""
        return matches(rows, jnp.where(self.pinned > 0, self.next, NOBODY))

    # -- copies under way: also sim/kv/copying.py ----------------------------------------------------------------------

    def own_run(self, slot: Int[Array, ""]) -> tuple[Array, Array, Array]:
        """Chain, first block and end of what `release` of a slot would let go of the own chain."""
        here = jnp.arange(self.registered.shape[0]) == slot
        pick = lambda field: jnp.sum(jnp.where(here, field, 0))
        return pick(self.own), pick(self.group_blocks), pick(self.registered)

    def begin_load(
        self, active: Bool[Array, ""], hit: Hit, blocks: Int[Array, ""], end: Int[Array, ""]
    ) -> Int[Array, ""]:
        """What was found in HBM stays until the end of a load of `blocks` more behind it, which are taken.

        Returns how many blocks are no longer free. `settle` and `end_load` must follow.
        """
        own, group, group_blocks, _ = hit.where
        found = active & ((self.chain == own) | ((self.chain == group) & (group_blocks > 0)))
        held = jnp.sum(jnp.where(found & ~self.in_copy, self.high - self.low, 0))
        self.copying = jnp.where(found, jnp.maximum(self.copying, end), self.copying)
        blocks = jnp.where(active, blocks, 0)
        self.take(blocks)
        return held + blocks

    def end_load(self, active: Bool[Array, ""], pinned: Array, row: Array, hit: Hit, blocks: Array, end: Array) -> None:
        """The run that a load makes of the row's own chain: it comes in until `end`, and is perhaps pinned for it."""
        own, _, group_blocks, _ = hit.where
        high = hit.blocks + blocks
        self._append(active & ~jnp.any(self.chain == own), own, group_blocks, high, self.clock, None, end)
        mine = (self.chain == own) & active
        put = lambda value, field: jnp.where(mine, value, field)
        self.high, self.stamp = put(high, self.high), put(self.clock, self.stamp)
        self.next, self.program = put(row, self.next), put(self._owner(row), self.program)
        self.due_epoch, self.loading = put(-1, self.due_epoch), put(1, self.loading)
        self.pinned = put(pinned.astype(jnp.int32), self.pinned)
        self.clock = self.clock + 2 * active

    def flush(self, active: Bool[Array, ""], usable: Int[Array, ""]) -> None:
        """Forget everything; nobody holds a block."""
        self.chain = jnp.where(active, UNUSED, self.chain)
        self.unhashed = jnp.where(active, usable, self.unhashed)
        self.debt = jnp.where(active, 0, self.debt)

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

    def release(
        self,
        slot: Int[Array, ""],
        active: Bool[Array, ""],
        held: Int[Array, ""],
        pin: Pin | None = None,
        copying: Int[Array, ""] | None = None,
    ) -> Int[Array, ""]:
        """A run of the own chain, then (so: evicted after it) one of the group's blocks that nobody else holds.

        `copying`: until when a copy needs the own run (`NO_COPY`: none), whose blocks are not free before.
        """
        if self._static.retains and not self._static.tiered:  # (with tiers, who calls has done so)
            self.settle()  # what is let go now comes before pinned blocks, but not for what was taken before
        index = jnp.arange(self.registered.shape[0])
        here = index == slot
        pick = lambda field: jnp.sum(jnp.where(here, field, 0))
        registered, own, group, group_blocks = map(pick, (self.registered, self.own, self.group, self.group_blocks))
        registered = jnp.where(active, registered, 0)
        own_blocks = jnp.maximum(registered - group_blocks, 0)
        low = self._held_of_group(group, ~here)
        low = jnp.minimum(low, jnp.minimum(registered, group_blocks))
        shared_end = jnp.minimum(registered, group_blocks)
        self._append(active & (own_blocks > 0), own, group_blocks, registered, self.clock, pin, copying)
        self._append(active & (shared_end > low), group, low, shared_end, self.clock + 1)
        self.clock = self.clock + 2 * active
        plain = jnp.where(active, held, 0) - registered
        self.unhashed = self.unhashed + plain
        self.registered = jnp.where(here & active, 0, self.registered)
        self.own = jnp.where(here & active, UNUSED, self.own)
        if copying is not None:
            own_blocks = jnp.where(copying == NO_COPY, own_blocks, 0)
        return plain + own_blocks + jnp.where(active, shared_end - low, 0)

    def _append(
        self,
        active: Bool[Array, ""],
        chain: Array,
        low: Array,
        high: Array,
        stamp: Array,
        pin: Pin | None = None,
        copying: Array | None = None,
    ) -> None:
        index = jnp.arange(self.chain.shape[0], dtype=jnp.int32)
        place = jnp.min(jnp.where(self.chain == UNUSED, index, self.chain.shape[0]))
        self.overflow = self.overflow | (active & (place == self.chain.shape[0]))
        here = (index == place) & active
        self.chain = jnp.where(here, chain, self.chain)
        self.low, self.high = jnp.where(here, low, self.low), jnp.where(here, high, self.high)
        self.stamp = jnp.where(here, stamp, self.stamp)
        if self._static.tiered:
            self.copying = jnp.where(here, NO_COPY if copying is None else copying, self.copying)
            self.loading = jnp.where(here, 0, self.loading)
        if not (self._static.pins or self._static.gated):
            return
        pin = pin or Pin(jnp.int32(-1), jnp.int32(0), jnp.int32(0), jnp.int32(0))
        self.next, self.program = jnp.where(here, pin.next, self.next), jnp.where(here, pin.program, self.program)
        self.due_epoch = jnp.where(here, pin.due_epoch, self.due_epoch)
        self.due_us = jnp.where(here, pin.due_us, self.due_us)
        self.pinned = jnp.where(here, 0, self.pinned)  # until the next call looks
        if self._static.ranks:
            since = zip((pin.since_epoch, pin.since_us), (self.since_epoch, self.since_us), strict=True)
            self.since_epoch, self.since_us = (jnp.where(here, new, old) for new, old in since)
            self.rank = jnp.where(here, UNRANKED + (stamp & (UNRANKED - 1)), self.rank)

    def _owner(self, row: Int[Array, ""]) -> Int[Array, ""]:
        """Whose context a row's own chain is: the program's; in graphs of the row at which the chain began."""
        assert self._requests.chain is not None
        return self._requests.chain[row] if self._static.graphs else self._requests.program[row]

    def content(self, row: Int[Array, ""]) -> tuple[Array, Array, Array]:
        """Own chain, group (as a chain) and blocks of the group prefix of a table row."""
        requests = self._requests
        assert requests.chain is not None and requests.group is not None and requests.group_tokens is not None
        group_blocks = jnp.where(requests.group[row] >= 0, requests.group_tokens[row] // self._static.block_size, 0)
        return requests.chain[row], -2 - requests.group[row], group_blocks

    def resident(
        self, own: Int[Array, ""], group: Int[Array, ""], group_blocks: Int[Array, ""]
    ) -> tuple[Bool[Array, " r"], Bool[Array, " r"], Int[Array, ""], Int[Array, ""]]:
        """Which runs are of the own chain, which of the group; end of the own run, blocks of both that are findable."""
        is_own, is_group = self.chain == own, (self.chain == group) & (group_blocks > 0)
        own_high = jnp.max(jnp.where(is_own, self.high, 0))
        held = self._held_of_group(group, self._running)
        group_high = jnp.maximum(jnp.max(jnp.where(is_group, self.high, 0)), held)
        group_high = jnp.minimum(group_high, group_blocks)
        # (A pin keeps the own chain, not the group's prefix: what is left of the chain may have lost its beginning.)
        resident = jnp.where((own_high > 0) & (group_high == group_blocks), own_high, group_high)
        return is_own, is_group, own_high, resident

    def lookup(self, row: Int[Array, ""], known: Int[Array, ""]) -> Hit:
        """The own chain's run says all; without one, how much of the group's prefix is held or idle."""
        if not self._static.tiered:  # (with tiers, the queue's order has looked at the cache before)
            self.settle()
        own, group, group_blocks = self.content(row)
        is_own, is_group, own_high, resident = self.resident(own, group, group_blocks)
        running = self._running
        blocks = jnp.minimum(resident, (known - 1) // self._static.block_size)
        overlap = jnp.maximum(jnp.minimum(self.high, blocks) - self.low, 0)
        found = is_own | is_group
        copying: Array | int = 0
        if self._static.tiered:
            copying = jnp.sum(jnp.where(found & self.in_copy, overlap, 0))
            overlap = jnp.where(self.in_copy, 0, overlap)
        idle = jnp.sum(jnp.where(found, overlap, 0))
        unfinished = running & (self.group == group) & (self.registered < self.group_blocks)
        copies = jnp.maximum(own_high, resident) > blocks
        copies |= (group_blocks > 0) & (blocks < group_blocks) & jnp.any(unfinished)
        copies |= jnp.any(running & (self.own == own))
        pinned = jnp.sum(jnp.where(found & (self.pinned > 0), overlap, 0))
        return Hit(blocks, idle, (own, group, group_blocks, copies), pinned, copying)

    def admit(
        self, slot: Int[Array, ""], active: Bool[Array, ""], row: Int[Array, ""], hit: Hit, new_blocks: Int[Array, ""]
    ) -> None:
        """Hold the blocks found."""
        own, group, group_blocks, copies = hit.where
        self.copies = self.copies | (active & copies)
        mine = active & ((self.chain == own) | ((self.chain == group) & (group_blocks > 0)))
        self.low = jnp.where(mine, jnp.maximum(self.low, jnp.minimum(self.high, hit.blocks)), self.low)
        self._drop_empty()
        if self._static.pins or self._static.gated:  # the program has gone on: what is left of its past is garbage
            gone = active & (self.program == self._owner(row)) & (self.next >= 0)
            self.next, self.pinned = jnp.where(gone, -1, self.next), jnp.where(gone, 0, self.pinned)
        here = (jnp.arange(self.registered.shape[0]) == slot) & active
        self.registered = jnp.where(here, hit.blocks, self.registered)
        self.own, self.group = jnp.where(here, own, self.own), jnp.where(here, group, self.group)
        self.group_blocks = jnp.where(here, group_blocks, self.group_blocks)
        self.take(jnp.where(active, new_blocks, 0))
