"""KV compression: tokens of a request's KV are evicted after its prefill, or as it decodes (docs/semantics.md, 17).

What a serving simulator sees of it: fewer KV blocks, less KV to read at each decode step, and a loss of quality; the
prefill costs what it costs, and its peak of memory is that of the whole prompt. `Slots.aux` holds how many of the
`computed` tokens are gone. Compiled only where `SchedulerSpec.compress`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxsched.sim.rows import earliest

#: Ratios are in 1,024ths.
WHOLE = 1024
#: Longest context: its product with a ratio stays in int32.
MOST_TOKENS = 2**20
#: A loss beyond this counts as a bad answer.
BAD_LOSS = 0.1
#: Draws of the per-request spread (`arrivals.hash_bits`).
FIRST_DRAW = 64


class CompressView(struct.PyTreeNode):
    """What a compress head may look at when requests of one instance have been prefilled."""

    context_tokens: Int[Array, " s"]
    used_blocks: Int[Array, ""]
    usable_blocks: Int[Array, ""]
    num_running: Int[Array, ""]
    num_waiting: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class CompressHead:
    """ratio: (parameters, view) -> retained share of each request's context, in 1,024ths, 1 to 1,024."""

    ratio: Callable[[Array, CompressView], Array]


class CompressParams(struct.PyTreeNode):
    """Of a method."""

    head: Int[Array, " h"]  # parameters of the head
    min_tokens: Int[Array, ""]  # fewer are never kept
    window: Int[Array, ""]  # evicts again once so many tokens more than the budget are held; 0 = after the prefill only
    quality: Float[Array, " 3"]  # loss at a ratio of 0.2, exponent, log-sd between requests


class Quality(struct.PyTreeNode):
    """What finished requests lost."""

    kept: Int[Array, "m s"]  # per slot: its ratio since its last prefill, 0 = not compressed yet
    loss: Float[Array, ""]  # sum over finished requests
    bad: Int[Array, ""]  # those that lost more than `BAD_LOSS`
    share: Float[Array, ""]  # sum of their ratios


def init_quality(num_instances: int, num_slots: int) -> Quality:
    """Nobody has finished."""
    zero = jnp.float32(0.0)
    return Quality(jnp.zeros((num_instances, num_slots), jnp.int32), zero, jnp.int32(0), zero)


def budget(tokens: Int[Array, " s"], ratio: Int[Array, " s"], min_tokens: Int[Array, ""]) -> Int[Array, " s"]:
    """Tokens kept of a context of `tokens`: ``ceil(ratio tokens)``, at least `min_tokens`, at most all."""
    share = (jnp.minimum(tokens, MOST_TOKENS) * ratio + (WHOLE - 1)) >> 10
    return jnp.minimum(jnp.maximum(share, jnp.maximum(min_tokens, 1)), tokens)


def compress(event: Any, emitted: Bool[Array, " s"]) -> None:
    """At the end of a step or run, before anybody leaves: evict of the slots that got a token."""
    static, slots, inst, params = event.static, event.slots, event.inst, event.params.compress
    head = static.scheduler.compress
    view = CompressView(
        context_tokens=slots.computed,
        used_blocks=event.params.usable_blocks[event.m] - inst.free,
        usable_blocks=event.params.usable_blocks[event.m],
        num_running=inst.running,
        num_waiting=inst.waiting,
    )
    new = emitted & (event.kept == 0)
    chosen = jnp.clip(jnp.broadcast_to(head.ratio(params.head, view), new.shape), 1, WHOLE)
    event.kept = jnp.where(new, chosen, event.kept)
    keep = budget(slots.computed, event.kept, params.min_tokens)
    over = slots.computed - slots.aux - keep
    evicts = new | (emitted & (params.window > 0) & (over >= params.window))
    before = event.held_blocks(slots.computed, slots.aux)
    slots.aux = jnp.where(evicts, slots.aux + jnp.maximum(over, 0), slots.aux)
    inst.free = inst.free + jnp.sum(jnp.where(evicts, before - event.held_blocks(slots.computed, slots.aux), 0))


def evicts_in(event: Any, decode: Bool[Array, " s"]) -> Int[Array, ""]:
    """Steps of a run after which no slot can have to evict before the last (at least 1).

    What is held beyond the budget grows by at most a token a step. (A prompt's last chunk of one token passes for a
    decode step; its slot evicts after it.)
    """
    params, slots = event.params.compress, event.slots
    keep = budget(slots.computed, event.kept, params.min_tokens)
    left = jnp.maximum(params.window - (slots.computed - slots.aux - keep), 1)
    new = event.kept == 0
    again = (params.window > 0) & (event.kept < WHOLE)
    return earliest(decode & (new | again), jnp.where(new, 1, left))


def quality_loss(params: CompressParams, ratio: Int[Array, ""], words: Int[Array, " 2"]) -> Float[Array, ""]:
    """``l (max(1 - ratio, 0) / 0.8)^g e``, e lognormal with mean 1 and the given log-sd; at most 1.

    The curve is a calibration of ours (sheet 13), not data; `words`: two numbers in [0, 2^31) of the request's own.
    """
    loss, exponent, sigma = params.quality
    uniform = (words.astype(jnp.float32) + 0.5) * jnp.float32(2.0**-31)
    first = jnp.clip(uniform[0], 1e-7, 1.0)
    z = jnp.sqrt(-2.0 * jnp.log(first)) * jnp.cos(jnp.float32(2.0 * jnp.pi) * uniform[1])
    gone = jnp.float32(1.0) - ratio.astype(jnp.float32) / WHOLE
    mean = loss * (gone / 0.8) ** exponent
    return jnp.where(gone > 0, jnp.minimum(mean * jnp.exp(sigma * z - 0.5 * sigma * sigma), 1.0), 0.0)


def book_quality(event: Any, slot: Int[Array, ""], row: Int[Array, ""], finished: Bool[Array, ""], hash_bits) -> None:
    """A request finishes: what it has lost, a function of (seed, row) and the ratio."""
    ratio = event.at(event.kept, slot)
    words = jnp.stack([hash_bits(event.params.seed, row, FIRST_DRAW + i) for i in range(2)])
    loss = quality_loss(event.params.compress, ratio, words)
    quality = event.state.quality
    event.state = event.state.replace(
        quality=quality.replace(
            loss=quality.loss + jnp.where(finished, loss, 0.0),
            bad=quality.bad + (finished & (loss > BAD_LOSS)),
            share=quality.share + jnp.where(finished, ratio.astype(jnp.float32) / WHOLE, 0.0),
        )
    )


def store_kept(quality: Quality, kept: jax.Array, m: jax.Array) -> Quality:
    """The row of instance `m` written back."""
    return quality.replace(kept=jax.lax.dynamic_update_index_in_dim(quality.kept, kept, m, 0))
