"""Weighted fair queueing by virtual finish time, tenant first, then program (UWFQ-like), on the V1 engine.

Self-clocked rule (Golestani, INFOCOM 1994; the fluid model is that of Demers et al., 1989): a request's tag is the
virtual time at which a fluid server, shared among the tenants by weight, would finish it; the smallest tag goes next;
the virtual time V is the largest tag admitted so far.
UWFQ ("Balancing fairness and performance in multi-user Spark workloads", arXiv 2510.15485) adds a second level: inside
a tenant its programs share what it gets, so a small program is not stuck behind the tenant's own big one. Here: cost
C = ``input_price`` * prompt + ``output_price`` * predicted output, over the tenant's weight; F = virtual time at which
all work of the tenant is done, F = max(F, V) + C; tag = min(F, V + n C) with n programs of the tenant at the instance.
Simplified: formulas rebuilt from the abstract (they were not available), so "UWFQ-like"; no simulated fluid server; no
splitting of requests (chunked prefill is the engine's); tags are given at arrival and not corrected when a prediction
turns out wrong; a program's turns are requests of their own.
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxsched.policies.base import Scheduler
from jaxsched.policies.vtc import ORDER_PARAMS, is_tenant, prices
from jaxsched.sim.fair import Account, FairRule, Params, Queues, Who
from jaxsched.sim.static import SchedulerSpec
from jaxsched.sim.views import QueueView

SOURCE = "Golestani, INFOCOM 1994; UWFQ, arXiv 2510.15485 (user then job)"
#: Costs saturate here: tags stay far inside int32.
_LARGEST = 2**29


def _enter(params: Params, account: Account, who: Who, queues: Queues):
    """account = [V, F of every tenant]."""
    now, finish = account[0], account[1:]
    mine = is_tenant(finish.shape[0], who.tenant)
    price_in, price_out = prices(params)
    cost = jnp.sum(jnp.where(mine, who.prompt_tokens * price_in + who.predicted_tokens * price_out, 0))
    cost = jnp.minimum(cost, _LARGEST)
    programs = jnp.sum(jnp.where(mine, queues.present, 0))
    finish = jnp.where(mine, jnp.maximum(finish, now) + cost, finish)
    alone = jnp.sum(jnp.where(mine, finish, 0))
    shared = now + jnp.where(cost > _LARGEST // jnp.maximum(programs, 1), _LARGEST, programs * cost)
    return jnp.concatenate([now[None], finish]), jnp.minimum(alone, shared)


def _admit(params: Params, account: Account, who: Who, queues: Queues) -> Account:
    del params, queues
    return account.at[0].max(who.tag)


def virtual_finish(params, view: QueueView):
    """The tag."""
    del params
    assert view.tag is not None
    return view.tag


TAGS = FairRule(
    lambda tenants: 1 + tenants,
    _enter,
    _admit,
    rebase=lambda account: (jnp.full_like(account, account[0]), account[0]),
)
WFQ = Scheduler(
    SchedulerSpec("wfq", order=virtual_finish, fair=TAGS),
    "weighted fair queueing: virtual finish times, by tenant, then by program (UWFQ-like)",
    SOURCE,
    order_params=dict(ORDER_PARAMS),
)
