"""Aggressive admission: only what is there now counts, up to a watermark; on the V1 engine.

The other baseline of Past-Future (Gong et al., ASPLOS 2025): a request enters while its known tokens and the blocks in
use stay within 95 % of the pool (the paper's watermarks are 90 to 99 %); what the requests will grow to is ignored, and
pressure is answered by preemption. That is vLLM's own rule with `watermark` 0.05, and nothing else is behind this name.

Faithful: the watermark rule. Simplified: the engine below is vLLM V1, not LightLLM: the blocks of the whole prompt must
fit, the watermark does not hold for an empty batch, and a preempted request goes to the front of the queue.
"""

from __future__ import annotations

from jaxsched.policies.base import Scheduler
from jaxsched.policies.past_future import SOURCE
from jaxsched.sim.static import SchedulerSpec

AGGRESSIVE = Scheduler(
    SchedulerSpec("aggressive"),
    "V1 engine, admits by the memory in use now, up to 95 % of the pool",
    SOURCE,
    defaults={"watermark": 0.05},
)
