"""What must hold in every state between two instance events, as one pure function (for tests and for debugging a lane).

``violations`` looks at a single state and returns a bitmask of `Violation`s, 0 = none; it can run inside a scan after
every micro-step. While an instance event is under way (`State.locked` >= 0) the books are open, and nothing is checked.
"""

from __future__ import annotations

import enum

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxsched.sim import copies
from jaxsched.sim.arrivals import next_input_time, next_view_tick
from jaxsched.sim.clock import NEVER_US
from jaxsched.sim.event import apply_pending, ceil_blocks
from jaxsched.sim.graph import COUNT
from jaxsched.sim.kv import BlockTableState, blocks, runs
from jaxsched.sim.params import SimParams
from jaxsched.sim.paused import indexed
from jaxsched.sim.requests import Requests
from jaxsched.sim.rows import BEYOND
from jaxsched.sim.speculate import MOST_DRAFTS
from jaxsched.sim.state import DEAD, GONE, WAITING, Col, Count, Flag, Instance, Slots, State
from jaxsched.sim.static import SimStatic


class Violation(enum.IntFlag):
    """What is wrong."""

    MEMORY = 1  # free and held KV blocks of an instance are not its pool, or fewer than none are free
    COUNTERS = 2  # running or waiting requests of an instance are not those in its slots and FIFO
    LOST = 4  # turns that arrived are not those finished, rejected, timed out, and in the system
    PROGRAMS = 8  # programs that arrived are not those done, cut short, paused (or their index is wrong), or in it
    CLOCK = 16  # something is due before the clock
    TOKENS = 32  # computed <= known <= goal does not hold, or a request that waits holds tokens
    WAKE = 64  # an instance has requests and no event to come, and is not reported as stuck
    LOAD = 128  # predicted work or waiting blocks, which routers read, are not those of the requests there
    CACHE = 512  # free blocks of an instance are not those without content and those of the prefix cache nobody holds
    TIERS = 1024  # a tier holds more than it can, or one context twice, or an empty copy
    ORDER = 256  # two running requests have the same admission number, or one that is still to be given


def violations(static: SimStatic, params: SimParams, requests: Requests, state: State) -> Int[Array, ""]:
    """Bitmask of what does not hold in a lane's state (int32, 0 = all is well)."""
    state = apply_pending(state)
    instance = Instance(*state.instance)  # fields [m]
    slots = Slots(*jnp.moveaxis(state.slots, 1, 0))  # fields [m, s]
    running, waiting = slots.order >= 0, slots.order == WAITING
    fifo = _Fifo(static, requests, state, instance)

    found = {
        Violation.MEMORY: _memory(static, params, state, instance, slots, running),
        Violation.COUNTERS: _counters(static, params, instance, slots, running, waiting, fifo),
        Violation.LOST: _lost(state, instance),
        Violation.PROGRAMS: _programs(static, requests, state, instance) | _paused(state),
        Violation.CLOCK: _clock(static, requests, state),
        Violation.TOKENS: _tokens(static, slots, running, waiting),
        Violation.WAKE: _wake(state, instance),
        Violation.LOAD: _load(static, requests, state, instance, slots, running, waiting, fifo),
        Violation.ORDER: _order(instance, slots, running),
        Violation.TIERS: _tiers(params, state),
        Violation.CACHE: _cache(static, params, state, instance, slots, running),
    }
    mask = sum(jnp.where(wrong, int(bit), 0) for bit, wrong in found.items())
    return jnp.where(state.locked < 0, mask, 0).astype(jnp.int32)


class _Fifo:
    """FIFO entries of all instances: `fresh` and `returned` (preempted) ones, ``[m, q]``, and what they point to."""

    def __init__(self, static: SimStatic, requests: Requests, state: State, instance: Instance):
        entry = state.queue[:, :, 0]
        place = jnp.arange(static.queue_capacity, dtype=jnp.int32)
        inside = ((place - instance.head[:, None]) & (static.queue_capacity - 1)) < instance.length[:, None]
        self.fresh, self.returned = inside & (entry >= 0), inside & (entry < 0)
        self.slot = -(entry + 1)
        row = jnp.clip(entry, 0, requests.prompt_tokens.shape[0] - 1)
        self.row = row
        self.prompt, self.predicted = requests.prompt_tokens[row], requests.predicted_tokens[row]


def _count(mask: Bool[Array, "m n"]) -> Int[Array, " m"]:
    return jnp.sum(mask.astype(jnp.int32), axis=1)


