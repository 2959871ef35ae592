"""Program-level first come, first served: turns in the order in which their programs arrived.

The queue order inside Continuum (Li et al., 2025, section 4) and the "+program FCFS" step of its ablation; alone it
leaves retention to the engine (least recently released blocks go first). Preempted requests come before the others.

Faithful: the order. Simplified: programs that arrive at one instant go in table order.
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxsched.policies.base import Scheduler
from jaxsched.sim.static import SchedulerSpec
from jaxsched.sim.views import QueueView

#: Classes of a key are this far apart: more programs than a table has rows.
CLASS = 1 << 28


def arrival_order(params, view: QueueView):
    """Turns in order of arrival: vLLM's FCFS, as an order head."""
    del params
    return view.sequence


def program_order(params, view: QueueView):
    """Preempted turns first, then by arrival of the program."""
    del params
    return jnp.where(view.preempted_mask, 0, CLASS) + view.program


def pinned_first(params, view: QueueView):
    """Preempted turns, then those whose context is pinned, then by arrival of the program."""
    del params
    group = jnp.where(view.preempted_mask, 0, jnp.where(view.pinned_mask, 1, 2))
    return group * CLASS + view.program


PROGRAM_FCFS = Scheduler(
    SchedulerSpec("pfcfs", order=program_order),
    "V1 engine, turns by arrival of their program",
    "Li et al., Continuum, 2025 (ablation: + program FCFS)",
)
