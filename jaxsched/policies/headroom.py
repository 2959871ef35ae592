"""Priorities with headroom (Llumnix, Sun et al., OSDI 2024) on the V1 engine with priorities.

Rule: queue and victims by (priority, arrival), as `vllm-priority`. While an admitted request is more important than the
candidate, the candidate enters only if the tokens of all admitted requests, its own included, leave `headroom_tokens`
of the KV pool free: room for the important one to grow without preemption, and a smaller batch beside it. Llumnix
counts that room as if the important requests filled it (virtual usage, section 4.3) when it dispatches and migrates; on
one engine it is admission that heeds it.

Faithful: the reserve exists while a request of the class runs, and is 1,600 tokens (section 6.4). Simplified: one size
for all classes above the candidate's; shared prefixes count for each who has them; nobody is migrated; not asked when
nothing runs.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxsched.policies.base import Scheduler
from jaxsched.policies.vllm import priority_order
from jaxsched.sim.admit import AdmitHead, AdmitView
from jaxsched.sim.static import SchedulerSpec


def leaves_headroom(params: Array, view: AdmitView) -> Bool[Array, ""]:
    """Whether the candidate leaves room for those who are more important and run."""
    own = jnp.sum(jnp.where(view.candidate_mask, view.priority, 0))
    others = view.mask & ~view.candidate_mask
    reserve = jnp.where(jnp.any(others & (view.priority < own)), params[0].astype(jnp.int32), 0)
    held = jnp.sum(jnp.where(view.mask, view.known_tokens, 0)) + view.held_tokens
    return (reserve == 0) | (held <= view.pool_tokens - reserve)


PRIORITY_HEADROOM = Scheduler(
    SchedulerSpec("priority-headroom", order=priority_order, priority_victims=True, admit=AdmitHead(leaves_headroom)),
    "vLLM V1 with priorities, keeps memory free beside requests that are more important",
    "Sun et al., Llumnix: dynamic scheduling for large language model serving, OSDI 2024",
    admit_params={"headroom_tokens": 1600.0},
)
