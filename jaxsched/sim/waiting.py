"""Who waits at an instance: the FIFO, the slots that an ordered queue looks at, and what an order head sees of them."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxsched.sim.arrivals import in_measured_cohort
from jaxsched.sim.due import DueView, due_view
from jaxsched.sim.event import Event, count, first_slot, set_where
from jaxsched.sim.gate import remaining_us
from jaxsched.sim.state import EMPTY, WAITING, Col
from jaxsched.sim.views import QueueView


def fifo_entry(event: Event) -> Int[Array, " w"]:
    """The entry at the head of the instance's FIFO."""
    return event.state.queue[event.m, event.inst.head]


def fresh_column(event: Event, entry: Int[Array, " w"]) -> tuple[Int[Array, " 16"], Int[Array, ""]]:
    """Request columns and prompt tokens of an entry that has not been admitted before."""
    turn = event.requests.row(jnp.maximum(entry[0], 0))
    row = jnp.maximum(entry[0], 0)
    if event.static.num_paused:
        sequence, arrival, program = entry[1], (entry[2], entry[3]), (entry[4], entry[5])
    else:
        sequence = row
        arrival = program = (turn.arrival_epoch, turn.arrival_us)
    values = {
        Col.REQUEST: row,
        Col.OUTPUT: turn.output_tokens,
        Col.ARRIVAL_EPOCH: arrival[0],
        Col.ARRIVAL_US: arrival[1],
        Col.KLASS: turn.klass,
        Col.PRIORITY: turn.priority,
        Col.PREDICTED: turn.predicted_tokens,
        Col.SEQUENCE: sequence,
        Col.PROGRAM_EPOCH: program[0],
        Col.PROGRAM_US: program[1],
        Col.MEASURED: in_measured_cohort(event.params, turn.program).astype(jnp.int32),
    }
    zero: Array = jnp.int32(0)
    return jnp.stack([values.get(column, zero) for column in Col]), turn.prompt_tokens


def refill_window(event: Event, active: Bool[Array, ""]) -> Bool[Array, ""]:
    """Ordered queues: move the FIFO's head into a free slot. Returns whether another could be moved."""
    slots, inst = event.slots, event.inst
    slot = first_slot(slots.order == EMPTY)
    num_free = count(slots.order == EMPTY)
    moves = active & (inst.length > 0) & (num_free > 0)
    column, prompt = fresh_column(event, fifo_entry(event))
    place(event, slot, moves, column, prompt, WAITING)
    pop(event, moves)
    event.write_column(slot, column, moves)
    if event.service is not None:
        event.service.enter(slot, moves, event.requests.program[column[Col.REQUEST]])
    event.enter_account(slot, moves, column)
    return active & (inst.length > 0) & (num_free > 1)


def place(event: Event, slot, active, column, prompt, order) -> None:
    """A request takes a slot."""
    slots = event.slots
    mask = (event.index == slot) & active
    slots.order = set_where(mask, order, slots.order)
    slots.computed = set_where(mask, 0, slots.computed)
    slots.known = set_where(mask, prompt, slots.known)
    slots.prompt = set_where(mask, prompt, slots.prompt)
    slots.goal = set_where(mask, prompt + column[Col.OUTPUT], slots.goal)
    slots.chunk = set_where(mask, 0, slots.chunk)
    slots.last = set_where(mask, -1, slots.last)
    slots.aux = set_where(mask, 0, slots.aux)
    if event.late is not None:
        event.late = set_where(mask, 0, event.late)


def pop(event: Event, active: Bool[Array, ""]) -> None:
    """The head of the FIFO leaves it."""
    inst = event.inst
    inst.head = jnp.where(active, (inst.head + 1) & (event.static.queue_capacity - 1), inst.head)
    inst.length = inst.length - active


def queue_view(event: Event) -> QueueView:
    """What an order head sees of this instance."""
    static, slots, column_of = event.static, event.slots, event.column_of
    row = column_of(Col.REQUEST)
    program = event.requests.program[row]
    pinned = event.runs.is_pinned(row) if static.pins else jnp.zeros_like(slots.order, bool)
    now_epoch, now_us = event.stamp(event.now)
    return QueueView(
        now_epoch=now_epoch,
        now_us=now_us,
        row=row,
        program=program,
        first_turn_mask=program == row,
        turn=jnp.zeros_like(row) if event.requests.turn is None else event.requests.turn[row],
        first_prompt_tokens=event.requests.prompt_tokens[program],
        preempted_mask=column_of(Col.PREEMPTIONS) > 0,
        pinned_mask=pinned,
        waiting_mask=slots.order == WAITING,
        running_mask=event.running_mask,
        known_tokens=slots.known,
        computed_tokens=slots.computed + jnp.abs(slots.chunk),  # with what this call gave
        prompt_tokens=slots.prompt,
        predicted_tokens=column_of(Col.PREDICTED),
        priority=column_of(Col.PRIORITY),
        sequence=column_of(Col.SEQUENCE),
        wait_us=event.since(event.now, column_of(Col.ARRIVAL_EPOCH), column_of(Col.ARRIVAL_US)),
        advanced_mask=None if event.service is None else event.service.advanced(slots.known),
        attained_us=None if event.service is None else event.service.attained(event.running_mask),
        due=_due(event) if static.scheduler.due else None,
        remaining_us=remaining_us(event, row, pinned) if static.scheduler.foresees else None,
        admitted_us=None if event.service is None else event.service.since_admission(),
        tenant=None if event.fair is None else column_of(Col.KLASS),
        tag=None if event.fair is None else event.fair.tag,
        account=None if event.fair is None else event.fair.account,
        tenants=event.params.tenants,
    )


def _due(event: Event) -> DueView:
    slots, column_of, params = event.slots, event.column_of, event.params
    klass = column_of(Col.KLASS)
    assert params.scheduler.work is not None
    return due_view(
        params.scheduler.work,
        limits_us=(params.slo_ttft_us[klass], params.slo_tpot_us[klass], params.slo_e2e_us[klass]),
        arrival=(column_of(Col.ARRIVAL_EPOCH), column_of(Col.ARRIVAL_US)),
        epoch=event.state.epoch,
        now_us=event.now,
        known_tokens=slots.known,
        computed_tokens=slots.computed + jnp.abs(slots.chunk),
        prompt_tokens=slots.prompt,
        predicted_tokens=column_of(Col.PREDICTED),
    )
