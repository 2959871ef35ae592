"""A burst of micro-steps, watched: what the state before and after it cannot tell an environment.

That is who was admitted and in which order, and when exactly programs ended; plus small arithmetic on times.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxsched.envs.controls import ttl_us
from jaxsched.envs.features import Items
from jaxsched.sim.arrivals import next_input_time
from jaxsched.sim.clock import EPOCH_BITS, EPOCH_US, NEVER_US
from jaxsched.sim.event import apply_pending
from jaxsched.sim.kv.runs import CHAIN, DUE_EPOCH, DUE_US, NEXT, PROGRAM, UNUSED, RunTableState
from jaxsched.sim.machine import micro_step
from jaxsched.sim.params import SimParams
from jaxsched.sim.requests import Requests
from jaxsched.sim.retain import deadline
from jaxsched.sim.state import Col, Count, Instance, Paused, Slots, State
from jaxsched.sim.static import SimStatic

_ADMISSIONS, _WAITING, _RUNNING = (
    tuple(Instance.__dataclass_fields__).index(name) for name in ("admissions", "waiting", "running")
)
_ORDER = tuple(Slots.__dataclass_fields__).index("order")

#: (state before a micro-step, state after it) -> numbers, summed over the micro-steps of a burst.
Watch = Callable[[State, State], Array]


def run_burst(
    static: SimStatic,
    params: SimParams,
    requests: Requests,
    state: State,
    length: int,
    to_arrival: bool,
    may_arrive: Bool[Array, ""],
    watch: Watch | None = None,
) -> tuple[State, Int[Array, " length"], tuple[Float[Array, " c"], Float[Array, " c"]], Any]:
    """`machine.advance` without the end of the chunk, and what only the micro-steps in between can tell.

    Returns the state; the row that each micro-step admitted (-1 = none); per class how many programs ended, and the
    sum over them of the seconds since the burst began; and the sum over micro-steps of what `watch` says (None without
    one).
    """
    start = state.now

    def body(carry, _):
        state, num, sum_s, may_arrive, seen = carry
        limited = params
        if to_arrival:
            arrival, _, returning = next_input_time(static, requests, state)
            hold = jnp.minimum(arrival, returning) - 1
            stop = ~may_arrive & (hold < NEVER_US - 1)
            end = where_pair(stop, (state.epoch, hold), (params.horizon_epoch, params.horizon_us))
            limited = params.replace(horizon_epoch=end[0], horizon_us=end[1])
        after, _ = micro_step(static, limited, requests, state)
        ends = program_ends(static, state, after)
        num = num + ends
        sum_s = sum_s + ends * ((after.now - start).astype(jnp.float32) * 1e-6)
        may_arrive &= after.sequence == state.sequence
        if watch is not None:
            seen = seen + watch(state, after)
        return (after, num, sum_s, may_arrive, seen), admitted_row(static, after)

    none = jnp.zeros(static.num_classes, jnp.float32)
    nothing = None
    if watch is not None:
        shape = jax.eval_shape(watch, state, state)
        nothing = jnp.zeros(shape.shape, shape.dtype)
    carry = (state, none, none, may_arrive, nothing)
    (state, num, sum_s, _, seen), admitted = jax.lax.scan(body, carry, None, length=length)
    return apply_pending(state), admitted, (num, sum_s), seen


def held_work(state: State) -> Bool[Array, " m"]:
    """Which instances have requests (what the last micro-step left to write included)."""
    instance = apply_pending(state).instance
    return instance[_WAITING] + instance[_RUNNING] > 0


def program_ends(static: SimStatic, before: State, after: State) -> Float[Array, " c"]:
    """Programs of each class that ended in a micro-step."""
    if static.num_classes == 1:
        done = after.metrics.counts[Count.PROGRAMS_DONE] - before.metrics.counts[Count.PROGRAMS_DONE]
        return done.astype(jnp.float32)[None]
    return (after.metrics.class_finished - before.metrics.class_finished).astype(jnp.float32)


def admitted_row(static: SimStatic, state: State) -> Int[Array, ""]:
    """Row of the request that the last micro-step admitted, -1 = none (what it writes is still pending)."""
    pending = state.pending_writes
    m = jnp.minimum(pending.event, static.num_instances - 1)
    number = pending.scalars[_ADMISSIONS]
    admits = number > state.instance[_ADMISSIONS, m]
    here = state.slots[m, _ORDER] == number - 1
    slot = jnp.min(jnp.where(here, jnp.arange(static.num_slots), static.num_slots))
    row = state.request[m, jnp.minimum(slot, static.num_slots - 1), Col.REQUEST]
    written = (pending.instance == m) & (pending.slot == slot)
    row = jnp.where(jnp.any(written), jnp.max(jnp.where(written, pending.values[:, Col.REQUEST], -1)), row)
    return jnp.where(admits & (slot < static.num_slots), row, -1)


def executed_ranks(items: Items, admitted: Int[Array, " k"]) -> tuple[Int[Array, " n"], Int[Array, ""]]:
    """Rank of each item that waited for a decision and was admitted after it; how many there are."""
    same = (admitted[None, :] == items.row[:, None]) & items.waiting[:, None]
    again = jnp.tril(admitted[:, None] == admitted[None, :], -1)  # preempted and admitted once more
    counts = jnp.any(same, axis=0) & ~jnp.any(again, axis=1)
    rank = jnp.cumsum(counts.astype(jnp.int32)) - 1
    return jnp.max(jnp.where(same & counts[None, :], rank[None, :], -1), axis=1), jnp.sum(counts.astype(jnp.int32))


def arrival_is_next(static: SimStatic, requests: Requests, state: State) -> Bool[Array, ""]:
    """Whether the next event is an arrival, so that it is now that its route is decided."""
    arrival, _, returning = next_input_time(static, requests, state)
    t_input = jnp.minimum(arrival, returning)
    return (state.locked < 0) & (t_input <= jnp.min(state.next_event)) & (t_input != NEVER_US)


def with_deadlines(
    kv: RunTableState, paused: Paused, requests: Requests, buckets: Int[Array, " p"], first: Int[Array, ""]
) -> RunTableState:
    """Kept contexts with the times to live that were chosen for them, counted from the start of their pause."""
    runs = kv.runs
    same = (runs[:, NEXT][:, :, None] == paused.request[None, None, :]) & (paused.request >= 0)
    found = jnp.any(same, axis=2) & (runs[:, CHAIN] != UNUSED)
    pick = lambda field: jnp.sum(jnp.where(same, field[None, None, :], 0), axis=2)
    row = jnp.maximum(paused.request, 0)
    start = pick(paused.us - requests.pause_us[row]), pick(paused.epoch - requests.pause_epoch[row])
    began_us = start[0] & (EPOCH_US - 1)
    began_epoch = start[1] + (start[0] >> EPOCH_BITS)
    ttl = ttl_us(buckets[jnp.clip(runs[:, PROGRAM] - first, 0, buckets.shape[0] - 1)])
    epoch, us = deadline(began_epoch, began_us, ttl)
    runs = runs.at[:, DUE_EPOCH].set(jnp.where(found, jnp.where(ttl > 0, epoch, -1), runs[:, DUE_EPOCH]))
    return kv.replace(runs=runs.at[:, DUE_US].set(jnp.where(found, us, runs[:, DUE_US])))


def growth(before: State, after: State) -> Float[Array, " counts"]:
    """What each counter of the machine has grown by."""
    low = after.metrics.counts - before.metrics.counts
    high = after.metrics.counts_high - before.metrics.counts_high
    return (low + (high << 30)).astype(jnp.float32)


def between_s(later: tuple[Array, Array], earlier: tuple[Array, Array]) -> Float[Array, "*n"]:
    """Seconds from one (epoch, us) to another, float32."""
    epochs = (later[0] - earlier[0]).astype(jnp.float32) * EPOCH_US
    return (epochs + (later[1] - earlier[1]).astype(jnp.float32)) * jnp.float32(1e-6)


def where_pair(where: Array, this: tuple[Array, Array], that: tuple[Array, Array]) -> tuple[Array, Array]:
    return jnp.where(where, this[0], that[0]), jnp.where(where, this[1], that[1])
