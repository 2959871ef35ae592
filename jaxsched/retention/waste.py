"""Preserve, swap or discard a paused request's KV by minimum expected waste: InferCept (Abhyankar et al., ICML 2024).

Rule: when a request is intercepted, take the action that wastes least memory x time (the paper's section on waste,
equations 1 to 4; its factor M, bytes per token, is common to all and left out, so waste is in token microseconds)::

    preserve = T_INT * C                                    the context idles in memory for the whole pause
    discard  = T_fwd(C) * (C + C_others)                    it is filled again from nothing while everybody waits
    swap     = 2 * T_swap(C) * C_batch                      the batch waits for the way out and the way back
    chunked discard: the recomputation rides in the token budget that running requests leave, `c` tokens per step, in
        n + 1 chunks, n = ceil(C / c) - 1; with T_S the time of a full step and T_c the time that c tokens add to one::
            T_S * c * n (n + 1) / 2  +  n * T_c * C_others  +  T_last * (C_others + last)

C, C_others, C_batch: context tokens of the request, of the running others, of the batch that a swap stalls. Equations
1, 2 and 4 are as in the authors' released scheduler, whose constants (384-token steps, 0.0279 ms per token, 15.4 ms)
are those of a 6B model on an A100; equation 3 is from memory of the paper (the released scheduler classifies between
two and swaps within a budget).

T_INT is a parameter. Unknown durations: the paper lets the time already spent in the call stand for the time to come
and decides anew at every iteration (`remaining_pause_us`); with a known or mean duration, what is left of it.
Simplified: no per-iteration swap budget (the least waste is taken per request); no partial swap or discard.
"""

from __future__ import annotations

import enum

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int


class Action(enum.IntEnum):
    """What becomes of a paused request's KV; ties go to the smaller."""

    PRESERVE = 0
    SWAP = 1
    DISCARD = 2


class ChunkParams(struct.PyTreeNode):
    """The engine as chunked recomputation sees it."""

    step_tokens: Int[Array, ""]  # tokens at which a step saturates the GPU (S)
    token_us: Float[Array, ""]  # time one more token adds to a step
    step_us: Float[Array, ""]  # fixed time of a step


def chunk_params(step_tokens: int = 384, token_us: float = 27.9, step_us: float = 15_400.0) -> ChunkParams:
    """Defaults: the constants of the authors' released scheduler."""
    return ChunkParams(jnp.int32(step_tokens), jnp.float32(token_us), jnp.float32(step_us))


def preserve_waste(context_tokens: Int[Array, "*n"], pause_us: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Token us of keeping the context for a pause (equation 2)."""
    return _float(context_tokens) * jnp.maximum(_float(pause_us), 0.0)


def discard_waste(
    context_tokens: Int[Array, "*n"], recompute_us: Float[Array, "*n"], other_tokens: Int[Array, ""]
) -> Float[Array, "*n"]:
    """Token us of recomputing the context at once (equation 1); `recompute_us` is T_fwd of the context."""
    return _float(recompute_us) * (_float(context_tokens) + _float(other_tokens))


def swap_waste(swap_us: Float[Array, "*n"], batch_tokens: Int[Array, ""]) -> Float[Array, "*n"]:
    """Token us of a blocking swap out and back in (equation 3); `swap_us` is one way."""
    return 2.0 * _float(swap_us) * _float(batch_tokens)


def chunked_discard_waste(
    context_tokens: Int[Array, "*n"],
    running_tokens: Int[Array, ""],
    other_tokens: Int[Array, ""],
    params: ChunkParams | None = None,
) -> Float[Array, "*n"]:
    """Token us of recomputing in chunks (equation 4).

    `running_tokens`: tokens that running requests put into each step (one per decode); `other_tokens`: their contexts.
    """
    params = params or chunk_params()
    context = jnp.asarray(context_tokens, jnp.int32)
    chunk = jnp.maximum(params.step_tokens - jnp.asarray(running_tokens, jnp.int32), 1)
    full = jnp.maximum((context + chunk - 1) // chunk - 1, 0)
    last = _float(context - full * chunk)
    n, c, others = _float(full), _float(chunk), _float(other_tokens)
    saturated_us = params.step_us + params.token_us * _float(params.step_tokens)
    own = saturated_us * c * n * (n + 1.0) * 0.5
    slowed = n * params.token_us * c * others
    return own + slowed + params.token_us * last * (others + last)


def remaining_pause_us(
    expected_us: Float[Array, "*n"], elapsed_us: Float[Array, "*n"], known: Bool[Array, "*n"] | bool
) -> Float[Array, "*n"]:
    """T_INT seen from inside the pause: what is left of a known (or mean) duration, else the time already spent."""
    left = jnp.maximum(_float(expected_us) - _float(elapsed_us), 0.0)
    return jnp.where(known, left, _float(elapsed_us))


def least_waste(
    preserve: Float[Array, "*n"], swap: Float[Array, "*n"], discard: Float[Array, "*n"]
) -> Int[Array, "*n"]:
    """`Action` with the least waste; where swapping is impossible give it infinite waste."""
    best = jnp.minimum(jnp.minimum(preserve, swap), discard)
    other = jnp.where(swap == best, jnp.int32(Action.SWAP), jnp.int32(Action.DISCARD))
    return jnp.where(preserve == best, jnp.int32(Action.PRESERVE), other)


def _float(value) -> Float[Array, "*n"]:
    return jnp.asarray(value, jnp.float32)
