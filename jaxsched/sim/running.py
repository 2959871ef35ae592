"""The running pass of schedule(): tokens for admitted requests, and preemption until their KV blocks fit.

One victim per micro-step. Releasing victims before anything is allocated, until the whole pass fits, gives the same
survivors as the engine's request-by-request loop when victims come from the end of the list: a victim leaves only if
the blocks needed by all before it exceed what is free, and then the pass as a whole does not fit either; conversely, as
long as the pass does not fit, some request fails and takes the last as its victim. `_ordered` does not use this and
follows the list.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxsched.sim import offload
from jaxsched.sim.event import Event, ceil_blocks, count, set_where, slot_with
from jaxsched.sim.speculate import drafts, slots_ahead
from jaxsched.sim.state import WAITING, Col, Count


def running_pass(event: Event, active: Bool[Array, ""]) -> Bool[Array, ""]:
    """Schedule the admitted requests. Returns whether the pass must go on in another micro-step (it preempted)."""
    family = event.static.scheduler.family
    if family in ("orca", "static"):
        _decode_reserved(event, active)
        return jnp.bool_(False)
    if family in ("sarathi", "v0"):
        return _decodes_then_chunk(event, active)
    if event.static.ordered_budget:
        return _ordered(event, active)
    return _list(event, active)


def _accept(event: Event, active: Bool[Array, ""], tokens: Int[Array, " s"], need: Int[Array, " s"]) -> None:
    slots, state = event.slots, event.state
    slots.chunk = jnp.where(active & event.running_mask, tokens, slots.chunk)
    _take(event, jnp.where(active, jnp.sum(need), 0))
    event.state = state.replace(budget=state.budget - jnp.where(active, jnp.sum(tokens), 0))


def _take(event: Event, blocks: Int[Array, ""]) -> None:
    event.inst.free = event.inst.free - blocks
    event.kv.take(blocks)


def _needed(event: Event, tokens: Int[Array, " s"]) -> Int[Array, " s"]:
    """Further blocks of requests that get so many tokens; where tokens are drafted, with the slots held ahead."""
    static, slots = event.static, event.slots
    if not static.scheduler.speculates:
        kept = slots.computed if static.scheduler.compress is None else slots.computed - slots.aux
        return ceil_blocks(static, kept + tokens) - ceil_blocks(static, kept)
    wanted, held = slots_ahead(event, slots.computed + tokens), event.held_blocks(slots.computed, slots.aux)
    return jnp.where(tokens > 0, jnp.maximum(wanted - held, 0), 0)


def _hold_ahead(event: Event, active: Bool[Array, " s"], tokens: Int[Array, " s"]) -> None:
    """Blocks ahead of what is computed stay with the request, whatever becomes of its drafts."""
    if event.static.scheduler.speculates:
        slots = event.slots
        wanted = slots_ahead(event, slots.computed + tokens)
        slots.aux = jnp.where(active & (tokens > 0), jnp.maximum(slots.aux, wanted), slots.aux)


def _list(event: Event, active: Bool[Array, ""]) -> Bool[Array, ""]:
    """V1 when the budget cannot run out among decodes.

    At most the last admitted request has more than one token left.
    """
    slots, inst = event.slots, event.inst
    running = event.running_mask
    left = jnp.where(running, slots.known - slots.computed, 0)
    if event.static.scheduler.asynchronous:
        left = jnp.where(slots.known == slots.goal, 0, left)  # its last token is in flight
    single = left == 1
    if event.static.scheduler.speculates:
        one = jnp.where(single, 1 + drafts(event), 0)
        rest = jnp.maximum(event.state.budget - jnp.sum(one), 0)
    else:
        one, rest = 1, jnp.maximum(event.state.budget - count(single), 0)
    tokens = jnp.where(single, one, jnp.minimum(left, rest))
    need = jnp.where(running, _needed(event, tokens), 0)
    pressure = active & (jnp.sum(need) > inst.free)
    last = slot_with(running, slots.order, largest=True)
    if event.static.prefix_cache != "none":
        # What those before the failing request take, they take before the victim's blocks come back.
        before_last = jnp.sum(need) - event.at(need, last)
        event.kv.take_ahead(jnp.where(pressure, jnp.minimum(inst.free, before_last), 0))
    _accept(event, active & ~pressure, tokens, need)
    _hold_ahead(event, active & ~pressure & running, tokens)
    event.cache_scheduled(active & ~pressure)
    waits = offload.wait_for_copies(event, pressure) if event.static.tiered else jnp.bool_(False)
    preempt(event, last, pressure & ~waits, memory=True)
    return pressure


def _decodes_then_chunk(event: Event, active: Bool[Array, ""]) -> Bool[Array, ""]:
    """Sarathi-Serve and vLLM V0: decodes first, then the unfinished prefill (sarathi only).

    Each decode must see a free block.
    """
    slots, inst = event.slots, event.inst
    running = event.running_mask
    left = slots.known - slots.computed
    decodes = running & (left == 1) & (slots.known > slots.prompt)
    wanted, held = event.held_blocks(slots.computed + 1, slots.aux), event.held_blocks(slots.computed, slots.aux)
    need = jnp.where(decodes, wanted - held, 0)
    last = slot_with(decodes, slots.order, largest=True)
    before_last = jnp.sum(need) - event.at(need, last)
    pressure = active & jnp.any(decodes) & (before_last >= inst.free)
    rest = jnp.maximum(event.state.budget - count(decodes), 0)
    chunk = jnp.where(running & ~decodes, jnp.minimum(left, rest), 0)
    _accept(event, active & ~pressure, jnp.where(decodes, 1, chunk), need)
    preempt(event, slot_with(running, slots.order, largest=True), pressure, memory=True)
    return pressure


def _decode_reserved(event: Event, active: Bool[Array, ""]) -> None:
    """Orca and static batching: blocks for the longest output were taken at admission, so a decode always fits."""
    running = event.running_mask
    _accept(event, active, running.astype(jnp.int32), jnp.zeros_like(event.slots.order))


def _ordered(event: Event, active: Bool[Array, ""]) -> Bool[Array, ""]:
    """V1 in list order, request by request: long-prefill threshold, chosen victims, budgets below the running count.

    `cursor` is the admission number up to which the pass has come; `pending` the fixed token count of the request that
    waits for blocks. Prefix sums in list order are sums over pairs of slots.
    """
    static, slots, inst, state = event.static, event.slots, event.inst, event.state
    running = event.running_mask
    open_ = running & (slots.order > state.cursor)
    left = slots.known - slots.computed
    if static.scheduler.asynchronous:
        left = jnp.where(slots.known == slots.goal, 0, left)
    if static.scheduler.speculates:
        left = left + drafts(event)
    want = jnp.where(open_, jnp.where(state.threshold > 0, jnp.minimum(left, state.threshold), left), 0)
    pending = (state.pending > 0) & open_ & (slots.order == jnp.min(jnp.where(open_, slots.order, 2**31 - 1)))
    earlier = slots.order[None, :] < slots.order[:, None]

    def sum_before(values: Int[Array, " s"]) -> Int[Array, " s"]:
        return jnp.sum(jnp.where(earlier, values[None, :], 0), axis=1)

    want_fixed = jnp.where(pending, state.pending, want)
    room = state.budget - sum_before(want_fixed)
    tokens = jnp.where(pending, state.pending, jnp.clip(room, 0, want))
    need = jnp.where(tokens > 0, _needed(event, tokens), 0)
    fails = open_ & (tokens > 0) & (sum_before(need) + need > inst.free)
    failing = slot_with(fails, slots.order)
    pressure = active & jnp.any(fails)
    failing_order = jnp.where(pressure, event.at(slots.order, failing), 2**31 - 1)
    accepted = open_ & (slots.order < failing_order)
    slots.chunk = jnp.where(active & accepted, tokens, slots.chunk)
    _take(event, jnp.where(active, jnp.sum(jnp.where(accepted, need, 0)), 0))
    budget = state.budget - jnp.where(active, jnp.sum(jnp.where(accepted, tokens, 0)), 0)
    event.state = state.replace(budget=budget)
    _hold_ahead(event, active & accepted, tokens)
    event.cache_scheduled(active)

    if static.scheduler.priority_victims:
        victim = _priority_victim(event, running)
    elif static.scheduler.victim is not None:
        victim = _chosen_victim(event, running)
    else:
        victim = slot_with(running, slots.order, largest=True)
    waits = offload.wait_for_copies(event, pressure) if static.tiered else jnp.bool_(False)
    itself = (victim == failing) & ~waits
    event.state = event.state.replace(
        cursor=jnp.where(pressure, jnp.where(itself, failing_order, failing_order - 1), state.cursor),
        pending=jnp.where(pressure & ~itself, event.at(tokens, failing), jnp.where(active, 0, state.pending)),
    )
    preempt(event, victim, pressure & ~waits, memory=True)
    return pressure


def _priority_victim(event: Event, running: Bool[Array, " s"]) -> Int[Array, ""]:
    """Largest (priority, arrival time); ties to the first in the running list."""
    mask = running
    for column in (Col.PRIORITY, Col.ARRIVAL_EPOCH, Col.ARRIVAL_US):
        key = event.column_of(column)
        mask &= key == jnp.max(jnp.where(mask, key, -(2**31)))
    return slot_with(mask, event.slots.order)


def _chosen_victim(event: Event, running: Bool[Array, " s"]) -> Int[Array, ""]:
    """The victim head's smallest key; ties to the last in the running list."""
    head, params = event.static.scheduler.victim, event.params.scheduler.victim
    assert head is not None and params is not None
    key = head(params, event.requests.program[event.column_of(Col.REQUEST)])
    first = running & (key == jnp.min(jnp.where(running, key, 2**31 - 1)))
    return slot_with(first, event.slots.order, largest=True)