def _memory(static: SimStatic, params: SimParams, state: State, instance, slots, running) -> Bool[Array, ""]:
    if state.kv is not None:  # blocks may be held twice: see `_cache`
        return jnp.any(instance.free < 0)
    gone = 0 if static.scheduler.compress is None else slots.aux
    held = ceil_blocks(static, slots.computed - gone)
    if static.reserves_blocks:
        held = jnp.maximum(held, slots.aux)
    held = jnp.sum(jnp.where(running, held, 0), axis=1)
    return jnp.any((instance.free < 0) | (instance.free + held != params.usable_blocks))


def _cache(static: SimStatic, params: SimParams, state: State, instance, slots, running) -> Bool[Array, ""]:
    if state.kv is None:
        return jnp.bool_(False)
    if isinstance(state.kv, BlockTableState):
        used = state.kv.entries[:, blocks.ID] != blocks.FREE
        idle = _count(used & (state.kv.entries[:, blocks.REF] == 0))
        unhashed, debt = state.kv.scalars[:, blocks.UNHASHED], state.kv.scalars[:, blocks.DEBT]
        twice = jnp.bool_(False)
    else:
        used = state.kv.runs[:, runs.CHAIN] != runs.UNUSED
        length = state.kv.runs[:, runs.HIGH] - state.kv.runs[:, runs.LOW]
        is_idle = used & (state.kv.runs[:, runs.COPYING] == runs.NO_COPY) if static.tiered else used
        idle = jnp.sum(jnp.where(is_idle, length, 0), axis=1)
        unhashed, debt = state.kv.scalars[:, runs.UNHASHED], state.kv.scalars[:, runs.DEBT]
        twice = jnp.any(used & (length <= 0))
    free = unhashed + idle - debt
    wrong = (free != instance.free) | (unhashed < 0) | (debt < 0) | (debt > idle)
    # Every full block of a running request that the cache knows of is one that it holds.
    registered = state.kv.slots[:, 0]  # `REGISTERED` in both forms
    wrong |= jnp.any(running & (registered > slots.computed // static.block_size), axis=1)
    wrong |= jnp.any(~running & (registered != 0), axis=1)
    return jnp.any(wrong) | twice


def _tiers(params: SimParams, state: State) -> Bool[Array, ""]:
    if state.tiers is None or params.tiers is None:
        return jnp.bool_(False)

    def wrong(table: Int[Array, "6 e"], capacity: Int[Array, ""]) -> Bool[Array, ""]:
        chain, length = table[copies.CHAIN], table[copies.HIGH] - table[copies.LOW]
        used = chain != copies.UNUSED
        empty = used & ((length <= 0) | (table[copies.LOW] < 0))
        same = (chain[:, None] == chain[None, :]) & (chain >= 0)[:, None]
        twice = jnp.sum(same.astype(jnp.int32)) != jnp.sum((chain >= 0).astype(jnp.int32))
        return jnp.any(empty) | twice | (jnp.sum(jnp.where(used, length, 0)) > capacity)

    found = jnp.any(jax.vmap(wrong, in_axes=(0, None))(state.tiers.host, params.tiers.host_blocks))
    if state.tiers.remote is not None:
        found |= wrong(state.tiers.remote, params.tiers.remote_blocks)
    return found


def _counters(static: SimStatic, params: SimParams, instance, slots, running, waiting, fifo) -> Bool[Array, ""]:
    wrong = (instance.running != _count(running)) | (instance.running > params.scheduler.max_num_seqs)
    if static.scheduler.order is not None:
        return jnp.any(wrong | (instance.waiting != instance.length + _count(waiting)) | (_count(fifo.returned) > 0))
    # Preempted requests wait in their slots and have an entry each; so have dead ones, until it comes to the head.
    dead = slots.order == DEAD
    wrong |= instance.waiting != instance.length - _count(dead)
    slot = jnp.arange(static.num_slots, dtype=jnp.int32)
    entries = jnp.sum((fifo.slot[:, :, None] == slot) & fifo.returned[:, :, None], axis=1)  # of each slot
    return jnp.any(wrong) | jnp.any(entries != (waiting | dead))


def _total(state: State, *which: Count) -> Int[Array, ""]:
    return sum((state.metrics.counts[c] + (state.metrics.counts_high[c] << 30) for c in which), jnp.int32(0))


def _lost(state: State, instance) -> Bool[Array, ""]:
    in_system = jnp.sum(instance.running + instance.waiting)
    return _total(state, Count.ARRIVED) != _total(state, Count.FINISHED, *GONE) + in_system


def _programs(static: SimStatic, requests: Requests, state: State, instance) -> Bool[Array, ""]:
    if static.graphs:
        return _graphs(requests, state)
    paused = jnp.sum((state.paused.request >= 0).astype(jnp.int32)) if static.num_paused else 0
    in_system = jnp.sum(instance.running + instance.waiting)
    accounted = _total(state, Count.PROGRAMS_DONE, *GONE) + paused + in_system
    overflow = (state.flags & int(Flag.PAUSED_OVERFLOW)) != 0
    return jnp.where(overflow, accounted > state.arrivals, accounted != state.arrivals)


def _paused(state: State) -> Bool[Array, ""]:
    """What is kept of each block of paused programs is what its entries say."""
    kept, seen = state.paused, indexed(state.paused, state.epoch)
    wrong = (kept.soonest != seen.soonest) | (kept.room != seen.room)
    wrong |= (kept.row != seen.row) & (seen.soonest != BEYOND)
    return jnp.any(wrong) | jnp.any(kept.when != seen.when)


def _graphs(requests: Requests, state: State) -> Bool[Array, ""]:
    """Every later turn whose edges have all fired has arrived or is due; first rows count programs that are done."""
    assert state.fired is not None and requests.needed is not None
    happened = state.fired[:, COUNT] == requests.needed
    row = jnp.arange(requests.num_rows, dtype=jnp.int32)
    is_first = (row == requests.program) & (row < requests.num_programs)
    ready = jnp.sum((happened & ~is_first & (requests.needed > 0)).astype(jnp.int32))
    done = jnp.sum((happened & is_first).astype(jnp.int32))
    waiting = jnp.sum((state.paused.request >= 0).astype(jnp.int32))
    overflow = (state.flags & int(Flag.PAUSED_OVERFLOW)) != 0
    lost = state.arrivals + ready != _total(state, Count.ARRIVED) + waiting
    return (done != _total(state, Count.PROGRAMS_DONE)) | (lost & ~overflow)


def _clock(static: SimStatic, requests: Requests, state: State) -> Bool[Array, ""]:
    arrival, after, returning = next_input_time(static, requests, state)
    due = jnp.minimum(jnp.minimum(arrival, returning), jnp.min(state.next_event))
    return (due < state.now) | (after < arrival) | (next_view_tick(static, state) < state.now)


def _tokens(static: SimStatic, slots, running, waiting) -> Bool[Array, ""]:
    # One step ahead, outputs in flight are known, so all of them may be.
    ahead = int(static.scheduler.asynchronous)
    drafts = MOST_DRAFTS if static.scheduler.speculates else 0  # a step under way may compute more than there will be
    there = running | waiting
    wrong = there & ((slots.prompt < 1) | (slots.known < slots.prompt) | (slots.known >= slots.goal + ahead))
    wrong |= running & ((slots.computed < 1) | (slots.computed > slots.known + drafts))
    wrong |= running & (slots.computed >= slots.goal + drafts)  # the KV of the last token is never computed
    wrong |= waiting & (slots.computed != 0)
    return jnp.any(wrong)


def _wake(state: State, instance) -> Bool[Array, ""]:
    idle = state.next_event == NEVER_US
    stuck = (state.flags & int(Flag.STUCK)) != 0
    asleep = idle & ((instance.running > 0) | ((instance.waiting > 0) & ~stuck))
    return jnp.any(asleep | (idle & (instance.in_flight > 0)))


def _load(
    static: SimStatic, requests: Requests, state: State, instance, slots, running, waiting, fifo
) -> Bool[Array, ""]:
    row = jnp.clip(state.request[:, :, Col.REQUEST], 0, requests.prompt_tokens.shape[0] - 1)
    work = jnp.sum(jnp.where(running | waiting, slots.prompt + requests.predicted_tokens[row], 0), axis=1)
    work += jnp.sum(jnp.where(fifo.fresh, fifo.prompt + fifo.predicted, 0), axis=1)
    blocks = jnp.sum(jnp.where(waiting, ceil_blocks(static, slots.prompt), 0), axis=1)
    blocks += jnp.sum(jnp.where(fifo.fresh, ceil_blocks(static, fifo.prompt), 0), axis=1)
    wrong = jnp.zeros_like(work, bool)  # kept only for the routers that read them
    if static.route_by_work:
        wrong |= work != instance.work
    if static.route_by_blocks:
        wrong |= blocks != instance.waiting_blocks
    if static.route_by_cache == "cache":
        unmatched = state.routing.unmatched
        tokens = jnp.sum(jnp.where(waiting, unmatched[row], 0), axis=1)
        tokens += jnp.sum(jnp.where(fifo.fresh, unmatched[fifo.row], 0), axis=1)
        wrong |= tokens != state.routing.waiting_tokens
    return jnp.any(wrong)


def _order(instance, slots, running) -> Bool[Array, ""]:
    same = (slots.order[:, :, None] == slots.order[:, None, :]) & running[:, :, None]
    twice = jnp.sum(same, axis=(1, 2)) != _count(running)
    return jnp.any(twice) | jnp.any(running & (slots.order >= instance.admissions[:, None]))
