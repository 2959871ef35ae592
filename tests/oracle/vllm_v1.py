"""One schedule() call of the V1 family (docs/semantics.md, 3; vLLM 0.33.0 for fcfs and priority)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.oracle.admission import lets_in
from tests.oracle.blocks import Hit, ceil_div
from tests.oracle.data import Request
from tests.oracle.orders import PREEMPTIVE, memory_victim, order_key, order_victim

if TYPE_CHECKING:
    from tests.oracle.engine import Instance
    from tests.oracle.steps import Call

NO_LIMIT = 2**62


def schedule(engine: Instance, call: Call) -> None:
    chunk_limit = _chunk_limit(engine)
    _schedule_running(engine, call, chunk_limit)
    if call.preempted:
        return  # a call that preempted for memory admits nobody
    _preempt_for_order(engine, call)
    _admit_waiting(engine, call, chunk_limit)


def _chunk_limit(engine: Instance) -> int:
    """The long-prefill threshold, off when at most one request is there."""
    config = engine.config
    competitors = len(engine.running) + len(engine.waiting)
    if config.long_prefill_threshold == 0 or competitors <= 1:
        return NO_LIMIT
    if config.adaptive:
        return max(config.long_prefill_threshold, config.token_budget // competitors)
    return config.long_prefill_threshold


def _schedule_running(engine: Instance, call: Call, chunk_limit: int) -> None:
    pool = engine.pool
    for request in list(engine.running):
        if call.budget <= 0:
            break
        if not request.is_running:
            continue  # preempted in this call
        n = min(request.wanted + engine.drafts(call, request), chunk_limit, call.budget)
        if n == 0:
            continue
        kept = request.computed - request.dropped  # (computed, but for KV compression)
        while pool.needed(request, kept + n + engine.lookahead) > pool.free:
            if engine.wait_for_copies():
                continue
            victim = memory_victim(engine.config, engine.running)
            engine.preempt(call, victim)
            if victim is request:
                break
        if request.is_running:
            pool.grow(request, kept + n + engine.lookahead)
            engine.run(call, request, n)


def _blocks(engine: Instance, request: Request, tokens: int, hit: Hit) -> int:
    """Blocks that leave the free pool when a waiting request gets room for its first `tokens` tokens."""
    return ceil_div(tokens, engine.config.block_size) - len(hit.blocks) + hit.num_evictable


def _preempt_for_order(engine: Instance, call: Call) -> None:
    """srpt and mlfq: the best waiting request pushes out worse running ones until it can be admitted."""
    config, pool, running = engine.config, engine.pool, engine.running
    if config.order not in PREEMPTIVE:
        return
    while (candidate := engine.next_candidate(call)) is not None and running:
        hit = pool.lookup(candidate)
        free = pool.free + pool.num_leaving - hit.num_copying
        fits = _blocks(engine, candidate, candidate.num_tokens, hit) <= free
        if fits and len(running) < config.max_num_seqs:
            return
        victim = order_victim(config, running, call.now_us)
        pinned = pool.pinned_turns()
        if order_key(config, victim, call.now_us) <= order_key(config, candidate, call.now_us, pinned):
            return
        engine.noted["displaced"] += 1
        engine.preempt(call, victim)


def _admit_waiting(engine: Instance, call: Call, chunk_limit: int) -> None:
    config, pool = engine.config, engine.pool
    while call.budget > 0 and engine.waiting and len(engine.running) < config.max_num_seqs:
        request = engine.next_candidate(call)
        if request is None:
            return
        hit = pool.lookup(request)
        load = engine.find_load(call, request, hit)
        loaded = load.blocks * config.block_size if load else 0
        found = hit.tokens + loaded
        n = min(request.num_tokens - found, chunk_limit)
        if n > call.budget and not config.chunked_prefill:
            return
        n = min(n, call.budget)
        watermark = config.watermark_blocks if engine.running else 0
        pinned = pool.pinned_besides(hit) if engine.running else 0
        blocks = _blocks(engine, request, request.num_tokens if config.reserve_full_isl else found + n, hit)
        if blocks + watermark + pinned > pool.free:
            engine.noted["kept_out_by_pins"] += blocks + watermark <= pool.free
            return
        held = pinned * config.block_size
        if not lets_in(config, engine.lengths, engine.running, request, engine.words, held):
            engine.noted["kept_out_by_admission"] += 1
            return
        if load is not None and engine.begin_load(call, request, hit, load):
            continue
        engine.admit(call, request, n, block_tokens=found + n, hit=hit, loaded_tokens=loaded)
