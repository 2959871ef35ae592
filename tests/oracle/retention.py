"""What is kept of programs that pause, and the gate on new ones (docs/semantics.md, 9)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tests.oracle.blocks import Context, ceil_div
from tests.oracle.data import Request, StepFeatures

if TYPE_CHECKING:
    from tests.oracle.engine import Instance


def context_of(engine: Instance, request: Request, now_us: int) -> Context | None:
    """What retention makes of the blocks of a program that pauses; None if it is over."""
    if request.next_on_chain < 0:
        return None
    ttl_us = time_to_live(engine, request)
    deadline_us = now_us + ttl_us if ttl_us > 0 else None
    returns_us = now_us + request.next_pause_us
    return Context(request.next_on_chain, request.owner, deadline_us, request.next_final_tokens, returns_us)


def time_to_live(engine: Instance, request: Request) -> float:
    """For how long a context is pinned."""
    config = engine.config
    if config.retention == "preserve":
        return math.inf
    if config.retention in ("static_ttl", "belady"):
        return config.ttl_us
    if config.retention == "clair":
        full_blocks = (request.prompt_tokens + request.output_tokens - 1) // config.block_size
        own = max(full_blocks - request.shared_blocks, 0) * config.block_size
        percent = 100 * own / (config.usable_blocks * config.block_size)
        worth = reload_us(engine, own) > config.clair_price * request.next_pause_us * percent
        return request.next_pause_us if worth else 0
    return 0


def reload_us(engine: Instance, tokens: int) -> int:
    """Time of one prefill of so many tokens."""
    if tokens == 0:
        return 0
    recompute_us = engine.step_time(StepFeatures(tokens, tokens, 0, 0, 1, tokens, tokens, tokens * (tokens >> 6)))
    if engine.config.tiers is None:
        return recompute_us
    return min(recompute_us, engine.config.tiers.host_in.time_us(tokens // engine.config.block_size))


def gate_is_open(engine: Instance, request: Request) -> bool:
    """Whether a new program may begin: begun ones leave room, or nothing runs."""
    config = engine.config
    if config.gate_fraction == 0 or not engine.running:
        return True
    begun = engine.running + [r for r in engine.waiting if r.row != r.program]
    waiting_rows = {r.row for r in engine.waiting}
    paused = [c for c in engine.pool.contexts if c.next_turn not in waiting_rows]
    if config.gate_final:
        tokens = [r.final_tokens for r in [*begun, request]] + [c.final_tokens for c in paused]
        return sum(ceil_div(t, config.block_size) for t in tokens) < config.gate_fraction * config.usable_blocks
    blocks = sum(ceil_div(r.num_tokens, config.block_size) for r in begun) + sum(len(c.blocks) for c in paused)
    return blocks + ceil_div(request.prompt_tokens, config.block_size) < config.gate_fraction * config.usable_blocks
