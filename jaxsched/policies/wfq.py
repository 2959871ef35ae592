"""Weighted fair queueing by virtual finish time, tenant first, then program (UWFQ-like), on the V1 engine.

Classic rule (Demers et al., 1989; Parekh and Gallager, 1993): a fluid server shares its capacity among the tenants with
work, by weight; its virtual time V advances by service over the sum of the weights of those tenants; a request's tag is
the virtual time at which the fluid server would finish it; the smallest tag goes next, and keeps it.
UWFQ ("Balancing fairness and performance in multi-user Spark workloads", arXiv 2510.15485) adds a second level: inside a
tenant its programs share what it gets, so a small program is not stuck behind the tenant's own big one. Here: cost C =
``input_price`` * prompt + ``output_price`` * predicted output, over the tenant's weight; F = virtual time at which all
work of the tenant is done; F = max(F, V) + C; tag = min(F, V + n C) with n programs of the tenant at the instance.
Simplified: formulas rebuilt from the abstract (they were not available), so "UWFQ-like"; V advances by what the real
engine served; no splitting of requests (chunked prefill is the engine's); tags are given at arrival and not corrected
when a prediction turns out wrong; a program's turns are requests of their own.
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxsched.policies.base import Scheduler
from jaxsched.policies.vtc import ORDER_PARAMS, is_tenant, prices
from jaxsched.sim.fair import UNIT, Account, FairRule, Params, Queues, Served, Who
from jaxsched.sim.static import SchedulerSpec
from jaxsched.sim.views import QueueView

SOURCE = "Demers et al., 1989; UWFQ, arXiv 2510.15485 (user then job)"


def _advanced(params: Params, account: Account, tokens) -> Account:
    """V after so many weighted tokens of service; account = [V, F of every tenant]."""
    now, finish = account[0], account[1:]
    busy = jnp.sum(jnp.where(finish > now, params[1].weight, 0)).astype(jnp.float32)
    step = tokens.astype(jnp.float32) * jnp.where(busy > 0, float(UNIT * UNIT) / jnp.maximum(busy, 1.0), 0.0)
    # No further than the last fluid finish: nobody is there to be served then.
    now = jnp.minimum(now + jnp.round(step).astype(jnp.int32), jnp.maximum(jnp.max(finish), now))
    return jnp.concatenate([now[None], finish])


def _enter(params: Params, account: Account, who: Who, queues: Queues):
    now, finish = account[0], account[1:]
    mine = is_tenant(finish.shape[0], who.tenant)
    price_in, price_out = prices(params)
    cost = jnp.sum(jnp.where(mine, who.prompt_tokens * price_in + who.predicted_tokens * price_out, 0))
    programs = jnp.sum(jnp.where(mine, queues.present, 0))
    finish = jnp.where(mine, jnp.maximum(finish, now) + cost, finish)
    alone = jnp.sum(jnp.where(mine, finish, 0))
    shared = now + jnp.minimum(programs.astype(jnp.float32) * cost.astype(jnp.float32), 2.0**30).astype(jnp.int32)
    return jnp.concatenate([now[None], finish]), jnp.minimum(alone, shared)


def _admit(params: Params, account: Account, who: Who, queues: Queues) -> Account:
    del queues
    return _advanced(params, account, who.prompt_tokens * params[0][0])


def _serve(params: Params, account: Account, served: Served) -> Account:
    return _advanced(params, account, jnp.sum(served.outputs) * params[0][1])


def virtual_finish(params, view: QueueView):
    """The tag."""
    del params
    assert view.tag is not None
    return view.tag


TAGS = FairRule(
    lambda tenants: 1 + tenants,
    _enter,
    _admit,
    _serve,
    rebase=lambda account: (jnp.full_like(account, account[0]), account[0]),
)
WFQ = Scheduler(
    SchedulerSpec("wfq", order=virtual_finish, fair=TAGS),
    "weighted fair queueing: virtual finish times, by tenant, then by program (UWFQ-like)",
    SOURCE,
    order_params=dict(ORDER_PARAMS),
)
