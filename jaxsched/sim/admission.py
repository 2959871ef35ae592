"""The waiting part of schedule(): one candidate per micro-step is admitted, dropped (expired), or closes the call."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxsched.sim import offload
from jaxsched.sim.admit import AdmitHead, AdmitView, lengths_of, words_of
from jaxsched.sim.arrivals import hash_bits
from jaxsched.sim.clock import relative_us
from jaxsched.sim.due import too_late
from jaxsched.sim.event import Event, ceil_blocks, first_slot, set_where, slot_with
from jaxsched.sim.gate import gate_open
from jaxsched.sim.kv import Hit
from jaxsched.sim.retain import FOREVER_US
from jaxsched.sim.running import preempt
from jaxsched.sim.state import DEAD, EMPTY, Col, Count, Fate, Flag, Hist
from jaxsched.sim.views import QueueView
from jaxsched.sim.waiting import fifo_entry, fresh_column, place, pop, queue_view


class KeptOut(NamedTuple):
    """Whether candidates remain, and nothing but a finish can let one in."""

    now: Bool[Array, ""]  # ... if the steps that follow are like this one
    later: Bool[Array, ""]  # ... also if this step computes prompts, and those that follow do not


def _head_lets_in(event: Event, head: AdmitHead, column, known, prompt, cached: Hit) -> Bool[Array, ""]:
    """Whether the policy's own memory test lets a candidate in."""
    static, slots, sched = event.static, event.slots, event.params.scheduler
    join = lambda field, value: jnp.concatenate([field, jnp.reshape(value, (1,))])
    rows = join(event.column_of(Col.REQUEST), column[Col.REQUEST])
    held = event.runs.pinned_blocks() - cached.pinned if static.retains else jnp.int32(0)
    view = AdmitView(
        mask=join(event.running_mask, jnp.bool_(True)),
        candidate_mask=jnp.arange(static.num_slots + 1) == static.num_slots,
        known_tokens=join(slots.known, known),
        generated_tokens=join(slots.known - slots.prompt, known - prompt),
        priority=join(event.column_of(Col.PRIORITY), column[Col.PRIORITY]),
        words=words_of(event.params.seed, rows, head.num_draws, hash_bits),
        lengths=lengths_of(event.state.lengths, event.m),
        pool_tokens=event.params.usable_blocks[event.m] * static.block_size,
        held_tokens=held * static.block_size,
        block_size=static.block_size,
    )
    return head.fits(sched.admit, view)


