"""NVIDIA Dynamo's KV router: least (weight x prefill blocks + blocks in use).

Source: ai-dynamo/dynamo, lib/kv-router/src/scheduling/selector.rs (`worker_logit`): ``logit = overlap_weight *
potential_prefill_blocks + decode_blocks``, smallest wins at temperature 0; potential_prefill_blocks = (prompt tokens of
requests in prefill there + prompt tokens of this one that are not cached there) / block size, decode_blocks = blocks of
requests there with this one's. Default weight 1.

Simplified: temperature 0 (softmax sampling is not there), ties to the lowest index (the real one: the smallest tree,
then at random); a request in prefill counts with what is left of it, not whole until its first token; blocks that this
request would share with running ones are counted for every instance alike. Block tiers and shared caches: not there.
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxsched.policies.base import Router
from jaxsched.sim.event import first_smallest
from jaxsched.sim.views import RouterView


def dynamo_kv(view: RouterView):
    """Least cost, here in tokens; ties to the lowest index."""
    assert view.params is not None and view.matched_tokens is not None and view.prefill_tokens is not None
    prefill = view.prefill_tokens + view.prompt_tokens - view.matched_tokens
    blocks = view.used_blocks + view.waiting_blocks
    cost = view.params[0] * prefill.astype(jnp.float32) + (blocks * view.block_size).astype(jnp.float32)
    return first_smallest(cost)


DYNAMO = Router(
    "dynamo_kv",
    dynamo_kv,
    "least (weight x prefill to do there + KV blocks in use)",
    "NVIDIA Dynamo KV router",
    reads_blocks=True,
    reads_cache="cache",
    params={"overlap_weight": 1.0},
)
