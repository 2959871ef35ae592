"""Staged pipelines on device: programs whose calls go through fixed stages, each call with a prompt of its own.

The calls of a stage run side by side; they arrive when every call of the stage before has finished.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxsched.sim.requests import Requests
from jaxsched.workloads.arrivals import ArrivalProcess
from jaxsched.workloads.generate import UNLIMITED, Knobs, tokens
from jaxsched.workloads.keyed import OUTPUT, PROMPT, TURNS, Words, draw, stream_key
from jaxsched.workloads.laws import Law
from jaxsched.workloads.sessions import Turns, table_of, with_edges


@dataclass(frozen=True)
class Stage:
    """One stage of a pipeline."""

    name: str
    calls: Law  # calls of the stage in one program
    prompt: Law
    output: Law
    template_tokens: int  # first tokens of the prompt, the same in all calls of the stage
    per_program: bool = False  # the prompt is drawn once per program (its length comes from the program's data)


@dataclass(frozen=True)
class PipelineSpec:
    """Programs that go through `stages` in order, without pauses between calls.

    Every call is a chain of its own that shares its stage's template (group = tool = index of the stage). A program has
    at most `max_turns` calls, a stage at most `max_width`; `context_scale`, which may be traced, multiplies all input
    lengths.
    """

    arrivals: ArrivalProcess
    stages: tuple[Stage, ...]
    max_turns: int = 32
    max_width: int = 8
    max_context_tokens: int = UNLIMITED
    context_scale: float = 1.0

    @property
    def tool_names(self) -> tuple[str, ...]:
        """Names of the values of `tool`: the stage that the call belongs to."""
        return tuple(stage.name for stage in self.stages)


def generate_pipelines(
    spec: PipelineSpec, key: Array, num_programs: int, rate_per_s: Float[Array, ""], knobs: Knobs
) -> Requests:
    """A table of ``num_programs * max_turns`` rows, laid out as by `generate_sessions`."""
    program = jnp.arange(num_programs, dtype=jnp.int32)
    turn = jnp.arange(spec.max_turns, dtype=jnp.int32)[:, None]
    num_stages = len(spec.stages)
    calls = jnp.minimum(_each_stage(spec, key, program), spec.max_width)
    ends = jnp.cumsum(calls, axis=0, dtype=jnp.int32)  # [stages, programs]
    stage = jnp.zeros((spec.max_turns, num_programs), jnp.int32)
    for end in ends[:-1]:
        stage = stage + (turn >= end).astype(jnp.int32)

    own, common = draw(stream_key(key, PROMPT), program, turn), draw(stream_key(key, PROMPT), program, spec.max_turns)
    prompt, output, template = _lengths(spec, knobs["context_scale"], stage, own, common, key, program, turn)
    zero = jnp.zeros_like(stage)
    turns = Turns(
        count=jnp.minimum(ends[num_stages - 1], spec.max_turns),
        prompt=prompt,
        output=output,
        begins=turn + zero,
        group=stage,
        group_tokens=template,
        tool=jnp.where(turn > 0, stage, 0),
        pause_epoch=zero,
        pause_us=zero,
    )
    # Stage after stage: the calls that wait for a call are those of the next stage. Those of the first stage, but for
    # the first turn, come with that turn.
    of_stage = lambda field, at: jnp.take_along_axis(jnp.pad(field, ((1, 1), (0, 0))), at + 1, axis=0)
    place = jnp.arange(spec.max_width, dtype=jnp.int32)
    target = of_stage(ends, stage)[:, :, None] + place
    there = (place < of_stage(calls, stage + 1)[:, :, None]) & (target < turns.count[:, None])
    edges = jnp.where(there & (turn < turns.count)[:, :, None], target, -1)
    beside = jnp.where((place[1:] < calls[0][:, None]) & (turn == 0)[:, :, None], place[1:], -1)
    beside = jnp.where(beside < turns.count[:, None], beside, -1)
    needed = jnp.where(stage == 0, 1, of_stage(calls, stage - 1))
    needed = jnp.where(turn == 0, turns.count, needed)
    table = table_of(turns, spec.arrivals, key, rate_per_s, knobs)
    return with_edges(table, turns, edges, needed, spawns=beside)


def _each_stage(spec: PipelineSpec, key: Array, program: Int[Array, " n"]) -> Int[Array, "s n"]:
    """Calls of each stage in each program."""
    words = [draw(stream_key(key, TURNS), program, index) for index in range(len(spec.stages))]
    calls = [tokens(stage.calls.sample(w), UNLIMITED) for stage, w in zip(spec.stages, words, strict=True)]
    return jnp.stack(calls)


def _lengths(
    spec: PipelineSpec,
    scale: Float[Array, ""],
    stage: Int[Array, "t n"],
    own: Words,
    common: Words,
    key: Array,
    program: Int[Array, " n"],
    turn: Int[Array, "t 1"],
) -> tuple[Int[Array, "t n"], Int[Array, "t n"], Int[Array, "t n"]]:
    """Prompt, output and template tokens of each call; `common` are random words of the program."""
    prompt, output = jnp.zeros(stage.shape, jnp.float32), jnp.zeros(stage.shape, jnp.float32)
    template = jnp.zeros(stage.shape, jnp.float32)
    answer = draw(stream_key(key, OUTPUT), program, turn)
    for index, part in enumerate(spec.stages):
        here = stage == index
        prompt = jnp.where(here, part.prompt.sample(common if part.per_program else own), prompt)
        output = jnp.where(here, part.output.sample(answer), output)
        template = jnp.where(here, jnp.float32(part.template_tokens), template)
    prompt_tokens = tokens(prompt * scale, spec.max_context_tokens)
    return prompt_tokens, tokens(output, UNLIMITED), jnp.minimum(tokens(template * scale, UNLIMITED), prompt_tokens)
