"""Conservative admission: every request is taken to grow to the longest output allowed; on the V1 engine.

The baseline of Past-Future (Gong et al., ASPLOS 2025) and what engines without preemption do: a request enters while
the blocks of all prompts and `max_output_tokens` each fit `overcommit` times the pool (1.0: nobody is ever preempted;
the paper goes up to 1.5). Blocks are taken as tokens come, not reserved at once as in Orca, so what is reserved but
not used yet is free for a prefix cache.

Faithful: the rule and its overcommit. Simplified: one limit for all requests; not asked when nothing runs, so a request
whose longest output does not fit alone runs all the same.
"""

from __future__ import annotations

from jaxsched.policies.base import Scheduler
from jaxsched.policies.past_future import SOURCE
from jaxsched.retention.peak import conservative_fits
from jaxsched.sim.admit import AdmitHead, AdmitView
from jaxsched.sim.static import SchedulerSpec


def _grown_fits(params, view: AdmitView):
    limit = params[0].astype("int32") + 0 * view.known_tokens
    # What the last block of the grown request holds beyond it counts as well.
    grown = view.known_tokens + (limit - view.generated_tokens)
    padding = -grown % view.block_size
    return conservative_fits(
        view.known_tokens + padding,
        view.generated_tokens,
        limit,
        view.mask,
        view.pool_tokens,
        params[1],
        view.held_tokens,
    )


CONSERVATIVE = Scheduler(
    SchedulerSpec("conservative", admit=AdmitHead(_grown_fits)),
    "V1 engine, admits while all requests grown to the longest output fit",
    SOURCE,
    admit_params={"max_output_tokens": 4096.0, "overcommit": 1.0},
)
