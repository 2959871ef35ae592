"""Plackett-Luce orders: a score per item, and the probability of the picks that were really made.

A policy that gives every item a score s and sorts the scores plus independent Gumbel noise draws an order with

    P(i_1, ..., i_k) = prod_j exp(s_{i_j}) / sum_{l not yet picked before j} exp(s_l)

(Plackett 1975; Yellott 1977 for the Gumbel form). An engine executes only a prefix of the order: the items it admits.
Counting the rest of the order as well would leave the gradient's mean alone and multiply its variance (7 times for 4
picks of 32), so only the executed prefix is rescored here.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

#: Stands for minus infinity: finite, so that no operation on masked entries can make a NaN.
NEGATIVE = -1e9


def executed_picks(
    scores: Float[Array, "*b n"], available: Bool[Array, "*b n"], rank: Int[Array, "*b n"], num_picks: int = 0
) -> tuple[Float[Array, "*b k"], Bool[Array, "*b k"], Float[Array, "*b k"], Float[Array, "*b k"]]:
    """Each executed pick as a choice among the items that were left when it was made.

    Args:
        scores: score of each item; what stands in slots that are not available does not matter.
        available: items that could be picked.
        rank: 0 for the item executed first, 1 for the next, ...; -1 for items that were not executed.
        num_picks: picks to count; later ones are left out, which is exact for those before. 0: all.

    Returns:
        For pick number j = 0, 1, ... (along the last axis): log-probability of the pick, whether there was a j-th
        pick, entropy in nats of that choice (given the picks before it), and log of the number of items left.
    """
    position = jnp.arange(num_picks or scores.shape[-1], dtype=jnp.int32)
    executed = (rank >= 0) & (rank < position.shape[0]) & available
    # Executed items in the order of their execution; no sort and no scatter, both of which XLA does slowly on a CPU.
    chosen = executed[..., None, :] & (rank[..., None, :] == position[:, None])  # [*b, pick, item]
    is_pick = jnp.any(chosen, axis=-1)
    score = jnp.sum(jnp.where(chosen, scores[..., None, :], 0.0), axis=-1)
    # (log of the sum of exponentials, softmax-weighted mean score) of: the j-th pick alone; all that was never picked.
    rest = jnp.where(available & ~executed, scores, NEGATIVE)
    rest_log = jax.nn.logsumexp(rest, axis=-1, keepdims=True)
    rest_mean = jnp.sum(jax.nn.softmax(rest, axis=-1) * jnp.where(available, scores, 0.0), axis=-1, keepdims=True)
    later = (jnp.where(is_pick, score, NEGATIVE), score)
    later = jax.lax.associative_scan(_join, later, reverse=True, axis=scores.ndim - 1)  # picks j, j + 1, ...
    total_log, mean = _join(later, (rest_log, rest_mean))
    num_left = jnp.sum(available, axis=-1, keepdims=True, dtype=jnp.int32) - position
    log_left = jnp.log(jnp.maximum(num_left, 1).astype(jnp.float32))
    zero = jnp.zeros_like(score)
    return (
        jnp.where(is_pick, score - total_log, zero),
        is_pick,
        jnp.where(is_pick, jnp.maximum(total_log - mean, 0.0), zero),
        jnp.where(is_pick, log_left, zero),
    )


def _join(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    """Log-sum-exp and softmax-weighted mean of the union of two disjoint sets."""
    total = jnp.logaddexp(a[0], b[0])
    return total, jnp.exp(a[0] - total) * a[1] + jnp.exp(b[0] - total) * b[1]


def ranks(scores: Float[Array, "*b n"], available: Bool[Array, "*b n"]) -> Int[Array, "*b n"]:
    """Place of each available item in the order of descending scores (ties: lower slot first); -1 for the others."""
    order = jnp.argsort(jnp.where(available, -scores, -NEGATIVE), axis=-1, stable=True)
    place = jnp.argsort(order, axis=-1, stable=True).astype(jnp.int32)
    return jnp.where(available, place, -1)
