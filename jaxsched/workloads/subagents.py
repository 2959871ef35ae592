"""Orchestrators with sub-agents on device: a call fans out to agents of several calls each, and a call joins them.

A program is a sequence of orchestrator calls, one chain. Between two of them lies a *round*: agents that begin together
when the first has finished, each a chain of its own with tool pauses between its calls; the next orchestrator call
waits for the last call of every agent, and its prompt holds their answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxsched.sim.requests import Requests
from jaxsched.workloads.arrivals import ArrivalProcess, split_gap
from jaxsched.workloads.generate import UNLIMITED, Knobs, tokens
from jaxsched.workloads.keyed import GROWTH, OUTPUT, PAUSE, PROMPT, TURNS, draw, stream_key
from jaxsched.workloads.laws import Law, LogNormalMixture
from jaxsched.workloads.sessions import Turns, table_of, with_edges

#: Values of `tool`: what a call waits for before it arrives.
TOOLS = ("tool", "orchestrator", "agents")
#: Values of `group`: whose instructions the prompt begins with.
ORCHESTRATOR, AGENT = 0, 1


@dataclass(frozen=True)
class SubAgentSpec:
    """Programs with `rounds` of 1 to `max_agents` agents, of 1 to `max_calls` calls each.

    All orchestrators share the first `common_tokens` of their prompt, all agents `agent_common_tokens` of theirs.
    Factors, which may be traced: `tool_tail` and `context_scale`, as in `SessionSpec`.
    """

    arrivals: ArrivalProcess
    rounds: Law
    agents: Law  # of a round
    calls: Law  # of an agent
    first_prompt: Law  # of the orchestrator, common tokens not counted
    task: Law  # what an agent's first prompt adds to the common tokens
    new_tokens: Law  # what a call adds to its agent's context besides the answer before: a tool's result
    plan: Law  # outputs of the orchestrator
    output: Law  # outputs of agents
    pause_s: LogNormalMixture  # between the calls of an agent
    common_tokens: int = 0
    agent_common_tokens: int = 0
    max_rounds: int = 2
    max_agents: int = 6
    max_calls: int = 20
    tool_tail: float = 1.0
    context_scale: float = 1.0

    @property
    def max_turns(self) -> int:
        """Calls that a program can have."""
        return 1 + self.max_rounds * (self.max_agents * self.max_calls + 1)

    @property
    def tool_names(self) -> tuple[str, ...]:
        """Names of the values of `tool`."""
        return TOOLS


class _Places(NamedTuple):
    """What each of `max_turns` places of a program is for, [turns]."""

    round: np.ndarray
    agent: np.ndarray  # -1: the orchestrator
    call: np.ndarray

    @classmethod
    def of(cls, spec: SubAgentSpec) -> _Places:
        """The orchestrator's first call, then by round: the calls of each agent, the orchestrator's."""
        rows = [(-1, -1, 0)]
        for r in range(spec.max_rounds):
            rows += [(r, k, c) for k in range(spec.max_agents) for c in range(spec.max_calls)] + [(r, -1, 0)]
        return cls(*(np.array(column, np.int32) for column in zip(*rows, strict=True)))


def generate_subagents(
    spec: SubAgentSpec, key: Array, num_programs: int, rate_per_s: Float[Array, ""], knobs: Knobs
) -> Requests:
    """A table of ``num_programs * max_turns`` rows, laid out as by `generate_sessions`; places that a program does not
    use are filled in but never reached."""
    places, scale = _Places.of(spec), knobs["context_scale"]
    program = jnp.arange(num_programs, dtype=jnp.int32)
    turn = jnp.arange(spec.max_turns, dtype=jnp.int32)[:, None]
    is_agent = jnp.asarray(places.agent >= 0)[:, None]
    begins, following, last, join = (jnp.asarray(x)[:, None] for x in _links(spec, places))

    words = lambda index: draw(stream_key(key, TURNS), program, index)
    rounds = tokens(spec.rounds.sample(words(0)), spec.max_rounds)
    index = jnp.arange(spec.max_rounds, dtype=jnp.int32)[:, None]
    agents = tokens(spec.agents.sample(words(1 + index)), spec.max_agents)  # [rounds, n]
    index = jnp.arange(spec.max_rounds * spec.max_agents, dtype=jnp.int32)[:, None]
    calls = tokens(spec.calls.sample(words(1 + spec.max_rounds + index)), spec.max_calls)  # [rounds * agents, n]

    r, k = np.maximum(places.round, 0), np.maximum(places.agent, 0)
    mine = calls[r * spec.max_agents + k]
    in_round = jnp.asarray(places.round)[:, None] < rounds
    used = in_round & (~is_agent | ((k[:, None] < agents[r]) & (places.call[:, None] < mine)))
    ends = used & is_agent & (places.call[:, None] == mine - 1)  # an agent's last call

    output = jnp.where(
        is_agent,
        spec.output.sample(draw(stream_key(key, OUTPUT), program, turn)),
        spec.plan.sample(draw(stream_key(key, OUTPUT), program, turn)),
    )
    output = tokens(output, UNLIMITED)
    own = draw(stream_key(key, PROMPT), program, turn)
    start = jnp.where(is_agent, spec.task.sample(own), spec.first_prompt.sample(own)) * scale
    common = jnp.where(is_agent, spec.agent_common_tokens, spec.common_tokens) * scale
    group_tokens = tokens(common, UNLIMITED) + 0 * program
    grown = tokens(spec.new_tokens.sample(draw(stream_key(key, GROWTH), program, turn)) * scale, UNLIMITED)
    prompt = _contexts(spec, places, group_tokens + tokens(start, UNLIMITED), grown, output, ends)

    seconds = spec.pause_s.stretched(draw(stream_key(key, PAUSE), program, turn), knobs["tool_tail"])
    pause_epoch, pause_us = split_gap(seconds * jnp.float32(1e6))
    paused = is_agent & (jnp.asarray(places.call)[:, None] > 0)
    zero = jnp.zeros_like(output)
    turns = Turns(
        count=jnp.sum(used.astype(jnp.int32), axis=0),
        prompt=prompt,
        output=output,
        begins=begins + zero,
        group=jnp.where(is_agent, AGENT, ORCHESTRATOR) + zero,
        group_tokens=group_tokens,
        tool=jnp.where(turn == 0, 0, jnp.where(paused, 0, jnp.where(is_agent, 1, 2))) + zero,
        pause_epoch=jnp.where(paused, pause_epoch, 0),
        pause_us=jnp.where(paused, pause_us, 0),
    )
    table = table_of(turns, spec.arrivals, key, rate_per_s, knobs)
    # An orchestrator's call lets the first call of each agent of the next round begin, an agent's call its next one,
    # its last one the orchestrator.
    fan = following + spec.max_calls * jnp.arange(spec.max_agents, dtype=jnp.int32)  # [turns, agents]
    there = lambda target: jnp.take_along_axis(used, jnp.clip(target, 0, spec.max_turns - 1), axis=0)
    more = jnp.where(is_agent & used & ~ends, turn + 1, -1)
    more = jnp.where(ends, join, more)
    columns = []
    for agent in range(spec.max_agents):
        target = fan[:, agent : agent + 1] + zero
        begin = ~is_agent & used & (following >= 0) & there(target)
        columns.append(jnp.where(begin, target, more if agent == 0 else -1))
    joined = jnp.sum((ends[None] & (join[None] == turn[:, None])).astype(jnp.int32), axis=1)
    needed = jnp.where(turn == 0, turns.count, jnp.where(is_agent, 1, joined))
    heir = jnp.where(is_agent, jnp.where(used & ~ends, turn + 1, -1), jnp.where(there(last + zero), last, -1))
    heir = jnp.where(used & (last >= 0) | is_agent, heir, -1)
    return with_edges(table, turns, jnp.stack(columns, axis=-1), needed, heir, used=used)


def _links(spec: SubAgentSpec, places: _Places) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """[turns] each, by place: where its chain begins; orchestrator: first call of the next round's first agent, the
    orchestrator's next call (-1 = none); agents: the call that joins them."""
    width = spec.max_agents * spec.max_calls + 1
    turn = np.arange(spec.max_turns, dtype=np.int32)
    agent = places.agent >= 0
    begins = np.where(agent, turn - places.call, 0).astype(np.int32)
    more = ~agent & (places.round + 1 < spec.max_rounds)
    following = np.where(more, turn + 1, -1).astype(np.int32)
    last = np.where(more, turn + width, -1).astype(np.int32)
    join = np.where(agent, width * (places.round + 1), -1).astype(np.int32)
    return begins, following, last, join


