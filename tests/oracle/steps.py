"""A schedule() call in progress, the step that it makes, and what a step-time model sees of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.oracle.data import Request, StepFeatures, StepLog


@dataclass
class Call:
    """One schedule() call in progress. `scheduled` is in batch order: running requests, then admissions."""

    now_us: int
    budget: int
    scheduled: dict[Request, int] = field(default_factory=dict)
    draft_cap: int = 0  # most tokens that a request may draft
    admitted: list[tuple[Request, int, bool]] = field(default_factory=list)  # request, cached tokens, resumed
    preempted: list[Request] = field(default_factory=list)


@dataclass
class Step:
    """A step in flight. `sampled` = requests that get an output token at its end, in batch order."""

    end_us: int
    sampled: list[Request]
    log: StepLog
    drafted: dict[Request, int] = field(default_factory=dict)


def features_of(call: Call) -> StepFeatures:
    """Of what is scheduled."""
    ctx = num_decode = decode_ctx = num_prefill = prefill_tokens = prefill_ctx = quad = 0
    for request, n in call.scheduled.items():
        before = request.computed - n
        ctx += request.computed
        if before > 0 and (n == 1 or request.computed > request.num_tokens):  # (the latter verifies drafts)
            num_decode += 1
            decode_ctx += request.computed - request.dropped
            ctx -= request.dropped
        else:
            num_prefill += 1
            prefill_tokens += n
            prefill_ctx += request.computed
            quad += n * ((2 * before + n) >> 6)
    total = sum(call.scheduled.values())
    return StepFeatures(total, ctx, num_decode, decode_ctx, num_prefill, prefill_tokens, prefill_ctx, quad)
