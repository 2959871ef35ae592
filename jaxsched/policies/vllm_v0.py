"""vLLM V0's default scheduler (Kwon et al., SOSP 2023; `_schedule_default` of vLLM 0.5): prefill first.

Rule: while a waiting prompt fits, a step holds whole prompts only and every decode stalls; otherwise a decode step.
Watermark of 1 % of the pool at admission; each decode must see a free block, else the last admitted request is
preempted (recompute).
Simplified: no swapping (single-sequence requests recompute by default), no padding of the token cap.
"""

from jaxsched.policies.base import Scheduler
from jaxsched.sim.static import SchedulerSpec

VLLM_V0 = Scheduler(
    SchedulerSpec("vllm-v0", family="v0"),
    "vLLM V0: prefill-only steps first, decodes stall",
    "Kwon et al., SOSP 2023; vLLM 0.5 core/scheduler.py",
    defaults={"watermark": 0.01, "token_budget": 32768},
)
