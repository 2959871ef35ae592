"""An admission gate for new programs: begun contexts against the pool (regime study, sections 1, 4 and 6).

Retention decides which contexts to keep; it cannot help when more programs have begun than their growing contexts fit.
Rule: a new program enters only while the contexts of begun programs that are expected to be resident, its own
included, stay below a fraction (0.8) of the pool. Begun programs that run or wait count whole; paused ones count if
retention means to keep them (their index exceeds the price), so that sleeping users do not hold the door. Composes with
any order and any retention.

Whatever the numbers, the gate is open while no begun program of the instance runs or waits: the engine is never idle
for the gate, and one program larger than the fraction still gets in. With true final contexts and fraction 1.4 the
same function is the `peak` bound of the study.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

FRACTION = 0.8  # of the pool, chosen on seeds other than those it was judged on


def resident_tokens(
    context_tokens: Int[Array, " S"],
    begun: Bool[Array, " S"],
    paused: Bool[Array, " S"],
    keep: Bool[Array, " S"] | Float[Array, " S"],
) -> Float[Array, ""]:
    """Tokens of begun programs expected in memory.

    `keep` counts for paused programs only: whether retention keeps them, or the probability that it does. Plain LRU has
    no opinion and counts all (`keep` True): right where pauses are short, wrong where people sleep.
    """
    share = jnp.where(paused, jnp.asarray(keep, jnp.float32), 1.0)
    return jnp.sum(jnp.where(begun, context_tokens.astype(jnp.float32) * share, 0.0))


def gate_open(
    context_tokens: Int[Array, " S"],
    begun: Bool[Array, " S"],
    paused: Bool[Array, " S"],
    keep: Bool[Array, " S"] | Float[Array, " S"],
    candidate_tokens: Int[Array, ""],
    pool_tokens: Int[Array, ""],
    fraction: Float[Array, ""] | float = FRACTION,
) -> Bool[Array, ""]:
    """Whether the first turn of a new program may be admitted now.

    Arrays over the programs of one instance, in any order: `context_tokens` now (or final, for the `peak` bound),
    `begun` = a turn has been admitted and the program is not over, `paused` = between two turns. Turns of begun
    programs never ask. Choose the request to make room for from those that pass the gate, never from all that wait, or
    the two can block each other (the study's livelock).
    """
    expected = resident_tokens(context_tokens, begun, paused, keep) + jnp.asarray(candidate_tokens, jnp.float32)
    limit = jnp.asarray(fraction, jnp.float32) * jnp.asarray(pool_tokens, jnp.float32)
    at_work = jnp.any(begun & ~paused)
    return ~at_work | (expected < limit)
