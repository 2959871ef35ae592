"""`+offload`: contexts spill to host memory, and come back from there instead of being computed again.

Rule: when a program pauses, and when a request is preempted, what the host does not yet hold of its context is copied
out; the blocks in HBM stay findable and are evicted in order of release like any others. At admission what HBM no
longer holds is loaded from host memory (from the remote pool, if there is one, through host memory). The host drops the
ends of the copies used longest ago. As vLLM's OffloadingConnector and LMCache with local CPU memory (and a remote
backend, written through) do, which copy blocks out as they are computed: here when they are let go.

`+prefetch`: also, a context is loaded ahead of its turn, so that it is there when the tool is expected to return (the
mean of the tool's last pauses), into blocks that are free and not pinned. Loaded too early it can be evicted again.

Simplified: whole contexts of programs only (what a group shares is never copied), full blocks only, nothing is copied
at the end of a program. Mechanism: docs/semantics.md, section 10.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from jaxsched.retention.ttl import empty_history, mean_pause_us, record
from jaxsched.sim.retain import FOREVER_US, OffloadRule, PauseView, RetainHead

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


def _returns_in(params, known, view: PauseView):
    """The mean of the tool's last pauses; before there are any, as if never."""
    del params
    mean = mean_pause_us(known, view.tool)
    return jnp.where(mean > 0.0, jnp.minimum(mean, float(FOREVER_US - 127)), float(FOREVER_US)).astype(jnp.int32)


def _no_time(params, known, view: PauseView):
    del params, known, view
    return jnp.int32(0)


#: Learns the pauses of each tool and keeps nothing: for schedulers without a retention rule that learns.
LEARN_PAUSES = RetainHead(_no_time, start=empty_history, returned=record)
PREFETCH = Offload(
    "prefetch",
    OffloadRule(returns_in=_returns_in),
    "as offload, and contexts are loaded in time for the mean pause of their tool",
    SOURCE,
)
OFFLOAD = Offload("offload", OffloadRule(), "contexts spill to host memory on pause and preemption", SOURCE)
