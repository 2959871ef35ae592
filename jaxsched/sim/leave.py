"""Start of an instance event: book the run that ended, then let finished (and expired) requests leave.

One request per micro-step.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxsched.metrics.histogram import NUM_BINS, bin_end_us, bin_of
from jaxsched.sim import offload, semantic
from jaxsched.sim.admit import learn_length
from jaxsched.sim.arrivals import hash_bits
from jaxsched.sim.clock import add_us, relative_us
from jaxsched.sim.compress import book_quality, compress
from jaxsched.sim.event import Event, count, set_where, slot_with
from jaxsched.sim.fair import Who
from jaxsched.sim.graph import finish_turn
from jaxsched.sim.kv import Pin
from jaxsched.sim.paused import put
from jaxsched.sim.retain import PauseView, deadline, reload_time_us
from jaxsched.sim.speculate import book_outputs
from jaxsched.sim.state import DEAD, EMPTY, Col, Count, Fate, Flag, Hist
from jaxsched.sim.tiers import transfer_us

#: Gaps of a run lie in so many neighbouring bins: a run ends before one that does not (each step's context is longer
#: than that of the one before, so gaps grow, by some percent in a long run; a bin is 1.6 to 3.1 % wide).
RUN_BINS = 4


def book_run(event: Event, begin: Bool[Array, ""]) -> None:
    """Give the requests of the run that ended at `now` their tokens and book its inter-token gaps.

    A run is `k` engine steps with the same decode batch; `k` is read off the planned step ends, so a run cut short by
    an arrival needs nothing else. Asynchronous engines book everything when a step is scheduled, and only count it out
    here.
    """
    static, slots, inst, now = event.static, event.slots, event.inst, event.now
    ended = begin & (inst.in_flight > 0)
    event.note(ended=ended)
    if static.scheduler.asynchronous:
        inst.in_flight = inst.in_flight - ended
        slots.chunk = jnp.where(begin, 0, slots.chunk)
        event.sample_ledger(begin)
        return
    ends = event.state.run_ends[event.m]
    done = ended & (ends <= now)
    k = count(done)
    emit = (slots.chunk > 0) & ended
    before = event.held_blocks(slots.computed, slots.aux)
    num_first = count(emit & (slots.known == slots.prompt))  # of a run that began with a step that finished prompts
    more = jnp.where(emit, k - 1, 0)
    if static.chunk_runs:
        more += jnp.where((slots.chunk < 0) & ended, -slots.chunk * (k - 1), 0)
    if static.scheduler.speculates:  # the KV of rejected drafts is not computed any more; their blocks stay
        outputs = book_outputs(event, emit)
        slots.computed = jnp.where(emit, slots.known + outputs - 1, slots.computed)
    else:
        slots.computed = slots.computed + more
        outputs = jnp.where(emit, k, 0)
    slots.known = slots.known + outputs
    grown = jnp.sum(event.held_blocks(slots.computed, slots.aux) - before) if static.run_steps > 1 else jnp.int32(0)
    inst.free = inst.free - grown
    event.kv.take(grown)
    event.serve_outputs(outputs)
    if static.scheduler.compress is not None:
        compress(event, emit)
    event.sample_ledger(begin)
    slots.last = set_where(emit, event.wrapped(now), slots.last)
    slots.chunk = jnp.where(begin, 0, slots.chunk)
    inst.in_flight = jnp.where(ended, 0, inst.in_flight)
    inst.token_time = jnp.where(ended & (inst.emits > 0) & (inst.bulk_gap >= 0), event.wrapped(now), inst.token_time)

    first = jnp.maximum(inst.bulk_gap, 0).astype(jnp.float32)
    event.tally.observe(Hist.TBT, 0, first, jnp.where(ended & (ends[0] <= now), inst.bulk, 0))
    if static.run_steps > 1:
        gaps = ends[1:] - ends[:-1]
        values = gaps.astype(jnp.float32)
        near = bin_of(jnp.maximum(values[0], 0.0)) + jnp.arange(RUN_BINS, dtype=jnp.int32)
        below = jnp.sum((done[1:] & (values < bin_end_us(near)[:, None])).astype(jnp.int32), axis=1)
        steps = jnp.diff(below, prepend=0)
        event.tally.observe_bins(Hist.TBT, 0, jnp.minimum(near, NUM_BINS - 1), steps * inst.emits)
    if static.mixed_runs:
        event.tally.observe(Hist.TTST, 0, jnp.maximum(values[0], 0.0), jnp.where(done[1], num_first, 0))
    if event.late is not None and static.run_steps > 1:  # the first gap of a run was noted when it was formed
        event.note_gap(emit, jnp.max(jnp.where(done[1:], gaps, 0)))
    busy = jnp.where(ended, now - inst.run_start, 0)
    event.tally.count(Count.BUSY_US, busy)
    event.tally.count(Count.ENGINE_STEPS, k)
    event.tally.count(Count.OUTPUT_TOKENS, jnp.sum(outputs) if static.scheduler.speculates else k * inst.emits)
    event.tally.count(Count.SCHEDULED_TOKENS, jnp.sum(more))
    passed = jnp.float32(0.0)
    if static.tiered and static.run_steps > 1:
        passed = jnp.where(ended, offload.passed_copies(event, ends), 0.0)
    if static.mixed_runs:  # a first step in which some have a gap of their own takes as long as it takes
        mixed = ended & (inst.bulk < inst.emits)
        first_us = jnp.minimum(ends[0], now) - inst.run_start
        longer = first_us.astype(jnp.float32) - (busy - first_us).astype(jnp.float32) / jnp.maximum(k - 1, 1)
        passed += jnp.where(mixed, 0.5 * grown.astype(jnp.float32) * longer, 0.0)
    add_area(event, busy, grown, passed)


def add_area(
    event: Event, duration_us: Int[Array, ""], grown: Int[Array, ""] | int = 0, freed: Float[Array, ""] | float = 0.0
) -> None:
    """Time integrals of batch and KV occupancy (float32, folded into a compensated sum between chunks).

    Blocks that a run took on its way (`grown`) count for half of it: they are taken at a steady pace. `freed`: blocks x
    us by which the blocks used now are too many.
    """
    metrics, inst = event.state.metrics, event.inst
    used = (event.params.usable_blocks[event.m] - inst.free).astype(jnp.float32) - 0.5 * grown
    duration = duration_us.astype(jnp.float32)
    step = jnp.stack([inst.running.astype(jnp.float32) * duration, used * duration - freed])
    event.state = event.state.replace(metrics=metrics.replace(area=metrics.area.at[:, 1].add(step)))


def let_one_leave(event: Event, active: Bool[Array, ""]) -> Bool[Array, ""]:
    """Free the next finished or expired request. Returns whether more must leave before schedule() is called."""
    static, slots, inst = event.static, event.slots, event.inst
    complete = slots.known == slots.goal
    if static.scheduler.asynchronous:
        # Only outputs of steps that have ended are known; a preempted request may finish while it waits.
        finished = complete & (slots.order != DEAD) & (slots.order != EMPTY)
        finished &= slots.aux <= inst.steps - inst.in_flight
    else:
        finished = complete & event.running_mask
    leaving = finished
    num_finished = count(finished)
    if static.timeouts:
        expired = event.running_mask & ~finished & has_expired(event)
        leaving = jnp.where(num_finished > 0, finished, expired)
        num_finished_or_expired = num_finished + count(expired)
    else:
        num_finished_or_expired = num_finished
    slot = slot_with(leaving, slots.order)
    here = active & (num_finished_or_expired > 0)
    is_finish = here & (num_finished > 0)
    mask = (event.index == slot) & here

    column, prompt = event.column(slot), event.at(slots.prompt, slot)
    held = event.held_blocks(event.at(slots.computed, slot), event.at(slots.aux, slot))
    gone_order = jnp.int32(EMPTY)
    was_running = here
    if static.scheduler.asynchronous:
        # It may have been preempted meanwhile; then its FIFO entry is removed when it comes to the head.
        was_running = here & (event.at(slots.order, slot) >= 0)
        event.add_waiting(-1, here & ~was_running, prompt, column[Col.REQUEST])
        if static.scheduler.order is None:
            gone_order = jnp.where(was_running, EMPTY, DEAD)
    pin = _pin(event, slot, column, is_finish)
    copies = is_finish & (pin.copy if pin is not None else False)
    inst.free = inst.free + offload.leave(event, slot, was_running, held, pin, jnp.bool_(copies))
    inst.running = inst.running - was_running
    event.drop_work(here, prompt, column)
    scheduled = event.at(slots.computed, slot) + column[Col.LOST_TOKENS]
    slots.order = set_where(mask, gone_order, slots.order)
    slots.computed = set_where(mask, 0, slots.computed)
    slots.known = set_where(mask, 0, slots.known)
    slots.chunk = set_where(mask, 0, slots.chunk)
    if static.reserves_blocks:
        slots.aux = set_where(mask, 0, slots.aux)

    if static.scheduler.compress is not None:
        book_quality(event, slot, column[Col.REQUEST], is_finish, hash_bits)
    book_leaving(event, column, is_finish, None if event.late is None else event.at(event.late, slot))
    if event.service is not None:
        program = event.requests.program[column[Col.REQUEST]]
        event.service.finish(slot, is_finish, program, (column[Col.ARRIVAL_EPOCH], column[Col.ARRIVAL_US]))
    if event.fair is not None:
        output = column[Col.OUTPUT]
        who = Who(column[Col.KLASS], prompt, column[Col.PREDICTED], output, event.at(event.fair.tag, slot))
        event.fair.finish(is_finish, who)
    event.tally.count(Count.TIMED_OUT, here & ~is_finish)
    event.record(
        column[Col.REQUEST],
        here,
        fate=jnp.where(is_finish, Fate.FINISHED, Fate.TIMED_OUT).astype(jnp.int32),
        finish=tuple(jnp.where(is_finish, t, -1) for t in event.stamp(event.now)),
        preemptions=column[Col.PREEMPTIONS],
        scheduled_tokens=scheduled,
    )
    if static.timeouts and static.scheduler.asynchronous and static.record:
        # An aborted request's token in flight is never delivered.
        first = event.state.record.first_token[column[Col.REQUEST]]
        undelivered = here & ~is_finish & (event.since(event.now, first[0], first[1]) < 0)
        event.record(column[Col.REQUEST], undelivered, first_token=(jnp.int32(-1), jnp.int32(-1)))
    event.note(finished=jnp.where(is_finish, column[Col.REQUEST], -1), left=jnp.where(here, column[Col.REQUEST], -1))
    event.note(leaving=active, free_left=inst.free)
    if event.state.lengths is not None:
        lengths = learn_length(event.state.lengths, event.m, column[Col.OUTPUT], is_finish)
        event.state = event.state.replace(lengths=lengths)
    if event.state.semantic is not None:
        _keep_answer(event, column, is_finish)
    pause_program(event, column, is_finish)
    return active & (num_finished_or_expired > 1)


def _keep_answer(event: Event, column: Int[Array, " 16"], is_finish: Bool[Array, ""]) -> None:
    """The semantic cache in front keeps what the engine has answered."""
    row, params = column[Col.REQUEST], event.params
    assert event.state.semantic is not None
    word = hash_bits(params.seed, row, semantic.DRAW)
    tick = semantic.tick_of(*event.stamp(event.now))
    kept = semantic.keep(params.semantic, event.state.semantic, is_finish, (column[Col.KLASS], row, word), tick)
    event.state = event.state.replace(semantic=kept)


def _pin(event: Event, slot: Int[Array, ""], column: Int[Array, " 16"], is_finish: Bool[Array, ""]) -> Pin | None:
    """What the retention policy decides about the context of a program that pauses now."""
    static, requests = event.static, event.requests
    if not (static.pins or static.gated):
        return None
    row = column[Col.REQUEST]
    turn = requests.row(row)
    heir, owner = turn.next_turn, turn.program
    if static.graphs:  # a pin is of a chain, whatever else of the program is live
        assert requests.heir is not None and turn.chain is not None
        heir, owner = requests.heir[row], turn.chain
    following = jnp.where(is_finish, heir, -1)
    next_row = jnp.maximum(following, 0)
    after = requests.row(next_row)
    assert turn.chain is not None and turn.group is not None and turn.group_tokens is not None
    goes_on = (following >= 0) & (after.chain == turn.chain)  # else the history is cut: nothing of it comes again
    ttl_us, copy = jnp.int32(0), jnp.bool_(False)
    head, rule = static.scheduler.retain, static.scheduler.offload
    if head is not None or static.tiered:
        group_blocks = jnp.where(turn.group >= 0, turn.group_tokens // static.block_size, 0)
        computed = turn.prompt_tokens + turn.output_tokens - 1
        own = jnp.maximum(computed // static.block_size - group_blocks, 0) * static.block_size
        reload_us, load_us = reload_time_us(event.timing, own), jnp.int32(0)
        if static.tiered:
            load_us, _ = transfer_us(event.tiers.params.host_in, own // static.block_size)
            reload_us = jnp.minimum(reload_us, load_us)
        running = event.running_mask & (event.index != slot)
        view = PauseView(
            program=turn.program,
            tool=jnp.int32(0) if after.tool is None else after.tool,
            context_tokens=own,
            recompute_us=reload_time_us(event.timing, own),
            reload_us=reload_us,
            turn=jnp.int32(1) if requests.turn is None else requests.turn[row] + 1,
            first_prompt_tokens=requests.prompt_tokens[turn.program],
            load_us=load_us,
            running=count(running),
            running_tokens=jnp.sum(jnp.where(running, event.slots.computed, 0)),
            pool_tokens=event.params.usable_blocks[event.m] * static.block_size,
            pause_epoch=after.pause_epoch,
            pause_us=after.pause_us,
        )
        known = (event.params.scheduler.of_retain(), event.state.learned, view)
        ttl_us = jnp.int32(0) if head is None else head.ttl(*known)
        if static.tiered:
            always = event.tiers.params.on_pause > 0
            copy = goes_on & (always if rule is None or rule.copies is None else rule.copies(*known))
            if rule is not None and rule.returns_in is not None:
                offload.plan_prefetch(event, is_finish & copy, following, rule.returns_in(*known), load_us)
    epoch, us = deadline(*event.stamp(event.now), ttl_us)
    none = jnp.int32(-1)
    ends = jnp.where(ttl_us > 0, epoch, none)
    return Pin(jnp.where(goes_on, following, none), owner, ends, us, *event.stamp(event.now), copy)


def has_expired(event: Event) -> Bool[Array, " s"]:
    """Whether each slot's request is past its deadline."""
    timeout = event.params.timeout_us[event.column_of(Col.KLASS)]
    arrived = relative_us(event.column_of(Col.ARRIVAL_EPOCH), event.column_of(Col.ARRIVAL_US), event.state.epoch)
    return (timeout > 0) & (arrived + timeout <= event.now)