def preempt(event: Event, slot: Int[Array, ""], active: Bool[Array, ""], memory: bool) -> None:
    """Take a running request out: blocks freed, progress dropped, outputs kept, back into the waiting queue.

    Tokens it was given in this call go back to the budget. `memory`: under memory pressure, which closes admission for
    this call.
    """
    static, slots, inst, state = event.static, event.slots, event.inst, event.state
    mask = (event.index == slot) & active
    computed, given = event.at(slots.computed, slot), jnp.abs(event.at(slots.chunk, slot))
    held = event.held_blocks(computed + given, event.at(slots.aux, slot))
    prompt = event.at(slots.prompt, slot)
    column = event.column(slot)
    swaps = event.tiers.params.on_preempt > 0 if static.tiered else jnp.bool_(False)
    inst.free = inst.free + offload.release(event, slot, active, held, None, swaps)
    inst.running = inst.running - active
    event.add_waiting(+1, active, prompt, column[Col.REQUEST])
    if event.service is not None:
        event.service.stop(slot, active)
    if event.fair is not None:
        event.fair.requeue(slot, active)
    event.state = event.state.replace(
        budget=state.budget + jnp.where(active, given, 0),
        preempted=jnp.where(active & memory, 1, state.preempted),
    )
    # Time of its last token (asynchronous: of the one in flight): `last` holds it modulo 2^31, less than a turn ago.
    last = event.at(slots.last, slot)
    behind = (event.wrapped(event.now) - last) & (2**31 - 1)
    ahead = (last - event.wrapped(event.now)) & (2**31 - 1)
    last_time = jnp.where(ahead < 2**29, event.now + ahead, event.now - behind)
    stamp = event.stamp(last_time)
    never = (last < 0) | (event.at(slots.known, slot) == prompt)
    column = column.at[Col.PREEMPTIONS].add(1).at[Col.LOST_TOKENS].add(computed)
    column = column.at[Col.LAST_EPOCH].set(jnp.where(never, column[Col.LAST_EPOCH], stamp[0]))
    column = column.at[Col.LAST_US].set(jnp.where(never, column[Col.LAST_US], stamp[1]))
    event.write_column(slot, column, active)
    slots.order = set_where(mask, WAITING, slots.order)
    slots.computed = set_where(mask, 0, slots.computed)
    slots.chunk = set_where(mask, 0, slots.chunk)
    slots.last = set_where(mask, -1, slots.last)
    if static.reserves_blocks:
        slots.aux = set_where(mask, 0, slots.aux)
    if static.scheduler.order is None:
        head = (inst.head - 1) & (static.queue_capacity - 1)
        at = jnp.where(active, head, static.queue_capacity)
        event.state = event.state.replace(queue=event.state.queue.at[event.m, at, 0].set(-(slot + 1), mode="drop"))
        inst.head = jnp.where(active, head, inst.head)
        inst.length = inst.length + active
    event.tally.count(Count.PREEMPTIONS, active)
    event.tally.count(Count.RECOMPUTED_TOKENS, jnp.where(active, computed, 0))
    event.note(preempted=jnp.where(active, column[Col.REQUEST], -1))
