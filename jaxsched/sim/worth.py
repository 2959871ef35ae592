"""The order in which contexts of paused programs are evicted, where the retention rule has one of its own.

Contexts are ranked at the start of each schedule() call (docs/semantics.md, section 9): least worth first, of equal
ones the one released first. A context whose next turn waits at the instance is worth more than any other.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxsched.sim.clock import EPOCH_BITS
from jaxsched.sim.event import Event
from jaxsched.sim.kv.runs import UNUSED
from jaxsched.sim.retain import FOREVER_US, ContextView, reload_time_us, saturated_us
from jaxsched.sim.state import WAITING


def rank_contexts(event: Event, active: Bool[Array, ""], rows: Int[Array, " s"]) -> None:
    """Rank the contexts of the instance; `rows` = turns in its slots."""
    runs, requests, head = event.runs, event.requests, event.static.scheduler.retain
    assert head is not None and head.value is not None
    there = (runs.chain != UNUSED) & (runs.next >= 0)
    row = jnp.maximum(runs.next, 0)
    waiting = event.slots.order == WAITING
    waits = jnp.any((runs.next[:, None] == rows[None, :]) & waiting[None, :], axis=1)
    tokens = (runs.high - runs.low) * event.static.block_size
    view = ContextView(
        tool=jnp.zeros_like(row) if requests.tool is None else requests.tool[row],
        age_us=_age_us(event),
        context_tokens=tokens,
        reload_us=jax.vmap(reload_time_us, (None, 0))(event.timing, tokens),
        pause_us=saturated_us(requests.pause_epoch[row], requests.pause_us[row]),
        program=None if event.params.scheduler.evict is None else requests.program[row],
    )
    worth = jnp.where(waits, 0, head.value(event.params.scheduler.of_evict(), event.state.learned, view))
    less = (worth[None, :] < worth[:, None]) | ((worth[None, :] == worth[:, None]) & (runs.stamp < runs.stamp[:, None]))
    before = jnp.where(waits[None, :] == waits[:, None], less, waits[:, None])
    rank = jnp.sum((before & there[None, :]).astype(jnp.int32), axis=1)
    runs.rank = jnp.where(active, rank, runs.rank)
    if event.static.pins_prefixes:
        runs.rank_prefixes(active)


def _age_us(event: Event) -> Int[Array, " r"]:
    """Since the release of each run; saturates."""
    epoch, us = event.stamp(event.now)
    epochs = jnp.clip(epoch - event.runs.since_epoch, 0, 2)
    age = ((epochs & 1) << EPOCH_BITS) + us - event.runs.since_us
    return jnp.where(epochs >= 2, FOREVER_US, jnp.clip(age, 0, FOREVER_US)).astype(jnp.int32)
