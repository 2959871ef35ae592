"""Shortest remaining processing time with preemption (Schrage 1968), in predicted output tokens, on the V1 engine.

Rule: waiting and running requests ranked by predicted remaining output tokens; a waiting request with strictly fewer
displaces the worst running one when it cannot be admitted otherwise (recompute). `srpt-oracle` sees the true length and
is a bound, not a policy.
"""

from typing import Any

import jax.numpy as jnp

from jaxsched.policies.base import Scheduler
from jaxsched.sim.static import SchedulerSpec
from jaxsched.sim.views import QueueView


def shortest_remaining(params, view: QueueView):
    """Predicted output tokens left, at least 1."""
    del params
    return jnp.maximum(view.predicted_tokens - (view.known_tokens - view.prompt_tokens), 1)


SOURCE = "Schrage 1968; Fu et al., NeurIPS 2024 (predicted lengths)"
_RULES: dict[str, Any] = dict(order=shortest_remaining, static_keys=False, preemptive=True)
SRPT = Scheduler(SchedulerSpec("srpt", **_RULES), "shortest predicted remaining output first, preemptive", SOURCE)
SRPT_ORACLE = Scheduler(
    SchedulerSpec("srpt-oracle", **_RULES),
    "bound: shortest true remaining output first, preemptive",
    SOURCE,
    sees_true_length=True,
)
