"""What the contexts of begun programs take, for the gate (retention/gate.py), and what bounds know of programs."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxsched.sim.event import Event, ceil_blocks
from jaxsched.sim.views import QueueView


def remaining_us(event: Event, row: Int[Array, " s"], pinned: Bool[Array, " s"]) -> Int[Array, " s"]:
    """Work left of each slot's program (bounds only); saturates."""
    future = event.requests.foresight
    assert future is not None
    again = jnp.where(pinned, 0, future.history_us[row])
    return jnp.minimum(future.remaining_us[row], 2**30) + jnp.minimum(again, 2**30 - 1)


def gate_open(event: Event, view: QueueView) -> Bool[Array, " s"]:
    """Which waiting requests would pass as the first turn of a new program (retention/gate.py, `gate_open`).

    Contexts of begun programs: of running requests, of waiting turns of begun programs, and what is left of paused
    ones. A program always begins when nothing runs.
    """
    static, kv = event.static, event.runs
    begun = view.running_mask | (view.waiting_mask & ~view.first_turn_mask)
    waiting_rows = jnp.where(view.waiting_mask, view.row, -2)
    paused = kv.paused_rows(waiting_rows)  # (what waits is counted with its turn)
    if static.scheduler.gate_final:  # all as large as they will grow
        future = event.requests.foresight
        assert future is not None
        final = lambda rows: ceil_blocks(static, future.final_tokens[jnp.maximum(rows, 0)])
        own, left = final(view.row), final(paused)
    else:
        own, left = ceil_blocks(static, view.known_tokens), kv.high - kv.low
    blocks = jnp.sum(jnp.where(begun, own, 0)) + jnp.sum(jnp.where(paused >= 0, left, 0))
    limit = event.params.scheduler.gate_fraction * event.params.usable_blocks[event.m].astype(jnp.float32)
    if static.scheduler.gate_share is not None:
        weights = event.params.scheduler.weights
        assert weights is not None
        limit = limit * static.scheduler.gate_share(weights, view)
    would_be = (blocks + own).astype(jnp.float32)
    return (would_be < limit) | (event.inst.running == 0)
