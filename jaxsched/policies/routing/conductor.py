"""Mooncake's Conductor: the instance whose estimated time to first token is least.

Source: Qin et al., "Mooncake" (FAST 2025, arXiv 2407.00079), section 6.1, Algorithm 1: for every prefill instance
``TTFT = T_queue + T_prefill(prompt, matched prefix)``; the smallest wins.

Here, in prompt tokens: prompt tokens of its requests that are still to be computed + prompt tokens of this request that
it does not hold + `running_cost` for every request that runs there. The last term is not in the paper, whose prefill
instances do not decode: an instance that does both shares its steps with those.

Simplified: prefill time is linear in tokens. No remote fetch (the branch of Algorithm 1 beyond
`kvcache_balancing_threshold`, which moves the best prefix over the network first), so no copies of hot prefixes by
transfer, and no early rejection.
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxsched.policies.base import Router
from jaxsched.sim.event import first_slot
from jaxsched.sim.views import RouterView


def conductor(view: RouterView):
    """Least estimated work before the first token; ties to the lowest index."""
    assert view.params is not None and view.matched_tokens is not None and view.prefill_tokens is not None
    tokens = view.prefill_tokens + view.prompt_tokens - view.matched_tokens
    cost = tokens.astype(jnp.float32) + view.params[0] * view.num_running.astype(jnp.float32)
    return first_slot(cost == jnp.min(cost))


CONDUCTOR = Router(
    "conductor",
    conductor,
    "least estimated time to first token: queued prefill + what is not cached",
    "Mooncake Conductor (FAST 2025), Algorithm 1 without remote fetch",
    reads_cache="cache",
    params={"running_cost": 64.0},
)
