"""Orca (Yu et al., OSDI 2022): iteration-level batching with whole prompts and contiguous KV.

Rule: whole prompts join the running decodes at any iteration; each admission reserves blocks for the longest sequence
(`max_model_len`), so nothing is ever preempted and far fewer requests fit.
Simplified: the reservation is rounded to blocks; selective batching costs are part of the step-time model.
"""

from jaxsched.policies.base import Scheduler
from jaxsched.sim.static import SchedulerSpec

ORCA = Scheduler(
    SchedulerSpec("orca", family="orca"),
    "Orca: iteration-level batching, reserves the longest sequence",
    "Yu et al., OSDI 2022",
    defaults={"max_model_len": 8192},
)
