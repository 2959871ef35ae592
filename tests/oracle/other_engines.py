"""One schedule() call of the engines outside the V1 family (docs/semantics.md, 4). All are first come, first served."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.oracle.blocks import ceil_div
from tests.oracle.data import Request

if TYPE_CHECKING:
    from tests.oracle.engine import Instance
    from tests.oracle.steps import Call


def is_decode(request: Request) -> bool:
    """One known token left to compute, and it is an output. (Also the last single token of a recomputation.)"""
    return request.wanted == 1 and request.gen >= 1


def sarathi(engine: Instance, call: Call) -> None:
    """Sarathi-Serve: decodes, then the partial prefills, then admissions into what is left of the chunk."""
    config, pool = engine.config, engine.pool
    _decode_or_preempt(engine, call)
    for request in list(engine.running):
        n = min(request.wanted, call.budget)
        if n > 0 and request not in call.scheduled:
            engine.run(call, request, n)  # its blocks were taken at admission
    if call.preempted:
        return
    while call.budget > 0 and len(engine.running) < config.max_num_seqs:
        request = engine.next_candidate(call)
        if request is None or _prompt_blocks(engine, request) > pool.free - config.watermark_blocks:
            return
        n = min(request.num_tokens, call.budget)
        engine.admit(call, request, n, block_tokens=request.num_tokens)


def vllm_v0(engine: Instance, call: Call) -> None:
    """vLLM V0: a step is whole prompts if any can be admitted, decodes otherwise."""
    config, pool = engine.config, engine.pool
    while len(engine.running) < config.max_num_seqs:
        request = engine.next_candidate(call)
        if request is None or request.num_tokens > call.budget:
            break
        if pool.free - _prompt_blocks(engine, request) < config.watermark_blocks:
            break
        engine.admit(call, request, request.num_tokens, block_tokens=request.num_tokens)
    if not call.scheduled:
        _decode_or_preempt(engine, call)


def orca(engine: Instance, call: Call) -> None:
    """Orca: decodes, then whole prompts for which the longest possible sequence can be reserved."""
    for request in engine.running:
        engine.run(call, request, 1)
    _admit_reserving(engine, call)


def static(engine: Instance, call: Call) -> None:
    """Static batching: as orca, but a new batch starts only when the last one is done."""
    if not engine.running:
        _admit_reserving(engine, call)
        return
    for request in engine.running:
        engine.run(call, request, 1)


def _prompt_blocks(engine: Instance, request: Request) -> int:
    return ceil_div(request.num_tokens, engine.config.block_size)


def _decode_or_preempt(engine: Instance, call: Call) -> None:
    """One token for each decode in admission order; each must see a free block, whether it needs one or not."""
    pool = engine.pool
    for request in list(engine.running):
        if not request.is_running or not is_decode(request):
            continue
        while pool.free < 1:
            victim = engine.running[-1]
            engine.preempt(call, victim)
            if victim is request:
                return
        pool.grow(request, request.computed + 1)
        engine.run(call, request, 1)


def _admit_reserving(engine: Instance, call: Call) -> None:
    config, pool = engine.config, engine.pool
    while len(engine.running) < config.max_num_seqs:
        request = engine.next_candidate(call)
        if request is None or ceil_div(config.max_model_len, config.block_size) > pool.free:
            return
        engine.admit(call, request, request.num_tokens, block_tokens=config.max_model_len)