def admission_step(
    event: Event, active: Bool[Array, ""], may_displace: Bool[Array, ""]
) -> tuple[Bool[Array, ""], Bool[Array, ""], KeptOut]:
    """Try the next waiting request. Preemptive orders first displace (if `may_displace`), then admit.

    Returns:
        again: another candidate may be tried in the next micro-step.
        displaced: in that micro-step, displacing goes on.
        kept_out: whether those who remain can only be let in by a finish.
    """
    static, slots, inst, sched = event.static, event.slots, event.inst, event.params.scheduler
    family, order = static.scheduler.family, static.scheduler.order
    fcfs = order is None
    enters = unloaded = jnp.zeros_like(slots.order, bool)
    if fcfs:
        entry = fifo_entry(event)
        fresh = entry[0] >= 0
        slot = jnp.where(fresh, first_slot(slots.order == EMPTY), -(entry[0] + 1))
        exists = inst.length > 0
        new_column, new_prompt = fresh_column(event, entry)
        column = jnp.where(fresh, new_column, event.column(slot))
        prompt = jnp.where(fresh, new_prompt, event.at(slots.prompt, slot))
        known = jnp.where(fresh, prompt, event.at(slots.known, slot))
        dead = exists & ~fresh & (event.at(slots.order, slot) == DEAD)
    else:
        if static.pins or static.gated:
            event.runs.settle()  # the view tells what is still there
        view = queue_view(event)
        key = order(sched.of_order(), view)
        eligible = view.waiting_mask
        if static.gated:
            enters = view.first_turn_mask & ~view.preempted_mask
            eligible &= ~enters | gate_open(event, view)
        if static.tiered:
            loading = event.runs.is_loading(view.row)
            eligible &= ~loading
            unloaded = view.waiting_mask & ~loading
        best = jnp.min(jnp.where(eligible, key, 2**31 - 1))
        slot = slot_with(eligible & (key == best), view.sequence)
        exists = jnp.any(eligible)
        column = event.column(slot)
        prompt, known = event.at(slots.prompt, slot), event.at(slots.known, slot)
        fresh, dead = jnp.bool_(False), jnp.bool_(False)

    state = event.state
    room_for_slot = (slot < static.num_slots) | ~exists
    may = exists & (inst.running < sched.max_num_seqs)
    if family == "static":
        may &= state.was_idle > 0
    if family in ("v1", "sarathi"):
        may &= (state.preempted == 0) & (state.budget > 0)

    expired = jnp.bool_(False)
    if static.timeouts:
        timeout = event.params.timeout_us[column[Col.KLASS]]
        arrived = relative_us(column[Col.ARRIVAL_EPOCH], column[Col.ARRIVAL_US], state.epoch)
        expired = ~dead & (timeout > 0) & (arrived + timeout <= event.now)
    hopeless = jnp.bool_(False)
    if static.scheduler.rejects_late:
        assert view.due is not None
        if (refuse := static.scheduler.refuse) is None:
            late = too_late(view.due, view.preempted_mask)
        else:
            assert sched.weights is not None
            late = refuse(sched.weights, view) & ~view.preempted_mask
        hopeless = exists & ~expired & jnp.any(late & (event.index == slot))
    gives_up = expired | hopeless
    row, tokens_known = column[Col.REQUEST], known
    if event.prefetch is not None:  # another turn is looked up, and nobody is admitted in this micro-step
        row = jnp.where(event.prefetch.active, event.prefetch.row, row)
        tokens_known = jnp.where(event.prefetch.active, event.requests.prompt_tokens[row], known)
    cached = event.kv.lookup(row, tokens_known)
    displaced = dropped_early = jnp.bool_(False)
    if static.scheduler.preemptive:
        may_displace = may_displace & active & exists & (state.preempted == 0) & jnp.any(event.running_mask)
        displaced = _displace(event, may_displace & ~gives_up, view, key, best, known, cached)
        dropped_early = may_displace & gives_up  # a candidate past its deadline goes when it is considered, here too
        may |= dropped_early
        state = event.state
    active = active & ~displaced

    # How many tokens, and do its blocks fit?
    found = offload.find(event, cached, tokens_known)
    hit_tokens = (cached.blocks + (found.blocks if found is not None else 0)) * static.block_size
    tokens = known - hit_tokens
    fits = jnp.bool_(True)
    whole = ceil_blocks(static, known)
    watermark = sched.watermark_blocks
    if family == "v1":
        if static.ordered_budget:
            tokens = jnp.where(state.threshold > 0, jnp.minimum(tokens, state.threshold), tokens)
        fits &= (sched.chunked_prefill > 0) | (tokens <= state.budget)
        tokens = jnp.minimum(tokens, state.budget)
        kept = jnp.where(inst.running > 0, watermark, 0)
        blocks = ceil_blocks(static, hit_tokens + tokens) - cached.blocks
        # Cached blocks that nobody holds count as free until they are taken.
        kept += cached.idle
        if static.pins:  # pins of others hold as long as anything runs
            kept += jnp.where(inst.running > 0, event.runs.pinned_blocks() - cached.pinned, 0)
        memory = blocks + kept <= inst.free
        memory &= (sched.reserve_full_isl == 0) | (whole - cached.blocks + kept <= inst.free)
        reserved = jnp.int32(0)
    elif family == "sarathi":
        tokens = jnp.minimum(known, state.budget)
        blocks = reserved = whole
        memory = blocks + watermark <= inst.free
    elif family == "v0":
        fits &= known <= state.budget
        blocks = reserved = whole
        memory = blocks + watermark <= inst.free
    else:
        blocks = reserved = ceil_blocks(static, sched.max_model_len)
        memory = blocks <= inst.free
    stays_out, no_memory = ~(memory & fits), ~memory
    if (head := static.scheduler.admit) is not None:
        memory &= _head_lets_in(event, head, column, known, prompt, cached) | (inst.running == 0)
        if head.stays_out:
            stays_out, no_memory = ~(memory & fits), ~memory
    if fcfs:  # in a row shorter than full; whatever else keeps a request out does so in full rows too
        short = active & may & ~dead & ~gives_up & fits & memory & ~room_for_slot
        event.state = state.replace(flags=state.flags | jnp.where(short, int(Flag.SLOTS_SHORT), 0))
    considered = active & may & ~dead & room_for_slot
    drops = active & may & gives_up
    admits = considered & ~gives_up & fits & memory
    pops_dead = active & may & dead
    loads = books_load = jnp.bool_(False)
    if found is not None:
        books_load = admits & (found.blocks > 0)
        loads = offload.load(event, admits, row, cached, found)
        admits &= ~loads
        unloaded &= ~((event.index == slot) & loads)

    _admit(event, slot, admits, fresh, column, prompt, cached, hit_tokens, tokens, blocks, reserved)
    _drop(event, slot, drops, hopeless, fresh, column, prompt)
    if fcfs:
        pop(event, admits | drops | pops_dead)
        slots.order = set_where((event.index == slot) & pops_dead, EMPTY, slots.order)
    event.note(
        admitted=jnp.where(admits, column[Col.REQUEST], -1),
        cached=hit_tokens,
        resumed=(~fresh if fcfs else column[Col.PREEMPTIONS] > 0).astype(jnp.int32),
        dropped=jnp.where(drops, column[Col.REQUEST], -1),
    )
    progress = admits | drops | pops_dead | loads
    state = event.state
    more = (inst.waiting > 0) & (inst.running < sched.max_num_seqs)
    if family in ("v1", "sarathi"):
        more &= state.budget > 0
    if fcfs:
        more &= inst.length > 0
    seats = inst.running >= sched.max_num_seqs
    if family == "static":
        seats |= state.was_idle == 0
    blocked = blocked_later = seats | ~room_for_slot
    if static.prefix_cache != "blocks":
        # (In a block table a running request's outputs may be the candidate's prompt: its hits can grow during a run.)
        waits = may & ~gives_up
        if static.gated:  # the gate may close before a new program, and so let another one be the candidate
            waits &= ~jnp.any(enters & (event.index == slot))
        blocked |= waits & stays_out
        blocked_later |= waits & no_memory  # (A step without prompts leaves more of the budget.)
        if static.tiered:  # what is on its way in comes at the end of a copy, which ends a run of steps
            blocked |= ~jnp.any(unloaded)
            blocked_later |= ~jnp.any(unloaded)
    if order is not None and not static.scheduler.static_keys:
        blocked = blocked_later = seats  # who comes next may change, but nobody can come
    displacing = displaced | dropped_early
    if static.dense:  # who comes in only after a load is no candidate any more
        more &= ~loads | jnp.any(unloaded)
        books_load = jnp.bool_(False)
    return (progress & more) | books_load | displacing, displacing, KeptOut(blocked, blocked_later)