def book_leaving(
    event: Event, column: Int[Array, " 16"], is_finish: Bool[Array, ""], late: Int[Array, ""] | None
) -> None:
    """Request-level measurements of a finished request (`late`: 1 if a gap was beyond its class's limit)."""
    params, tally, now = event.params, event.tally, event.now
    klass, output = column[Col.KLASS], column[Col.OUTPUT].astype(jnp.float32)
    ttft = column[Col.TTFT_US].astype(jnp.float32)
    e2e = event.since(now, column[Col.ARRIVAL_EPOCH], column[Col.ARRIVAL_US])
    tpot = jnp.maximum(e2e - ttft, 0.0) / jnp.maximum(output - 1.0, 1.0)
    measured = is_finish & (event.measured(column) > 0)
    has_gaps = column[Col.OUTPUT] > 1
    tally.count(Count.FINISHED, is_finish)
    tally.observe(Hist.E2E, klass, e2e, measured)
    tally.observe(Hist.TPOT, klass, tpot, measured & has_gaps)
    tally.observe(Hist.NORMALISED, klass, e2e / output, measured)
    good = measured & (ttft <= params.slo_ttft_us[klass].astype(jnp.float32))
    good &= ~has_gaps | (tpot <= params.slo_tpot_us[klass].astype(jnp.float32))
    good &= e2e <= params.slo_e2e_us[klass].astype(jnp.float32)
    if late is not None:
        good &= late == 0
    is_class = jnp.arange(event.static.num_classes) == klass
    metrics = event.state.metrics
    event.state = event.state.replace(
        metrics=metrics.replace(
            class_finished=metrics.class_finished + (is_class & measured),
            class_good=metrics.class_good + (is_class & good),
        )
    )


