"""FastSwitch (Shen et al., 2024): fairness-aware serving whose priorities change, with cheap context switches.

Rule: every program has a priority that is drawn anew at each update (the paper's Random trace; every 1/f iterations,
f = 0.04). Live requests are served in order of priority: one that waits displaces running ones of lower priority until
it fits, their contexts are swapped out to host memory, and its own is swapped in. What makes a switch cheap:
- block groups: one transfer operation moves a group of blocks (about 60, the paper's initial group), not one block;
- asynchronous swaps: the batch runs on while contexts move; it waits only where it needs blocks that are being copied;
  who has been swapped in joins the batch at once, whatever its priority is by then (`loaded_first`);
- reuse: the copy in host memory stays when it has been read, also across turns, so only what is new is written.

`vllm_swap`: the same schedule with the swaps of vLLM 0.3.3: one operation per block, the engine waits for every swap,
the host copy is freed when it has been read, and nothing is kept on the host across turns.

Faithful: the three mechanisms and the order.
Simplified: updates come by time (`update_ms`, 1 s: 25 iterations of about 40 ms), and their clock begins anew every 18
minutes (an epoch of the simulator's time); draws are independent (the Markov trace is not there); always asynchronous
where the paper decides by a recent profile; groups never split; copies evict each other by last use, not by priority;
a prefix cache in HBM, which vLLM 0.3.3 did not use.
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxsched.policies.base import Scheduler
from jaxsched.policies.offload import TIER_DEFAULTS
from jaxsched.sim.arrivals import hash_bits
from jaxsched.sim.clock import EPOCH_US
from jaxsched.sim.retain import OffloadRule
from jaxsched.sim.static import SchedulerSpec
from jaxsched.sim.views import QueueView

SOURCE = "Shen et al., FastSwitch: optimizing context switching efficiency in fairness-aware LLM serving, 2024"


def drawn_priority(params, view: QueueView):
    """Smallest first: a hash of the program and of the update period in which the clock is; before all who is loaded.

    params = `ORDER_PARAMS`.
    """
    period_us = jnp.clip(params[0], 1, EPOCH_US // 1000) * 1000
    period = view.now_epoch * (EPOCH_US // period_us + 1) + view.now_us // period_us
    loaded = view.waiting_mask & view.pinned_mask & (params[1] > 0)
    return jnp.where(loaded, -1, hash_bits(period, view.program, 0))


ORDER_PARAMS = {"update_ms": 1000, "loaded_first": 1}


_RULES = dict(order=drawn_priority, static_keys=False, preemptive=True, offload=OffloadRule())
FASTSWITCH = Scheduler(
    SchedulerSpec("fastswitch", **_RULES),  # type: ignore[arg-type]
    "V1 engine, priorities drawn anew; contexts swapped in groups, asynchronously, increments only",
    SOURCE,
    order_params=dict(ORDER_PARAMS),
    tier_params=TIER_DEFAULTS | {"overlap_copies": 1, "copy_group": 60},
)
VLLM_SWAP = Scheduler(
    SchedulerSpec("vllm_swap", **_RULES),  # type: ignore[arg-type]
    "the same schedule, swaps as in vLLM 0.3.3: block by block, the engine waits, copies do not stay",
    SOURCE,
    order_params=dict(ORDER_PARAMS),
    tier_params=TIER_DEFAULTS | {"overlap_copies": 0, "copy_group": 1, "keep_copy": 0, "offload_on_pause": 0},
)
