"""KV compression (docs/semantics.md, 16): how much of a request's KV is kept at the end of a step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.oracle.blocks import CountPool
from tests.oracle.data import EngineConfig, Request

if TYPE_CHECKING:
    from tests.oracle.engine import Instance
    from tests.oracle.steps import Step


def _ratio(config: EngineConfig, used: int) -> int:
    if config.compress == "fixed":
        return config.keep_ratio
    low, high = config.pressure
    share = used * 1024 // config.usable_blocks
    part = min(max(share - low, 0), max(high - low, 1))
    return 1024 - (1024 - config.keep_ratio) * part // max(high - low, 1)


def budget(config: EngineConfig, request: Request) -> int:
    """Tokens that are kept."""
    share = -(-request.computed * request.kept_ratio // 1024)
    return min(max(share, config.min_kept, 1), request.computed)


def evict(engine: Instance, step: Step) -> None:
    """Of the requests that get a token at the end of the step."""
    config = engine.config
    if not config.compress:
        return
    ratio = _ratio(config, engine.pool.usable - engine.pool.free)
    for request in step.sampled:
        if request.is_over or not request.is_running:
            continue
        is_new = request.kept_ratio == 0
        if is_new:
            request.kept_ratio = ratio
        over = request.computed - request.dropped - budget(config, request)
        if over > 0 and (is_new or over >= config.evict_window > 0):
            request.dropped += over
            assert isinstance(engine.pool, CountPool)  # compressed blocks are nobody else's: no prefix cache
            engine.pool.shrink(request, request.computed - request.dropped)
            engine.noted["evicted_after_prefill" if is_new else "evicted_in_decode"] += 1
