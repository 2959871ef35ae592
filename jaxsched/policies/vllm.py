"""vLLM V1 (vllm-project/vllm, version 0.33.0: v1/core/sched/scheduler.py), the reference engine.

Rule: running requests first in admission order, then the waiting queue, under one token budget; chunked prefill; the
head of the queue blocks; KV blocks are allocated lazily; when a running request cannot get its blocks the last admitted
one is preempted (recompute) and nobody is admitted in that call. Exact against recordings of the real scheduler
(`jaxsched verify`), prefix caching included: blocks that nobody holds are evicted in order of release (LRU), a
request's end first. That is the retention of every policy here that has none of its own.

Faithful: every decision, step by step. Simplified: one KV group with full attention; no speculative decoding, LoRA or
multimodal input; a connector's part is `+offload`.

`vllm`: synchronous stepping, FCFS. `vllm-async`: schedules step k+1 when step k starts (the production default of
0.33).
`vllm-priority`: queue and victims by (priority, arrival).
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxsched.policies.base import Scheduler
from jaxsched.sim.static import SchedulerSpec
from jaxsched.sim.views import QueueView

SOURCE = "vLLM 0.33.0, v1/core/sched/scheduler.py"


def priority_order(params, view: QueueView):
    """Priority; the machine breaks ties by arrival."""
    del params
    return view.priority.astype(jnp.int32)


VLLM = Scheduler(SchedulerSpec("vllm"), "vLLM V1, FCFS, synchronous stepping", SOURCE)
VLLM_ASYNC = Scheduler(SchedulerSpec("vllm-async", asynchronous=True), "vLLM V1, FCFS, one step ahead", SOURCE)
VLLM_PRIORITY = Scheduler(
    SchedulerSpec("vllm-priority", order=priority_order, priority_victims=True),
    "vLLM V1, priority queue and priority victims",
    SOURCE,
)
