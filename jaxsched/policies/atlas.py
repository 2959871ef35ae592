"""ATLAS, adaptive thread-level attained service: Autellix (Luo et al., arXiv 2502.13965, section 4), on the V1 engine.

PLAS (`policies/plas.py`) for programs whose calls run side by side: a program's attained service is its longest chain
of calls so far, ``max(program, inherited + own)`` when a call finishes, instead of their sum. On programs whose calls
follow one another both are the same, decision for decision.

Faithful: one scalar per program, as published. Simplified: as PLAS.
"""

from __future__ import annotations

from jaxsched.policies.base import Scheduler
from jaxsched.policies.plas import ORDER_PARAMS, RULES, SOURCE, starved
from jaxsched.retention.attained import atlas_after
from jaxsched.sim.service import ServiceRule
from jaxsched.sim.static import SchedulerSpec

ATLAS = Scheduler(
    SchedulerSpec("atlas", **RULES, service=ServiceRule(atlas_after, starved)),
    "Autellix: least attained service on the program's longest chain of calls first, preemptive levels",
    SOURCE,
    order_params=dict(ORDER_PARAMS),
)
