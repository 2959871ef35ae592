"""Where an event touches the memory tiers (docs/semantics.md, section 10); only compiled where `static.tiered`.

A request that has finished leaves HBM at once, before anything is scheduled (`leave`). After that a micro-step preempts
at most one request or brings at most one in, never both. Both are noted where they are decided and done once, before
the next step is formed (`finish`): what they do is large, and compiled once this way.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxsched.sim.clock import NEVER_US
from jaxsched.sim.event import Event
from jaxsched.sim.kv import Hit, Pin
from jaxsched.sim.kv.copying import NO_COPY
from jaxsched.sim.retain import FOREVER_US
from jaxsched.sim.rows import earliest
from jaxsched.sim.state import WAITING, Col, Count
from jaxsched.sim.tiers import CopyOut, Found, Load

_COUNTS = {
    "out_blocks": Count.HOST_OUT_BLOCKS,
    "in_blocks": Count.HOST_IN_BLOCKS,
    "remote_out_blocks": Count.REMOTE_OUT_BLOCKS,
    "remote_in_blocks": Count.REMOTE_IN_BLOCKS,
    "operations": Count.TRANSFERS,
}


@dataclasses.dataclass
class Release:
    """A request that lets go of its blocks in this micro-step."""

    slot: Array
    active: Array
    held: Array
    pin: Pin
    copies: Array  # whether the host's copy of its context is brought up to date first


@dataclasses.dataclass
class Candidate:
    """The waiting request that was considered in this micro-step, and what the tiers have of it."""

    active: Array
    row: Array
    cached: Hit
    found: Found
    pinned: Array  # a prefetched context is not: it can be evicted like any other


@dataclasses.dataclass
class Prefetch:
    """A context that this micro-step loads ahead of its turn."""

    active: Array
    row: Array


def end_copies(event: Event, begins: Bool[Array, ""]) -> None:
    """At the start of a schedule() call: copies that have ended let go of their blocks."""
    runs = event.runs
    event.inst.free = event.inst.free + runs.end_copies((runs.copying <= event.now) & begins)


def wait_for_copies(event: Event, active: Bool[Array, ""]) -> Bool[Array, ""]:
    """Running requests lack blocks that copies under way will set free: the step waits for them. Whether it does."""
    waits = active & jnp.any(event.runs.in_copy)
    event.tiers.wait_until(waits, event.runs.last_copy())
    event.waits_for_copies = waits
    return waits


def leave(
    event: Event, slot: Array, active: Bool[Array, ""], held: Array, pin: Pin | None, copies: Bool[Array, ""]
) -> Int[Array, ""]:
    """`KvCache.release` of a request that has finished; with tiers, if `copies`, after a copy to the host is booked.

    Returns how many blocks became free.
    """
    if not event.static.tiered:
        return event.kv.release(slot, active, held, pin)
    event.runs.settle()
    return _let_go(event, Release(slot, active, held, pin or _no_pin(), copies), None)


def _let_go(event: Event, gone: Release, load: Load | None) -> Int[Array, ""]:
    """Book the transfer, release the blocks. Returns how many became free."""
    runs, tiers = event.runs, event.tiers
    chain, low, high = runs.own_run(gone.slot)
    copies = CopyOut(gone.active & gone.copies & (high > low), chain, low, high)
    tiers.transfer(copies, load, event.now)
    ready = tiers.ready_of(chain)
    until = jnp.where(ready > event.now, ready, NO_COPY)
    return runs.release(gone.slot, gone.active, gone.held, gone.pin, until)


def _no_pin() -> Pin:
    none = jnp.int32(-1)
    return Pin(none, jnp.int32(0), none, jnp.int32(0))


def release(
    event: Event, slot: Array, active: Bool[Array, ""], held: Array, pin: Pin | None, copies: Array
) -> Int[Array, ""] | int:
    """`KvCache.release`; with tiers in `finish`, and if `copies`, after a copy to the host is booked.

    Returns how many blocks became free now.
    """
    if not event.static.tiered:
        return event.kv.release(slot, active, held, pin)
    event.releases.append(Release(slot, active, held, pin or _no_pin(), copies))
    return 0


def find(event: Event, cached: Hit, known: Int[Array, ""]) -> Found | None:
    """What the tiers could add to the candidate's hit."""
    if not event.static.tiered:
        return None
    own, _, group_blocks, _ = cached.where
    most = (known - 1) // event.static.block_size
    return event.tiers.find(own, group_blocks, cached.blocks, most, event.now)


def load(event: Event, admits: Bool[Array, ""], row: Array, cached: Hit, found: Found) -> Bool[Array, ""]:
    """Load what was found for a candidate that would be admitted (or is prefetched). Whether it must wait for it."""
    runs, active = event.runs, admits
    if event.prefetch is not None:
        # Nobody is kept out for it: it takes blocks that are free and not pinned.
        needed = found.blocks + cached.idle + runs.pinned_blocks() - cached.pinned
        active = admits | (event.prefetch.active & (needed <= event.inst.free))
        event.tiers.forget(admits | event.prefetch.active, row)
    event.candidate = Candidate(active, row, cached, found, admits)
    return admits & (found.blocks > 0) & event.tiers.overlaps


