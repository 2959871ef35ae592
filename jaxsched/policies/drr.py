"""Deficit round robin (Shreedhar and Varghese, 1995) over tenants, for costs known only afterwards; on the V1 engine.

Rule, as "adapted DRR" in the appendix of Sheng et al. (OSDI 2024): tenants with waiting requests take turns; each has a
deficit that a round raises by ``quantum_tokens`` weighted tokens times its weight; a tenant is served, first come first
served, while its deficit is above 0; an admission takes the prompt off the deficit and every token generated is taken
off as it comes, so a deficit can be far below 0 and the tenant then misses rounds. A tenant whose queue is empty
when a request of it comes starts from at most 0: nobody saves up.
Simplified: rounds in which nobody could be served are skipped at once (as many as the nearest tenant needs), and every
waiting tenant gets the rounds' quanta together; otherwise V1 (a head that does not fit stops admission).
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxsched.policies.base import Scheduler
from jaxsched.policies.vtc import ORDER_PARAMS, is_tenant, prices
from jaxsched.sim.fair import UNIT, Account, FairRule, Params, Queues, Served, Who
from jaxsched.sim.static import SchedulerSpec
from jaxsched.sim.views import QueueView

SOURCE = "Shreedhar and Varghese, 1995; adapted as in Sheng et al., OSDI 2024"


def _rounds(params, deficit: Account) -> Account:
    """Rounds until a deficit (in `UNIT`-ths of a weighted token over the weight) is above 0."""
    quantum = jnp.maximum(params[2], 1) * UNIT
    return jnp.maximum(-(deficit - quantum) // quantum, 0)  # ceil((1 - deficit) / quantum) on integers


def _enter(params: Params, account: Account, who: Who, queues: Queues):
    del params
    mine = is_tenant(account.shape[0] - 1, who.tenant) & (queues.waiting == 0)
    return jnp.where(jnp.concatenate([jnp.zeros(1, bool), mine]), jnp.minimum(account, 0), account), jnp.int32(0)


def _admit(params: Params, account: Account, who: Who, queues: Queues) -> Account:
    deficit = account[1:]
    mine = is_tenant(deficit.shape[0], who.tenant)
    rounds = jnp.sum(jnp.where(mine, _rounds(params[0], deficit), 0))
    quanta = rounds * jnp.maximum(params[0][2], 1) * UNIT
    deficit = deficit + jnp.where(mine | (queues.waiting > 0), quanta, 0)
    deficit = deficit - jnp.where(mine, who.prompt_tokens * prices(params)[0], 0)
    return jnp.concatenate([who.tenant[None], deficit])


def _serve(params: Params, account: Account, served: Served) -> Account:
    return account - jnp.concatenate([jnp.zeros(1, jnp.int32), served.outputs * prices(params)[1]])


def turn(params, view: QueueView):
    """Rounds until the tenant is served, then its place behind the tenant served last (that tenant first)."""
    assert view.account is not None and view.tenant is not None
    pointer, deficit = view.account[0], view.account[1:]
    num = deficit.shape[0]
    index = jnp.arange(num, dtype=jnp.int32)
    key = jnp.minimum(_rounds(params, deficit), 2**20) * num + (index - pointer) % num
    return jnp.sum(jnp.where(view.tenant[:, None] == index[None, :], key[None, :], 0), axis=1)


DEFICITS = FairRule(
    lambda tenants: 1 + tenants,
    _enter,
    _admit,
    _serve,
    rebase=lambda account: (jnp.zeros_like(account), jnp.int32(0)),
)
DRR = Scheduler(
    SchedulerSpec("drr", order=turn, static_keys=False, fair=DEFICITS),
    "deficit round robin over tenants",
    SOURCE,
    order_params={**ORDER_PARAMS, "quantum_tokens": 1024},
)