def _admit(
    event: Event, slot, active, fresh, column, prompt, cached: Hit, hit_tokens, tokens, blocks, reserved
) -> None:
    static, slots, inst = event.static, event.slots, event.inst
    mask = (event.index == slot) & active
    caching = static.prefix_cache != "none"
    if caching:
        column = column.at[Col.LOST_TOKENS].add(-hit_tokens)
        event.kv.admit(slot, active, column[Col.REQUEST], cached, blocks)
    first = active & (column[Col.PREEMPTIONS] == 0)
    if static.scheduler.order is None:
        new = active & fresh
        place(event, slot, new, column, prompt, inst.admissions)
        event.write_column(slot, column, active if caching else new)
    elif caching:
        event.write_column(slot, column, active)
    if caching:
        slots.computed = set_where(mask, hit_tokens, slots.computed)
    slots.order = set_where(mask, inst.admissions, slots.order)
    slots.chunk = set_where(mask, tokens, slots.chunk)
    slots.last = set_where(mask, -1, slots.last)
    if static.reserves_blocks:
        slots.aux = set_where(mask, reserved, slots.aux)
    if event.kept is not None:
        slots.aux, event.kept = set_where(mask, 0, slots.aux), set_where(mask, 0, event.kept)
    inst.admissions = inst.admissions + active
    inst.free = inst.free - jnp.where(active, blocks + cached.idle, 0)
    inst.running = inst.running + active
    event.add_waiting(-1, active, prompt, column[Col.REQUEST])
    if event.service is not None:
        event.service.begin(slot, active, slots.known)
    event.charge_prompt(slot, first, column, prompt)
    if caching:
        event.cache_scheduled(active, slot)
    state = event.state
    event.state = state.replace(budget=state.budget - jnp.where(active, tokens, 0))
    if static.scheduler.family == "v0":
        event.state = event.state.replace(admitted=state.admitted + active.astype(jnp.int32))
    delay = event.since(event.now, column[Col.ARRIVAL_EPOCH], column[Col.ARRIVAL_US])
    event.tally.observe(Hist.QUEUE, column[Col.KLASS], delay, first & (event.measured(column) > 0))
    event.record(column[Col.REQUEST], first, first_scheduled=event.stamp(event.now))
    if caching:
        event.tally.count(Count.CACHED_TOKENS, jnp.where(active, hit_tokens, 0))
        _learn_from_wait(event, first, column, cached._replace(blocks=hit_tokens // static.block_size))
        if static.record:
            total = event.state.record.cached_total[column[Col.REQUEST]]
            event.record(column[Col.REQUEST], first, cached_first=hit_tokens)
            event.record(column[Col.REQUEST], active, cached_total=total + hit_tokens)


def _learn_from_wait(event: Event, first, column, cached: Hit) -> None:
    """Tell the retention policy how long a later turn waited whose context was gone (some of it, at least)."""
    static, head = event.static, event.static.scheduler.retain
    if not static.retains or head is None or head.readmitted is None:
        return
    later = event.requests.program[column[Col.REQUEST]] != column[Col.REQUEST]
    wait = event.since(event.now, column[Col.ARRIVAL_EPOCH], column[Col.ARRIVAL_US])
    wait_us = jnp.minimum(wait, FOREVER_US).astype(jnp.int32)
    evicted = first & later & ~event.runs.found_own(cached)
    event.state = event.state.replace(learned=head.readmitted(event.state.learned, wait_us, evicted))


def _drop(event: Event, slot, active, hopeless, fresh, column, prompt) -> None:
    """A waiting request whose deadline has passed, or cannot be met any more, leaves when it is considered."""
    static, slots = event.static, event.slots
    if not (static.timeouts or static.scheduler.rejects_late):
        return
    mask = (event.index == slot) & active & ~fresh
    slots.order = set_where(mask, EMPTY, slots.order)
    slots.known = set_where(mask, 0, slots.known)
    event.add_waiting(-1, active, prompt, column[Col.REQUEST])
    event.drop_work(active, prompt, column)
    event.tally.count(Count.TIMED_OUT, active & ~hopeless)
    if static.scheduler.rejects_late:
        event.tally.count(Count.REJECTED_LATE, active & hopeless)
    event.record(
        column[Col.REQUEST],
        active,
        fate=jnp.where(hopeless, Fate.REJECTED_LATE, Fate.TIMED_OUT).astype(jnp.int32),
        preemptions=column[Col.PREEMPTIONS],
        scheduled_tokens=column[Col.LOST_TOKENS],
    )


def _displace(event: Event, active, view: QueueView, key, best, known, cached: Hit) -> Bool[Array, ""]:
    """Preemptive orders: the worst running request makes room for a strictly better waiting one.

    Only for one that cannot be admitted otherwise.
    """
    sched, inst = event.params.scheduler, event.inst
    running = event.running_mask
    worst = jnp.max(jnp.where(running, key, -(2**31)))
    victim = slot_with(running & (key == worst), event.slots.order, largest=True)
    needed = ceil_blocks(event.static, known) - cached.blocks + cached.idle
    free = inst.free
    if event.static.tiered:  # blocks that copies will set free need no victim
        free += event.runs.leaving_blocks() - cached.copying
    blocked = (inst.running >= sched.max_num_seqs) | (needed > free)
    displaces = active & blocked & (worst > best) & jnp.any(running)
    preempt(event, victim, displaces, memory=False)
    return displaces
