"""The Gittins / Whittle index of a paused program's KV, with a memory price.

Each paused program is an arm whose state is its age `a` since the pause began (a restless bandit: the age moves whether
or not the KV is kept). Keeping its `m` tokens costs a price per token and time; the tool's return within the keeping
time saves the reload R. The index is the best rate of savings that any keeping time promises (Gittins 1979; Whittle
1988; Aalto, Ayesta and Righter, "On the Gittins index in the M/G/1 queue", 2009, for the same quotient in age)::

    g(a) = sup over s > a of  P(G <= s | G > a) / E[min(G, s) - a | G > a]
    index = g(a) * R * (mean tokens / m),     keep while index > price

G: the pause. For a decreasing hazard h the supremum is at s -> a and g = h(a); in general it is not: a pause that lasts
exactly D has no hazard before D, yet g(0) = 1/D, so it is kept to its end if R > price * D and not at all otherwise.
One number thus holds TTL (evict where the index falls below the price), LRU (any decreasing hazard) and SRPT for
memory. Evict the lowest index first.

Simplified: the price is given, not found; R and m stay as they were when the pause began.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from jaxsched.retention.pauses import PauseTable

DEFAULT_PRICE = 0.1  # lambda of the regime study; 0.01 lets human pauses hoard memory, 1.0 gives up too much reuse
_SMALLEST_AGE_US = 1000.0  # ages of `AgeTable` are logarithmic above this, linear below


class AgeTable(struct.PyTreeNode):
    """g at ages ``1 ms * (2^(i / steps) - 1)``, i = 0 .. A-1, of each tool."""

    rate: Float[Array, "tools A"]  # 1/us
    change: Float[Array, "tools A"]  # what to add on the way to the next age; 0 across a drop of the law
    steps: Float[Array, ""]  # ages per doubling


def return_rate(table: PauseTable, tool: Int[Array, ""], age_us: Float[Array, ""]) -> Float[Array, ""]:
    """g(age) in 1/us, exact for the tabulated law, O(K); 0 beyond the last knot, where nothing is expected any more.

    Inside a cell the hazard of a uniform density rises, so the supremum is attained at a knot.
    """
    return _rate(table.time_us[tool], table.survival[tool], table.area_us[tool], jnp.asarray(age_us, jnp.float32))


def _rate(
    time: Float[Array, " K"], survival: Float[Array, " K"], area: Float[Array, " K"], age: Float[Array, ""]
) -> Float[Array, ""]:
    last = time.shape[0] - 1
    after = jnp.sum((time <= age).astype(jnp.int32))  # the next knot; of equal times all are behind
    next_, here = jnp.minimum(after, last), jnp.maximum(after - 1, 0)
    width = time[next_] - time[here]
    left = (time[next_] - age) / jnp.where(width > 0.0, width, 1.0)  # share of the cell still ahead
    # Within the cell both parts of the quotient shrink together: differences of large sums never meet.
    drop = (survival[here] - survival[next_]) * left
    now = survival[next_] + drop
    returned = drop + (survival[next_] - survival)
    held_us = 0.5 * (now + survival[next_]) * (time[next_] - age) + (area - area[next_])
    ahead = (time > age) & (held_us > 0.0)
    return jnp.max(jnp.where(ahead, returned / jnp.where(ahead, held_us, 1.0), 0.0))


def age_table(table: PauseTable, steps: int = 16, octaves: int = 23) -> AgeTable:
    """g at ages from 0 to ``2^octaves`` ms (23: 2.3 hours), `steps` per doubling; O(tools A K), not for events."""
    place = jnp.arange(steps * octaves + 1, dtype=jnp.float32)
    ages = _SMALLEST_AGE_US * (jnp.exp2(place / steps) - 1.0)
    over_ages = jax.vmap(_rate, in_axes=(None, None, None, 0))
    rate = jax.vmap(over_ages, in_axes=(0, 0, 0, None))(table.time_us, table.survival, table.area_us, ages)
    following = jnp.concatenate([rate[:, 1:], rate[:, -1:]], axis=1)
    # Neighbouring ages of a smooth law differ by a few per cent. Where g falls by half the law has ended (or jumped)
    # in between; reading a slope there would let go of the KV just before the tool returns.
    change = jnp.where(following < 0.5 * rate, 0.0, following - rate)
    return AgeTable(rate, change, jnp.float32(steps))


def rate_at(ages: AgeTable, tool: Int[Array, "*n"], age_us: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """g in 1/us by one gather and a linear step; the last age stands for all later ones."""
    place = jnp.log2(1.0 + jnp.asarray(age_us, jnp.float32) / _SMALLEST_AGE_US) * ages.steps
    place = jnp.clip(place, 0.0, ages.rate.shape[1] - 1.0)
    whole = jnp.floor(place)
    at = whole.astype(jnp.int32)
    return ages.rate[tool, at] + (place - whole) * ages.change[tool, at]


def retention_index(
    rate: Float[Array, "*n"],
    reload_us: Float[Array, "*n"],
    tokens: Int[Array, "*n"],
    mean_tokens: Float[Array, ""],
) -> Float[Array, "*n"]:
    """``g * R * mean / m``: microseconds of reload saved per microsecond of keeping a mean context. Dimensionless.

    `tokens`: what eviction would free; `mean_tokens`: mean over paused contexts. 0 tokens free nothing: never evicted
    (infinite index).
    """
    tokens = jnp.asarray(tokens, jnp.float32)
    value = rate * jnp.asarray(reload_us, jnp.float32) * jnp.asarray(mean_tokens, jnp.float32)
    return jnp.where(tokens > 0.0, value / jnp.maximum(tokens, 1.0), jnp.float32(jnp.inf))


def index(
    ages: AgeTable,
    age_us: Float[Array, "*n"],
    tool: Int[Array, "*n"],
    reload_us: Float[Array, "*n"],
    tokens: Int[Array, "*n"],
    mean_tokens: Float[Array, ""],
) -> Float[Array, "*n"]:
    """The retention index of paused programs (`rate_at`, then `retention_index`); keep while it exceeds the price."""
    return retention_index(rate_at(ages, tool, age_us), reload_us, tokens, mean_tokens)


def threshold_cost(
    table: PauseTable, tool: Int[Array, ""], reload_us: Float[Array, ""], price: Float[Array, ""]
) -> Float[Array, " K"]:
    """Expected cost in us of keeping until each knot: ``price * E[min(G, t)] + R * P(G > t)``."""
    return jnp.float32(price) * table.area_us[tool] + jnp.asarray(reload_us, jnp.float32) * table.survival[tool]


def optimal_eviction_age(
    table: PauseTable, tool: Int[Array, ""], reload_us: Float[Array, ""], price: Float[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The age in us at which keeping from the start should end, and its expected cost in us; ties: the earlier.

    `price` is what keeping costs per microsecond in microseconds of reload (``price * m / mean tokens`` for a context
    of m tokens). The cost is concave inside a cell, so the best age is a knot.
    """
    cost = threshold_cost(table, tool, reload_us, price)
    best = jnp.min(cost)
    age = jnp.min(jnp.where(cost == best, table.time_us[tool], jnp.inf))
    return age, best
