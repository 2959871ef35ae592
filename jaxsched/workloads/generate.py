"""Synthetic workloads on device: a frozen specification and a seed key become the machine's `Requests` table.

Everything random is keyed by (stream, program, turn); see `jaxsched/workloads/keyed.py`. All functions work under `jit`
and under `vmap` over the key; sizes are static, `rate_per_s` and the knobs may be traced. Programs of several turns are
in `jaxsched/workloads/sessions.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxsched.sim.requests import Requests
from jaxsched.workloads.arrivals import ArrivalProcess, TimePairs, accumulate
from jaxsched.workloads.keyed import (
    EVENT,
    GROUP,
    KLASS,
    OUTPUT,
    PREDICTION,
    PREFIX,
    PROMPT,
    draw,
    normal,
    stream_key,
    uniform,
)
from jaxsched.workloads.laws import Discrete, Law

#: No limit, as a token count that still leaves room for sums in int32.
UNLIMITED = 1 << 30

#: Numbers that may be traced, float32 scalars by name: `prediction_sigma` and the factors of a specification.
Knobs = Mapping[str, Float[Array, ""]]


@dataclass(frozen=True)
class RequestSpec:
    """Independent single-turn requests.

    `paired` is the share of requests drawn from (`paired_prompt`, `paired_output`) instead of (`prompt`, `output`): the
    simplest dependence between the two lengths. The output is cut so that prompt + output <= `max_total_tokens`.

    With `groups` (drawing 1, 2, ...; the group is one less) every request begins with the prefix of its group, whose
    length `prefix` draws once per group; `prompt` is then what follows the prefix. `context_scale`, which may be
    traced, multiplies all input lengths.
    """

    arrivals: ArrivalProcess
    prompt: Law
    output: Law
    paired: float = 0.0
    paired_prompt: Law | None = None
    paired_output: Law | None = None
    tenants: Law | None = None  # draws 1, 2, ...; klass is one less
    groups: Discrete | None = None
    prefix: Law | None = None
    max_prompt_tokens: int = UNLIMITED
    max_output_tokens: int = UNLIMITED
    max_total_tokens: int = UNLIMITED
    context_scale: float = 1.0


def generate_requests(
    spec: RequestSpec, key: Array, num_programs: int, rate_per_s: Float[Array, ""], knobs: Knobs
) -> Requests:
    """A table of `num_programs` single-turn programs."""
    index = jnp.arange(num_programs, dtype=jnp.int32)
    epoch, us = arrival_times(spec.arrivals, key, num_programs, rate_per_s)
    prompt_words, output_words = draw(stream_key(key, PROMPT), index), draw(stream_key(key, OUTPUT), index)
    prompt, output = spec.prompt.sample(prompt_words), spec.output.sample(output_words)
    if spec.paired_prompt is not None and spec.paired_output is not None:
        chosen = uniform(draw(stream_key(key, EVENT), index)[1]) < jnp.float32(spec.paired)
        prompt = jnp.where(chosen, spec.paired_prompt.sample(prompt_words), prompt)
        output = jnp.where(chosen, spec.paired_output.sample(output_words), output)
    scale, longest = knobs["context_scale"], min(spec.max_prompt_tokens, spec.max_total_tokens - 1)
    group, prefix = groups_of(spec.groups, spec.prefix, key, index, scale, longest - 1)
    prompt_tokens = jnp.minimum(tokens(prompt * scale, longest) + prefix, longest)
    output_tokens = jnp.minimum(tokens(output, spec.max_output_tokens), spec.max_total_tokens - prompt_tokens)
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
        predicted_tokens=predict(key, index, zero, output_tokens, knobs["prediction_sigma"]),
        klass=klass,
        priority=zero,
        program=index,
        next_turn=zero - 1,
        pause_epoch=zero,
        pause_us=zero,
        # Without groups nothing is shared, and the table says so by not having the columns.
        chain=index if spec.groups is not None else None,
        group=group if spec.groups is not None else None,
        group_tokens=prefix if spec.groups is not None else None,
    )


def groups_of(
    groups: Discrete | None,
    prefix: Law | None,
    key: Array,
    program: Int[Array, " n"],
    scale: Float[Array, ""],
    longest: int = UNLIMITED,
) -> tuple[Int[Array, " n"], Int[Array, " n"]]:
    """Group of each program, and tokens of its shared prefix (at most `longest`): -1 and 0 without groups."""
    zero = jnp.zeros(program.shape, jnp.int32)
    if groups is None or prefix is None:
        return zero - 1, zero
    group = groups.sample(draw(stream_key(key, GROUP), program)).astype(jnp.int32) - 1
    return group, tokens(prefix.sample(draw(stream_key(key, PREFIX), group)) * scale, longest)


def arrival_times(process: ArrivalProcess, key: Array, num: int, rate_per_s: Float[Array, ""]) -> TimePairs:
    """Times of the first turns."""
    mean_gap_us = jnp.float32(1e6) / jnp.asarray(rate_per_s, jnp.float32)
    return accumulate(process.gap_times(key, num, mean_gap_us))


def tokens(value: Float[Array, "*n"], limit: int) -> Int[Array, "*n"]:
    """Nearest integer in ``[1, limit]``."""
    return jnp.minimum(jnp.clip(jnp.rint(value), 1.0, np.float32(UNLIMITED)).astype(jnp.int32), limit)


def predict(
    key: Array, program: Int[Array, "*n"], turn: Int[Array, "*n"], output: Int[Array, "*n"], sigma: Float[Array, ""]
) -> Int[Array, "*n"]:
    """Predicted output: the truth times ``exp(sigma z)``; exactly the truth at sigma 0."""
    z = normal(draw(stream_key(key, PREDICTION), program, turn)[0])
    noisy = tokens(output.astype(jnp.float32) * jnp.exp(sigma * z), UNLIMITED)
    return jnp.where(sigma == 0.0, output, noisy)
