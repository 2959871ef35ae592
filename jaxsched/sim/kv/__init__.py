"""The KV prefix cache of an instance, in interchangeable representations behind `KvCache`.

`NoCache`: blocks are a count. `BlockTable`: every cached block is an entry; exact for any sharing of content.
Rules: docs/semantics.md, section 8 (vLLM 0.33: v1/core/kv_cache_manager.py, block_pool.py).
"""

from jaxsched.sim.kv.base import Hit, KvCache, NoCache
from jaxsched.sim.kv.blocks import BlockTable, BlockTableState

__all__ = ["BlockTable", "BlockTableState", "Hit", "KvCache", "NoCache", "load_cache"]


def load_cache(static, requests, state, m) -> KvCache:
    """The cache of instance `m`, ready for one micro-step."""
    if static.prefix_cache == "none":
        return NoCache()
    return BlockTable.load(static, requests, state.kv, m)
