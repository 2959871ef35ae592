"""Contexts that are loaded before their programs are expected back (docs/semantics.md, 10)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.oracle.blocks import CachingPool
from tests.oracle.data import Record, Request

if TYPE_CHECKING:
    from tests.oracle.engine import Instance


def plan(engine: Instance, request: Request, now_us: int) -> None:
    """The context of a program that pauses is to be in HBM when it is expected back."""
    tiers = engine.config.tiers
    assert tiers is not None
    full_blocks = (request.prompt_tokens + request.output_tokens - 1) // engine.config.block_size
    load_us = tiers.host_in.time_us(max(full_blocks - request.shared_blocks, 0))
    later = Request(
        row=request.next_on_chain, prompt_tokens=len(request.next_prompt), output_tokens=1, predicted_tokens=1,
        klass=0, priority=0, arrival_us=0, sequence=0, record=Record(request.next_on_chain),
        content=list(request.next_prompt), output_stream=None, program=request.program, owner=request.owner,
        chain=request.chain, shared_blocks=request.shared_blocks, final_tokens=request.next_final_tokens,
    )  # fmt: skip
    engine.plans[later.row] = (now_us + max(tiers.returns_in_us - load_us, 0), later)


def begin(engine: Instance, later: Request, now_us: int) -> None:
    """Load a context ahead of its turn, into blocks that are free and not pinned."""
    if any(request.row == later.row for request in engine.waiting):
        return
    assert engine.tiers is not None and isinstance(engine.pool, CachingPool)
    hit = engine.pool.lookup(later)
    most = (later.num_tokens - 1) // engine.config.block_size
    load = engine.tiers.find(later.chain, later.shared_blocks, len(hit.blocks), most, now_us)
    if load is None or load.blocks + hit.num_evictable + engine.pool.pinned_besides(hit) > engine.pool.free:
        return
    engine.noted["prefetched"] += 1
    engine.tiers.load(later.chain, later.shared_blocks, len(hit.blocks), load, now_us)
    engine.pool.begin_load(later, hit, load.blocks, load.end_us, pinned=False)
