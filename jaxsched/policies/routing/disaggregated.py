"""Prefill and decode on instances of their own (DistServe; Splitwise; Mooncake), for requests split in two turns.

Source: Zhong et al., "DistServe: Disaggregating Prefill and Decoding for Goodput-optimized Large Language Model
Serving" (OSDI 2024), section 4.3 (online scheduling): a request goes to the prefill instance with the shortest queue,
then to the least loaded decoding instance.

Rule. First turns (prompt and first token) go to one of the first `prefill_instances`, later turns to one of the others;
in both pools to the instance with the fewest KV blocks used or about to be (prompts that wait).

Simplified: the context is handed over through the pool that all instances share (`+offload` with a remote tier) when
the prefill has ended, in full blocks, not layer by layer while it runs; the last few tokens, which fill no block, are
computed again; a decode instance takes a request as soon as the context is there. Workloads: `sharegpt_split`.
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxsched.policies.base import Router
from jaxsched.sim.event import first_smallest
from jaxsched.sim.views import RouterView


def disaggregated(view: RouterView):
    """Least loaded instance of the turn's pool; ties to the lowest index. One instance: that one."""
    assert view.params is not None
    num_instances = view.num_waiting.shape[0]
    if num_instances == 1:
        return jnp.int32(0)
    num_prefill = jnp.clip(view.params[0].astype(jnp.int32), 1, num_instances - 1)
    prefills = jnp.arange(num_instances, dtype=jnp.int32) < num_prefill
    mine = prefills == (view.home < 0)
    return first_smallest(jnp.where(mine, view.used_blocks + view.waiting_blocks, 2**31 - 1))


DISAGGREGATED = Router(
    "disaggregated",
    disaggregated,
    "first turns to the prefill instances, later ones to the others; in both where the fewest KV blocks are used",
    "DistServe (OSDI 2024), section 4.3",
    reads_blocks=True,
    params={"prefill_instances": 1.0},
)