def plan_prefetch(event: Event, active: Bool[Array, ""], row: Array, returns_in: Array, load_us: Array) -> None:
    """A program pauses: its context is to be in HBM when it is expected back."""
    time = event.now + jnp.maximum(returns_in - load_us, 0)
    event.tiers.plan(active & event.tiers.overlaps & (returns_in < FOREVER_US), row, time)


def begin_prefetch(event: Event, active: Bool[Array, ""]) -> Bool[Array, ""]:
    """At the start of a schedule() call: whether this micro-step prefetches a context instead of going on.

    Not one whose turn waits here already: that is loaded when it is its turn.
    """
    if not event.static.prefetches:
        return jnp.bool_(False)
    due = active & (event.tiers.next_plan() <= event.now)
    row = jnp.where(due, event.tiers.planned(), 0)
    waits = jnp.any((event.slots.order == WAITING) & (event.column_of(Col.REQUEST) == row))
    event.tiers.forget(due & waits, row)
    event.prefetch = Prefetch(due & ~waits, row)
    return due


def finish(event: Event) -> None:
    """Do what was noted in this micro-step: book the transfer, move the blocks."""
    runs, tiers, load = event.runs, event.tiers, event.candidate
    assert load is not None
    own, _, group_blocks, _ = load.cached.where
    comes = load.active & (load.found.blocks > 0) & tiers.overlaps
    taken = runs.begin_load(comes, load.cached, load.found.blocks, load.found.end)
    runs.settle()  # what was taken before came before the blocks that are let go of now
    event.inst.free = event.inst.free - taken
    waits = jnp.broadcast_to(event.waits_for_copies, runs.copying.shape)
    event.inst.free = event.inst.free + runs.end_copies(waits)

    brought = Load(load.active, own, group_blocks, load.cached.blocks, load.found)
    event.inst.free = event.inst.free + _let_go(event, _the_active(event.releases), brought)
    runs.end_load(comes, load.pinned, load.row, load.cached, load.found.blocks, load.found.end)
    for name, amount in tiers.counts.items():
        event.tally.count(_COUNTS[name], amount)


def _the_active(releases: list[Release]) -> Release:
    """The one that is active, if any is."""
    chosen = releases[0]
    for other in releases[1:]:
        pick = lambda one, two, on=other.active: jnp.where(on, two, one)
        chosen = Release(
            pick(chosen.slot, other.slot),
            chosen.active | other.active,
            pick(chosen.held, other.held),
            Pin(*(pick(one, two) for one, two in zip(chosen.pin, other.pin, strict=True))),
            pick(chosen.copies, other.copies),
        )
    return chosen


def next_wake(event: Event, taken: Int[Array, ""]) -> Int[Array, ""]:
    """When a schedule() call can find something that a copy changed, or has to prefetch; `NEVER_US`: it cannot.

    The end of a copy out of HBM changes nothing for a run that takes at most so many blocks, for which nobody waits and
    which evicts nothing that was released after what is copied: the blocks are only free. One such end is passed over
    (`passed_copies`).
    """
    runs, static = event.runs, event.static
    first = runs.next_copy()
    wake = first
    if not (static.route_by_blocks or static.route_by_cache == "cache"):  # (who sees free blocks at each step)
        passes = (event.inst.waiting == 0) & runs.outlasts(first, taken)
        wake = jnp.where(passes, runs.next_copy(first), first)
    return jnp.minimum(wake, event.tiers.next_plan())


def passed_copies(event: Event, ends: Int[Array, " k"]) -> Float[Array, ""]:
    """Blocks x us that were free in the run that ends now, since the end of a copy that it passed over."""
    runs, now = event.runs, event.now
    first = runs.next_copy()
    seen = earliest((ends >= first) & (ends <= now), ends)  # the call that would have found it
    blocks = runs.ending_blocks(first)
    return jnp.where(seen < now, blocks, 0).astype(jnp.float32) * jnp.maximum(now - seen, 0).astype(jnp.float32)


def idle_wake(event: Event) -> Int[Array, ""]:
    """When an instance without a step has to look again: those who wait may go on when a copy ends."""
    copy = jnp.where(event.inst.waiting > 0, event.runs.next_copy(), NEVER_US)
    return jnp.minimum(copy, event.tiers.next_plan())


def rebased_copies(copying: Int[Array, "m r"], shift: Bool[Array, ""], epoch_us: int) -> Int[Array, "m r"]:
    """Ends of copies an epoch later, if `shift`."""
    back = jnp.maximum(copying - epoch_us, -epoch_us)
    return jnp.where(shift & (copying != NO_COPY), back, copying)
