"""Synthetic workloads on device: a frozen specification and a seed key become the machine's `Requests` table.

Everything random is keyed by (stream, program, turn); see `jaxsched/workloads/keyed.py`. All functions work under `jit`
and under `vmap` over the key; sizes are static, `rate_per_s` and `prediction_sigma` may be traced.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxsched.sim.requests import Requests
from jaxsched.workloads.arrivals import ArrivalProcess, TimePairs, accumulate, split_gap
from jaxsched.workloads.keyed import (
    EVENT,
    GROWTH,
    KLASS,
    OUTPUT,
    PAUSE,
    PREDICTION,
    PROMPT,
    TURNS,
    draw,
    normal,
    stream_key,
    uniform,
)
from jaxsched.workloads.laws import Law

#: No limit, as a token count that still leaves room for sums in int32.
UNLIMITED = 1 << 30


@dataclass(frozen=True)
class RequestSpec:
    """Independent single-turn requests.

    `paired` is the share of requests drawn from (`paired_prompt`, `paired_output`) instead of (`prompt`, `output`): the
    simplest dependence between the two lengths. The output is cut so that prompt + output <= `max_total_tokens`.
    """

    arrivals: ArrivalProcess
    prompt: Law
    output: Law
    paired: float = 0.0
    paired_prompt: Law | None = None
    paired_output: Law | None = None
    tenants: Law | None = None  # draws 1, 2, ...; klass is one less
    max_prompt_tokens: int = UNLIMITED
    max_output_tokens: int = UNLIMITED
    max_total_tokens: int = UNLIMITED


@dataclass(frozen=True)
class SessionSpec:
    """Programs of several turns with pauses between them.

    The prompt of turn t+1 is the prompt of turn t plus `growth` (which includes the previous answer). When it would
    pass the program's context limit the context is compacted: it starts again from a draw of `compacted`. The limit is
    `compact_tokens` for programs whose first prompt is below that (a small context window), else `max_context_tokens`;
    no prompt is longer than `max_context_tokens`. The pause comes from one of `pauses`: tuples of (weight, law in
    seconds), at most `max_pause_s`.
    """

    arrivals: ArrivalProcess
    turns: Law
    first_prompt: Law
    growth: Law
    output: Law
    pauses: tuple[tuple[float, Law], ...]
    compacted: Law
    compact_tokens: int = UNLIMITED
    max_turns: int = 64
    max_context_tokens: int = UNLIMITED
    max_output_tokens: int = UNLIMITED
    max_pause_s: float = 86_400.0


def generate_requests(
    spec: RequestSpec,
    key: Array,
    num_programs: int,
    rate_per_s: Float[Array, ""],
    prediction_sigma: Float[Array, ""],
) -> Requests:
    """A table of `num_programs` single-turn programs."""
    index = jnp.arange(num_programs, dtype=jnp.int32)
    epoch, us = _arrivals(spec.arrivals, key, num_programs, rate_per_s)
    prompt_words, output_words = draw(stream_key(key, PROMPT), index), draw(stream_key(key, OUTPUT), index)
    prompt, output = spec.prompt.sample(prompt_words), spec.output.sample(output_words)
    if spec.paired_prompt is not None and spec.paired_output is not None:
        chosen = uniform(draw(stream_key(key, EVENT), index)[1]) < jnp.float32(spec.paired)
        prompt = jnp.where(chosen, spec.paired_prompt.sample(prompt_words), prompt)
        output = jnp.where(chosen, spec.paired_output.sample(output_words), output)
    prompt_tokens = _tokens(prompt, min(spec.max_prompt_tokens, spec.max_total_tokens - 1))
    output_tokens = jnp.minimum(_tokens(output, spec.max_output_tokens), spec.max_total_tokens - prompt_tokens)
    klass = jnp.zeros(num_programs, jnp.int32)
    if spec.tenants is not None:
        klass = spec.tenants.sample(draw(stream_key(key, KLASS), index)).astype(jnp.int32) - 1
    zero = jnp.zeros(num_programs, jnp.int32)
    return Requests(
        num_programs=jnp.int32(num_programs),
        arrival_epoch=epoch,
        arrival_us=us,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        predicted_tokens=_predict(key, index, zero, output_tokens, prediction_sigma),
        klass=klass,
        priority=zero,
        program=index,
        next_turn=zero - 1,
        pause_epoch=zero,
        pause_us=zero,
    )


def generate_sessions(
    spec: SessionSpec,
    key: Array,
    num_programs: int,
    rate_per_s: Float[Array, ""],
    prediction_sigma: Float[Array, ""],
) -> Requests:
    """A table of ``num_programs * max_turns`` rows.

    Turn 0 of program p is row p; turn t > 0 is row ``num_programs + p * (max_turns - 1) + t - 1``. Rows of turns that a
    program does not have are filled in but never reached through `next_turn`.
    """
    program = jnp.arange(num_programs, dtype=jnp.int32)
    turn = jnp.arange(spec.max_turns, dtype=jnp.int32)[:, None]  # [turns, 1]: arrays below are [turns, programs]
    num_turns = _tokens(spec.turns.sample(draw(stream_key(key, TURNS), program)), spec.max_turns)
    growth = _tokens(spec.growth.sample(draw(stream_key(key, GROWTH), program, turn)), UNLIMITED)
    prompt_words = draw(stream_key(key, PROMPT), program, turn)  # turn 0: the first prompt; later: a compacted one
    first_prompt = _tokens(spec.first_prompt.sample(prompt_words)[0], spec.max_context_tokens)
    limit = jnp.where(
        first_prompt <= spec.compact_tokens, min(spec.compact_tokens, spec.max_context_tokens), spec.max_context_tokens
    )
    compacted = jnp.minimum(_tokens(spec.compacted.sample(prompt_words), UNLIMITED), limit)

    def step(context, row):
        grow, restart = row
        context = jnp.where(grow > limit - context, restart, context + grow)
        return context, context

    _, later = jax.lax.scan(step, first_prompt, (growth[1:], compacted[1:]))
    prompt = jnp.concatenate([first_prompt[None], later])
    output = _tokens(spec.output.sample(draw(stream_key(key, OUTPUT), program, turn)), spec.max_output_tokens)
    pause_epoch, pause_us = _pauses(spec, key, program, turn)
    following = num_programs + program * (spec.max_turns - 1) + turn
    epoch, us = _arrivals(spec.arrivals, key, num_programs, rate_per_s)
    first = jnp.zeros((spec.max_turns, num_programs), jnp.int32)
    return Requests(
        num_programs=jnp.int32(num_programs),
        arrival_epoch=_flat(first.at[0].set(epoch)),
        arrival_us=_flat(first.at[0].set(us)),
        prompt_tokens=_flat(prompt),
        output_tokens=_flat(output),
        predicted_tokens=_flat(_predict(key, program, turn, output, prediction_sigma)),
        klass=_flat(first),
        priority=_flat(first),
        program=_flat(first + program),
        next_turn=_flat(jnp.where(turn + 1 < num_turns, following, -1)),
        pause_epoch=_flat(jnp.where(turn == 0, 0, pause_epoch)),
        pause_us=_flat(jnp.where(turn == 0, 0, pause_us)),
    )


def _arrivals(process: ArrivalProcess, key: Array, num: int, rate_per_s: Float[Array, ""]) -> TimePairs:
    mean_gap_us = jnp.float32(1e6) / jnp.asarray(rate_per_s, jnp.float32)
    return accumulate(process.gap_times(key, num, mean_gap_us))


def _tokens(value: Float[Array, "*n"], limit: int) -> Int[Array, "*n"]:
    """Nearest integer in ``[1, limit]``."""
    return jnp.minimum(jnp.clip(jnp.rint(value), 1.0, np.float32(UNLIMITED)).astype(jnp.int32), limit)


def _predict(
    key: Array, program: Int[Array, "*n"], turn: Int[Array, "*n"], output: Int[Array, "*n"], sigma: Float[Array, ""]
) -> Int[Array, "*n"]:
    """Predicted output: the truth times ``exp(sigma z)``; exactly the truth at sigma 0."""
    z = normal(draw(stream_key(key, PREDICTION), program, turn)[0])
    noisy = _tokens(output.astype(jnp.float32) * jnp.exp(sigma * z), UNLIMITED)
    return jnp.where(sigma == 0.0, output, noisy)


def _pauses(
    spec: SessionSpec, key: Array, program: Int[Array, " n"], turn: Int[Array, "t 1"]
) -> tuple[Int[Array, "t n"], Int[Array, "t n"]]:
    """Pause before each turn, as (epoch, us)."""
    words = draw(stream_key(key, PAUSE), program, turn)
    kind = uniform(draw(stream_key(key, EVENT), program, turn)[1])
    weights = np.array([w for w, _ in spec.pauses])
    edges = np.cumsum(weights / weights.sum())
    seconds = spec.pauses[0][1].sample(words)
    for edge, (_, law) in zip(edges[:-1], spec.pauses[1:], strict=True):
        seconds = jnp.where(kind >= jnp.float32(edge), law.sample(words), seconds)
    return split_gap(jnp.clip(seconds, 0.0, spec.max_pause_s) * jnp.float32(1e6))


def _flat(table: Int[Array, "t n"]) -> Int[Array, " rows"]:
    """[turns, programs] to the row order of `generate_sessions`."""
    return jnp.concatenate([table[0], table[1:].T.reshape(-1)])
