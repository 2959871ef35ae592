"""Virtual token counters: Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024 (VTC), on the V1 engine.

Faithful (algorithm 2 of the paper, the authors' `vtc_req_queue.py`): a counter per tenant; the waiting tenant with the
smallest goes next, its requests first come first served; a request that does not fit stops admission. The counter
grows by ``input_price`` per prompt token at admission and ``output_price`` per token generated, over the tenant's
weight. Lift: when a request comes and its tenant has none waiting, the counter is raised to the smallest of those that
have (if any).
`vtc-predict` (section 4.4 and `vtc_pred_len_req_queue.py`): the expected output is charged at admission too, what the
request generates beyond it as it comes, and what it did not need is given back at its end. `vtc-oracle`: the same with
true lengths, a bound.
Simplified: `vtc-predict` takes each request's predicted output (of settable error) where the authors take a moving
average of the tenant's last outputs; the engine's own memory test (and preemption) instead of S-LoRA's; a preempted
request is not charged again for its prompt; no profiled cost function.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from jaxsched.policies.base import Scheduler
from jaxsched.sim.fair import Account, FairRule, Params, Queues, Served, Who
from jaxsched.sim.static import SchedulerSpec
from jaxsched.sim.views import QueueView

SOURCE = "Sheng et al., Fairness in serving large language models, OSDI 2024"
#: w_p and w_q of the paper; `prices` reads them from the order head's parameters.
ORDER_PARAMS = {"input_price": 1, "output_price": 2}
NEVER = 2**31 - 1


def prices(params: Params) -> tuple:
    """(per prompt token, per output token) in `UNIT`-ths, of every tenant."""
    (order, tenants) = params
    return order[0] * tenants.price, order[1] * tenants.price


def is_tenant(account_size: int, tenant) -> jnp.ndarray:
    """One-hot mask of a tenant."""
    return jnp.arange(account_size, dtype=jnp.int32) == tenant


def lifted(params: Params, account: Account, who: Who, queues: Queues):
    """The counter of a tenant without waiting requests rises to the smallest of those with some."""
    del params
    waiting = queues.waiting > 0
    least = jnp.min(jnp.where(waiting, account, NEVER))
    idle = is_tenant(account.shape[0], who.tenant) & ~waiting
    return jnp.where(idle & jnp.any(waiting), jnp.maximum(account, least), account), jnp.int32(0)


def charge_prompt(params: Params, account: Account, who: Who, queues: Queues) -> Account:
    """The tenant's counter grows by the prompt."""
    del queues
    mine = is_tenant(account.shape[0], who.tenant)
    return account + jnp.where(mine, who.prompt_tokens * prices(params)[0], 0)


def charge_outputs(params: Params, account: Account, served: Served) -> Account:
    """The counters grow by what was generated."""
    return account + served.outputs * prices(params)[1]


def _charge_expected(params: Params, account: Account, who: Who, queues: Queues) -> Account:
    mine = is_tenant(account.shape[0], who.tenant)
    expected = jnp.where(mine, who.predicted_tokens * prices(params)[1], 0)
    return charge_prompt(params, account, who, queues) + expected


def _charge_unexpected(params: Params, account: Account, served: Served) -> Account:
    return account + served.beyond * prices(params)[1]


def _give_back(params: Params, account: Account, who: Who) -> Account:
    unused = jnp.maximum(who.predicted_tokens - who.output_tokens, 0)
    return account - jnp.where(is_tenant(account.shape[0], who.tenant), unused * prices(params)[1], 0)


def largest(account: Account):
    """What may be taken off all counters: the largest, so that none is above 0."""
    return jnp.full_like(account, jnp.max(account)), jnp.int32(0)


def counter(params, view: QueueView):
    """The counter of the request's tenant; the machine breaks ties, and so orders a tenant's requests, by arrival."""
    del params
    assert view.account is not None and view.tenant is not None
    tenants = view.account.shape[0]
    mine = view.tenant[:, None] == jnp.arange(tenants, dtype=jnp.int32)[None, :]
    return jnp.sum(jnp.where(mine, view.account[None, :], 0), axis=1)


COUNTERS = FairRule(lambda tenants: tenants, lifted, charge_prompt, charge_outputs, rebase=largest)
EXPECTED = dataclasses.replace(COUNTERS, admit=_charge_expected, serve=_charge_unexpected, finish=_give_back)
VTC = Scheduler(
    SchedulerSpec("vtc", order=counter, static_keys=False, fair=COUNTERS),
    "virtual token counters: the waiting tenant served least goes next",
    SOURCE,
    order_params=dict(ORDER_PARAMS),
)
VTC_PREDICT = Scheduler(
    SchedulerSpec("vtc-predict", order=counter, static_keys=False, fair=EXPECTED),
    "virtual token counters that charge the predicted output at admission",
    SOURCE,
    order_params=dict(ORDER_PARAMS),
)
VTC_ORACLE = dataclasses.replace(
    VTC_PREDICT,
    spec=dataclasses.replace(VTC_PREDICT.spec, name="vtc-oracle"),
    summary="bound: virtual token counters that charge the true output at admission",
    sees_true_length=True,
)
