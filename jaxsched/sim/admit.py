"""Admission by a policy's own estimate of memory, on top of the engine's tests (docs/semantics.md, section 12).

A head sees the admitted requests and the candidate, and what the instance has learned of output lengths so far. It is
not asked when nothing runs: so nobody waits for ever for memory that is free.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

from jaxsched.retention.peak import WORD_BITS
from jaxsched.retention.window import Window, push

#: Draws of `hash_bits` from this one on belong to admission; those before it are the routers'.
FIRST_DRAW = 16


class AdmitView(struct.PyTreeNode):
    """The slots of an instance, and behind them the candidate (index `s`)."""

    mask: Bool[Array, " s1"]  # admitted requests, those of this call included, and the candidate
    candidate_mask: Bool[Array, " s1"]
    known_tokens: Int[Array, " s1"]  # prompt + outputs so far: what it holds once its prefill is done
    generated_tokens: Int[Array, " s1"]  # outputs so far
    priority: Int[Array, " s1"]  # lower = more important
    words: Int[Array, "draws s1"]  # `WORD_BITS` uniform bits, a function of (seed, request, draw) only
    lengths: Window | None  # one row: outputs of requests that finished at this instance
    pool_tokens: Int[Array, ""]
    held_tokens: Int[Array, ""]  # pinned contexts besides what the candidate finds
    block_size: int = struct.field(pytree_node=False)


@dataclasses.dataclass(frozen=True)
class AdmitHead:
    """An admission rule. Hashable: it is part of what is compiled."""

    fits: Callable[[Array, AdmitView], Bool[Array, ""]]  # (parameters, view) -> the candidate may enter
    num_draws: int = 0  # words per request
    #: (parameters, instances) -> windows of output lengths, one row each; None: keeps none.
    start: Callable[[Array, int], Window] | None = None
    #: A candidate kept out stays out while the same requests decode on: runs of steps may pass over it.
    stays_out: bool = True


def words_of(seed: Array, rows: Int[Array, " n"], num_draws: int, hash_bits: Callable) -> Int[Array, "draws n"]:
    """Uniform words of requests."""
    if num_draws == 0:
        return jnp.zeros((0, rows.shape[0]), jnp.int32)
    return jnp.stack([hash_bits(seed, rows, FIRST_DRAW + draw) >> (31 - WORD_BITS) for draw in range(num_draws)])


def lengths_of(lengths: Window | None, m: Array) -> Window | None:
    """One instance's row."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, m, 1, 0), lengths)


def learn_length(lengths: Window | None, m: Array, output_tokens: Array, finished: Array) -> Window | None:
    """A request finished at instance `m`."""
    if lengths is None:
        return None
    return push(lengths, jnp.reshape(m, (1,)), output_tokens, jnp.reshape(finished, (1,)))
