"""Arrivals: the next program or returning turn is routed, tested, and put into its instance's FIFO."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxsched.sim import ledger as books
from jaxsched.sim import paused as paused_turns
from jaxsched.sim import semantic, sent
from jaxsched.sim.clock import EPOCH_BITS, EPOCH_US, NEVER_US, add_us, relative_us
from jaxsched.sim.event import Tally, ceil_blocks
from jaxsched.sim.graph import arrive_turn
from jaxsched.sim.kv.seen import Seen, look, matched_blocks
from jaxsched.sim.params import SimParams
from jaxsched.sim.requests import Requests, TurnRow
from jaxsched.sim.retain import saturated_us
from jaxsched.sim.routing import add_recent, bucket_now, count_waiting, recent_tokens
from jaxsched.sim.state import Count, Fate, Hist, Instance, Record, Slots, State
from jaxsched.sim.static import SimStatic
from jaxsched.sim.views import RouterView

_FIELD = {name: i for i, name in enumerate(Instance.__dataclass_fields__)}
_SLOT = {name: i for i, name in enumerate(Slots.__dataclass_fields__)}


#: (epoch, us) of a time.
Stamp = tuple[jax.Array, jax.Array]


def hash_bits(seed: jax.Array, request: jax.Array, draw: int) -> jax.Array:
    """31 uniform bits of (seed, request, draw): the finaliser of MurmurHash3 (A. Appleby) applied twice."""

    def mix(x):
        x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
        x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
        return x ^ (x >> 16)

    x = mix(seed.astype(jnp.uint32) * jnp.uint32(0x9E3779B9) + jnp.uint32(draw))
    return (mix(x ^ request.astype(jnp.uint32)) & jnp.uint32(0x7FFFFFFF)).astype(jnp.int32)


def in_measured_cohort(params: SimParams, program: jax.Array) -> jax.Array:
    """Whether a program (row of its first turn) is measured."""
    return (program >= params.measure_from) & (program < params.measure_to)


def live_view(static: SimStatic, params: SimParams, state: State, now: jax.Array) -> jax.Array:
    """``[5, M]`` waiting, running, used blocks, waiting prompt blocks, predicted work of every instance at `now`.

    Inside a run of decode steps only the used blocks change; they are looked up in the run. Two more rows for routers
    that read the caches: prompt tokens to compute of those that wait and of those that run.
    """
    inst = state.instance
    used = params.usable_blocks - inst[_FIELD["free"]]
    if static.keeps_run_blocks:
        step = steps_ended(static, state, now)
        inside = jnp.take_along_axis(state.run_used, step[:, None], axis=1)[:, 0]
        used = jnp.where(inst[_FIELD["in_flight"]] > 0, inside, used)
    columns = ("waiting", "running", None, "waiting_blocks", "work")
    rows = [used if name is None else inst[_FIELD[name]] for name in columns]
    if static.route_by_cache == "cache":
        computed, prompt, order = (state.slots[:, _SLOT[name]] for name in ("computed", "prompt", "order"))
        left = jnp.where(order >= 0, jnp.maximum(prompt - computed, 0), 0)
        rows += [state.routing.waiting_tokens, jnp.sum(left, axis=1)]
    return jnp.stack(rows)


def steps_ended(static: SimStatic, state: State, now: jax.Array) -> jax.Array:
    """``[M]`` how many steps of each instance's last run are over at `now` (at most all but the last)."""
    taken = state.run_ends < step_ends_from(static, state, now, jnp.arange(static.num_instances))[:, None]
    return jnp.minimum(jnp.sum(taken.astype(jnp.int32), axis=1), static.run_steps - 1)


def live_caches(
    static: SimStatic, params: SimParams, requests: Requests, state: State, now: jax.Array, wanted: jax.Array
) -> Seen:
    """The prefix caches at `now` (wrong unless `wanted`), with what the executing runs of steps have changed."""
    nothing = jnp.zeros_like(state.slots[:, 0])
    if static.run_steps == 1:
        return look(static, requests, state.kv, nothing[:, 0], nothing, wanted)
    inst = state.instance
    inside = inst[_FIELD["in_flight"]] > 0
    step = jnp.where(inside, steps_ended(static, state, now), 0)
    used = jnp.take_along_axis(state.run_used, step[:, None], axis=1)[:, 0]
    taken = jnp.where(step > 0, used - (params.usable_blocks - inst[_FIELD["free"]]), 0)
    computed, chunk = state.slots[:, _SLOT["computed"]], state.slots[:, _SLOT["chunk"]]
    filled = jnp.where((chunk > 0) & (step > 0)[:, None], computed + step[:, None], 0)
    return look(static, requests, state.kv, taken, filled, wanted)


