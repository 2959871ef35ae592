"""Rollouts of reinforcement learning on device: prompts, each answered several times, with long tails, in rounds.

A program is a prompt with `samples` answers (the group of GRPO): turns that arrive together and share the prompt. Its
arrival is when the round that it belongs to begins (`jaxsched/sim/rounds.py`), so the table has none.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsched.errors import UserError
from jaxsched.sim.requests import Requests
from jaxsched.workloads.arrivals import ArrivalProcess, AtOnce
from jaxsched.workloads.generate import Knobs, tokens
from jaxsched.workloads.keyed import KIND, OUTPUT, PROMPT, draw, normal, stream_key
from jaxsched.workloads.laws import Law
from jaxsched.workloads.sessions import Turns, table_of, with_edges

_AT_ONCE = AtOnce()
#: Most edges of a turn (docs/semantics.md, section 2), and the first sample itself.
MOST_SAMPLES = 65


@dataclass(frozen=True)
class RolloutSpec:
    """Prompts with `samples` answers each.

    An answer has ``output * exp(difficulty_sigma z)`` tokens, z standard normal and one per prompt: hard prompts have
    long answers. A round is over when `round_programs` prompts have all their answers; updating the weights takes
    `update_s`.
    """

    prompt: Law
    output: Law
    samples: int = 8
    round_programs: int = 8
    update_s: float = 30.0
    difficulty_sigma: float = 0.4
    max_prompt_tokens: int = 2_048
    max_output_tokens: int = 8_192
    context_scale: float = 1.0
    arrivals: ArrivalProcess = _AT_ONCE

    def __post_init__(self) -> None:
        if self.samples > MOST_SAMPLES:
            raise UserError(f"samples {self.samples}", where="workload.options", expected=f"at most {MOST_SAMPLES}")
        if not 0.0 <= self.update_s <= 250.0:
            raise UserError(f"update_s {self.update_s}", where="workload.options", expected="0 to 250 seconds")

    @property
    def max_turns(self) -> int:
        """Answers of a prompt."""
        return self.samples

    @property
    def tool_names(self) -> tuple[str, ...]:
        """Kinds of pauses: there are none."""
        return ("none",)


def generate_rollouts(
    spec: RolloutSpec, key: Array, num_programs: int, rate_per_s: Float[Array, ""], knobs: Knobs
) -> Requests:
    """A table of ``num_programs * samples`` rows, laid out as by `generate_sessions`."""
    program = jnp.arange(num_programs, dtype=jnp.int32)
    turn = jnp.arange(spec.samples, dtype=jnp.int32)[:, None]
    zero = jnp.zeros((spec.samples, num_programs), jnp.int32)
    words = draw(stream_key(key, PROMPT), program)
    # One token more than the shared part: an engine never finds the whole prompt.
    prompt = jnp.maximum(tokens(spec.prompt.sample(words) * knobs["context_scale"], spec.max_prompt_tokens), 2)
    hard = jnp.exp(jnp.float32(spec.difficulty_sigma) * normal(draw(stream_key(key, KIND), program)[0]))
    output = tokens(spec.output.sample(draw(stream_key(key, OUTPUT), program, turn)) * hard, spec.max_output_tokens)
    turns = Turns(
        count=jnp.full(num_programs, spec.samples, jnp.int32),
        prompt=zero + prompt,
        output=output,
        begins=zero + turn,
        group=zero + program,
        group_tokens=zero + prompt - 1,
        tool=zero,
        pause_epoch=zero,
        pause_us=zero,
    )
    table = table_of(turns, spec.arrivals, key, rate_per_s, knobs)
    if spec.samples == 1:
        return table
    others = jnp.where(turn[:, :, None] == 0, jnp.arange(1, spec.samples, dtype=jnp.int32), -1)
    others = jnp.broadcast_to(others, (spec.samples, num_programs, spec.samples - 1))
    needed = jnp.where(turn == 0, spec.samples, 1) + zero
    return with_edges(table, turns, zero[:, :, None] - 1, needed, spawns=others)
