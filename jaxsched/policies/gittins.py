"""Retention by a Gittins/Whittle index with a price on memory: keep a paused context while it is worth its blocks.

Rule (regime study, docs/retention.md): a context of m tokens that takes R to compute again is kept at age a while
``g(a) R (mean / m) > price``, where g(a) is the supremum over tau of P(return within tau) / E[min(rest, tau)] given
age a. The law of pauses is learned online from the returns (`retention/pauses.py`), so this is no oracle. The
policy turns it into a time to live: the first age at which the index falls to the price. The queue is ordered by
(preempted, kept context, arrival of the program): a kept context that waits behind a program which cannot be admitted
is memory that serves nobody (measured: docs/reproductions.md).

Faithful: the index and the price.
Simplified: `mean_tokens` is a setting, not the mean over paused contexts; unpinned contexts are evicted in order of
release, not of the index (rule `gittins_index`: the lowest index goes first, as it is by then, pinned ones last); the
law of a time to live is that known when the pause begins.

`index_retention` is the same rule for a law of pauses that the user knows.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxsched.policies.base import Retention, Scheduler
from jaxsched.policies.program_fcfs import pinned_first
from jaxsched.retention.index import return_rate
from jaxsched.retention.pauses import PauseTable, tables_from_history
from jaxsched.retention.ttl import empty_history, record
from jaxsched.sim.retain import FOREVER_US, ContextView, PauseView, RetainHead
from jaxsched.sim.static import SchedulerSpec

SOURCE = "Gittins 1979; Whittle 1988; Aalto, Ayesta, Righter 2009; regime study (docs/retention.md)"
KNOTS = 17
#: The study's price; its mean paused context was about 8,000 tokens.
SETTINGS = {"price": 0.1, "mean_tokens": 8000.0}


def first_age_below_price(price, mean_tokens, table: PauseTable, view: PauseView):
    """Microseconds after which the index of a context has fallen to the price."""
    ages = table.time_us[view.tool]
    knots = ages.shape[0]
    rate = jax.vmap(lambda age: return_rate(table, view.tool, age))(ages)
    index = (
        rate
        * view.reload_us.astype(jnp.float32)
        * mean_tokens
        / jnp.maximum(view.context_tokens, 1).astype(jnp.float32)
    )
    low = index <= price
    place = jnp.min(jnp.where(low, jnp.arange(knots), knots - 1))
    return jnp.minimum(ages[place], float(FOREVER_US)).astype(jnp.int32)


def _index_ttl(params, known, view: PauseView):
    return first_age_below_price(params[0], params[1], tables_from_history(known, KNOTS), view)


def index_retention(table: PauseTable, name: str = "gittins_known") -> Retention:
    """Retention by the index of a known law of pauses (`retention.pauses.tables_from_laws`), one row per tool.

    Settings as those of `gittins`: ``price`` and ``mean_tokens``.
    """

    def time_to_live(params, known, view: PauseView):
        del known
        return first_age_below_price(params[0], params[1], table, view)

    return Retention(name, RetainHead(time_to_live), "the retention index of a given law", SOURCE, dict(SETTINGS))


def _index_now(params, known, view: ContextView):
    table = tables_from_history(known, KNOTS)
    rate = jax.vmap(return_rate, (None, 0, 0))(table, view.tool, view.age_us.astype(jnp.float32))
    size = jnp.maximum(view.context_tokens, 1).astype(jnp.float32)
    return rate * view.reload_us.astype(jnp.float32) * params[1] / size


GITTINS_HEAD = RetainHead(_index_ttl, start=empty_history, returned=record)
GITTINS_INDEX = Retention(
    "gittins_index",
    dataclasses.replace(GITTINS_HEAD, value=_index_now),
    "the same, and under pressure the lowest index goes first",
    SOURCE,
    dict(SETTINGS),
)
GITTINS_RETENTION = Retention(
    "gittins", GITTINS_HEAD, "while the retention index exceeds the price of memory", SOURCE, dict(SETTINGS)
)
GITTINS = Scheduler(
    SchedulerSpec("gittins", order=pinned_first, retain=GITTINS_HEAD),
    "V1 engine, programs with kept context first, then program FCFS; KV kept by a retention index",
    SOURCE,
    retain_params=dict(SETTINGS),
)
