"""AIOS (Mei et al., "AIOS: LLM agent operating system", 2024): its two schedulers of LLM calls, on the V1 engine.

`aios-fifo`: calls are collected for a second, the queue is drained as one batch, and the next batch begins when all of
it is done. Here a batch begins at once and takes in who comes until one of its calls has ``open_tokens`` tokens (32:
about a second).
`aios-rr`: calls take turns; a call that has been admitted for longer than ``slice_ms`` (1 s) yields to one that waits
and goes to the back of the queue. Context switch: by text, what was generated is kept and prompt and outputs are
computed again (the engine's preemption); with ``+offload`` and ``swap_on_preempt: 1`` by state, the KV goes to host
memory and comes back.
Simplified: a slice ends only if another call could not be admitted otherwise, and not before a first token since
the admission (else slices shorter than a prefill would never end); only LLM calls (no memory, storage and tool queues).
Turns only matter where places are scarce: an AIOS core runs few calls at a time, so ``max_num_seqs`` is 8 unless given.
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxsched.policies.base import Scheduler
from jaxsched.policies.plas import SERVICE_OF_CALLS
from jaxsched.sim.admit import AdmitHead, AdmitView
from jaxsched.sim.fair import Account, FairRule, Params, Queues, Who
from jaxsched.sim.static import SchedulerSpec
from jaxsched.sim.views import QueueView

SOURCE = "Mei et al., AIOS: LLM agent operating system, 2024, and its public code"


def _batch_is_open(params, view: AdmitView):
    return ~jnp.any(view.mask & ~view.candidate_mask & (view.generated_tokens >= params[0].astype(jnp.int32)))


def _at_the_back(params: Params, account: Account, who: Who, queues: Queues):
    del params, who, queues
    return account + 1, account[0]


def _back_again(account: Account, tag):
    del tag
    return account + 1, account[0]


def round_robin(params, view: QueueView):
    """Place in the queue; a running call is behind all of it once its slice is over, and before it until then."""
    assert view.tag is not None and view.admitted_us is not None and view.advanced_mask is not None
    over = (view.admitted_us >= params[0] * 1000) & view.advanced_mask
    running = jnp.where(over, 2**30, -1)
    return jnp.where(view.running_mask, running, view.tag)


AIOS_FIFO = Scheduler(
    SchedulerSpec("aios-fifo", admit=AdmitHead(_batch_is_open)),
    "AIOS: the queue is served batch by batch",
    SOURCE,
    defaults={"max_num_seqs": 8},
    admit_params={"open_tokens": 32.0},
)
AIOS_RR = Scheduler(
    SchedulerSpec(
        "aios-rr",
        order=round_robin,
        static_keys=False,
        preemptive=True,
        service=SERVICE_OF_CALLS,
        fair=FairRule(lambda tenants: 1, _at_the_back, requeue=_back_again),
    ),
    "AIOS: calls take turns of a time slice; a switch computes the context again",
    SOURCE,
    defaults={"max_num_seqs": 8},
    order_params={"slice_ms": 1000},
)
