"""Programs of several turns on device: chats and agents whose context grows from turn to turn.

The prompt of a turn is the whole context so far: ``prompt[t+1] = prompt[t] + output[t] + new[t+1]`` with ``new >= 1``,
so the turns of a program extend one another (one *chain*, see `jaxsched/sim/requests.py`) until it is compacted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxsched.sim.requests import Requests
from jaxsched.workloads.arrivals import ArrivalProcess, TimePairs, split_gap
from jaxsched.workloads.generate import UNLIMITED, Knobs, arrival_times, groups_of, predict, tokens
from jaxsched.workloads.keyed import EVENT, GROWTH, KIND, OUTPUT, PAUSE, PROMPT, TURNS, draw, stream_key, uniform
from jaxsched.workloads.laws import Discrete, Law, LogNormalMixture


@dataclass(frozen=True)
class Pause:
    """One kind of pause between turns: a tool, or the user. Its position in the specification is the `tool` column."""

    name: str
    weight: float  # how often it comes, relative to the others
    seconds: LogNormalMixture


@dataclass(frozen=True)
class SessionSpec:
    """Programs of several turns with pauses between them.

    A turn adds `new_tokens` (a tool's result, a user's message) to the previous prompt and answer. When the prompt
    would pass the program's context limit the context is compacted: a new chain starts from a draw of `compacted`. The
    limit is `compact_tokens` for programs whose first prompt is below that (a small context window), else
    `max_context_tokens`; no prompt is longer than `max_context_tokens`.

    Shared prefixes, one or the other:
    - `common_tokens`: the first tokens of `first_prompt` and `compacted` that all programs share (group 0), 0 = none;
    - `groups` draws 1, 2, ... (the group is one less) and `prefix` a length for each group, which comes before
      `first_prompt` and `compacted`.

    Factors, which may be traced (`Preset.generate`): `tool_tail` times the log-sd of every pause law, `turns_factor`
    times the number of turns (at most `max_turns`), `context_scale` times every input length, `growth_scale` times
    what later turns add, `pause_scale` times every pause.
    """

    arrivals: ArrivalProcess
    turns: Law
    first_prompt: Law
    new_tokens: Law
    output: Law
    pauses: tuple[Pause, ...]
    compacted: Law | None = None  # None = like a first prompt
    groups: Discrete | None = None
    prefix: Law | None = None
    common_tokens: int = 0
    compact_tokens: int = UNLIMITED
    max_turns: int = 64
    max_context_tokens: int = UNLIMITED
    max_output_tokens: int = UNLIMITED
    max_pause_s: float = 86_400.0
    tool_tail: float = 1.0
    turns_factor: float = 1.0
    context_scale: float = 1.0
    growth_scale: float = 1.0
    pause_scale: float = 1.0

    @property
    def tool_names(self) -> tuple[str, ...]:
        """Names of the values of `tool`."""
        return tuple(p.name for p in self.pauses)


@dataclass(frozen=True)
class MixedSessions:
    """Two kinds of programs in one stream of arrivals: `short` with probability `short_share`, else `long`.

    The two have the same kinds of pauses (`tool`), and the limits of tokens and pauses of each hold for it alone.
    `max_turns`, the width of the table, and the factors are those given here, for both kinds.
    """

    arrivals: ArrivalProcess
    short: SessionSpec
    long: SessionSpec
    short_share: float = 0.75
    max_turns: int = 64
    tool_tail: float = 1.0
    turns_factor: float = 1.0
    context_scale: float = 1.0
    growth_scale: float = 1.0
    pause_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.short.tool_names != self.long.tool_names:
            raise ValueError(f"pauses {self.short.tool_names} and {self.long.tool_names}: the kinds must be the same")

    @property
    def tool_names(self) -> tuple[str, ...]:
        """Names of the values of `tool`."""
        return self.short.tool_names


class Turns(NamedTuple):
    """Turns of programs: [turns, programs] unless said otherwise."""

    count: Int[Array, " n"]  # turns that the program has
    prompt: Int[Array, "t n"]
    output: Int[Array, "t n"]
    begins: Int[Array, "t n"]  # turn at which the chain of this turn began
    group: Int[Array, "t n"]
    group_tokens: Int[Array, "t n"]
    tool: Int[Array, "t n"]
    pause_epoch: Int[Array, "t n"]
    pause_us: Int[Array, "t n"]


def generate_sessions(
    spec: SessionSpec | MixedSessions, key: Array, num_programs: int, rate_per_s: Float[Array, ""], knobs: Knobs
) -> Requests:
    """A table of ``num_programs * max_turns`` rows.

    Turn 0 of program p is row p; turn t > 0 is row ``num_programs + p * (max_turns - 1) + t - 1``. Rows of turns that a
    program does not have are filled in but never reached through `next_turn`.
    """
    program = jnp.arange(num_programs, dtype=jnp.int32)
    turn = jnp.arange(spec.max_turns, dtype=jnp.int32)[:, None]
    if isinstance(spec, MixedSessions):
        short, long = (_turns(part, key, program, turn, knobs) for part in (spec.short, spec.long))
        is_short = uniform(draw(stream_key(key, KIND), program)[0]) < knobs["short_share"]
        turns = jax.tree.map(lambda a, b: jnp.where(is_short, a, b), short, long)
    else:
        turns = _turns(spec, key, program, turn, knobs)
    return table_of(turns, spec.arrivals, key, rate_per_s, knobs)


def table_of(
    turns: Turns, arrivals: ArrivalProcess, key: Array, rate_per_s: Float[Array, ""], knobs: Knobs
) -> Requests:
    """The machine's table of these turns, in the row order of `generate_sessions`."""
    max_turns, num_programs = turns.prompt.shape
    program = jnp.arange(num_programs, dtype=jnp.int32)
    turn = jnp.arange(max_turns, dtype=jnp.int32)[:, None]
    zero = jnp.zeros((max_turns, num_programs), jnp.int32)
    row_of = lambda t: jnp.where(t == 0, program, num_programs + program * (max_turns - 1) + t - 1)
    epoch, us = arrival_times(arrivals, key, num_programs, rate_per_s)
    return Requests(
        num_programs=jnp.int32(num_programs),
        arrival_epoch=_flat(zero.at[0].set(epoch)),
        arrival_us=_flat(zero.at[0].set(us)),
        prompt_tokens=_flat(turns.prompt),
        output_tokens=_flat(turns.output),
        predicted_tokens=_flat(predict(key, program, turn, turns.output, knobs["prediction_sigma"])),
        klass=_flat(zero),
        priority=_flat(zero),
        program=_flat(zero + program),
        turn=_flat(zero + turn),
        next_turn=_flat(jnp.where(turn + 1 < turns.count, row_of(turn + 1), -1)),
        pause_epoch=_flat(turns.pause_epoch),
        pause_us=_flat(turns.pause_us),
        chain=_flat(row_of(turns.begins)),
        group=_flat(turns.group),
        group_tokens=_flat(turns.group_tokens),
        tool=_flat(turns.tool),
    )