def step_ends_from(static: SimStatic, state: State, now: jax.Array, m: jax.Array) -> jax.Array:
    """First time at which an end of a step of instance `m` is still to come, at `now`.

    That is `now`, unless a turn returns after no pause when events at `now` have been taken up to `m` already.
    """
    if not static.num_paused:
        return jnp.broadcast_to(now, m.shape)
    return now + ((state.now == now) & (m <= state.passed)).astype(jnp.int32)


def next_input_time(static: SimStatic, requests: Requests, state: State) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Times (relative to the epoch) of the next two program arrivals and of the earliest return."""

    def arrival(i):
        if static.rounds:
            return released_at(state, i, requests.num_programs)
        turn = requests.row(jnp.minimum(i, requests.num_rows - 1))
        time = relative_us(turn.arrival_epoch, turn.arrival_us, state.epoch)
        if state.semantic is not None:  # requests are seen once the cache has been searched
            search_us = state.semantic.search_us
            time = jnp.where(time < NEVER_US - search_us, time + search_us, NEVER_US)
        return jnp.where(i < requests.num_programs, time, NEVER_US)

    back = paused_turns.next_return(state.paused) if static.num_paused else jnp.int32(NEVER_US)
    return arrival(state.arrivals), arrival(state.arrivals + 1), back


def released_at(state: State, index: jax.Array, num_programs: jax.Array) -> jax.Array:
    """With rounds: when program `index` arrives, relative to the epoch: when the round that released it begins."""
    assert state.rounds is not None
    time = relative_us(state.rounds.epoch, state.rounds.us, state.epoch)
    return jnp.where(index < jnp.minimum(state.rounds.released, num_programs), time, NEVER_US)


def next_view_tick(static: SimStatic, state: State) -> jax.Array:
    """Time of the next refresh of anything that routers see late."""
    return jnp.minimum(state.next_tick, state.routing.next_tick) if static.delayed_cache else state.next_tick


def telemetry_tick(static: SimStatic, params: SimParams, requests: Requests, state: State, active: jax.Array) -> State:
    """Refresh what of the routers' delayed views is due at the next tick."""
    tick = next_view_tick(static, state)
    before = state
    if static.delayed_view:
        due = active & (state.next_tick == tick) if static.delayed_cache else active
        view = live_view(static, params, before, tick)
        state = state.replace(
            view=jnp.where(due, view, state.view),
            next_tick=jnp.where(due, state.next_tick + params.view_delay_us, state.next_tick),
        )
    if static.delayed_cache:
        due = active & (state.routing.next_tick == tick)
        seen = live_caches(static, params, requests, before, tick, due)
        seen = jax.tree.map(lambda new, old: jnp.where(due, new, old), seen, state.routing.seen)
        later = jnp.where(due, state.routing.next_tick + params.cache_delay_us, state.routing.next_tick)
        state = state.replace(routing=state.routing.replace(seen=seen, next_tick=later))
    return state.replace(now=jnp.where(active, tick, state.now), passed=jnp.where(active, -1, state.passed))


