"""Where an event touches the memory tiers (docs/semantics.md, section 10); only compiled where `static.tiered`."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxsched.sim.event import Event
from jaxsched.sim.kv import Hit, Pin
from jaxsched.sim.kv.runs import NO_COPY
from jaxsched.sim.state import Count
from jaxsched.sim.tiers import Found


def end_copies(event: Event, begins: Bool[Array, ""]) -> None:
    """At the start of a schedule() call: copies that have ended let go of their blocks."""
    runs = event.runs
    event.inst.free = event.inst.free + runs.end_copies((runs.copying <= event.now) & begins)


def wait_for_copies(event: Event, active: Bool[Array, ""]) -> Bool[Array, ""]:
    """Running requests lack blocks that copies under way will set free: the step waits for them. Whether it does."""
    runs = event.runs
    waits = active & jnp.any(runs.in_copy)
    runs.settle()  # what was taken before came before these blocks
    event.tiers.wait_until(waits, runs.last_copy())
    event.inst.free = event.inst.free + runs.end_copies(jnp.broadcast_to(waits, runs.copying.shape))
    return waits


def release(
    event: Event, slot: Array, active: Bool[Array, ""], held: Array, pin: Pin | None, copies: Array
) -> Int[Array, ""]:
    """`KvCache.release`; if `copies`, the host's copy of the context is brought up to date first.

    Returns how many blocks became free: those that the copy needs do so when it ends.
    """
    if not event.static.tiered:
        return event.kv.release(slot, active, held, pin)
    chain, low, high = event.runs.own_run(slot)
    event.tiers.copy_out(active & copies & (high > low), chain, low, high, event.now)
    ready = event.tiers.ready_of(chain)
    return event.runs.release(slot, active, held, pin, jnp.where(ready > event.now, ready, NO_COPY))


def find(event: Event, cached: Hit, known: Int[Array, ""]) -> Found | None:
    """What the tiers could add to the candidate's hit."""
    if not event.static.tiered:
        return None
    own, _, group_blocks, _ = cached.where
    most = (known - 1) // event.static.block_size
    return event.tiers.find(own, group_blocks, cached.blocks, most, event.now)


def load(event: Event, active: Bool[Array, ""], row: Array, cached: Hit, found: Found) -> Bool[Array, ""]:
    """Book the load of a candidate that would be admitted. Returns whether it must wait for it, outside HBM's queue."""
    own, _, group_blocks, _ = cached.where
    waits = active & (found.blocks > 0) & event.tiers.overlaps
    event.tiers.load(active, own, group_blocks, cached.blocks, found, event.now)
    event.inst.free = event.inst.free - event.runs.begin_load(waits, row, cached, found.blocks, found.end)
    return waits


def next_wake(event: Event) -> Int[Array, ""]:
    """When a schedule() call can find something that a copy changed; `NEVER_US` if no copy is under way."""
    return event.runs.next_copy()


def book_counts(event: Event) -> None:
    """Counters of what was copied in this micro-step."""
    names = {
        "out_blocks": Count.HOST_OUT_BLOCKS,
        "in_blocks": Count.HOST_IN_BLOCKS,
        "remote_out_blocks": Count.REMOTE_OUT_BLOCKS,
        "remote_in_blocks": Count.REMOTE_IN_BLOCKS,
        "operations": Count.TRANSFERS,
    }
    for name, amount in event.tiers.counts.items():
        event.tally.count(names[name], amount)


def rebased_copies(copying: Int[Array, "m r"], shift: Bool[Array, ""], epoch_us: int) -> Int[Array, "m r"]:
    """Ends of copies an epoch later, if `shift`."""
    back = jnp.maximum(copying - epoch_us, -epoch_us)
    return jnp.where(shift & (copying != NO_COPY), back, copying)
