"""The KV prefix cache of an instance, in interchangeable representations behind `KvCache`.

`NoCache`: blocks are a count. `BlockTable`: every cached block is an entry; exact for any sharing. `RunTable`:
consecutive blocks that were let go together are one entry; fast, exact for group prefixes and append-only chains.
Rules: docs/semantics.md, section 8 (vLLM 0.33: v1/core/kv_cache_manager.py, block_pool.py).
"""

from __future__ import annotations

from typing import Any

from jaxsched.sim.kv.base import Hit, KvCache, NoCache, Pin
from jaxsched.sim.kv.blocks import BlockTable, BlockTableState, init_block_table
from jaxsched.sim.kv.runs import RunTable, RunTableState, init_run_table
from jaxsched.sim.params import SimParams
from jaxsched.sim.static import SimStatic

__all__ = [
    "BlockTable", "BlockTableState", "Hit", "KvCache", "NoCache", "Pin", "RunTable", "RunTableState",
    "init_cache", "load_cache",
]  # fmt: skip


def load_cache(static, requests, state, m) -> KvCache:
    """The cache of instance `m`, ready for one micro-step."""
    if static.prefix_cache == "none":
        return NoCache()
    table = BlockTable if static.prefix_cache == "blocks" else RunTable
    return table.load(static, requests, state.kv, m)


def init_cache(static: SimStatic, params: SimParams) -> Any:
    """The prefix caches at the start, None if there are none."""
    tables = {"none": lambda *_: None, "blocks": init_block_table, "runs": init_run_table}
    return tables[static.prefix_cache](static, params)
