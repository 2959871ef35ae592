"""The index network of tenants: a dozen numbers that say whose request goes next, evaluated inside the machine.

Score of a waiting request, the smallest first, ties by arrival: ``counter + a . f`` in thousands of weighted tokens
over the tenant's weight (the features are listed in `FEATURES`). All weights 0 is VTC (`jaxsched/policies/vtc.py`),
decision by decision. Features are what VTC's engine has anyway: its counters, who runs and waits, and predicted output
lengths (of the scenario's error), never true ones.

Two counters per tenant are kept. Both grow by prompt tokens at admission and twice the tokens generated. When a request
comes whose tenant has none waiting, the first is VTC's: raised to the smallest of the tenants with some. The second is
*set* to that smallest one, so it forgets what happened before both were backlogged, as the service gap does.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxsched.policies.vtc import NEVER, is_tenant
from jaxsched.sim.fair import UNIT, Account, FairRule, Params, Queues, Served, Who, by_tenant
from jaxsched.sim.ledger import INPUT_PRICE, OUTPUT_PRICE
from jaxsched.sim.static import OrderHead
from jaxsched.sim.views import QueueView

#: In thousands of weighted tokens over the weight, unless said otherwise.
FEATURES = (
    "recent",  # the second counter less the first
    "outstanding",  # predicted outputs that the tenant's running requests still owe
    "running",  # its running requests, in tens (a number)
    "waiting",  # its waiting requests, log(1 + n) (a number)
    "prompt",  # of the request
    "output",  # predicted, of the request
    "new",  # 1 if nothing of the tenant runs
)
_STEPS = 2.0**10  # scores are compared in steps of about one weighted token
_MOST = 2.0**29


@dataclasses.dataclass(frozen=True)
class FairShape:
    """How the weights lie in the vector. Hashable: part of what is compiled."""

    hidden: int = 0  # tanh units

    @property
    def num_weights(self) -> int:
        return len(FEATURES) + self.hidden * (len(FEATURES) + 2)


def _charged(account: Account, tenant: Array, amount: Array) -> Account:
    """Both counters of a tenant grow."""
    tenants = account.shape[0] // 2
    mine = jnp.where(is_tenant(tenants, tenant), amount, 0)
    return account + jnp.concatenate([mine, mine])


def _enter(params: Params, account: Account, who: Who, queues: Queues) -> tuple[Account, Int[Array, ""]]:
    del params
    tenants = account.shape[0] // 2
    waiting = queues.waiting > 0
    idle = is_tenant(tenants, who.tenant) & ~waiting & jnp.any(waiting)
    least = [jnp.min(jnp.where(waiting, part, NEVER)) for part in (account[:tenants], account[tenants:])]
    lifted = jnp.where(idle, jnp.maximum(account[:tenants], least[0]), account[:tenants])
    reset = jnp.where(idle, least[1], account[tenants:])
    return jnp.concatenate([lifted, reset]), jnp.int32(0)


def _admit(params: Params, account: Account, who: Who, queues: Queues) -> Account:
    del queues
    return _charged(account, who.tenant, INPUT_PRICE * who.prompt_tokens * params[1].price)


def _serve(params: Params, account: Account, served: Served) -> Account:
    grown = OUTPUT_PRICE * served.outputs * params[1].price
    return account + jnp.concatenate([grown, grown])


def _rebase(account: Account) -> tuple[Account, Int[Array, ""]]:
    tenants = account.shape[0] // 2
    tops = [jnp.full(tenants, jnp.max(part)) for part in (account[:tenants], account[tenants:])]
    return jnp.concatenate(tops), jnp.int32(0)


COUNTERS = FairRule(lambda tenants: 2 * tenants, _enter, _admit, _serve, rebase=_rebase)


def fair_features(view: QueueView) -> tuple[Float[Array, " s"], Float[Array, "s f"]]:
    """VTC's counter (over that of the least waiting tenant) and `FEATURES` of every slot."""
    assert view.account is not None and view.tenant is not None and view.tenants is not None
    num = view.account.shape[0] // 2
    price = view.tenants.price
    waiting = by_tenant(view.tenant, view.waiting_mask.astype(jnp.int32), num)
    running = by_tenant(view.tenant, view.running_mask.astype(jnp.int32), num)
    owed = jnp.maximum(view.predicted_tokens - (view.known_tokens - view.prompt_tokens), 1)
    owed = by_tenant(view.tenant, jnp.where(view.running_mask, owed, 0), num)
    least = [jnp.min(jnp.where(waiting > 0, part, NEVER)) for part in (view.account[:num], view.account[num:])]
    thousands = lambda amount: amount.astype(jnp.float32) * (1.0 / (1000.0 * UNIT))
    first, second = thousands(view.account[:num] - least[0]), thousands(view.account[num:] - least[1])
    of_tenants = (
        first,
        second - first,
        thousands(OUTPUT_PRICE * owed * price),
        running.astype(jnp.float32) * 0.1,
        jnp.log1p(waiting.astype(jnp.float32)),
        (running == 0).astype(jnp.float32),
    )
    mine = view.tenant[:, None] == jnp.arange(num, dtype=jnp.int32)[None, :]
    pick = lambda value: jnp.sum(jnp.where(mine, value[None, :], 0), axis=1)
    counter, recent, outstanding, run, wait, new = (pick(value) for value in of_tenants)
    own_price = pick(price)
    prompt = thousands(INPUT_PRICE * view.prompt_tokens * own_price)
    output = thousands(OUTPUT_PRICE * view.predicted_tokens * own_price)
    return counter, jnp.stack([recent, outstanding, run, wait, prompt, output, new], axis=-1)


@dataclasses.dataclass(frozen=True)
class FairIndex:
    """The order head (`jaxsched.sim.static.OrderHead`)."""

    shape: FairShape = FairShape()

    def __call__(self, weights: Float[Array, " w"], view: QueueView) -> Int[Array, " s"]:
        counter, features = fair_features(view)
        num, hidden = len(FEATURES), self.shape.hidden
        score = counter + _dot(features, weights[:num])
        for unit in range(hidden):
            at = num + unit * (num + 2)
            inner = _dot(features, weights[at : at + num]) + weights[at + num]
            score += weights[at + num + 1] * jnp.tanh(inner)
        return jnp.clip(jnp.round(score * _STEPS), -_MOST, _MOST).astype(jnp.int32)


def _dot(features: Float[Array, "*n f"], weights: Float[Array, " f"]) -> Float[Array, "*n"]:
    # Written out: a dot product in a loop may be rounded otherwise when more lanes are compiled.
    total = features[..., 0] * weights[0]
    for i in range(1, weights.shape[0]):
        total = total + features[..., i] * weights[i]
    return total


def order_head(hidden: int) -> OrderHead:
    """The head with so many tanh units."""
    return FairIndex(FairShape(hidden))
