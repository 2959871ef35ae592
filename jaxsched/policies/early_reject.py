"""Early rejection by class limits: any scheduler of the V1 engine, with `+early_reject`.

Rule: when schedule() considers a waiting request that would miss its TTFT limit, or its due date, even if it ran alone
from now on (predicted work: `prompt_us` and `output_us` per token), it is refused (fate `rejected_late`) instead of
being admitted. A request that has begun is never given up.
Faithful: the idea of Mooncake's overload-oriented early rejection (Qin et al. 2024, section 7): refuse before prefill
what cannot be served in time. Simplified: Mooncake decides at arrival from the predicted load of both pools; here the
decision falls when the request comes to the head of the queue, with its wait known.
"""

from __future__ import annotations

import dataclasses

from jaxsched.errors import UserError
from jaxsched.policies.base import Scheduler
from jaxsched.sim.due import PARAMETERS

EARLY_REJECT = "early_reject"


def with_early_rejection(scheduler: Scheduler) -> Scheduler:
    """`scheduler` (with an ordered queue) that refuses who cannot be in time."""
    if scheduler.spec.asynchronous:
        raise UserError(
            f"{scheduler.spec.name}: early rejection goes with synchronous stepping only",
            expected="a synchronous scheduler of the V1 engine, e.g. vllm or edd",
        )
    spec = dataclasses.replace(scheduler.spec, due=True, rejects_late=True)
    return dataclasses.replace(scheduler, spec=spec, work_params=PARAMETERS)
