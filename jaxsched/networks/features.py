"""What the index network sees of a program: what a real scheduler sees, scaled to order 1.

Nothing here is known from hindsight: no output length, no pause, no number of turns left. What a waiting turn shows of
itself stays as it is while it waits (its age is counted in arrivals behind it, which does not change the order of two
that wait), so decode steps during which nobody can be admitted stay one event of the machine (`static_keys`).
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsched.sim.retain import PauseView
from jaxsched.sim.views import QueueView

#: Of a waiting turn, for the order.
TURN_FEATURES = ("size", "turn", "context", "missing", "kept", "first", "call_number", "program_number")
#: Of a program that pauses, for the price of keeping its context.
PAUSE_FEATURES = ("one", "size", "turn", "context", "fill")
#: Of a new program, for the gate.
GATE_FEATURES = ("one", "relative")

#: Natural logarithms of typical tokens, subtracted: 3,000 of a first prompt, 5,000 of a context.
_LOG_SIZE, _LOG_CONTEXT, _LOG_TURN = 8.0, 8.5, 1.5
#: Logarithms are averaged in steps of 1/256.
_PARTS = 256.0


def _log(count: Array) -> Array:
    return jnp.log(jnp.maximum(count, 1).astype(jnp.float32))


def turn_features(view: QueueView) -> Float[Array, "s 8"]:
    """`TURN_FEATURES` of every slot: logarithms of the first prompt, of turns done, of the context and of that part of
    it that has to be computed again (all of it unless it is pinned), whether it is pinned, whether the turn is the
    first, and how many turns (in 1,000) and programs (in 100) arrived before it.
    """
    kept = view.pinned_mask.astype(jnp.float32)
    context = _log(view.known_tokens) - _LOG_CONTEXT
    columns = (
        _log(view.first_prompt_tokens) - _LOG_SIZE,
        _log(view.turn + 1) - _LOG_TURN,
        context,
        (1.0 - kept) * context,
        kept,
        view.first_turn_mask.astype(jnp.float32),
        view.sequence.astype(jnp.float32) * 1e-3,
        view.program.astype(jnp.float32) * 1e-2,
    )
    return jnp.stack(columns, axis=-1)


def pause_features(view: PauseView) -> Float[Array, " 5"]:
    """`PAUSE_FEATURES`: 1, logarithms of the first prompt, of turns done and of the context, and the share of the pool
    that running requests hold.
    """
    fill = view.running_tokens.astype(jnp.float32) / jnp.maximum(view.pool_tokens, 1).astype(jnp.float32)
    columns = (
        jnp.float32(1.0),
        _log(view.first_prompt_tokens) - _LOG_SIZE,
        _log(view.turn + 1) - _LOG_TURN,
        _log(view.context_tokens) - _LOG_CONTEXT,
        fill,
    )
    return jnp.stack(columns)


def gate_features(view: QueueView) -> Float[Array, "s 2"]:
    """`GATE_FEATURES` of every slot: 1, and the logarithm of the first prompt less its mean over the turns of begun
    programs that run or wait (how small it is among those it joins, whatever small is here; 0 where no program has
    begun).
    """
    first = _log(view.first_prompt_tokens)
    begun = view.running_mask | (view.waiting_mask & ~view.first_turn_mask)
    num = jnp.sum(begun.astype(jnp.int32))
    # Summed in whole numbers: a sum of floats would depend on how it is compiled.
    parts = jnp.sum(jnp.where(begun, jnp.round(first * _PARTS).astype(jnp.int32), 0))
    mean_first = parts.astype(jnp.float32) / (_PARTS * jnp.maximum(num, 1).astype(jnp.float32))
    relative = jnp.where(num > 0, first - mean_first, 0.0)
    return jnp.stack([jnp.ones_like(first), relative], axis=-1)
