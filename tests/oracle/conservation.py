"""What must hold at an instance after every event."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tests.oracle.blocks import ceil_div
from tests.oracle.speculation import MOST

if TYPE_CHECKING:
    from tests.oracle.engine import Instance


def check(engine: Instance) -> None:
    """Conservation of requests, tokens and blocks."""
    config = engine.config
    assert len(engine.running) <= config.max_num_seqs
    num_inside = len(engine.running) + len(engine.waiting)
    assert len({*engine.running, *engine.waiting}) == num_inside == engine.num_joined - engine.num_left
    engine.pool.check(engine.running)
    for request in engine.running + engine.waiting:
        record = request.record
        assert record.fate == "unfinished"
        assert record.scheduled_tokens_total + record.cached_tokens_total - request.discarded == request.computed
        assert 0 <= request.in_flight <= len(engine.in_flight)
    for request in engine.running:
        drafts = MOST if config.speculation else 0
        assert request.is_running and 0 < request.computed <= request.num_tokens + drafts
        if config.kind == "vllm":  # blocks are taken as tokens are scheduled, none ahead but for drafts
            blocks = ceil_div(request.computed - request.dropped, config.block_size)
            assert blocks <= engine.pool.held(request) <= (blocks if not drafts else math.inf)
    for request in engine.waiting:
        assert not request.is_running and request.computed == 0 and engine.pool.held(request) == 0
