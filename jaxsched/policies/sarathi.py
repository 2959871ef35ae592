"""Sarathi-Serve (Agrawal et al., OSDI 2024; github.com/microsoft/sarathi-serve): stall-free chunked prefill.

Rule: every running decode gets its token, then the unfinished prefill takes what is left of the chunk, then new
requests. All blocks of the prompt are taken at admission; watermark 1 %. The chunk (512 by default) caps all tokens of
a step but never the decodes.
Simplified: pipeline-parallel micro-batches and the dynamic chunk size are left out.
"""

from jaxsched.policies.base import Scheduler
from jaxsched.sim.static import SchedulerSpec

SARATHI = Scheduler(
    SchedulerSpec("sarathi", family="sarathi"),
    "Sarathi-Serve: decodes first, chunked prefill of 512 tokens",
    "Agrawal et al., OSDI 2024; microsoft/sarathi-serve",
    defaults={"token_budget": 512, "watermark": 0.01},
)
