"""Service of the tenants, for the metrics of fairness (docs/metrics.md): only where `SimStatic.tenants` asks for it.

A tenant is a class (`Requests.klass`). Its service W is ``INPUT_PRICE`` per prompt token, booked when a request is
first admitted, and ``OUTPUT_PRICE`` per token generated, booked at the end of its step (w_p = 1, w_q = 2 in Sheng et
al., "Fairness in Serving Large Language Models", OSDI 2024). A tenant is *backlogged* while any of its requests waits.
For two tenants the ledger follows d = W_f / w_f - W_g / w_g from the moment at which both are backlogged; the gap is
the largest difference between two values of d in one such period: the left side of the paper's theorem 4.4. Sampled at
every event of an instance, before and after its admissions; between two samples d goes straight.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from jaxsched.sim.fair import FARTHEST, UNIT, TenantParams

INPUT_PRICE, OUTPUT_PRICE = 1, 2
#: Rows of `LedgerState.pairs`: difference since both have been backlogged, its extremes, the largest range so far, and
#: whether both were backlogged when last looked at.
DIFFERENCE, LOW, HIGH, GAP, BOTH = range(5)


class LedgerState(struct.PyTreeNode):
    """What the tenants of a lane have been given."""

    waiting: Int[Array, " u"]  # requests in the queues of all instances
    tokens: Int[Array, "u 2"]  # prompt tokens admitted, tokens generated: low 30 bits
    tokens_high: Int[Array, "u 2"]  # multiples of 2^30
    pairs: Int[Array, "5 u u"]  # in `fair.UNIT`-ths of a weighted token, saturating at +-2^30


def init_ledger(num_tenants: int) -> LedgerState:
    """Nobody has been served."""
    zeros = lambda *shape: jnp.zeros(shape, jnp.int32)
    u = num_tenants
    return LedgerState(waiting=zeros(u), tokens=zeros(u, 2), tokens_high=zeros(u, 2), pairs=zeros(5, u, u))


def wait(ledger: LedgerState, tenant: Int[Array, ""], change: Int[Array, ""]) -> LedgerState:
    """A request joins (+1) or leaves (-1) a queue."""
    mine = jnp.arange(ledger.waiting.shape[0], dtype=jnp.int32) == tenant
    return ledger.replace(waiting=ledger.waiting + jnp.where(mine, change, 0))


def give(ledger: LedgerState, params: TenantParams, inputs: Array, outputs: Array) -> LedgerState:
    """Tokens ``[u]`` that the tenants are served."""
    charge = (INPUT_PRICE * inputs + OUTPUT_PRICE * outputs) * params.price
    difference = ledger.pairs[DIFFERENCE] + charge[:, None] - charge[None, :]
    pairs = ledger.pairs.at[DIFFERENCE].set(jnp.clip(difference, -FARTHEST, FARTHEST))
    return ledger.replace(tokens=ledger.tokens + jnp.stack([inputs, outputs], axis=-1), pairs=pairs)


def sample(ledger: LedgerState, active: Array) -> LedgerState:
    """Look at every pair; a pair of which one is not backlogged begins anew."""
    backlogged = ledger.waiting > 0
    both = backlogged[:, None] & backlogged[None, :]
    goes_on = both & (ledger.pairs[BOTH] > 0)
    now = jnp.where(goes_on, ledger.pairs[DIFFERENCE], 0)
    low = jnp.where(goes_on, jnp.minimum(ledger.pairs[LOW], now), 0)
    high = jnp.where(goes_on, jnp.maximum(ledger.pairs[HIGH], now), 0)
    gap = jnp.maximum(ledger.pairs[GAP], high - low)
    found = jnp.stack([now, low, high, gap, both.astype(jnp.int32)])
    return ledger.replace(pairs=jnp.where(active, found, ledger.pairs))


def largest_gap(state: Any) -> Float[Array, ""]:
    """Largest service gap of a lane so far, in weighted tokens."""
    return jnp.max(state.ledger.pairs[GAP]).astype(jnp.float32) * (1.0 / UNIT)


def folded(ledger: LedgerState) -> LedgerState:
    """Between chunks: counters that cannot overflow."""
    return ledger.replace(tokens=ledger.tokens & (2**30 - 1), tokens_high=ledger.tokens_high + (ledger.tokens >> 30))
