"""Multi-level feedback queue with skip-join: FastServe (Wu et al., 2023), on the V1 engine.

Rule: a request's level is the first whose quantum (doubling from `quantum_tokens`) covers the tokens it has had; a new
request joins at the level that covers its prompt (skip-join); lower level first, then arrival; preemptive.
Simplified: service counted in tokens, not time; preempted requests recompute (FastServe swaps proactively); no
anti-starvation promotion.
"""

import jax.numpy as jnp

from jaxsched.policies.base import Scheduler
from jaxsched.sim.static import SchedulerSpec
from jaxsched.sim.views import QueueView

MAX_LEVELS = 16


def feedback_level(params, view: QueueView):
    """Level; the machine breaks ties by arrival. params = (quantum in tokens, number of levels)."""
    attained = jnp.where(view.computed_tokens == 0, view.known_tokens, view.computed_tokens)
    quantum, num_levels = params[0], params[1]
    bounds = quantum << jnp.minimum(jnp.arange(MAX_LEVELS - 1, dtype=jnp.int32), 20)
    level = jnp.sum((attained[:, None] > bounds[None, :]).astype(jnp.int32), axis=1)
    return jnp.minimum(level, num_levels - 1)


MLFQ = Scheduler(
    SchedulerSpec("mlfq", order=feedback_level, static_keys=False, preemptive=True),
    "multi-level feedback queue with skip-join, preemptive",
    "Wu et al., Fast Distributed Inference Serving (FastServe), 2023",
    order_params={"quantum_tokens": 512, "num_levels": 6},
)
