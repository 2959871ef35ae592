"""Memory tiers below HBM: host memory of each instance, and a remote pool behind it (docs/semantics.md, section 10).

A transfer is booked when it is decided: it starts when its link (and what it reads) is free, and its end is known at
once, so transfers need no events of their own. Time of a transfer (FastSwitch, Shen et al. 2024; retention/reload.py)::

    operations * launch + blocks * bytes per block / bandwidth          operations = ceil(blocks / block group)

Copying out either overlaps with compute (the blocks stay taken until the copy ends) or the engine waits for it (the
next step starts no earlier). A context that comes back likewise: its blocks fill while others run, or the engine waits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

from jaxsched.sim.clock import EPOCH_US, NEVER_US
from jaxsched.sim.copies import LONG_AGO, Copies, empty_table
from jaxsched.sim.rows import earliest, read_row, write_row

if TYPE_CHECKING:
    from jaxsched.sim.params import SimParams
    from jaxsched.sim.static import SimStatic

#: A transfer that would end later than this from now (268 s) is not made: times stay inside int32.
LONGEST_TRANSFER_US = 2**28
#: Denominator of `LinkParams.block_fraction`.
FRACTION = 1024
#: Columns of `TierState.scalars`: stamp clock of the host's copies, when each link is free (to the host, from it, to
#: the remote pool, from it), and the time before which no step starts.
CLOCK, OUT, IN, REMOTE_OUT, REMOTE_IN, STALL = range(6)
TIMES = (OUT, IN, REMOTE_OUT, REMOTE_IN, STALL)


class LinkParams(struct.PyTreeNode):
    """One direction of an instance's link to a tier; int32."""

    block_us: Int[Array, ""]  # time of one block: whole microseconds, below 2^27
    block_fraction: Int[Array, ""]  # ... and 1024ths
    launch_us: Int[Array, ""]  # fixed time of a transfer operation, below 2^20
    block_group: Int[Array, ""]  # blocks that one operation moves, >= 1


class TierParams(struct.PyTreeNode):
    """Tiers and what uses them; int32."""

    host_blocks: Int[Array, ""]  # per instance
    remote_blocks: Int[Array, ""]  # in all
    host_out: LinkParams
    host_in: LinkParams
    remote_out: LinkParams
    remote_in: LinkParams
    overlap: Int[Array, ""]  # 1: copies overlap with compute, 0: the engine waits for them
    keep_copy: Int[Array, ""]  # 1: a copy stays when it has been read, so that only what is new is written back
    on_pause: Int[Array, ""]  # 1: the context of a program that pauses is copied (unless the policy's head decides)
    on_preempt: Int[Array, ""]  # 1: preemption copies the context (swap), 0: it is computed again


class TierState(struct.PyTreeNode):
    """Tiers of one lane."""

    host: Int[Array, "m 6 e"]  # copies in each instance's host memory: rows of `sim/copies.py`
    scalars: Int[Array, "m 6"]
    remote: Int[Array, "6 r"] | None  # copies in the pool that all instances share
    remote_clock: Int[Array, ""] | None
    #: Contexts to be loaded: row of the turn (-1: none), when (relative to the epoch). None: nothing is prefetched.
    plans: Int[Array, "m 2 e"] | None = None


class Found(NamedTuple):
    """What the tiers could add to a hit in HBM, and when."""

    blocks: Int[Array, ""]  # blocks that would be loaded behind the hit
    end: Int[Array, ""]  # when they would be in HBM
    remote_blocks: Int[Array, ""]  # how many of them come from the remote pool
    remote_end: Int[Array, ""]  # when those would be in host memory


class CopyOut(NamedTuple):
    """Blocks [low, high) of a chain whose copy on the host is to be brought up to date."""

    active: Bool[Array, ""]
    chain: Int[Array, ""]
    low: Int[Array, ""]
    high: Int[Array, ""]