def with_edges(
    table: Requests,
    turns: Turns,
    edges: Int[Array, "t n w"],
    needed: Int[Array, "t n"],
    heir: Int[Array, "t n"] | None = None,
    spawns: Int[Array, "t n v"] | None = None,
    used: Bool[Array, "t n"] | None = None,
) -> Requests:
    """`table_of` these turns with programs that are graphs (jaxsched/sim/requests.py). Turns are told by number, -1 =
    none; the pause of an edge is that of the turn that waits.

    Args:
        edges: turns that wait for the finish of each.
        needed: edges that each waits for; of first turns, the turns of the program.
        heir: the turn that goes on with the chain of each; None = nobody does.
        spawns: turns that wait for the arrival of each; None = nobody does.
        used: turns that the program has; None = the first `turns.count`.
    """
    max_turns, num_programs = turns.prompt.shape
    program = jnp.arange(num_programs, dtype=jnp.int32)
    rows = lambda t, p: jnp.where(t <= 0, jnp.where(t < 0, -1, p), num_programs + p * (max_turns - 1) + t - 1)

    def wide(to: Int[Array, "t n w"]) -> Int[Array, "rows w 3"]:
        at = jnp.maximum(to, 0)
        pause = [jnp.take_along_axis(part[:, :, None], at, axis=0) for part in (turns.pause_epoch, turns.pause_us)]
        return _flat(jnp.stack([rows(to, program[:, None]), *(jnp.where(to >= 0, p, 0) for p in pause)], axis=-1))

    following = table.next_turn
    if used is not None:
        turn = jnp.arange(max_turns, dtype=jnp.int32)[:, None]
        later = jnp.concatenate([jnp.where(used, turn, max_turns)[1:], jnp.full((1, num_programs), max_turns)])
        later = jax.lax.cummin(later.astype(jnp.int32), axis=0, reverse=True)
        following = _flat(rows(jnp.where(used & (later < max_turns), later, -1), program))
    return table.replace(
        next_turn=following,
        edges=wide(edges),
        needed=_flat(needed),
        heir=_flat(jnp.full_like(needed, -1) if heir is None else rows(heir, program)),
        spawns=None if spawns is None else wide(spawns),
    )


