"""`+offload`: contexts spill to host memory, and come back from there instead of being computed again.

Rule: when a program pauses, and when a request is preempted, what the host does not yet hold of its context is copied
out; the blocks in HBM stay findable and are evicted in order of release like any others. At admission what HBM no
longer holds is loaded from host memory (from the remote pool, if there is one, through host memory). The host drops the
ends of the copies used longest ago. As vLLM's OffloadingConnector and LMCache with local CPU memory (and a remote
backend, written through) do, which copy blocks out as they are computed: here when they are let go.

Simplified: whole contexts of programs only (what a group shares is never copied), full blocks only, nothing is copied
at the end of a program. Mechanism: docs/semantics.md, section 10.
"""

from __future__ import annotations

import dataclasses

from jaxsched.sim.retain import OffloadRule

SOURCE = "vLLM v1 kv_offload (OffloadingConnector), LMCache storage backends"
#: Settings of every policy that offloads, and what each means. -1: as the cluster's tiers say.
TIER_SETTINGS = {
    "offload_on_pause": "1: the context of a program that pauses is copied to host memory",
    "swap_on_preempt": "1: preemption copies the context to host memory, 0: it is computed again",
    "keep_copy": "1: a copy stays on the host when it has been read, and only what is new is written back",
    "overlap_copies": "1: copies overlap with compute, 0: the engine waits for them, -1: as the cluster says",
    "copy_group": "blocks that one transfer operation moves, -1: as the cluster says",
}
TIER_DEFAULTS: dict[str, float] = {
    "offload_on_pause": 1,
    "swap_on_preempt": 1,
    "keep_copy": 1,
    "overlap_copies": -1,
    "copy_group": -1,
}


@dataclasses.dataclass(frozen=True)
class Offload:
    """One named rule that copies contexts to host memory."""

    name: str
    rule: OffloadRule
    summary: str
    source: str
    params: dict[str, float] = dataclasses.field(default_factory=lambda: dict(TIER_DEFAULTS))


OFFLOAD = Offload("offload", OffloadRule(), "contexts spill to host memory on pause and preemption", SOURCE)
