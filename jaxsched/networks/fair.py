"""The index network of tenants: five numbers that say whose request runs, evaluated inside the machine.

Score of a request, the smallest first, ties by arrival: ``counter + prompt / 2 + a . f`` in thousands of weighted
tokens over the tenant's weight (`FEATURES`), for one that runs less ``2 exp(b . g)`` (`HOLD_FEATURES`). The counter is
VTC's (`jaxsched/policies/vtc.py`). Half the prompt: a tenant that is charged L tokens at once is then as far ahead
afterwards as it was behind. Where no more can run, the worst one that runs makes room for a waiting one of a smaller
score. All weights 0 is that rule; with `prompt` -0.5 and a large `hold.one` it is VTC, decision by decision. Features
are what VTC's engine has anyway: its counters, who runs and waits, and predicted output lengths (of the scenario's
error), never true ones.

Exchanges at one instant come to an end: a request is charged and counted when it begins, once, whether it runs or has
been taken out again. So among begun requests scores stand still, each exchange takes a smaller one, and others can
begin only once.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxsched.networks.linear import weighted
from jaxsched.policies import vtc
from jaxsched.sim.fair import UNIT, Account, Params, Queues, Served, Who, by_tenant
from jaxsched.sim.ledger import INPUT_PRICE, OUTPUT_PRICE
from jaxsched.sim.static import OrderHead
from jaxsched.sim.views import QueueView

#: In thousands of weighted tokens over the weight.
FEATURES = (
    "outstanding",  # predicted outputs that the tenant's begun requests still owe
    "prompt",  # of the request if it has not begun: what the tenant is charged at once
)
#: Of a running request: what is lost if it is taken out.
HOLD_FEATURES = (
    "one",
    "known",  # tokens that have to be computed again, in thousands
    "done",  # share of its predicted outputs that it has
)
#: Share of its prompt that a request is charged in advance, and by how much a tenant must be ahead, in thousands,
#: before its requests are taken out, unless weights say otherwise.
ADVANCE, HOLD = 0.5, 2.0
_LARGEST_LOG = 2.8
_STEPS = 2.0**10  # scores are compared in steps of about one weighted token
_MOST = 2.0**29


@dataclasses.dataclass(frozen=True)
class FairShape:
    """How the weights lie in the vector. Hashable: part of what is compiled."""

    hidden: int = 0  # tanh units

    @property
    def num_weights(self) -> int:
        return len(self.names())

    def names(self) -> list[str]:
        """A name for every weight, in order."""
        units = [f"order.{part}.{i}" for i in range(self.hidden) for part in (*FEATURES, "bias", "outer")]
        return [*(f"order.{f}" for f in FEATURES), *(f"hold.{f}" for f in HOLD_FEATURES), *units]


def _at_fixed_prices(params: Params) -> Params:
    # The parameters of the order head are the weights here, not VTC's prices.
    return jnp.asarray((INPUT_PRICE, OUTPUT_PRICE), jnp.int32), params[1]


def _admit(params: Params, account: Account, who: Who, queues: Queues) -> Account:
    return vtc.charge_prompt(_at_fixed_prices(params), account, who, queues)


def _serve(params: Params, account: Account, served: Served) -> Account:
    return vtc.charge_outputs(_at_fixed_prices(params), account, served)


#: VTC's counters at the ledger's prices.
COUNTERS = dataclasses.replace(vtc.COUNTERS, admit=_admit, serve=_serve)


def fair_features(view: QueueView) -> tuple[Float[Array, " s"], Float[Array, "s f"]]:
    """VTC's counter (over that of the least waiting tenant) and `FEATURES` of every slot."""
    assert view.account is not None and view.tenant is not None and view.tenants is not None
    num, price = view.account.shape[0], view.tenants.price
    waiting = by_tenant(view.tenant, view.waiting_mask.astype(jnp.int32), num)
    begun = view.running_mask | (view.waiting_mask & view.preempted_mask)
    owed = jnp.maximum(view.predicted_tokens - (view.known_tokens - view.prompt_tokens), 1)
    owed_by = by_tenant(view.tenant, jnp.where(begun, owed, 0), num)
    least = jnp.min(jnp.where(waiting > 0, view.account, vtc.NEVER))
    thousands = lambda amount: amount.astype(jnp.float32) * (1.0 / (1000.0 * UNIT))
    of_tenants = (thousands(view.account - least), thousands(OUTPUT_PRICE * owed_by * price))
    mine = view.tenant[:, None] == jnp.arange(num, dtype=jnp.int32)[None, :]
    pick = lambda value: jnp.sum(jnp.where(mine, value[None, :], 0), axis=1)
    counter, outstanding = (pick(value) for value in of_tenants)
    prompt = jnp.where(begun, 0.0, thousands(INPUT_PRICE * view.prompt_tokens * pick(price)))
    return counter, jnp.stack([outstanding, prompt], axis=-1)


def hold_features(view: QueueView) -> Float[Array, "s g"]:
    """`HOLD_FEATURES` of every slot."""
    outputs = (view.known_tokens - view.prompt_tokens).astype(jnp.float32)
    done = jnp.minimum(outputs / jnp.maximum(view.predicted_tokens, 1).astype(jnp.float32), 1.0)
    return jnp.stack([jnp.ones_like(done), view.known_tokens.astype(jnp.float32) * 1e-3, done], axis=-1)


@dataclasses.dataclass(frozen=True)
class FairIndex:
    """The order head (`jaxsched.sim.static.OrderHead`)."""

    shape: FairShape = FairShape()

    def __call__(self, weights: Float[Array, " w"], view: QueueView) -> Int[Array, " s"]:
        counter, features = fair_features(view)
        num, num_hold, hidden = len(FEATURES), len(HOLD_FEATURES), self.shape.hidden
        score = counter + ADVANCE * features[:, FEATURES.index("prompt")] + weighted(features, weights[:num])
        for unit in range(hidden):
            at = num + num_hold + unit * (num + 2)
            inner = weighted(features, weights[at : at + num]) + weights[at + num]
            score += weights[at + num + 1] * jnp.tanh(inner)
        hold = jnp.clip(weighted(hold_features(view), weights[num : num + num_hold]), -_LARGEST_LOG, _LARGEST_LOG)
        score -= jnp.where(view.running_mask, HOLD * jnp.exp(hold), 0.0)
        return jnp.clip(jnp.round(score * _STEPS), -_MOST, _MOST).astype(jnp.int32)


def order_head(hidden: int) -> OrderHead:
    """The head with so many tanh units."""
    return FairIndex(FairShape(hidden))