def _contexts(
    spec: SubAgentSpec,
    places: _Places,
    first: Int[Array, "t n"],
    grown: Int[Array, "t n"],
    output: Int[Array, "t n"],
    ends: Array,
) -> Int[Array, "t n"]:
    """Prompt tokens of every call: its chain's history, then what is new; the agents' answers where they join."""
    shape = (spec.max_rounds, spec.max_agents, spec.max_calls, first.shape[1])
    agents = places.agent >= 0
    by_call = lambda field: field[agents].reshape(shape)
    added = by_call(grown)[:, :, 1:] + by_call(output)[:, :, :-1]
    start = by_call(first)[:, :, :1]
    agent_prompt = jnp.concatenate([start, start + jnp.cumsum(added, axis=2)], axis=2)
    answers = jnp.sum(jnp.where(ends[agents], output[agents], 0).reshape(shape), axis=(1, 2))  # [rounds, n]
    plan = np.flatnonzero(~agents)
    joined = answers + grown[plan[1:]] + output[plan[:-1]]
    orchestrator = first[0] + jnp.concatenate([jnp.zeros_like(first[:1]), jnp.cumsum(joined, axis=0)])
    prompt = jnp.zeros_like(first).at[np.flatnonzero(agents)].set(agent_prompt.reshape(-1, first.shape[1]))
    return prompt.at[plan].set(orchestrator)
