"""llm-d's weighted scorers: the highest weighted sum of prefix, queue and KV scores.

Source: llm-d inference scheduler and the Gateway API inference extension (pkg/epp/.../scorer): prefix-cache-scorer =
cached share of the prompt's blocks; queue-scorer = (longest queue - queue) / (longest - shortest), 1 if all are equal;
kv-cache-utilization-scorer = 1 - share of KV blocks in use; max-score-picker. `active_weight` is for a score of the
requests in flight of the same form as the queue's. vLLM's production stack routes by the same signals.

Weights: 3 prefix, 2 queue, 2 KV (llm-d's guide for precise prefix-cache routing); they are traced, so any may be swept
or learned.

Simplified: ties go to the lowest index (the real one: at random among the best).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxsched.policies.base import Router
from jaxsched.sim.event import first_slot
from jaxsched.sim.views import RouterView


def _shorter(queue: jax.Array) -> jax.Array:
    """1 for the shortest, 0 for the longest."""
    longest, shortest = jnp.max(queue), jnp.min(queue)
    span = jnp.maximum(longest - shortest, 1).astype(jnp.float32)
    return jnp.where(longest == shortest, 1.0, (longest - queue).astype(jnp.float32) / span)


def llmd_score(view: RouterView):
    """Highest weighted score; ties to the lowest index."""
    assert view.params is not None and view.matched_tokens is not None and view.usable_blocks is not None
    prefix, queue, kv, active = view.params
    blocks = jnp.maximum(view.prompt_tokens // view.block_size, 1).astype(jnp.float32)
    score = prefix * (view.matched_tokens // view.block_size).astype(jnp.float32) / blocks
    score += queue * _shorter(view.num_waiting)
    score += kv * (1.0 - view.used_blocks.astype(jnp.float32) / view.usable_blocks.astype(jnp.float32))
    score += active * _shorter(view.num_waiting + view.num_running)
    return first_slot(score == jnp.max(score))


LLMD = Router(
    "llmd_score",
    llmd_score,
    "highest weighted score of cached prefix, queue and free KV",
    "llm-d inference scheduler",
    reads_blocks=True,
    reads_cache="cache",
    params={"prefix_weight": 3.0, "queue_weight": 2.0, "kv_weight": 2.0, "active_weight": 0.0},
)