class Load(NamedTuple):
    """What `Tiers.find` found for a chain that begins at block `low`, behind the first `hit` blocks in HBM."""

    active: Bool[Array, ""]
    chain: Int[Array, ""]
    low: Int[Array, ""]
    hit: Int[Array, ""]
    found: Found


def init_tiers(static: SimStatic) -> TierState | None:
    """Empty tiers; None without any."""
    if not static.tiered:
        return None
    m, e = static.num_instances, static.host_entries
    return TierState(
        host=jnp.broadcast_to(empty_table(e), (m, 6, e)),
        scalars=jnp.zeros((m, 6), jnp.int32),
        remote=empty_table(m * e) if static.remote_tier else None,
        remote_clock=jnp.int32(0) if static.remote_tier else None,
        plans=jnp.full((m, 2, e), -1, jnp.int32) if static.prefetches else None,
    )


def rebase_tiers(tiers: TierState, shift: Bool[Array, ""]) -> TierState:
    """Times an epoch later, if `shift`."""
    back = lambda t: jnp.where(shift, jnp.maximum(t - EPOCH_US, LONG_AGO), t)
    times = slice(4, 6)
    return tiers.replace(
        host=tiers.host.at[:, times].set(back(tiers.host[:, times])),
        scalars=tiers.scalars.at[:, OUT:].set(back(tiers.scalars[:, OUT:])),
        remote=None if tiers.remote is None else tiers.remote.at[times].set(back(tiers.remote[times])),
        plans=None if tiers.plans is None else tiers.plans.at[:, 1].set(back(tiers.plans[:, 1])),
    )


