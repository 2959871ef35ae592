"""SGLang's cache-aware router: the longest prefix of what it sent before, unless the load is out of balance.

Source: sgl-project/sglang, sgl-router/src/policies/cache_aware.rs (`select_worker`) and tree.rs.

Rule. Load = requests in flight. If ``max - min > balance_abs_threshold`` and ``max > balance_rel_threshold * min``: the
least loaded worker. Else the worker with the longest match in the router's own radix tree of prompts, if it covers more
than `cache_threshold` of the prompt; else the worker whose tree is smallest. The prompt is inserted in every case.

Defaults are those of the launcher (0.3, 64, 1.5, 2^26 characters, here 2^24 tokens); the library's own are 0.5, 32, 1.1
and 10,000 characters.

Simplified: the tree holds full blocks, not characters, and an instance's part is cut at the insertion that exceeds the
limit instead of every 30 to 120 s (`sim/sent.py`); of several workers with the same match the lowest index is taken
(the real one takes the first of a hash map); loads may be late (`router_delay_ms`), the tree cannot.
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxsched.policies.base import Router
from jaxsched.sim.event import first_slot
from jaxsched.sim.views import RouterView


def sglang(view: RouterView):
    """Least loaded, longest match or smallest tree; ties to the lowest index."""
    assert view.params is not None and view.matched_tokens is not None and view.record_tokens is not None
    _, threshold, absolute, relative = view.params
    load = view.num_waiting + view.num_running
    most, least = jnp.max(load), jnp.min(load)
    apart = (most - least).astype(jnp.float32) > absolute
    unbalanced = apart & (most.astype(jnp.float32) > relative * least.astype(jnp.float32))
    best = jnp.max(view.matched_tokens)
    found = best.astype(jnp.float32) > threshold * view.prompt_tokens.astype(jnp.float32)
    by_tree = jnp.where(found, view.matched_tokens == best, view.record_tokens == jnp.min(view.record_tokens))
    return first_slot(jnp.where(unbalanced, load == least, by_tree))


SGLANG = Router(
    "sglang",
    sglang,
    "longest prefix of what it sent before, while the load is in balance",
    "SGLang router, cache_aware",
    reads_cache="record",
    params={
        "max_tree_tokens": 2**24,
        "cache_threshold": 0.3,
        "balance_abs_threshold": 64,
        "balance_rel_threshold": 1.5,
    },
)
