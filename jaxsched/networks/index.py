"""The index network: 16 numbers (or a few more) that order, keep and admit programs inside the machine.

Three heads over `jaxsched/networks/features.py` share one vector of weights:

- order: ``score = 2 kept - program / 100 + a . f`` of a waiting turn, the highest first, ties in order of arrival; with
  `hidden` units ``+ c . tanh(B f + b)``. Programs are numbered in order of arrival. Preempted turns come first, as in
  every other rule here.
- retention: the price of memory in the Gittins rule (`jaxsched/policies/gittins.py`), ``0.1 exp(a . f)``, for the law
  of pauses that is learned online.
- gate: the share of the pool that begun programs may fill before a new one enters, ``0.8 exp(a . f)``.

All weights 0 is a policy: kept contexts first, then older programs first (a context is worth 200 programs), index
retention, gate 0.8: nearly `gittins+gate`. What is learned are departures from it. The heads are
functions of one lane's view, so a batch of lanes with a leading axis on the weights is a population (`train/es.py`).
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxsched.networks.features import (
    GATE_FEATURES,
    PAUSE_FEATURES,
    TURN_FEATURES,
    gate_features,
    pause_features,
    turn_features,
)
from jaxsched.networks.linear import weighted
from jaxsched.policies.gittins import KNOTS, SETTINGS, first_age_below_price
from jaxsched.retention.pauses import tables_from_history
from jaxsched.retention.ttl import ToolHistory, empty_history, record
from jaxsched.sim.retain import PauseView, RetainHead
from jaxsched.sim.views import QueueView

#: Scores are compared in steps of 2^-14, up to +-2^15.
_STEPS, _MOST = 2.0**14, 2**29
#: Head start of turns whose context is kept: without one they wait behind new programs and lose it.
_KEPT = 2.0
#: Head start of a program over one that arrived 100 programs later.
_OLDER = 1.0
#: Prices and shares stay within this factor of the rules' own.
_LARGEST_LOG = 6.0


@dataclasses.dataclass(frozen=True)
class IndexShape:
    """How the weights lie in the vector. Hashable: part of what is compiled."""

    hidden: int = 0  # tanh units of the order head besides its linear part

    @property
    def parts(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape, in their order in the vector."""
        f, h = len(TURN_FEATURES), self.hidden
        inner = {"inner": (h, f), "bias": (h,), "outer": (h,)} if h else {}
        return {"order": (f,), **inner, "price": (len(PAUSE_FEATURES),), "gate": (len(GATE_FEATURES),)}

    @property
    def num_weights(self) -> int:
        return sum(_size(shape) for shape in self.parts.values())

    def split(self, weights: Float[Array, " w"]) -> dict[str, Array]:
        """The vector's parts by name."""
        found, at = {}, 0
        for name, shape in self.parts.items():
            found[name] = weights[at : at + _size(shape)].reshape(shape)
            at += _size(shape)
        return found

    def names(self) -> list[str]:
        """A name for every weight, in order: ``order.size``, ``price.turn``, ..."""
        features = {"order": TURN_FEATURES, "price": PAUSE_FEATURES, "gate": GATE_FEATURES}
        found = []
        for part, shape in self.parts.items():
            found += (
                [f"{part}.{f}" for f in features[part]]
                if part in features
                else [f"{part}.{i}" for i in range(_size(shape))]
            )
        return found


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


@dataclasses.dataclass(frozen=True)
class OrderIndex:
    """The order head (`jaxsched.sim.static.OrderHead`)."""

    shape: IndexShape = IndexShape()

    def __call__(self, weights: Float[Array, " w"], view: QueueView) -> Int[Array, " s"]:
        part, features = self.shape.split(weights), turn_features(view)
        score = weighted(features, part["order"]) + _KEPT * view.pinned_mask.astype(jnp.float32)
        score -= _OLDER * 1e-2 * view.program.astype(jnp.float32)
        for unit in range(self.shape.hidden):
            score += part["outer"][unit] * jnp.tanh(weighted(features, part["inner"][unit]) + part["bias"][unit])
        key = -jnp.clip(jnp.round(score * _STEPS), -_MOST, _MOST).astype(jnp.int32)
        return jnp.where(view.preempted_mask, -(2**30), key)


@dataclasses.dataclass(frozen=True)
class PriceIndex:
    """The retention head's time to live."""

    shape: IndexShape = IndexShape()

    def __call__(self, weights: Float[Array, " w"], known: ToolHistory, view: PauseView) -> Int[Array, ""]:
        mean_tokens = jnp.float32(SETTINGS["mean_tokens"])
        return first_age_below_price(self.price(weights, view), mean_tokens, tables_from_history(known, KNOTS), view)

    def price(self, weights: Float[Array, " w"], view: PauseView) -> Float[Array, ""]:
        """Price of memory in the index rule."""
        log = weighted(pause_features(view), self.shape.split(weights)["price"])
        return SETTINGS["price"] * jnp.exp(jnp.clip(log, -_LARGEST_LOG, _LARGEST_LOG))


@dataclasses.dataclass(frozen=True)
class GateIndex:
    """The gate's factor for each new program (`jaxsched.sim.static.GateHead`)."""

    shape: IndexShape = IndexShape()

    def __call__(self, weights: Float[Array, " w"], view: QueueView) -> Float[Array, " s"]:
        log = weighted(gate_features(view), self.shape.split(weights)["gate"])
        return jnp.exp(jnp.clip(log, -_LARGEST_LOG, _LARGEST_LOG))


def retain_head(shape: IndexShape) -> RetainHead:
    """Index retention at a learned price, for the pauses seen so far."""
    return RetainHead(PriceIndex(shape), start=empty_history, returned=record)
