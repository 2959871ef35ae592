"""EWSJF (effective-workload shortest job first), adaptive queues by prompt length, on the V1 engine.

Rule: requests fall into queues by prompt-length range (`step_tokens` wide, `num_queues` of them); each queue's head
scores ``wait * (1 + w * ln(length + 1)) * step / (queue + 1)``; the best score runs next, the rest is V1. `w` is in
thousandths.
Simplified: the partition is fixed (the paper's refine-and-prune and Bayesian tuning are left out).
"""

import jax
import jax.numpy as jnp

from jaxsched.policies.base import Scheduler
from jaxsched.sim.static import SchedulerSpec
from jaxsched.sim.views import QueueView


def effective_workload(params, view: QueueView):
    """Minus the score, as an integer that sorts like the float; params = (step, number of queues, 1000 w)."""
    step, num_queues, weight = params[0], params[1], params[2].astype(jnp.float32) * 1e-3
    queue = jnp.minimum(view.known_tokens // jnp.maximum(step, 1), num_queues - 1)
    same = (queue[None, :] == queue[:, None]) & view.waiting_mask[None, :]
    oldest = jnp.min(jnp.where(same, view.sequence[None, :], 2**31 - 1), axis=1)
    is_head = view.sequence == oldest
    length = view.known_tokens.astype(jnp.float32)
    score = view.wait_us * (1.0 + weight * jnp.log(length + 1.0)) * step.astype(jnp.float32)
    score = score / (queue + 1).astype(jnp.float32)
    # Positive floats sort like their bit patterns.
    key = -jax.lax.bitcast_convert_type(jnp.maximum(score, 0.0).astype(jnp.float32), jnp.int32)
    return jnp.where(is_head, key, 2**31 - 2)


EWSJF = Scheduler(
    SchedulerSpec("ewsjf", order=effective_workload, static_keys=False),
    "queues by prompt length, aged and weighted scores",
    "EWSJF, adaptive scheduling for mixed workloads (vLLM plug-in), 2025",
    order_params={"step_tokens": 200, "num_queues": 10, "weight_milli": 500},
)
