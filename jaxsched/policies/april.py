"""APRIL (Zhou et al. 2025): active partial rollouts, for reinforcement learning in rounds; any scheduler, `+april`.

Rule: a round that needs N prompts done begins with `over_provision` times N in the system; when N are done, what still
runs is taken out with its outputs kept, goes on first in the next round, and its KV is computed again under the new
weights; no rollout is thrown away.
Faithful: over-provisioning, stop at the N-th, continuation before new prompts. Simplified: a prompt counts when all its
samples are done, wherever they began (no limit on how many updates a sample may span); who is taken out stays at its
instance; 2 is our default for N' / N.
"""

from __future__ import annotations

import dataclasses

from jaxsched.errors import UserError
from jaxsched.policies.base import Policy, Scheduler

APRIL = "april"
SOURCE = "Zhou et al., APRIL, 2025 (arXiv 2509.18521)"
PARAMETERS = {"over_provision": 2.0}
#: A round of more than so many times its programs is a mistake (and a large table).
MOST = 64.0


def with_partial_rollouts(scheduler: Scheduler) -> Scheduler:
    """`scheduler` with rounds that begin with more programs than they need."""
    return dataclasses.replace(scheduler, round_params=PARAMETERS)


def in_flight(policy: Policy, target: int) -> int:
    """Programs in the system when a round that needs `target` begins. Raises UserError for a factor out of range."""
    if not policy.scheduler.round_params:
        return target
    factor = policy.settings()["over_provision"]
    if not 1.0 <= factor <= MOST:
        raise UserError(
            f"over_provision is {factor:g}", where=f"policy {policy.name}", expected=f"1 <= over_provision <= {MOST:g}"
        )
    return int(factor * target)
