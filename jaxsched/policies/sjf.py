"""Shortest (predicted) job first on the V1 engine; the queue of learning-to-rank schedulers (Fu et al., NeurIPS 2024).

Rule: waiting requests by predicted output tokens, smallest first; running requests are never displaced. The predictor's
error is a parameter of the workload (`prediction_error`). `sjf-oracle` sees the true length and is a bound, not a
policy.
"""

import jax.numpy as jnp

from jaxsched.policies.base import Scheduler
from jaxsched.sim.static import SchedulerSpec
from jaxsched.sim.views import QueueView


def shortest_first(params, view: QueueView):
    """Predicted output tokens."""
    del params
    return view.predicted_tokens.astype(jnp.int32)


SOURCE = "Fu et al., Efficient LLM Scheduling by Learning to Rank, NeurIPS 2024"
SJF = Scheduler(SchedulerSpec("sjf", order=shortest_first), "shortest predicted output first", SOURCE)
SJF_ORACLE = Scheduler(
    SchedulerSpec("sjf-oracle", order=shortest_first),
    "bound: shortest true output first",
    SOURCE,
    sees_true_length=True,
)