def _turns(spec: SessionSpec, key: Array, program: Int[Array, " n"], turn: Int[Array, "t 1"], knobs: Knobs) -> Turns:
    """The turns of every program, as many as there are in `turn`."""
    scale = knobs["context_scale"]
    count = tokens(
        spec.turns.sample(draw(stream_key(key, TURNS), program)) * knobs["turns_factor"],
        turn.shape[0],  # `max_turns` of the whole
    )
    output = tokens(spec.output.sample(draw(stream_key(key, OUTPUT), program, turn)), spec.max_output_tokens)
    growth = scale * knobs["growth_scale"]
    new = tokens(spec.new_tokens.sample(draw(stream_key(key, GROWTH), program, turn)) * growth, UNLIMITED)
    shortest_limit = min(spec.compact_tokens, spec.max_context_tokens)
    group, prefix = groups_of(spec.groups, spec.prefix, key, program, scale, shortest_limit - 1)

    words = draw(stream_key(key, PROMPT), program, turn)  # turn 0: the first prompt; later: a compacted one
    restart = spec.first_prompt if spec.compacted is None else spec.compacted
    first = tokens(spec.first_prompt.sample(words)[0] * scale, UNLIMITED)
    first = jnp.minimum(first, spec.max_context_tokens - prefix) + prefix
    small = first <= spec.compact_tokens
    limit = jnp.where(small, shortest_limit, spec.max_context_tokens)
    compacted = jnp.minimum(tokens(restart.sample(words) * scale, UNLIMITED), limit - prefix) + prefix

    def step(carry, row):
        context, begins = carry  # prompt + output of the turn before; where its chain began
        t, fresh, added, answer = row
        cut = added > limit - context
        prompt = jnp.where(cut, fresh, context + added)
        begins = jnp.where(cut, t, begins)
        return (prompt + answer, begins), (prompt, begins)

    start = (first + output[0], jnp.zeros_like(program))
    _, (prompt, begins) = jax.lax.scan(step, start, (turn[1:], compacted[1:], new[1:], output[1:]))
    prompt, begins = jnp.concatenate([first[None], prompt]), jnp.concatenate([start[1][None], begins])

    if spec.common_tokens:
        group = jnp.zeros_like(program)
        common = tokens(jnp.float32(spec.common_tokens) * scale, UNLIMITED)
        # Constant along a chain, also where the prompt that begins it is shorter than the common prefix.
        prefix = jnp.minimum(common, jnp.take_along_axis(prompt, begins, axis=0))
    tool, pause = _pauses(spec, key, program, turn, knobs)
    later = turn > 0
    return Turns(
        count=count,
        prompt=prompt,
        output=output,
        begins=begins,
        group=jnp.broadcast_to(group, prompt.shape),
        group_tokens=jnp.broadcast_to(prefix, prompt.shape),
        tool=jnp.where(later, tool, 0),
        pause_epoch=jnp.where(later, pause[0], 0),
        pause_us=jnp.where(later, pause[1], 0),
    )


def _pauses(
    spec: SessionSpec, key: Array, program: Int[Array, " n"], turn: Int[Array, "t 1"], knobs: Knobs
) -> tuple[Int[Array, "t n"], TimePairs]:
    """Kind and length of the pause before each turn."""
    tail = knobs["tool_tail"]
    words = draw(stream_key(key, PAUSE), program, turn)
    kind = uniform(draw(stream_key(key, EVENT), program, turn)[1])
    weights = np.array([p.weight for p in spec.pauses])
    edges = np.cumsum(weights / weights.sum())[:-1]
    seconds, tool = spec.pauses[0].seconds.stretched(words, tail), jnp.zeros(kind.shape, jnp.int32)
    for index, (edge, pause) in enumerate(zip(edges, spec.pauses[1:], strict=True), start=1):
        beyond = kind >= jnp.float32(edge)
        seconds = jnp.where(beyond, pause.seconds.stretched(words, tail), seconds)
        tool = jnp.where(beyond, index, tool)
    seconds = jnp.clip(seconds * knobs["pause_scale"], 0.0, spec.max_pause_s)
    return tool, split_gap(seconds * jnp.float32(1e6))


def _flat(table: Int[Array, "t n ..."]) -> Int[Array, "rows ..."]:
    """[turns, programs, ...] to the row order of `generate_sessions`."""
    return jnp.concatenate([table[0], jnp.swapaxes(table[1:], 0, 1).reshape(-1, *table.shape[2:])])
