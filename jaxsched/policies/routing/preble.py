"""Preble's E2 (exploitation + exploration): follow a long cached prefix, else go where the load of the last minutes is
least.

Source: Srivatsa et al., "Preble: Efficient Distributed Prompt Scheduling for LLM Serving" (ICLR 2025, arXiv
2407.00023), section 3.2; code WukLab/preble, multi_node/global_scheduler_with_time.py (`runtime_selector`,
`SlidingWindowHistogram`).

Rule. If more of the prompt is cached somewhere than would have to be computed there: exploit, among the instances with
the longest cached prefix the one of least cost. Else explore: the instance of least cost. Cost of an instance = what it
was sent in the last 3 minutes (prompt tokens to compute, and output tokens at `decode_cost` prompt tokens each) + what
this prompt would make it compute. If the instance to exploit was sent more than `balance_ratio` times as much as
the least loaded one: explore (post-assignment load adjustment; HIGH_LOAD_THRESHOLD = 1.5 in the first code). 0 = never.

Simplified: costs are tokens instead of seconds, so prefill time is linear in tokens; output tokens are the predicted
ones (the real one: the mean of the prefix so far) and count when the request is sent, not while it runs; no eviction
cost (off in the code by default); hot prefixes are not replicated on purpose, they spread by exploring. The cache is
the instances' own, live or late, instead of the scheduler's tree with evictions reported back.
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxsched.policies.base import Router
from jaxsched.sim.event import first_slot, first_smallest
from jaxsched.sim.views import RouterView


def preble_e2(view: RouterView):
    """Exploit or explore; ties to the lowest index."""
    assert view.params is not None and view.matched_tokens is not None
    assert view.recent_prefill is not None and view.recent_output is not None
    decode_cost, ratio = view.params
    load = view.recent_prefill.astype(jnp.float32) + decode_cost * view.recent_output.astype(jnp.float32)
    cost = load + (view.prompt_tokens - view.matched_tokens).astype(jnp.float32)
    explore = first_smallest(cost)
    best = jnp.max(view.matched_tokens)
    holds = view.matched_tokens == best
    least = jnp.min(jnp.where(holds, cost, jnp.inf))
    exploit = first_slot(holds & (cost == least))
    follows = best > view.prompt_tokens - best
    follows &= (ratio <= 0) | (load[exploit] <= ratio * jnp.min(load))
    return jnp.where(follows, exploit, explore)


PREBLE = Router(
    "preble_e2",
    preble_e2,
    "where most of the prompt is cached, else the least load of the last 3 minutes",
    "Preble (ICLR 2025), section 3.2",
    reads_cache="cache",
    reads_window=True,
    params={"decode_cost": 4.0, "balance_ratio": 1.5},
)
