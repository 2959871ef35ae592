"""Two problems with known answers, to check learners on before they meet a cluster.

`TwoClassQueue-v0`: which of two queues a single server takes next; the c-mu rule is optimal (Cox and Smith 1961).
`Cue-v0`: a bit shown at the first step is asked for at the last.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from jaxsched.envs.base import Environment, Observation
from jaxsched.envs.spaces import Box, Discrete, Space

FREE = 2  # value of `QueueState.serving` when the server is idle


class QueueParams(struct.PyTreeNode):
    """Rates per second; index = class."""

    arrival_rate: Float[Array, " 2"]
    service_rate: Float[Array, " 2"]
    holding_cost: Float[Array, " 2"]  # per job in the system and second
    max_steps_in_episode: Int[Array, ""]


class QueueState(struct.PyTreeNode):
    """The two queues."""

    key: Array  # of the episode: everything random is a function of it and of `step`
    waiting: Int[Array, " 2"]
    serving: Int[Array, ""]  # class in service, `FREE` = nobody
    step: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class TwoClassQueue(Environment[QueueState, QueueParams]):
    """A non-preemptive M/M/1 queue of two classes with holding costs.

    Time runs in steps of a Poisson process that is fast enough for everything (uniformisation): a step lasts an exact
    exponential time, and brings an arrival, an end of service or nothing. Times, arrivals and what a service would need
    do not depend on what the policy does.

    - Observation: item = class: one-hot (2), log1p(jobs waiting), holding cost, service rate, 1 if in service;
      `item_mask`: somebody waits. One instance: 1 if busy. Globals: log1p of the jobs in the system.
    - Action: "order", a score per class. When the server is free, the class with the highest score among those in
      which somebody waits is served next (ties: the first class), to its end.
    - Mask: classes in which somebody waits.
    - Reward: minus holding costs x jobs in the system, integrated over the step.
    - Termination: never; truncated after `max_steps_in_episode` steps. Begins empty.
    - State: 16 bytes and the key.

    Optimal: the larger of ``holding_cost * service_rate`` first. With the default rates and holding costs (1, 4) that
    is class 1 (counted from 0): cost rate 4.816 per second against 5.594 the other way round; with (1, 2) class 0:
    3.212 against 3.472 (Cobham's formula; the sheet of the learning methods).
    """

    name: ClassVar[str] = "TwoClassQueue-v0"
    cost_names: ClassVar[tuple[str, ...]] = ("class_0", "class_1")

    @property
    def default_params(self) -> QueueParams:
        return QueueParams(
            arrival_rate=jnp.asarray([0.3, 0.15], jnp.float32),
            service_rate=jnp.asarray([1.0, 0.4], jnp.float32),
            holding_cost=jnp.asarray([1.0, 4.0], jnp.float32),
            max_steps_in_episode=jnp.int32(1500),
        )

    def action_space(self, params: QueueParams | None = None) -> dict[str, Space]:
        return {"order": Box(-math.inf, math.inf, (2,))}

    def reset_env(self, key: Array, params: QueueParams) -> tuple[Observation, QueueState]:
        state = QueueState(key=key, waiting=jnp.zeros(2, jnp.int32), serving=jnp.int32(FREE), step=jnp.int32(0))
        return self.observe(state, params), state

    def observe(self, state: QueueState, params: QueueParams) -> Observation:
        """What a policy sees of a state."""
        busy = jnp.arange(2) == state.serving
        features = [jnp.log1p(state.waiting.astype(jnp.float32)), params.holding_cost, params.service_rate, busy]
        items = jnp.concatenate([jnp.eye(2), jnp.stack(features, axis=1)], axis=1).astype(jnp.float32)
        present = state.waiting > 0
        in_system = jnp.sum(state.waiting) + jnp.sum(busy)
        return Observation(
            items=jnp.where(present[:, None], items, 0.0),
            item_mask=present,
            instances=jnp.any(busy).astype(jnp.float32).reshape(1, 1),
            globals=jnp.log1p(in_system.astype(jnp.float32)).reshape(1),
            masks={"order": present},
        )

    def step_env(self, key, state, action, params) -> tuple[Observation, QueueState, Array, Array, Array, dict]:
        del key
        present = state.waiting > 0
        starts = (state.serving == FREE) & jnp.any(present)
        best = jnp.argmax(jnp.where(present, action["order"], -jnp.inf)).astype(jnp.int32)
        serving = jnp.where(starts, best, state.serving)
        waiting = state.waiting - ((jnp.arange(2) == best) & starts)

        fastest = jnp.max(params.service_rate)
        total = jnp.sum(params.arrival_rate) + fastest
        time_key, kind_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        dt = jax.random.exponential(time_key) / total
        in_system = waiting + (jnp.arange(2) == serving)
        costs = params.holding_cost * in_system.astype(jnp.float32) * dt

        u = jax.random.uniform(kind_key) * total
        first, second = params.arrival_rate[0], jnp.sum(params.arrival_rate)
        arrives = jnp.stack([u < first, (u >= first) & (u < second)])
        rate = jnp.where(serving == FREE, 0.0, params.service_rate[jnp.minimum(serving, 1)])
        ends = (u >= second) & (u - second < rate)
        state = state.replace(
            waiting=waiting + arrives.astype(jnp.int32),
            serving=jnp.where(ends, FREE, serving).astype(jnp.int32),
            step=state.step + 1,
        )
        info = {
            "dt_s": dt,
            "decision_valid": starts & jnp.all(present),
            "executed": jnp.where(starts & (jnp.arange(2) == best), 0, -1).astype(jnp.int32),
            "num_executed": starts.astype(jnp.int32),
            "costs": costs,
        }
        truncated = state.step >= params.max_steps_in_episode
        return self.observe(state, params), state, -jnp.sum(costs), jnp.bool_(False), truncated, info


class CueParams(struct.PyTreeNode):
    """The delay."""

    delay: Int[Array, ""]  # steps between the cue and the question
    max_steps_in_episode: Int[Array, ""]


class CueState(struct.PyTreeNode):
    """The cue and the time."""

    cue: Int[Array, ""]  # 0 or 1
    step: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class Cue(Environment[CueState, CueParams]):
    """Remember a bit: needs memory, nothing else.

    - Observation: globals: (-1 or +1 at the first step, else 0; 1 at the question, else 0). One item and one instance
      with nothing in them.
    - Action: "choice", 0 or 1. Mask: both, always.
    - Reward: 1 if the choice at the question (step `delay`) is the cue, else 0.
    - Termination: after the question. A step lasts one second.
    - State: 8 bytes.

    A policy with memory reaches 1, one without 0.5.
    """

    name: ClassVar[str] = "Cue-v0"
    cost_names: ClassVar[tuple[str, ...]] = ("wrong",)

    @property
    def default_params(self) -> CueParams:
        return CueParams(delay=jnp.int32(20), max_steps_in_episode=jnp.int32(21))

    def action_space(self, params: CueParams | None = None) -> dict[str, Space]:
        return {"choice": Discrete(2)}

    def reset_env(self, key: Array, params: CueParams) -> tuple[Observation, CueState]:
        state = CueState(cue=jax.random.bernoulli(key).astype(jnp.int32), step=jnp.int32(0))
        return self.observe(state, params), state

    def observe(self, state: CueState, params: CueParams) -> Observation:
        """What a policy sees of a state."""
        shown = jnp.where(state.step == 0, 2 * state.cue - 1, 0)
        asked = state.step == params.delay
        return Observation(
            items=jnp.zeros((1, 1), jnp.float32),
            item_mask=jnp.ones(1, bool),
            instances=jnp.zeros((1, 1), jnp.float32),
            globals=jnp.stack([shown, asked]).astype(jnp.float32),
            masks={"choice": jnp.ones(2, bool)},
        )

    def step_env(self, key, state, action, params) -> tuple[Observation, CueState, Array, Array, Array, dict]:
        del key
        asked = state.step == params.delay
        right = asked & (action["choice"] == state.cue)
        state = state.replace(step=state.step + 1)
        info: dict[str, Any] = {
            "dt_s": jnp.float32(1.0),
            "decision_valid": asked,
            "executed": jnp.full(1, -1, jnp.int32),
            "num_executed": jnp.int32(0),
            "costs": (asked & ~right).astype(jnp.float32).reshape(1),
        }
        truncated = ~asked & (state.step >= params.max_steps_in_episode)
        return self.observe(state, params), state, right.astype(jnp.float32), asked, truncated, info
