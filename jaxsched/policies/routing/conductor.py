"""Mooncake's Conductor: the instance whose estimated time to first token is least.

Source: Qin et al., "Mooncake" (FAST 2025, arXiv 2407.00079), section 6.1, Algorithm 1: for every prefill instance
``TTFT = T_queue + T_prefill(prompt, matched prefix)``; the smallest wins.

Here, in prompt tokens: prompt tokens of its requests that are still to be computed + prompt tokens of this request that
it does not hold + `running_cost` for every request that runs there. The last term is not in the paper, whose prefill
instances do not decode: an instance that does both shares its steps with those.

Remote fetch (the branch of Algorithm 1 beyond `kvcache_balancing_threshold`), with `fetch_ratio` > 0: where the longest
prefix that any instance holds is more than `fetch_ratio` times an instance's own, that instance is reckoned with the
longest prefix, at `fetch_cost` prompt tokens for each token that it has to fetch. The fetch itself is the memory
tiers': contexts are written through to the remote pool that all instances share (``continuum+offload`` and a cluster
with ``tiers.remote``), and an instance that admits a turn loads what it lacks from there. Contexts of programs only:
what groups share is not in the pool. 0: no fetch, as without tiers.

Simplified: prefill and transfer time are linear in tokens, and waiting for the link is not estimated; no copies of hot
prefixes but those that a fetch leaves, and no early rejection.
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxsched.policies.base import Router
from jaxsched.sim.event import first_smallest
from jaxsched.sim.views import RouterView


def conductor(view: RouterView):
    """Least estimated work before the first token; ties to the lowest index."""
    assert view.params is not None and view.matched_tokens is not None and view.prefill_tokens is not None
    longest = jnp.max(view.matched_tokens).astype(jnp.float32)
    own = view.matched_tokens.astype(jnp.float32)
    fetches = (view.params[1] > 0) & (longest > view.params[1] * own)
    saved = jnp.where(fetches, (longest - own) * (1.0 - view.params[2]), 0.0)
    tokens = view.prefill_tokens + view.prompt_tokens - view.matched_tokens
    cost = tokens.astype(jnp.float32) - saved + view.params[0] * view.num_running.astype(jnp.float32)
    return first_smallest(cost)


CONDUCTOR = Router(
    "conductor",
    conductor,
    "least estimated time to first token: queued prefill + what is not cached",
    "Mooncake Conductor (FAST 2025), Algorithm 1",
    reads_cache="cache",
    params={"running_cost": 64.0, "fetch_ratio": 0.0, "fetch_cost": 0.1},
)
