"""The machine: one micro-step takes the earliest event of a lane, applies it, and forms what follows from it.

A micro-step may take an arrival and, if nothing else comes before it, the instance event that follows; an instance
event that needs several picks (two requests finish, two are admitted, one is preempted and another tried) takes several
micro-steps at the same clock, during which the lane is locked to that instance. So every lane of a batch is always busy
with its own next decision, whatever the others do. Event order and engine rules: docs/semantics.md.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxsched.sim import offload, rounds
from jaxsched.sim.admission import admission_step
from jaxsched.sim.arrivals import next_input_time, next_view_tick, take_arrival, telemetry_tick
from jaxsched.sim.clock import EPOCH_US, NEVER_US, relative_us
from jaxsched.sim.close import close_step, drain_token
from jaxsched.sim.event import Event, Tally, apply_pending, first_slot
from jaxsched.sim.fair import rebased
from jaxsched.sim.kv.runs import COPYING
from jaxsched.sim.leave import book_run, let_one_leave
from jaxsched.sim.ledger import folded
from jaxsched.sim.params import SimParams
from jaxsched.sim.paused import indexed, next_return
from jaxsched.sim.requests import Requests
from jaxsched.sim.running import running_pass
from jaxsched.sim.speculate import begin_drafts, folded_counts
from jaxsched.sim.state import WAITING, Col, Count, Flag, Instance, Phase, State, init_state
from jaxsched.sim.static import SimStatic
from jaxsched.sim.tiers import rebase_tiers
from jaxsched.sim.waiting import refill_window
from jaxsched.sim.worth import rank_contexts

#: Longest step or run of steps (537 s): what may follow an event without leaving int32.
LONGEST_RUN_US = 2**29
#: A lane waits for the rebase at the end of the chunk rather than take an event this late in its epoch.
HOLD_US = 2**31 - LONGEST_RUN_US - 2**20
#: What only so much of can happen: without any of it, preemptions lead nowhere.
PROGRESS = (Count.OUTPUT_TOKENS, Count.FINISHED, Count.TIMED_OUT, Count.REJECTED_LATE)


def micro_step(static: SimStatic, params: SimParams, requests: Requests, state: State) -> tuple[State, dict]:
    """Advance one lane by one micro-step. Returns the state and, if `static.trace`, what was decided."""
    state = apply_pending(state)
    tally = Tally(static)
    unlocked = state.locked < 0
    limit = jnp.minimum(HOLD_US, relative_us(params.horizon_epoch, params.horizon_us, state.epoch))

    arrival, after_arrival, returning = next_input_time(static, requests, state)
    t_input = jnp.minimum(arrival, returning)
    t_event = jnp.min(state.next_event)
    ticks = jnp.bool_(False)
    if static.delayed_view or static.delayed_cache:
        pending = jnp.minimum(t_input, t_event)
        tick = next_view_tick(static, state)
        ticks = unlocked & (pending != NEVER_US) & (tick <= pending) & (tick <= limit)
        state = telemetry_tick(static, params, requests, state, ticks)
    arrives = unlocked & ~ticks & (t_input <= t_event) & (t_input <= limit)
    program_first = arrival <= returning
    state = take_arrival(static, params, requests, state, tally, arrives, program_first, t_input)

    # The instance event, unless another input comes first (inputs precede instance events of the same time).
    after = jnp.minimum(after_arrival, returning)
    if static.num_paused:
        later = next_return(state.paused) if static.dense else jnp.int32(-(2**31))
        after = jnp.where(program_first, after, jnp.minimum(arrival, later))
    if static.graphs and requests.spawns is not None:
        after = jnp.int32(-(2**31))  # the arrival may have made a turn ready that comes first
    t_other = jnp.where(arrives, after, t_input)
    t_event = jnp.min(state.next_event)
    begins = unlocked & ~ticks & (t_event < t_other) & (t_event <= limit) & (t_event < next_view_tick(static, state))
    active = begins | ~unlocked
    m = jnp.where(unlocked, first_slot(state.next_event == t_event), state.locked)
    now = jnp.where(begins, t_event, state.now)
    phase = jnp.where(begins, int(Phase.EVENT), state.phase)
    stalled = jnp.where(begins & (now > state.now) | arrives | ticks, 0, state.stalled + active)
    stuck = (stalled > static.stall_limit) | (state.churned > static.stall_limit)
    state = state.replace(
        now=now, stalled=stalled, flags=state.flags | jnp.where(stuck, int(Flag.LIVELOCK), 0),
        passed=jnp.where(begins, m, state.passed),
    )  # fmt: skip
    active &= ~stuck
    tally.count(Count.MICRO_STEPS, active | arrives | ticks)

    event = Event.load(static, params, requests, state, tally, m, now)
    next_phase = _instance_event(event, active, begins & active, phase)
    event.sample_ledger(active)
    state = event.store()
    if static.trace:
        event.note(active=active, now=now, instance=m, order=event.slots.order, waiting_after=event.inst.waiting)
        event.note(free_after=event.inst.free, phase=next_phase, requests=event.column_of(Col.REQUEST))
    if static.rounds:
        state = rounds.settle(state, tally.counted(Count.PROGRAMS_DONE))
    locked = active & (next_phase >= 0)
    state = state.replace(
        locked=jnp.where(active, jnp.where(locked, m, -1), state.locked),
        phase=jnp.where(active, jnp.maximum(next_phase, 0), state.phase),
        metrics=tally.book(state.metrics),
        churned=jnp.where(tally.counted(*PROGRESS) > 0, 0, state.churned + tally.counted(Count.PREEMPTIONS)),
    )
    return state, (event.trace or {})


def _instance_event(event: Event, active: Bool[Array, ""], begins: Bool[Array, ""], phase: Array) -> Array:
    """One micro-step of an instance event. Returns the phase to go on with, or -1 when the event is over."""
    static, inst = event.static, event.inst
    scheduler = static.scheduler
    book_run(event, begins)
    if scheduler.asynchronous:
        younger = jnp.where(inst.in_flight > 0, inst.end_last, NEVER_US)
        at = jnp.where(begins, event.m, static.num_instances)
        event.state = event.state.replace(next_event=event.state.next_event.at[at].set(younger, mode="drop"))

    if static.prefix_cache != "none" and not scheduler.speculates:  # (one step at a time: the next call registers)
        event.cache_outputs(begins)
    more_leave = let_one_leave(event, active & (phase <= Phase.LEAVE))
    ready = active & ~more_leave & (phase != Phase.DRAIN)
    if static.rounds:
        rounds.end_round(event, active & (phase <= Phase.LEAVE))
        behind = rounds.is_behind(event)
        more_leave |= rounds.stop(event, ready & behind)
        ready &= ~behind
    more_refill = jnp.bool_(False)
    if scheduler.order is not None:
        more_refill = refill_window(event, ready & (phase <= Phase.REFILL))
        overflow = ready & (phase <= Phase.REFILL) & ~more_refill & (inst.length > 0)
        flags = event.state.flags | jnp.where(overflow, int(Flag.WINDOW_OVERFLOW), 0)
        event.state = event.state.replace(flags=flags)
        ready &= ~more_refill
    _begin_call(event, ready & (phase <= Phase.REFILL))
    prefetches = offload.begin_prefetch(event, ready & (phase <= Phase.REFILL)) if static.tiered else jnp.bool_(False)
    if static.prefetches:
        ready &= ~prefetches

    if scheduler.family == "v0":  # admissions first; decodes only if nobody came in
        in_admit = ready & (phase != Phase.RUN)
        again, displacing, kept_out = admission_step(event, in_admit, jnp.bool_(False))
        in_run = (in_admit & ~again & (event.state.admitted == 0)) | (ready & (phase == Phase.RUN))
        more_run = running_pass(event, in_run)
        closes = ready & ~again & ~more_run
    else:
        in_run = ready & (phase <= Phase.RUN)
        more_run = running_pass(event, in_run)
        in_admit = ready & ~more_run
        again, displacing, kept_out = admission_step(event, in_admit, phase <= Phase.DISPLACE)
        closes = in_admit & ~again
    again &= in_admit

    if static.tiered:
        offload.finish(event)
    formed = close_step(event, closes, kept_out)
    in_drain = formed | (active & (phase == Phase.DRAIN))
    more_drain = drain_token(event, in_drain)
    # An empty call that preempted is followed by another; an asynchronous engine fills its second place at once.
    repeat = closes & ~formed & (event.state.preempted > 0) & (event.inst.in_flight == 0)
    if scheduler.asynchronous:
        repeat |= in_drain & ~more_drain & (event.inst.in_flight < 2)

    result = jnp.int32(-1)
    for condition, value in (
        (repeat, Phase.REFILL), (more_drain, Phase.DRAIN), (again, Phase.ADMIT), (again & displacing, Phase.DISPLACE),
        (more_run, Phase.RUN), (more_refill | prefetches, Phase.REFILL), (more_leave, Phase.LEAVE),
    ):  # fmt: skip
        result = jnp.where(condition, int(value), result)
    return result


def _begin_call(event: Event, begins: Bool[Array, ""]) -> None:
    """Registers of a schedule() call."""
    state, inst, sched = event.state, event.inst, event.params.scheduler
    static = event.static
    event.slots.chunk = jnp.where(begins, 0, event.slots.chunk)
    if static.pins:
        event.runs.settle()  # what was owed is paid by the pins (and copies) as they were
        if static.tiered:
            offload.end_copies(event, begins)
        rows = event.column_of(Col.REQUEST)
        event.runs.refresh_pins(begins, *event.stamp(event.now), event.slots.order == WAITING, rows)
        if static.ranks:
            rank_contexts(event, begins, rows)
    if event.service is not None:
        arrival = (event.column_of(Col.ARRIVAL_EPOCH), event.column_of(Col.ARRIVAL_US))
        event.service.promote(sched.of_order(), begins, event.slots.order == WAITING, arrival)
    unlimited = static.scheduler.family in ("orca", "static")
    event.state = state.replace(
        budget=jnp.where(begins, jnp.int32(2**30) if unlimited else sched.token_budget, state.budget),
        preempted=jnp.where(begins, 0, state.preempted),
    )
    if static.scheduler.family == "v0":
        event.state = event.state.replace(admitted=jnp.where(begins, 0, state.admitted))
    if static.scheduler.family == "static":
        idle = (inst.running == 0).astype(jnp.int32)
        event.state = event.state.replace(was_idle=jnp.where(begins, idle, state.was_idle))
    if static.scheduler.speculates:
        begin_drafts(event, begins)
    if static.ordered_budget:
        in_system = inst.running + inst.waiting
        adaptive = jnp.maximum(sched.long_prefill_threshold, sched.token_budget // jnp.maximum(in_system, 1))
        threshold = jnp.where(sched.adaptive_threshold > 0, adaptive, sched.long_prefill_threshold)
        on = (sched.long_prefill_threshold > 0) & (in_system > 1)
        event.state = event.state.replace(
            threshold=jnp.where(begins, jnp.where(on, threshold, 0), state.threshold),
            cursor=jnp.where(begins, -1, state.cursor),
            pending=jnp.where(begins, 0, state.pending),
        )


def end_of_chunk(static: SimStatic, params: SimParams, requests: Requests, state: State) -> State:
    """Between chunks: move to the next epoch when due, and fold counters so that none can overflow."""
    arrival, _, returning = next_input_time(static, requests, state)
    t_next = jnp.minimum(jnp.minimum(arrival, returning), jnp.min(state.next_event))
    more = ~is_done(static, params, requests, state)
    shift = (state.now >= EPOCH_US) | (more & (t_next > HOLD_US))
    num_epochs = jnp.int32(1)
    if not (static.delayed_view or static.delayed_cache):
        # Nothing runs and nothing is due for long: go to the epoch of the next arrival at once.
        idle = (state.locked < 0) & jnp.all(state.next_event == NEVER_US)
        num_epochs = jnp.where(idle, jnp.maximum(_next_input_epoch(static, requests, state) - state.epoch, 1), 1)

    def back(t: Array) -> Array:
        return jnp.where(shift & (t != NEVER_US), t - EPOCH_US, t)

    def skip(tick: Array, period_us: Array) -> Array:
        # Nothing runs in an idle gap, so its ticks change nothing: skip to the last one before the next event.
        idle = shift & (state.now < EPOCH_US)
        skipped = tick + period_us * (jnp.maximum(EPOCH_US - tick, 0) // period_us)
        return jnp.where(idle, jnp.maximum(tick, skipped), tick)

    tick, routing = state.next_tick, state.routing
    if static.delayed_view:
        tick = skip(tick, params.view_delay_us)
    if static.delayed_cache:
        assert params.cache_delay_us is not None
        routing = routing.replace(next_tick=back(skip(routing.next_tick, params.cache_delay_us)))
    # `now` stays at least one epoch before the new one's start when the jump was longer than int32 can say.
    now = state.now - EPOCH_US - jnp.where(num_epochs >= 2, EPOCH_US, 0)
    now = jnp.where(num_epochs >= 3, -EPOCH_US, jnp.maximum(now, -EPOCH_US))
    metrics = state.metrics
    total = metrics.area[:, 0] + metrics.area[:, 1]
    rest = metrics.area[:, 1] - (total - metrics.area[:, 0])
    # run_start and end_last are per-instance times in the packed vector.
    instance = state.instance
    for name in ("run_start", "end_last"):
        column = tuple(Instance.__dataclass_fields__).index(name)
        instance = instance.at[column].add(jnp.where(shift, -EPOCH_US, 0))
    kv, tiers = state.kv, state.tiers
    if tiers is not None:
        copying = offload.rebased_copies(kv.runs[:, COPYING], shift, EPOCH_US)
        kv, tiers = kv.replace(runs=kv.runs.at[:, COPYING].set(copying)), rebase_tiers(tiers, shift)
    fair, rule = state.fair, static.scheduler.fair
    epoch = state.epoch + jnp.where(shift, num_epochs, 0)
    spec = state.speculation
    return state.replace(
        kv=kv,
        tiers=tiers,
        fair=fair if fair is None or rule is None else rebased(rule, fair),
        ledger=None if state.ledger is None else folded(state.ledger),
        speculation=None if spec is None else folded_counts(spec),
        epoch=epoch,
        paused=indexed(state.paused, epoch) if static.num_paused else state.paused,
        now=jnp.where(shift, now, state.now),
        next_event=back(state.next_event),
        run_ends=back(state.run_ends),
        next_tick=back(tick),
        routing=routing,
        instance=instance,
        metrics=metrics.replace(
            counts=metrics.counts & (2**30 - 1),
            counts_high=metrics.counts_high + (metrics.counts >> 30),
            area=jnp.stack([total, rest], axis=1),
        ),
    )


def _next_input_epoch(static: SimStatic, requests: Requests, state: State) -> Array:
    """Epoch of the next arrival or return; the current one if there is none."""
    turn = requests.row(jnp.minimum(state.arrivals, requests.num_rows - 1))
    epoch = jnp.where(state.arrivals < requests.num_programs, turn.arrival_epoch, 2**31 - 1)
    if static.num_paused:
        epoch = jnp.minimum(epoch, jnp.min(jnp.where(state.paused.request >= 0, state.paused.epoch, 2**31 - 1)))
    return jnp.where(epoch == 2**31 - 1, state.epoch, epoch)


def is_done(static: SimStatic, params: SimParams, requests: Requests, state: State) -> Bool[Array, ""]:
    """No further event: drained, past the horizon, or stopped by the watchdog."""
    arrival, _, returning = next_input_time(static, requests, state)
    t_next = jnp.minimum(jnp.minimum(arrival, returning), jnp.min(state.next_event))
    horizon = relative_us(params.horizon_epoch, params.horizon_us, state.epoch)
    pending = (state.arrivals < requests.num_programs) | jnp.any(state.next_event != NEVER_US)
    if static.num_paused:
        pending |= jnp.any(state.paused.request >= 0)
    beyond = (t_next > horizon) & (horizon != NEVER_US)
    livelock = (state.flags & int(Flag.LIVELOCK)) != 0
    return ((state.locked < 0) & (~pending | beyond)) | livelock


def advance(static: SimStatic, params: SimParams, requests: Requests, state: State, num_micro_steps: int) -> State:
    """Advance one lane by a chunk of micro-steps (a lane that is done stays as it is)."""

    def body(carry: State, _) -> tuple[State, None]:
        return micro_step(static, params, requests, carry)[0], None

    state, _ = jax.lax.scan(body, state, None, length=num_micro_steps)
    return end_of_chunk(static, params, requests, apply_pending(state))


__all__ = ["advance", "end_of_chunk", "init_state", "is_done", "micro_step"]