def take_arrival(
    static: SimStatic,
    params: SimParams,
    requests: Requests,
    state: State,
    tally: Tally,
    active: jax.Array,
    program_first: jax.Array,
    now: jax.Array,
) -> State:
    """Apply the next program arrival (or, if not `program_first`, the next return) at time `now`."""
    is_return = jnp.bool_(False)
    request = jnp.minimum(state.arrivals, requests.num_rows - 1)
    stamp = (state.epoch + (now >> EPOCH_BITS), now & (EPOCH_US - 1))
    program = stamp
    home = jnp.int32(-1)
    paused = state.paused
    if static.num_paused:
        is_return = active & ~program_first
        paused, row, begun, last = paused_turns.take(paused, now, is_return)
        request = jnp.where(is_return, jnp.minimum(row, requests.num_rows - 1), request)
        program = (jnp.where(is_return, begun[0], stamp[0]), jnp.where(is_return, begun[1], stamp[1]))
        home = jnp.where(is_return, last, -1)

    turn = requests.row(request)
    learned = state.learned
    head = static.scheduler.retain
    if static.retains and head is not None and head.returned is not None:
        tool = jnp.int32(0) if turn.tool is None else turn.tool
        learned = head.returned(learned, tool, saturated_us(turn.pause_epoch, turn.pause_us), is_return)
    prompt, output, predicted = turn.prompt_tokens, turn.output_tokens, turn.predicted_tokens
    live = live_view(static, params, state, now)
    arrived, answered = active, jnp.bool_(False)
    if static.semantic:
        stamp = (turn.arrival_epoch, turn.arrival_us)
        state, answered = _ask_cache(static, params, state, tally, active, (request, turn), now, jnp.sum(live[:2]))
        active = arrived & ~answered
    seen = state.view if static.delayed_view else live
    view = RouterView(
        num_waiting=seen[0], num_running=seen[1], used_blocks=seen[2], waiting_blocks=seen[3], work_tokens=seen[4],
        arrival_count=state.sequence,
        hash0=hash_bits(params.seed, request, 0), hash1=hash_bits(params.seed, request, 1),
        prompt_tokens=prompt, predicted_tokens=predicted, home=home, params=params.route, block_size=static.block_size,
    )  # fmt: skip
    found: sent.Match | None = None
    if static.route_by_cache == "record":
        found = sent.match(static, requests, state.routing.sent, request)
        view = view.replace(
            matched_tokens=found.blocks * static.block_size,
            record_tokens=state.routing.sent.size * static.block_size,
        )
    elif static.route_by_cache == "cache":
        caches = state.routing.seen
        if not static.delayed_cache:
            caches = live_caches(static, params, requests, state, now, active)
        blocks = matched_blocks(static, requests, caches, request)
        view = view.replace(
            usable_blocks=params.usable_blocks,
            matched_tokens=blocks * static.block_size,
            prefill_tokens=seen[5] + seen[6],
        )
        if static.route_by_window:
            recent = recent_tokens(state.routing.window, bucket_now(state.epoch, now))
            view = view.replace(recent_prefill=recent[0], recent_output=recent[1])
    m = static.route(view).astype(jnp.int32)

    sched = params.scheduler
    peak = prompt + output - 1
    tokens = sched.max_model_len if static.scheduler.family in ("orca", "static") else peak
    if static.scheduler.speculates:  # its last step drafts as much as any, and holds as many slots ahead
        tokens += 2 * sched.draft.ever_most()
    # Their decodes must see a free block even when they need none.
    always = jnp.maximum(sched.watermark_blocks, 1) if static.scheduler.family in ("sarathi", "v0") else 0
    too_large = ceil_blocks(static, tokens) + always > params.usable_blocks[m]
    if static.scheduler.family in ("orca", "static"):
        too_large |= peak > sched.max_model_len
    if static.scheduler.family == "v1":
        too_large |= (sched.chunked_prefill == 0) & (peak > sched.token_budget)
    elif static.scheduler.family == "v0":
        too_large |= peak > sched.token_budget
    scalars = state.instance[:, m]
    waiting = scalars[_FIELD["waiting"]]
    # A preempted request re-enters at the front, so that many entries must stay free.
    full = (params.max_queue > 0) & (waiting >= params.max_queue)
    full |= scalars[_FIELD["length"]] >= static.queue_capacity - static.full_slots
    rejected_size, rejected_queue = active & too_large, active & ~too_large & full
    joins = active & ~too_large & ~full

    head, length = scalars[_FIELD["head"]], scalars[_FIELD["length"]]
    position = jnp.where(joins, (head + length) & (static.queue_capacity - 1), static.queue_capacity)
    entry = [request] if not static.num_paused else [request, state.sequence, *stamp, *program]
    queue = state.queue.at[m, position].set(jnp.stack(entry), mode="drop")
    one = joins.astype(jnp.int32)
    change = {"length": one, "waiting": one}
    if static.route_by_blocks:
        change["waiting_blocks"] = one * ceil_blocks(static, prompt)
    if static.route_by_work:
        change["work"] = one * (prompt + predicted)
    zero: jax.Array = jnp.int32(0)
    pending = state.pending_writes.replace(
        joined=jnp.where(joins, m, static.num_instances),
        change=jnp.stack([change.get(name, zero) for name in _FIELD]),
    )

    routing = state.routing
    if found is not None:
        assert params.route is not None
        limit = params.route[0] / static.block_size  # by convention (policies.base.Router)
        routing = routing.replace(sent=sent.add(static, routing.sent, found, m, limit, active))
    elif static.route_by_cache == "cache":
        assert view.matched_tokens is not None
        unmatched = prompt - view.matched_tokens[m]
        at = jnp.where(active, request, requests.num_rows)
        routing = routing.replace(unmatched=routing.unmatched.at[at].set(unmatched, mode="drop"))
        routing = count_waiting(routing, m, request, +1, joins)
        if static.route_by_window:
            assert routing.window is not None
            tokens = jnp.stack([unmatched, predicted])
            window = add_recent(routing.window, bucket_now(state.epoch, now), m, tokens, active)
            routing = routing.replace(window=window)

    # The instance's next event: at once if idle; if a run of steps executes, the first step boundary from now on.
    planned = state.next_event[m]
    wake = jnp.where(planned == NEVER_US, now, planned)
    if static.run_steps > 1:
        ends = state.run_ends[m]
        cut = jnp.min(jnp.where(ends >= step_ends_from(static, state, now, m), ends, NEVER_US))
        blocked = waiting > 0 if static.scheduler.order is None and not static.timeouts else False
        wake = jnp.where((planned != NEVER_US) & ~jnp.bool_(blocked), jnp.minimum(cut, planned), wake)
    if static.tiered:  # an instance that only waits for a copy is idle
        wake = jnp.where(scalars[_FIELD["in_flight"]] == 0, now, wake)
    at = jnp.where(joins, m, static.num_instances)
    next_event = state.next_event.at[at].set(wake, mode="drop")

    ledger = state.ledger if state.ledger is None else books.wait(state.ledger, turn.klass, one)
    one_program = (arrived & ~is_return).astype(jnp.int32)
    tally.count(Count.ARRIVED, arrived)
    tally.count(Count.REJECTED_SIZE, rejected_size)
    tally.count(Count.REJECTED_QUEUE, rejected_queue)
    occupied = scalars[_FIELD["running"]] + waiting
    tally.count(Count.QUEUED, joins & (occupied >= static.full_slots))
    in_cohort = in_measured_cohort(params, turn.program)
    tally.count(Count.MEASURED_ARRIVED, arrived & in_cohort)
    record = state.record
    if static.record:
        where = jnp.where(arrived, request, record.fate.shape[0])
        fate = jnp.where(too_large, Fate.REJECTED_SIZE, jnp.where(full, Fate.REJECTED_QUEUE, Fate.UNFINISHED))
        fate = jnp.where(answered, Fate.ANSWERED, fate) if static.semantic else fate
        at_instance = jnp.where(answered, -1, m) if static.semantic else m
        record = record.replace(
            fate=record.fate.at[where].set(fate.astype(jnp.int32), mode="drop"),
            instance=record.instance.at[where].set(at_instance, mode="drop"),
            arrival=record.arrival.at[where].set(jnp.stack(stamp), mode="drop"),
        )
    if static.semantic and static.record:
        record = _record_answer(params, record, request, answered, stamp)
    state = state.replace(
        now=jnp.where(arrived, now, state.now),
        passed=jnp.where(arrived & (now > state.now), -1, state.passed),
        arrivals=state.arrivals + one_program,
        sequence=state.sequence + active.astype(jnp.int32),
        pending_writes=pending,
        next_event=next_event,
        queue=queue,
        paused=paused,
        record=record,
        learned=learned,
        routing=routing,
        ledger=ledger,
    )
    if static.graphs:
        state = arrive_turn(requests, state, request, stamp, program, m, joins)
    return state


