"""Columns of the table that only some policies ask for, computed on the host's side before a run.

What only a bound may know: the work that is left of every program and how large its context will grow. A policy whose
scheduler says so (`SchedulerSpec.foresees`) gets these columns with its requests; no other sees them. And the number of
each turn, for rules that learn how long programs are when one is done.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxsched.sim.requests import Foresight, Requests
from jaxsched.timing.step_time import StepTimeParams, constant_us, context_us

#: Work is that of tokens added to a step of this many: the step's fixed cost is everybody's.
BASE_TOKENS = 512
#: Tokens added to measure what one costs.
PROBE_TOKENS = 256
#: Longest prefill that is timed (int32); beyond, the work of a turn is that of one this long.
MOST_TOKENS = 1 << 17
_LARGEST_US = float(2**31 - 128)


def with_foresight(requests: Requests, timing: StepTimeParams) -> Requests:
    """`requests` with their `Foresight`; leaves may have a leading lane axis, all or (a shared table) none."""
    table = requests.replace(num_programs=None)
    columns = jax.vmap(_foresight, (0, None)) if requests.prompt_tokens.ndim == 2 else _foresight
    return requests.replace(foresight=jax.jit(columns)(table, timing))


def with_turn_numbers(requests: Requests) -> Requests:
    """`requests` with the number of each turn in its program (`Requests.turn`); leaves as above."""
    number = jax.vmap(_turn_numbers) if requests.next_turn.ndim == 2 else _turn_numbers
    return requests.replace(turn=jax.jit(number)(requests.next_turn))


def _turn_numbers(next_turn: Int[Array, " n"]) -> Int[Array, " n"]:
    """How many turns come before each (pointer doubling)."""
    num = next_turn.shape[0]
    rows = jnp.arange(num, dtype=jnp.int32)
    before = jnp.full(num, -1, jnp.int32).at[jnp.where(next_turn >= 0, next_turn, num)].set(rows, mode="drop")
    return _over_the_rest(before, jnp.ones(num, jnp.float32), jnp.zeros(num, jnp.int32))[0].astype(jnp.int32) - 1


def _foresight(table: Requests, timing: StepTimeParams) -> Foresight:
    """Columns of one table ``[n]``."""
    before = _before(table)
    history = jnp.minimum(before, table.prompt_tokens - 1)
    work = jax.vmap(functools.partial(_turn_us, timing))(table.prompt_tokens - history, history, table.output_tokens)
    past = jax.vmap(functools.partial(_prefill_us, timing))(history, jnp.zeros_like(history))
    ends = table.prompt_tokens + table.output_tokens - 1
    total, largest = _over_the_rest(table.next_turn, work, ends)
    whole = lambda us: jnp.minimum(us, _LARGEST_US).astype(jnp.int32)
    return Foresight(remaining_us=whole(total), history_us=whole(past), final_tokens=largest)


def _before(table: Requests) -> Int[Array, " n"]:
    """Tokens of the turn before that go on in each turn's prompt (0: first turns, and where the history is cut)."""
    num = table.next_turn.shape[0]
    following = table.next_turn if table.heir is None else table.heir
    follows = following >= 0
    if table.chain is not None:
        follows &= table.chain[jnp.maximum(following, 0)] == table.chain
    at = jnp.where(follows, following, num)
    return jnp.zeros(num, jnp.int32).at[at].set(table.prompt_tokens + table.output_tokens - 1, mode="drop")


def _prefill_us(timing: StepTimeParams, tokens: Int[Array, ""], before: Int[Array, ""]) -> Float[Array, ""]:
    """What a prefill of `tokens` behind `before` adds to a step."""
    tokens, before = jnp.minimum(tokens, MOST_TOKENS), jnp.minimum(before, MOST_TOKENS)
    zero, base = jnp.int32(0), jnp.int32(BASE_TOKENS)
    quad = tokens * ((2 * before + tokens) >> 6)
    more = constant_us(timing, base + tokens, jnp.int32(1), tokens, quad, zero) + context_us(
        timing, timing.prefill_in_ctx * (before + tokens)
    )
    alone = constant_us(timing, base, zero, zero, zero, zero)
    return jnp.where(tokens > 0, more - alone, 0).astype(jnp.float32)


def _turn_us(
    timing: StepTimeParams, new: Int[Array, ""], history: Int[Array, ""], outputs: Int[Array, ""]
) -> Float[Array, ""]:
    """Work of a turn whose history is cached: its prefill, then its outputs in a batch, each at the mean context."""
    zero, base, probe = jnp.int32(0), jnp.int32(BASE_TOKENS), jnp.int32(PROBE_TOKENS)
    more = constant_us(timing, base + probe, zero, zero, zero, probe) - constant_us(
        timing, base, zero, zero, zero, zero
    )
    middle = (history + new + outputs // 2).astype(jnp.float32)
    read = middle * timing.ctx_num.astype(jnp.float32) / timing.ctx_den.astype(jnp.float32)
    decodes = (outputs - 1).astype(jnp.float32) * (more.astype(jnp.float32) / PROBE_TOKENS + read)
    return _prefill_us(timing, new, history) + decodes


def _over_the_rest(
    next_turn: Int[Array, " n"], work: Float[Array, " n"], size: Int[Array, " n"]
) -> tuple[Float[Array, " n"], Int[Array, " n"]]:
    """Of every turn, the sum of work and the largest size of it and the turns after it (pointer doubling)."""

    def double(_: int, carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        following, total, largest = carry
        there, at = following >= 0, jnp.maximum(following, 0)
        total = total + jnp.where(there, total[at], 0.0)
        largest = jnp.maximum(largest, jnp.where(there, largest[at], 0))
        return jnp.where(there, following[at], -1), total, largest

    rounds = max(int(next_turn.shape[0] - 1).bit_length(), 1)
    _, total, largest = jax.lax.fori_loop(0, rounds, double, (next_turn, work, size))
    return total, largest
