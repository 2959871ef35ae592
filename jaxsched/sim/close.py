"""End of schedule(): the step (or the run of decode steps) is timed, and the tokens it will yield are booked."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxsched.metrics.histogram import bin_end_us, bin_of
from jaxsched.sim import offload
from jaxsched.sim.admission import KeptOut
from jaxsched.sim.clock import NEVER_US
from jaxsched.sim.compress import evicts_in
from jaxsched.sim.event import Event, ceil_blocks, count, set_where, slot_with
from jaxsched.sim.leave import RUN_BINS, add_area
from jaxsched.sim.rows import earliest
from jaxsched.sim.speculate import step_drafts_us
from jaxsched.sim.state import Col, Count, Flag, Hist
from jaxsched.timing.step_time import constant_us, context_us, prefill_quad, quad_us

#: Longest that the steps behind the first of a run may take together (the first: scenario.py).
LONGEST_REST_US = 2**28
#: Steps of a run are summed up in blocks of so many.
BLOCK = 16


def close_step(event: Event, active: Bool[Array, ""], kept_out: KeptOut) -> Bool[Array, ""]:
    """Form the step from the scheduled tokens. Returns whether anything was scheduled.

    A step after which all running requests decode (a pure decode step, or one that finishes prompts) becomes a run with
    as many of the decode steps behind it as cannot differ: up to the first finish, while every block that the run can
    need is free, and only if no waiting request could be admitted before a finish. So does a step in which one prompt
    takes what decodes leave of the token budget, up to the last that does.
    """
    static, params, slots, inst, state = event.static, event.params, event.slots, event.inst, event.state
    asynchronous = static.scheduler.asynchronous
    tokens = slots.chunk
    before = slots.computed
    scheduled = tokens > 0
    decode = (tokens == 1) & (before > 0)
    if static.scheduler.speculates:  # a row that verifies drafts reads its context once, like a decode
        decode |= before + tokens > slots.known
    prefill = scheduled & ~decode
    total = jnp.sum(tokens)
    num_decode, num_prefill = count(decode), count(prefill)
    decode_ctx = jnp.sum(jnp.where(decode, before + 1, 0))
    if static.scheduler.compress is not None:  # evicted tokens are not read (and prefilled rows have none yet)
        decode_ctx -= jnp.sum(jnp.where(decode, slots.aux, 0))
    prefill_tokens = total - num_decode
    if static.scheduler.speculates:
        decode_ctx = jnp.sum(jnp.where(decode, before + tokens, 0))
        prefill_tokens = jnp.sum(jnp.where(prefill, tokens, 0))
    prefill_ctx = jnp.sum(jnp.where(prefill, before + tokens, 0))
    quad = jnp.sum(jnp.where(prefill, prefill_quad(tokens, before), 0))
    formed = active & (total > 0)

    after = before + tokens
    emit = scheduled & (after >= slots.known if static.scheduler.speculates else after == slots.known)
    num_emit = count(emit)

    # How many such steps in a row?
    k = static.run_steps
    longest = jnp.int32(1)
    if k > 1:
        # (Without mixed runs the step of a first token stands alone, also where the last chunk is of one token.)
        steps_left = slots.goal - slots.known
        if not static.mixed_runs:
            steps_left = jnp.where(slots.known > slots.prompt, steps_left, 1)
        finish_in = earliest(emit, steps_left)
        # Any block_size consecutive steps take exactly one block of each request.
        spare = inst.free - (1 if static.scheduler.family in ("sarathi", "v0") else 0)
        if static.ranks:  # no step of a run evicts a context: which one changes with time
            spare -= event.runs.kept_blocks()
        elif static.pins:  # no step of a run breaks a pin
            spare -= event.runs.pinned_blocks()
        memory_in = 1 + static.block_size * jnp.maximum(spare // jnp.maximum(num_emit, 1), 0)
        if static.scheduler.family in ("orca", "static"):
            memory_in = jnp.int32(k)
        if static.scheduler.compress is not None:
            finish_in = jnp.minimum(finish_in, evicts_in(event, decode))
        pure = (num_prefill == 0) & (state.preempted == 0) & (num_emit == num_decode)
        quiet = inst.waiting == 0
        moves = static.scheduler.preemptive and not static.scheduler.static_keys
        if not (static.timeouts or static.scheduler.rejects_late or moves):
            quiet |= kept_out.now
        if not static.scheduler.asynchronous and static.scheduler.family != "v0":
            pure &= num_decode == inst.running
        if static.mixed_runs:
            mixed, quiet_later = (num_emit == inst.running) & (state.preempted == 0), inst.waiting == 0
            if not (static.timeouts or static.scheduler.rejects_late or static.scheduler.preemptive):
                quiet_later |= kept_out.later  # (A preemptive order may displace for the next call's best candidate.)
            pure &= ~jnp.any(emit & (slots.known == slots.prompt))  # (a last prompt chunk of one token is no decode)
            plain, quiet, pure = pure, jnp.where(pure, quiet, quiet_later), pure | mixed
        if static.chunk_runs:
            # A prompt that takes all the budget that decodes leave does so until its last chunk, and nobody comes in.
            filling = (num_prefill == 1) & (num_emit == num_decode) & (num_decode + 1 == inst.running)
            filling &= (state.budget == 0) & (state.preempted == 0)
            if static.scheduler.preemptive or not static.scheduler.static_keys:
                filling &= inst.waiting == 0
            chunks = (jnp.sum(jnp.where(prefill, slots.known - before, 0)) - 1) // jnp.maximum(prefill_tokens, 1)
            step_blocks = num_decode + ceil_blocks(static, prefill_tokens)
            chunks_in = jnp.minimum(chunks, 1 + jnp.maximum(spare, 0) // jnp.maximum(step_blocks, 1))
            memory_in, pure, quiet = jnp.where(filling, chunks_in, memory_in), pure | filling, quiet | filling
        if static.mixed_runs and static.pins_prefixes:
            # The next call lets go of a prefix whose last pinned context has been admitted.
            pure &= plain | ~event.runs.pins_a_prefix()
        longest = jnp.where(pure & quiet, jnp.clip(jnp.minimum(finish_in, memory_in), 1, k), 1)
        if static.timeouts:
            longest = jnp.where(jnp.any(params.timeout_us > 0), 1, longest)
    timing = event.timing
    constant = constant_us(timing, total, num_prefill, prefill_tokens, quad, num_decode)
    ctx = decode_ctx + timing.prefill_in_ctx * prefill_ctx
    step = _folded(jnp.arange(k, dtype=jnp.int32))
    if static.scheduler.speculates:
        constant += step_drafts_us(event, jnp.where(scheduled, jnp.maximum(after - slots.known, 0), 0))
    if static.mixed_runs:  # the first step, then decodes of all who get a token
        first_us = constant + context_us(timing, ctx)
        none = 0 * num_emit
        constant = constant_us(timing, num_emit, none, none, none, num_emit)
        contexts, quads_us = (jnp.sum(jnp.where(emit, after, 0)), num_emit), jnp.int32(0)
        if static.chunk_runs:  # ... or further chunks of the same prompt
            filled = constant_us(timing, total, num_prefill, prefill_tokens, 0 * quad, num_decode)
            constant = jnp.where(filling, filled, constant)
            grown = (ctx, num_decode + timing.prefill_in_ctx * prefill_tokens)
            contexts = tuple(jnp.where(filling, new, old) for new, old in zip(grown, contexts, strict=True))
            begun = jnp.sum(jnp.where(prefill, before, 0)) + jnp.minimum(step, chunks - 1) * prefill_tokens
            quads_us = quad_us(timing, jnp.where(filling, prefill_tokens, 0), begun)
        behind_us = constant + quads_us + context_us(timing, contexts[0] + step * contexts[1])
        durations = jnp.maximum(jnp.where(step == 0, first_us, behind_us), 1)
        longest = jnp.minimum(longest, 1 + LONGEST_REST_US // durations[-1, -1])
    else:
        durations = jnp.maximum(constant + context_us(timing, ctx + step * num_decode), 1)
    start = jnp.maximum(event.now, inst.end_last) if asynchronous else event.now
    start = jnp.where(inst.in_flight > 0, start, event.now) if asynchronous else start
    if static.tiered:
        start = jnp.maximum(start, event.tiers.stall)
        event.tally.count(Count.STALL_US, jnp.where(formed, start - event.now, 0))
    within = jax.lax.cumsum(durations, axis=1)
    blocks = within[:, -1]
    ends = within + (start + jax.lax.cumsum(blocks) - blocks)[:, None]
    if k > 1:  # the gaps of a run lie in few bins (taken from the sums: XLA would compute the durations once more)
        second = within[0, 1] - within[0, 0]
        limit = bin_end_us(bin_of(second.astype(jnp.float32)) + (RUN_BINS - 1))
        inner, outer = within[:, 1:] - within[:, :-1], within[1:, 0]
        below = lambda gaps: jnp.sum((gaps.astype(jnp.float32) < limit).astype(jnp.int32))
        longest = jnp.minimum(longest, 1 + below(inner) + below(outer))
    if static.retains and k > 1:  # ... nor begins after the end of one
        expiry = event.runs.next_expiry(*event.stamp(event.now))
        expiry = jnp.where(expiry == NEVER_US, NEVER_US, expiry - event.stamp(event.now)[1] + event.now)
        longest = jnp.minimum(longest, 1 + jnp.sum((ends <= expiry).astype(jnp.int32)))
    if static.tiered and k > 1:  # ... nor begins once a copy has ended, if that matters
        taken = num_emit * ((longest + static.block_size - 2) // static.block_size)
        if static.chunk_runs:
            taken = jnp.where(filling, (longest - 1) * step_blocks, taken)
        wake = offload.next_wake(event, taken)
        longest = jnp.minimum(longest, 1 + jnp.sum((ends < wake).astype(jnp.int32)))
    ends = jnp.where(step < longest, ends, NEVER_US)
    first_end = ends[0, 0]
    last_end = jnp.max(jnp.where(step < longest, ends, 0))

    slots.computed = jnp.where(formed, after, slots.computed)
    slots.chunk = jnp.where(formed, jnp.where(emit, tokens, -tokens), slots.chunk)
    first_wrapped = event.wrapped(first_end)
    known_tokens = slots.known - slots.prompt  # outputs before this step
    bulk = emit & decode & (slots.last == inst.token_time) & (slots.last >= 0)
    gap = (first_wrapped - inst.token_time) & (2**31 - 1)
    num_bulk = count(bulk)
    seconds = count(bulk & (known_tokens == 1))
    event.tally.observe(Hist.TTST, 0, gap.astype(jnp.float32), jnp.where(formed, seconds, 0))
    if event.late is not None:
        event.note_gap(formed & bulk, gap)
    slots.last = set_where(formed & bulk, first_wrapped, slots.last)
    if asynchronous:
        slots.known = jnp.where(formed & emit, slots.known + 1, slots.known)
        slots.aux = jnp.where(formed & emit, inst.steps + 1, slots.aux)
        event.tally.observe(Hist.TBT, 0, gap.astype(jnp.float32), jnp.where(formed, num_bulk, 0))
        event.tally.count(Count.ENGINE_STEPS, formed)
        event.tally.count(Count.OUTPUT_TOKENS, jnp.where(formed, num_emit, 0))
        event.tally.count(Count.BUSY_US, jnp.where(formed, first_end - start, 0))
        add_area(event, jnp.where(formed, first_end - start, 0))
        event.serve_outputs((formed & emit).astype(jnp.int32))
    event.tally.count(Count.SCHEDULED_TOKENS, jnp.where(formed, total, 0))

    # v0's prefill-only steps leave the decodes' last token where it was.
    decodes_paused = jnp.bool_(False)
    if static.scheduler.family == "v0":
        decodes_paused = (num_decode == 0) & (inst.running > num_prefill)
    inst.token_time = jnp.where(formed & ~decodes_paused, first_wrapped, inst.token_time)
    inst.bulk = jnp.where(formed, num_bulk, inst.bulk)
    inst.bulk_gap = jnp.where(formed, jnp.where(decodes_paused, -1, gap), inst.bulk_gap)
    inst.emits = jnp.where(formed, num_emit, inst.emits)
    inst.run_start = jnp.where(formed, start, inst.run_start)
    inst.steps = inst.steps + formed
    event.note(
        closed=active, formed=formed, total=total, ctx=decode_ctx + prefill_ctx, start=start, end=first_end,
        tokens=tokens, free=inst.free, waiting=inst.waiting, running=inst.running,
    )  # fmt: skip

    state = event.state
    if asynchronous:
        queued = inst.in_flight
        upcoming = jnp.where(queued == 0, first_end, state.next_event[event.m])
        inst.end_last = jnp.where(formed, first_end, inst.end_last)
        inst.in_flight = inst.in_flight + formed
        nothing = active & ~formed & (inst.in_flight == 0) & (state.preempted == 0)
        # An event takes the end of the older step; `next_event` then holds the younger one's.
        next_time = jnp.where(formed, upcoming, jnp.where(nothing, NEVER_US, state.next_event[event.m]))
    else:
        inst.in_flight = jnp.where(formed, 1, inst.in_flight)
        nothing = active & ~formed & (state.preempted == 0)
        next_time = jnp.where(formed, last_end, jnp.where(nothing, NEVER_US, state.next_event[event.m]))
        if static.tiered:  # those who wait may go on when a copy ends
            wake = offload.idle_wake(event)
            next_time = jnp.where(nothing, wake, next_time)
            nothing &= wake == NEVER_US
    stuck = nothing & (inst.running == 0) & (inst.waiting > 0)
    m_if = jnp.where(active, event.m, static.num_instances)
    event.state = state.replace(
        next_event=state.next_event.at[m_if].set(next_time, mode="drop"),
        run_ends=state.run_ends.at[jnp.where(formed, event.m, static.num_instances)].set(ends.reshape(-1), mode="drop"),
        flags=state.flags | jnp.where(stuck, int(Flag.STUCK), 0),
    )
    if static.keeps_run_blocks:
        used = params.usable_blocks[event.m] - inst.free
        grows = emit if static.mixed_runs else emit & decode
        ahead = slots.computed[None, :] + step.reshape(-1)[:, None] * grows[None, :]
        grown = jnp.sum(event.held_blocks(ahead, slots.aux) - event.held_blocks(slots.computed, slots.aux), axis=1)
        where = jnp.where(formed, event.m, static.num_instances)
        event.state = event.state.replace(run_used=event.state.run_used.at[where].set(used + grown, mode="drop"))
    return formed


def drain_token(event: Event, active: Bool[Array, ""]) -> Bool[Array, ""]:
    """Book one token whose gap is its own: a first token, or the first after a preemption or a pause.

    Returns whether more wait.
    """
    static, slots, inst, tally = event.static, event.slots, event.inst, event.tally
    end = inst.end_last if static.scheduler.asynchronous else event.state.run_ends[event.m][0]
    end_wrapped = event.wrapped(end)
    pending = (slots.chunk > 0) & (slots.last != end_wrapped) & event.running_mask
    num_pending = count(pending)
    slot = slot_with(pending, slots.order)
    here = active & (num_pending > 0)
    column = event.column(slot)
    outputs = event.at(slots.known, slot) - event.at(slots.prompt, slot)
    if static.scheduler.asynchronous:
        outputs = outputs - 1
    first = here & (outputs == 0)
    klass = column[Col.KLASS]
    measured = event.measured(column) > 0
    ttft = event.since(end, column[Col.ARRIVAL_EPOCH], column[Col.ARRIVAL_US])
    tally.observe(Hist.TTFT, klass, ttft, first & measured)
    last = event.at(slots.last, slot)
    gap = jnp.where(
        last < 0,
        event.since(end, column[Col.LAST_EPOCH], column[Col.LAST_US]),
        ((end_wrapped - last) & (2**31 - 1)).astype(jnp.float32),
    )
    tally.observe(Hist.TBT, 0, gap, here & ~first)
    if event.late is not None:
        event.note_gap((event.index == slot) & here & ~first, gap)
    tally.observe(Hist.TTST, 0, gap, here & (outputs == 1))
    event.write_column(slot, column.at[Col.TTFT_US].set(_saturated(ttft, event, end, column)), first)
    event.record(column[Col.REQUEST], first, first_token=event.stamp(end))
    slots.last = set_where((event.index == slot) & here, end_wrapped, slots.last)
    return active & (num_pending > 1)


def _saturated(ttft, event: Event, end, column) -> Int[Array, ""]:
    """Integer TTFT, exact below 2^30 us, else the float's nearest, at most 2^31 - 128."""
    exact = ((event.state.epoch - column[Col.ARRIVAL_EPOCH]) << 30) + (end - column[Col.ARRIVAL_US])
    return jnp.where(ttft < 2.0**30, exact, jnp.minimum(ttft, 2.0**31 - 256).astype(jnp.int32))


def _folded(steps: Int[Array, " k"]) -> Int[Array, "b w"]:
    """What is said of each step of a run, in blocks: XLA:CPU sums up so, and passes divide no indices then."""
    return steps.reshape(-1, BLOCK if steps.shape[0] % BLOCK == 0 else steps.shape[0])
