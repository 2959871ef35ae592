"""Continuum (Li et al., 2025; also CacheTTL): pin a program's KV for a time to live at a tool call, program-level FCFS.

Rule: at the end of a turn, tau* = argmax over {0} and the durations seen of ``P(tau) (T eta + Reload) - tau``, from
this tool's history, all tools' or a prior (`jaxsched/retention/ttl.py`, with sources and defaults). The queue is
ordered by (preempted first, pinned first, arrival of the program). A pin ends when its time is over and no turn of the
program waits, when that turn is admitted, or under pressure: running requests take pinned blocks last, of the latest
program first, and where nothing runs pins do not hold.

Faithful: estimator, sources, order, pins that break by program. Simplified: eta stays at 1, its prior, unless
`learn_eta` is 1 (then of the turns done and left of completed programs); Reload is the step-time model's prefill of the
context; pins of blocked requests break only when nothing runs (the regime study found that better than breaking them
whenever the head is blocked); no offload.

`ttl`: the same times to live under another order (``get("pfcfs+ttl")`` is the paper's ablation without pinned first).
`ttl_times`: those times multiplied by `ttl_scale` (``get("continuum+ttl_times")``; 3 was 1-6 % better in the regime
study).
`static_ttl`: one constant, the "+ static TTL" of the ablation. `preserve`: until the return (InferCept, Abhyankar et
al. 2024, "preserve"). `clair`: a bound that knows the pause, and keeps the context for it where the reload it saves is
worth more than `price` times the memory time it takes.
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxsched.policies.base import Retention, Scheduler
from jaxsched.policies.program_fcfs import pinned_first
from jaxsched.retention.ttl import best_ttl, empty_history, record, record_program, record_wait
from jaxsched.sim.retain import FOREVER_US, PauseView, RetainHead, saturated_us
from jaxsched.sim.static import SchedulerSpec

SOURCE = "Li et al., Continuum: efficient and robust multi-turn LLM agent scheduling with KV cache time-to-live, 2025"


def _learned_ttl(params, known, view: PauseView):
    del params  # (whether eta is learned: then `known` has seen programs)
    return best_ttl(known, view.tool, view.reload_us)


def _scaled_ttl(params, known, view: PauseView):
    ttl = best_ttl(known, view.tool, view.reload_us).astype(jnp.float32)
    return jnp.minimum(params[0] * ttl, float(FOREVER_US)).astype(jnp.int32)


def _static_ttl(params, known, view: PauseView):
    del known, view
    return (params[0] * 1000.0).astype(jnp.int32)


def _preserve(params, known, view: PauseView):
    del params, known, view
    return jnp.int32(FOREVER_US)


def _clairvoyant(params, known, view: PauseView):
    del known
    pause = saturated_us(view.pause_epoch, view.pause_us)
    # Microseconds of reload saved per microsecond of keeping a hundredth of the pool.
    share = 100.0 * view.context_tokens.astype(jnp.float32) / view.pool_tokens.astype(jnp.float32)
    worth = view.reload_us.astype(jnp.float32) > params[0] * pause.astype(jnp.float32) * share
    return jnp.where(worth, pause, 0)


def _learn_length(params, known, turns, happened):
    return record_program(known, turns, happened & (params[0] > 0))


LEARNED_TTL = RetainHead(
    _learned_ttl, start=empty_history, returned=record, readmitted=record_wait, completed=_learn_length
)
TTL_PARAMS = {"learn_eta": 0.0}
RETENTIONS = {
    entry.name: entry
    for entry in (
        Retention("ttl", LEARNED_TTL, "Continuum's time to live, learned per tool", SOURCE, dict(TTL_PARAMS)),
        Retention(
            "ttl_times",
            RetainHead(_scaled_ttl, start=empty_history, returned=record, readmitted=record_wait),
            "Continuum's time to live, times a factor",
            "regime study (docs/retention.md)",
            {"ttl_scale": 3.0},
        ),
        Retention("static_ttl", RetainHead(_static_ttl), "one time to live for all", SOURCE, {"ttl_ms": 2000.0}),
        Retention("preserve", RetainHead(_preserve), "until the program returns", "Abhyankar et al., InferCept, 2024"),
        Retention(
            "clair",
            RetainHead(_clairvoyant, sees_pause=True),
            "bound: knows each pause, keeps what is worth its memory",
            "regime study (docs/retention.md), `clair`",
            {"price": 0.01},
        ),
    )
}
CONTINUUM = Scheduler(
    SchedulerSpec("continuum", order=pinned_first, retain=LEARNED_TTL),
    "V1 engine, program FCFS, KV of paused programs pinned for a learned time to live",
    SOURCE,
    retain_params=dict(TTL_PARAMS),
)