def transfer_us(link: LinkParams, blocks: Int[Array, ""]) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """Time of a transfer (0 for no blocks; beyond `LONGEST_TRANSFER_US` it is only known to be longer), operations."""
    operations = (blocks + link.block_group - 1) // link.block_group
    # Counts are cut where the product would pass the limit anyway, so that it stays in int32.
    whole = jnp.minimum(blocks, LONGEST_TRANSFER_US // jnp.maximum(link.block_us, 1) + 1) * link.block_us
    launches = jnp.minimum(operations, LONGEST_TRANSFER_US // jnp.maximum(link.launch_us, 1) + 1) * link.launch_us
    return launches + whole + ((blocks * link.block_fraction) >> 10), operations


class Tiers:
    """The tiers as one instance sees them during a micro-step: attributes are replaced, `store` writes back."""

    def __init__(self, static: SimStatic, params: SimParams, state: TierState | None, m: Array):
        assert params.tiers is not None and state is not None
        self._m, self.params = m, params.tiers
        row = lambda field: jax.lax.dynamic_index_in_dim(field, m, 0, keepdims=False)
        scalars = row(state.scalars)
        self.host = Copies(read_row(state.host, m), scalars[CLOCK], self.params.host_blocks)
        self.out, self.into, self.remote_out, self.remote_in, self.stall = (scalars[i] for i in TIMES)
        self.remote = None
        if state.remote is not None and state.remote_clock is not None:
            self.remote = Copies(state.remote, state.remote_clock, self.params.remote_blocks)
        self.plans = None if state.plans is None else row(state.plans)
        self._no_place = jnp.bool_(False)
        self.counts: dict[str, Array] = {}

    def store(self, state: TierState | None) -> TierState:
        """The state with this instance's tiers written back."""
        assert state is not None
        scalars = jnp.stack([self.host.clock, self.out, self.into, self.remote_out, self.remote_in, self.stall])
        put = lambda field, value: jax.lax.dynamic_update_index_in_dim(field, value, self._m, 0)
        remote = self.remote
        return state.replace(
            host=write_row(state.host, self._m, self.host.fields),
            scalars=put(state.scalars, scalars),
            remote=None if remote is None else jnp.stack(remote.fields),
            remote_clock=None if remote is None else remote.clock,
            plans=None if self.plans is None else put(state.plans, self.plans),
        )

    @property
    def overflow(self) -> Bool[Array, ""]:
        """Whether a table had no place for a copy (or a plan)."""
        found = self.host.overflow | self._no_place
        return found if self.remote is None else found | self.remote.overflow

    # -- prefetches ----------------------------------------------------------------------------------------------------

    def plan(self, active: Bool[Array, ""], row: Array, time: Array) -> None:
        """Load the context of a turn at that time."""
        assert self.plans is not None
        rows, times = self.plans
        index = jnp.arange(rows.shape[0], dtype=jnp.int32)
        place = jnp.min(jnp.where(rows < 0, index, rows.shape[0]))
        self._no_place = self._no_place | (active & (place == rows.shape[0]))
        here = (index == place) & active
        self.plans = jnp.stack([jnp.where(here, row, rows), jnp.where(here, time, times)])

    def next_plan(self) -> Int[Array, ""]:
        """When the next context is to be loaded; `NEVER_US`: none is."""
        if self.plans is None:
            return jnp.int32(NEVER_US)
        return earliest(self.plans[0] >= 0, self.plans[1])

    def planned(self) -> Int[Array, ""]:
        """The turn whose context is to be loaded next: the first by time, then by row."""
        assert self.plans is not None
        rows, times = self.plans
        return jnp.min(jnp.where((rows >= 0) & (times == self.next_plan()), rows, 2**31 - 1))

    def forget(self, active: Bool[Array, ""], row: Array) -> None:
        """The context of a turn is not to be loaded (any more)."""
        if self.plans is not None:
            self.plans = self.plans.at[0].set(jnp.where((self.plans[0] == row) & active, -1, self.plans[0]))

    @property
    def overlaps(self) -> Bool[Array, ""]:
        return self.params.overlap > 0

    def _count(self, **amounts: Array) -> None:
        for name, amount in amounts.items():
            self.counts[name] = self.counts[name] + amount if name in self.counts else amount

    def _earliest(self, now: Array) -> Int[Array, ""]:
        """When a transfer decided now can start: an engine that waits makes them one after the other."""
        return jnp.where(self.overlaps, now, jnp.maximum(now, self.stall))

    def wait_until(self, active: Bool[Array, ""], time: Array) -> None:
        """The next step starts no earlier."""
        self.stall = jnp.where(active, jnp.maximum(self.stall, time), self.stall)

    def transfer(self, copies: CopyOut, load: Load | None, now: Array) -> None:
        """Book a copy out of HBM or a load into it (at most one of them is active; None: there is nothing to load).

        Out: what the host lacks of the context, as far as it has room; then what it holds and the remote pool lacks.
        In: as `find` found; what comes from the remote pool stays on the host, if it has room and no gap.
        """
        p, host = self.params, self.host
        if load is None:
            none: Array = jnp.int32(0)
            load = Load(jnp.bool_(False), none, none, none, Found(none, none, none, none))
        found = load.found
        loads = load.active & (found.blocks > 0)
        chain, low = jnp.where(loads, load.chain, copies.chain), jnp.where(loads, load.low, copies.low)
        have = jnp.maximum(host.find(chain)[0], low)
        top = load.hit + found.blocks
        goal = jnp.where(loads, jnp.where((found.remote_blocks > 0) & (have >= load.hit), top, have), copies.high)
        add = jnp.minimum(jnp.maximum(goal - have, 0), host.room(chain, now))
        duration, operations = transfer_us(p.host_out, add)
        end = jnp.maximum(self._earliest(now), self.out) + duration
        made = copies.active & (add > 0) & (end - now <= LONGEST_TRANSFER_US)
        add = jnp.where(loads | made, add, 0)
        ready, busy = jnp.where(loads, found.remote_end, end), jnp.where(loads, found.end, end)
        host.put(loads | copies.active, chain, low, add, now, ready, busy)
        self.out = jnp.where(made, end, self.out)
        self.into = jnp.where(loads, found.end, self.into)
        self.wait_until((made | loads) & ~self.overlaps, busy)
        self._count(
            out_blocks=jnp.where(made, add, 0),
            in_blocks=jnp.where(loads, found.blocks, 0),
            operations=jnp.where(made, operations, 0) + jnp.where(loads, transfer_us(p.host_in, found.blocks)[1], 0),
        )
        if self.remote is not None:
            written = have + jnp.where(made, add, 0)  # what the host holds now
            readable = jnp.where(made, end, host.find(chain)[1])
            self._transfer_remote(copies.active, loads, chain, low, written, readable, found, now)
        host.read(loads, chain, found.end, p.keep_copy)  # (XLA drops what can only be false)

    def _transfer_remote(
        self, copies: Array, loads: Array, chain: Array, low: Array, high: Array, ready: Array, found: Found, now: Array
    ) -> None:
        """The remote pool's part of `transfer`: blocks below `high` are on the host from `ready` on."""
        p, remote = self.params, self.remote
        assert remote is not None
        have = jnp.maximum(remote.find(chain)[0], low)
        add = jnp.minimum(jnp.maximum(high - have, 0), remote.room(chain, now))
        duration, operations = transfer_us(p.remote_out, add)
        end = jnp.maximum(jnp.maximum(now, ready), self.remote_out) + duration
        made = copies & (add > 0) & (end - now <= LONGEST_TRANSFER_US)
        add = jnp.where(made, add, 0)
        remote.put(copies, chain, low, add, now, end, end)
        self.host.hold(made, chain, end)
        self.remote_out = jnp.where(made, end, self.remote_out)
        fetched = loads & (found.remote_blocks > 0)
        self.remote_in = jnp.where(fetched, found.remote_end, self.remote_in)
        remote.read(fetched, chain, found.remote_end, jnp.int32(1))
        fetches = transfer_us(p.remote_in, found.remote_blocks)[1]
        self._count(
            remote_out_blocks=add,
            remote_in_blocks=jnp.where(fetched, found.remote_blocks, 0),
            operations=jnp.where(made, operations, 0) + jnp.where(fetched, fetches, 0),
        )

    def ready_of(self, chain: Array) -> Int[Array, ""]:
        """When the copy that is being written of a chain ends, if copies overlap with compute."""
        return jnp.where(self.overlaps, self.host.find(chain)[1], LONG_AGO)

    def find(self, chain: Array, low: Array, hit: Array, most: Array, now: Array) -> Found:
        """What could be loaded behind the first `hit` blocks in HBM, up to block `most`.

        Nothing if the hit does not reach the own chain, which begins at block `low`.
        """
        p = self.params
        end, ready = self.host.find(chain)
        start = self._earliest(now)
        end = jnp.minimum(end, most)
        remote_blocks, remote_end, top = jnp.zeros_like(end), now, end
        if self.remote is not None:
            far, far_ready = self.remote.find(chain)
            top = jnp.maximum(end, jnp.minimum(far, most))
            remote_blocks = top - jnp.maximum(end, hit)
            remote_blocks = jnp.where(hit >= low, jnp.maximum(remote_blocks, 0), 0)
            remote_end = jnp.maximum(jnp.maximum(start, far_ready), self.remote_in)
            remote_end = remote_end + transfer_us(p.remote_in, remote_blocks)[0]
            start = jnp.where(remote_blocks > 0, jnp.maximum(start, remote_end), start)
        blocks = jnp.where(hit >= low, jnp.maximum(top - hit, 0), 0)
        start = jnp.maximum(start, self.into)
        start = jnp.where(blocks > remote_blocks, jnp.maximum(start, ready), start)
        end = start + transfer_us(p.host_in, blocks)[0]
        made = (blocks > 0) & (end - now <= LONGEST_TRANSFER_US) & (remote_end - now <= LONGEST_TRANSFER_US)
        return Found(jnp.where(made, blocks, 0), end, jnp.where(made, remote_blocks, 0), remote_end)
