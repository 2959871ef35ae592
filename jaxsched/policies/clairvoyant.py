"""Bounds for agents: what knowing the pauses, the work left and the final contexts would be worth. No policies.

`clair_ttl`: program FCFS with kept contexts first, as Continuum, and the true pause instead of a learned one: the
context stays exactly until the return where the reload it saves is worth its memory (`clair`, policies/continuum.py).
`srpt_program`: turns by the engine work that is left of their program, least first (Schrage 1968 on programs), a
context that is not kept counted as work to do again. Preempted turns come first, then (`pinned_first` 1) those whose
context is kept, for the same reason as in Continuum. Nobody is displaced.
`+peak`: the gate (`+gate`) with every begun context as large as it will grow, and `gate_fraction` 1.4: final contexts
are never all there at once.

``get("srpt_program+clair+gate")`` and ``get("srpt_program+clair+peak")`` are the best of the regime study
(docs/retention.md): heuristics with hindsight, not optima. Work is that of tokens in a batch (jaxsched/foresight.py).
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxsched.policies.base import Scheduler
from jaxsched.policies.continuum import RETENTIONS
from jaxsched.policies.program_fcfs import CLASS, pinned_first
from jaxsched.sim.static import SchedulerSpec
from jaxsched.sim.views import QueueView

SOURCE = "regime study (docs/retention.md); Schrage 1968"
PEAK_FRACTION = 1.4
#: Work is compared in units of 2^3 us, so that 35 minutes of it fit below a class.
UNIT_BITS = 3


def least_program_work(params, view: QueueView):
    """Preempted turns, then those whose context is pinned (if `params[0]`), then by work left of the program."""
    assert view.remaining_us is not None
    kept = view.pinned_mask & (params[0] > 0)
    group = jnp.where(view.preempted_mask, 0, jnp.where(kept, 1, 2))
    return group * CLASS + (view.remaining_us >> UNIT_BITS)


SRPT_PROGRAM = Scheduler(
    SchedulerSpec("srpt_program", order=least_program_work, foresees=True),
    "bound: least true remaining work of the program first",
    SOURCE,
    order_params={"pinned_first": 1},
)
CLAIR_TTL = Scheduler(
    SchedulerSpec("clair_ttl", order=pinned_first, retain=RETENTIONS["clair"].head),
    "bound: knows each pause, keeps the context for it where that is worth its memory; program FCFS",
    SOURCE,
    retain_params=dict(RETENTIONS["clair"].params),
)
