"""The deadline index: sixteen numbers that say which request goes next, and which is refused, evaluated in the machine.

Two heads over what the rules by due date see anyway (`jaxsched/sim/due.py`: limits of the class, predicted work of the
scenario's error) and how much waits and runs:

- order: ATC's cost (`jaxsched/policies/atc.py`, with so long a look-ahead that the shortest predicted work goes first)
  plus ``a . f`` of a waiting request, the lowest first.
- refusal: a waiting request that comes to the head of the queue is refused where ``now + prefill exp(b . g)`` is past
  the latest time of its first token, or ``now + work exp(c . g)`` past its latest finish; who has begun is never given
  up. The factors are what a batch takes longer than a request alone.

All weights 0 is `atc+early_reject` with `lookahead_tenths` 1280, decision by decision.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxsched.networks.linear import weighted
from jaxsched.policies.atc import apparent_cost
from jaxsched.sim.due import TICK_BITS, DueView
from jaxsched.sim.views import QueueView

#: Of a waiting request, for the order.
ORDER_FEATURES = (
    "prompt",  # log of its predicted prefill, over 0.1 s
    "output",  # log of its predicted outputs, over 100
    "limit",  # log of its class's limit of the first token, over 1 s
    "slack",  # seconds until its prefill must begin, between -1 and 4
    "spare",  # seconds until it must begin to finish in time, in tens, between -0.1 and 1
    "urgency",  # log of the slack (at least 0) and 0.05, over 1 s
    "prompt_crowd",  # the first four, times how crowded it is
    "output_crowd",
    "limit_crowd",
    "slack_crowd",
)
#: For the factors on predicted prefill and predicted work: 1, how crowded it is, running requests in 32ths.
REFUSE_FEATURES = ("one", "crowd", "running")

#: Parameters unless a configuration says otherwise: chunks that keep a token within 50 ms (8B on an A100), and the
#: predicted time per token in a full batch, from a grid on validation workloads (docs/results/mixed_chat.md).
DEFAULTS: dict[str, float] = {"token_budget": 512}
WORK = {"prompt_us": 200, "output_us": 200}
#: In mean works of those who wait.
LOOKAHEAD = 128.0
_SECONDS = 2.0**TICK_BITS * 1e-6
#: Factors are between 2^-4 and 2^4: no product leaves int32 (predicted work is below 2^22 ticks).
_LARGEST_LOG = 2.8


@dataclasses.dataclass(frozen=True)
class DeadlineShape:
    """How the weights lie in the vector. Hashable: part of what is compiled."""

    hidden: int = 0  # tanh units of the order head

    @property
    def num_weights(self) -> int:
        return len(self.names())

    def names(self) -> list[str]:
        """A name for every weight, in order."""
        units = [f"order.{part}.{i}" for i in range(self.hidden) for part in (*ORDER_FEATURES, "bias", "outer")]
        refuse = [f"{part}.{f}" for part in ("prefill", "work") for f in REFUSE_FEATURES]
        return [*(f"order.{f}" for f in ORDER_FEATURES), *refuse, *units]


def _crowd(view: QueueView, due: DueView) -> Float[Array, ""]:
    """log(1 + seconds of prefill of those who wait and are not yet late)."""
    waits = view.waiting_mask & (due.now + due.prefill <= due.first_token)
    ticks = jnp.sum(jnp.where(waits, due.prefill, 0))
    return jnp.log1p(ticks.astype(jnp.float32) * _SECONDS)


def order_features(view: QueueView) -> Float[Array, "s f"]:
    """`ORDER_FEATURES` of every slot."""
    due = view.due
    assert due is not None
    seconds = lambda ticks: ticks.astype(jnp.float32) * _SECONDS
    prompt = jnp.log(jnp.maximum(seconds(due.prefill), 1e-3) * 10.0)
    output = jnp.log(jnp.maximum(view.predicted_tokens, 1).astype(jnp.float32) * 0.01)
    limit = jnp.log(jnp.clip(seconds(due.first_token - due.now) + view.wait_us * 1e-6, 0.05, 60.0))
    slack = jnp.clip(seconds(due.first_token - due.now - due.prefill), -1.0, 4.0)
    spare = jnp.clip(seconds(due.finish - due.now - due.work) * 0.1, -0.1, 1.0)
    urgency = jnp.log(jnp.maximum(slack, 0.0) + 0.05)
    crowd = _crowd(view, due)
    columns = (
        prompt,
        output,
        limit,
        slack,
        spare,
        urgency,
        *(crowd * value for value in (prompt, output, limit, slack)),
    )
    return jnp.stack(columns, axis=-1)


@dataclasses.dataclass(frozen=True)
class DeadlineOrder:
    """The order head (`jaxsched.sim.static.OrderHead`)."""

    shape: DeadlineShape = DeadlineShape()

    def __call__(self, weights: Float[Array, " w"], view: QueueView) -> Int[Array, " s"]:
        features, num = order_features(view), len(ORDER_FEATURES)
        cost = apparent_cost(jnp.float32(LOOKAHEAD), view) + weighted(features, weights[:num])
        for unit in range(self.shape.hidden):
            at = num + 2 * len(REFUSE_FEATURES) + unit * (num + 2)
            inner = weighted(features, weights[at : at + num]) + weights[at + num]
            cost += weights[at + num + 1] * jnp.tanh(inner)
        # The bits of a float sort like the float, of a negative one the other way round.
        bits = jax.lax.bitcast_convert_type(cost, jnp.int32)
        return bits ^ ((bits >> 31) & jnp.int32(2**31 - 1))


@dataclasses.dataclass(frozen=True)
class DeadlineRefusal:
    """The refusal head (`jaxsched.sim.static.RefuseHead`)."""

    def __call__(self, weights: Float[Array, " w"], view: QueueView) -> Bool[Array, " s"]:
        due, first, num = view.due, len(ORDER_FEATURES), len(REFUSE_FEATURES)
        assert due is not None
        running = jnp.sum(view.running_mask.astype(jnp.int32)).astype(jnp.float32) * (1 / 32)
        features = jnp.stack([jnp.float32(1.0), _crowd(view, due), running])
        factors = [weighted(features, weights[at : at + num]) for at in (first, first + num)]
        prefill, work = (jnp.exp(jnp.clip(log, -_LARGEST_LOG, _LARGEST_LOG)) for log in factors)
        longer = lambda ticks, factor: jnp.floor(ticks.astype(jnp.float32) * factor).astype(jnp.int32)
        late = due.now + longer(due.prefill, prefill) > due.first_token
        return late | (due.now + longer(due.work, work) > due.finish)