def pause_program(event: Event, column: Int[Array, " 16"], is_finish: Bool[Array, ""]) -> None:
    """Schedule the return of the program's next turn (of a graph: the turns that are ready now), or book it as done."""
    requests, now = event.requests, event.now
    if not event.static.num_paused:
        event.tally.count(Count.PROGRAMS_DONE, is_finish)
        return
    if event.static.graphs:
        program = (column[Col.PROGRAM_EPOCH], column[Col.PROGRAM_US])
        row, stamp = column[Col.REQUEST], event.stamp(now)
        event.state, ends = finish_turn(requests, event.state, row, stamp, program, event.m, is_finish)
        _book_program(event, column, ends)
        return
    following = requests.row(column[Col.REQUEST]).next_turn
    _book_program(event, column, is_finish & (following < 0))

    turn = requests.row(jnp.maximum(following, 0))
    time = add_us(*event.stamp(now), turn.pause_epoch, turn.pause_us)
    program = (column[Col.PROGRAM_EPOCH], column[Col.PROGRAM_US])
    state, returns = event.state, is_finish & (following >= 0)
    paused, lost = put(state.paused, state.epoch, returns, following, time, program, event.m)
    flags = state.flags | jnp.where(lost, int(Flag.PAUSED_OVERFLOW), 0)
    event.state = state.replace(paused=paused, flags=flags)


def _book_program(event: Event, column: Int[Array, " 16"], ends: Bool[Array, ""]) -> None:
    """Measurements of a program that ends with this turn, and what the retention rule learns from it."""
    static, head = event.static, event.static.scheduler.retain
    requests, row = event.requests, column[Col.REQUEST]
    if static.retains and head is not None and head.completed is not None and requests.turn is not None:
        turns = requests.turn[row] + 1
        if static.graphs:  # the last to finish need not be the last of the table
            assert requests.needed is not None
            turns = requests.needed[requests.program[row]]
        learned = head.completed(event.params.scheduler.of_retain(), event.state.learned, turns, ends)
        event.state = event.state.replace(learned=learned)
    measured = ends & (event.measured(column) > 0)
    jct = event.since(event.now, column[Col.PROGRAM_EPOCH], column[Col.PROGRAM_US])
    event.tally.count(Count.PROGRAMS_DONE, ends)
    event.tally.observe(Hist.JCT, column[Col.KLASS], jct, measured)
