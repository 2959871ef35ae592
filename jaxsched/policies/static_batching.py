"""Static (request-level) batching, as in FasterTransformer: a batch runs until its last request is done.

Rule: requests are admitted only when nothing runs; blocks for the longest sequence are reserved.
Simplified: finished rows leave the batch instead of being padded, which is kinder than the original.
"""

from jaxsched.policies.base import Scheduler
from jaxsched.sim.static import SchedulerSpec

STATIC = Scheduler(
    SchedulerSpec("static", family="static"),
    "static batching: a batch runs to its end before the next is formed",
    "NVIDIA FasterTransformer; baseline of Yu et al., OSDI 2022",
    defaults={"max_model_len": 8192},
)