def _ask_cache(
    static: SimStatic,
    params: SimParams,
    state: State,
    tally: Tally,
    active: jax.Array,
    who: tuple[jax.Array, TurnRow],
    now: jax.Array,
    load: jax.Array,
) -> tuple[State, jax.Array]:
    """A request whose search is over: whether it is answered in front, and then what is measured of it.

    A wrong answer meets no promise of the request's class.
    """
    row, turn = who
    assert state.semantic is not None
    known, klass = params.semantic, turn.klass
    word = hash_bits(params.seed, row, semantic.DRAW)
    tick = semantic.tick_of(state.epoch + (now >> EPOCH_BITS), now & (EPOCH_US - 1))
    kept, hit, wrong = semantic.look_up(known, state.semantic, active, (klass, row, word), tick, load)
    latency = known.search_us + known.answer_us
    latency_us = latency.astype(jnp.float32)
    measured = hit & in_measured_cohort(params, turn.program)
    tally.count(Count.FINISHED, hit)
    tally.count(Count.PROGRAMS_DONE, hit)
    tally.observe(Hist.TTFT, klass, latency_us, measured)
    tally.observe(Hist.E2E, klass, latency_us, measured)
    tally.observe(Hist.NORMALISED, klass, latency_us / turn.output_tokens.astype(jnp.float32), measured)
    good = measured & ~wrong & (latency <= params.slo_ttft_us[klass]) & (latency <= params.slo_e2e_us[klass])
    is_class = jnp.arange(static.num_classes) == klass
    metrics = state.metrics.replace(
        class_finished=state.metrics.class_finished + (is_class & measured),
        class_good=state.metrics.class_good + (is_class & good),
    )
    return state.replace(semantic=kept, metrics=metrics), hit


def _record_answer(params: SimParams, record: Record, request: jax.Array, answered: jax.Array, stamp: Stamp) -> Record:
    """First token and finish of a request that was answered in front."""
    where = jnp.where(answered, request, record.fate.shape[0])
    latency = params.semantic.search_us + params.semantic.answer_us
    done = jnp.stack(add_us(*stamp, jnp.int32(0), latency))
    return record.replace(
        first_token=record.first_token.at[where].set(done, mode="drop"),
        finish=record.finish.at[where].set(done, mode="drop"),
    )
