"""PLAS, program-level attained service: Autellix (Luo et al., arXiv 2502.13965, section 4), on the V1 engine.

Rule: a call inherits the service of its program's finished calls and adds its own; levels of attained service double
from `quantum_ms` (`jaxsched/retention/attained.py`); lower level first, then arrival; a running call that has moved
down is preempted for a waiting one of a lower level that cannot be admitted otherwise. A waiting call is promoted to
the first level once its program and itself have waited `starvation_ratio` times as long as they were served (0:
never); its own service and wait, and what it inherited, then count from 0.

Service is the time a call was admitted (what the regime study calls attained running time), not its share of the steps.
`pinned_first` 1: inside a level calls whose context is pinned go first (matters with retention only); 2: before all
levels; 0: no. `preempt` 0: running calls stay, as in the regime study.
Faithful: the inheritance, levels, FCFS inside one, demotion, the ratio. Simplified: the numbers are ours; levels are
read at every schedule() call instead of every N steps; preemption recomputes what the prefix cache has lost (Autellix
swaps), so a running call is displaced only once it has yielded a token since its admission: else two calls can undo
each other's prefill for ever.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxsched.policies.base import Scheduler
from jaxsched.retention.attained import AttainedParams, plas_after, service_level, starves
from jaxsched.sim.service import ServiceRule
from jaxsched.sim.static import SchedulerSpec
from jaxsched.sim.views import QueueView

SOURCE = "Luo et al., Autellix: an efficient serving engine for LLM agents as general programs, 2025"
ORDER_PARAMS = {"quantum_ms": 1000, "num_levels": 10, "starvation_ratio": 10, "preempt": 1, "pinned_first": 1}


def _levels(params) -> AttainedParams:
    return AttainedParams(quantum_us=params[0] * 1000, num_levels=params[1], starvation_ratio=params[2])


def attained_order(params, view: QueueView):
    """Twice the level, plus 1 for a waiting call without a pinned context; params = `ORDER_PARAMS`.

    A waiting call then goes before a running one, and may displace it, iff its level is lower.
    """
    assert view.attained_us is not None and view.advanced_mask is not None
    level = service_level(view.attained_us, _levels(params))
    waiting = 2 * level + ((params[4] == 0) | ~view.pinned_mask)
    waiting = jnp.where((params[4] == 2) & view.pinned_mask, -1, waiting)
    running = jnp.where((params[3] > 0) & view.advanced_mask, 2 * level, -2)
    return jnp.where(view.running_mask, running, waiting).astype(jnp.int32)


def starved(params, program_wait_us, call_wait_us, program_us, call_us):
    """Who is promoted."""
    return starves(program_wait_us, call_wait_us, program_us, call_us, _levels(params))


def _sum_of_calls(program_us, inherited_us, call_us):
    del inherited_us
    return plas_after(program_us, call_us)


#: Keeps the service of calls, and promotes nobody.
SERVICE_OF_CALLS = ServiceRule(_sum_of_calls)
RULES: dict[str, Any] = dict(order=attained_order, static_keys=False, preemptive=True)
PLAS = Scheduler(
    SchedulerSpec("plas", **RULES, service=ServiceRule(_sum_of_calls, starved)),
    "Autellix: least attained service of the program first (finished calls), preemptive levels",
    SOURCE,
    order_params=dict(ORDER_PARAMS),
)
