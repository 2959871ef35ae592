"""The machine as an environment: a burst of micro-steps per decision, with the controls of the last one in force.

A step applies the action to the controls, advances the machine by a burst of micro-steps (or to the end of a tick of
simulated time, or to the next arrival), and integrates the costs over the simulated time that passed, exactly: a
program counts from its own arrival to its own end, wherever in the step those lie. Why bursts: docs/decisions/0005.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxsched.envs import features
from jaxsched.envs.base import Environment, Observation
from jaxsched.envs.burst import (
    Watch,
    arrival_is_next,
    between_s,
    executed_ranks,
    growth,
    run_burst,
    where_pair,
    with_deadlines,
)
from jaxsched.envs.controls import (
    CHOICES,
    INSTANCE_CHOICES,
    ITEM_CHOICES,
    Controls,
    after_action,
    first_controls,
    had_choice,
    in_force,
    who_decides,
)
from jaxsched.envs.pool import Pool
from jaxsched.envs.spaces import Box, Discrete, Space
from jaxsched.errors import UserError
from jaxsched.sim.clock import EPOCH_BITS, EPOCH_US
from jaxsched.sim.kv.runs import RunTableState
from jaxsched.sim.ledger import largest_gap
from jaxsched.sim.machine import end_of_chunk, init_state, is_done
from jaxsched.sim.params import SimParams
from jaxsched.sim.requests import Requests
from jaxsched.sim.state import GONE, Count, Flag, State
from jaxsched.sim.static import SimStatic

#: Horizons from this epoch on are none.
_NO_HORIZON_EPOCH = 2**29


class ClusterParams(struct.PyTreeNode):
    """Parameters of a lane; any leaf may differ between lanes under `vmap`."""

    sim: SimParams  # of the machine; the KV pool's size is the workload's (`Pool.usable_blocks`)
    pool: Pool  # workloads that `reset` draws from
    class_weight: Float[Array, " c"]  # cost of a program of each class per second in the system
    residual_s: Float[Array, ""]  # charged at the end (`sim.horizon_*`) for every program in the system
    tick_us: Int[Array, ""]  # length of a tick (only with `ClusterEnv.ticks`), below 2^29
    length_error: Float[Array, ""]  # log-sd of predicted output lengths in the observation, < 0 = not shown
    work_error: Float[Array, ""]  # log-sd of the predicted tokens left of a program, < 0 = not shown
    max_steps_in_episode: Int[Array, ""]
    loss_cost: Float[Array, ""] | None = None  # of an answer wholly lost to KV compression; None: not charged
    own: Any = None  # of one kind of environment


class ClusterState(struct.PyTreeNode):
    """An episode."""

    machine: State
    workload: Int[Array, ""]  # index into the pool
    controls: Controls
    items: features.Items  # those of the last observation
    clock_epoch: Int[Array, ""]  # time up to which costs have been charged
    clock_us: Int[Array, ""]
    dt_s: Float[Array, ""]  # length of the last step
    step: Int[Array, ""]
    short_ticks: Int[Array, ""]  # ticks whose micro-steps did not suffice (`ClusterEnv.burst` too small)
    own: Any = None  # what one kind of environment keeps besides


@dataclasses.dataclass(frozen=True)
class ClusterEnv(Environment[ClusterState, ClusterParams]):
    """What AgentSessions and its siblings have in common. Fields fix the compiled program."""

    static: SimStatic
    learned: tuple[str, ...]
    num_programs: int  # of an episode
    burst: int = 8  # micro-steps per decision (with `ticks`: at most)
    num_items: int = 128
    ticks: bool = False  # a step is a tick of fixed length
    to_arrival: bool = False  # a step ends before the next arrival (routing)
    warmup_fraction: float = 0.0  # shares of the programs that the machine's metrics leave out; rewards never do
    cooldown_fraction: float = 0.0
    reward: str = "latency"

    name: ClassVar[str] = "Cluster-v0"
    cost_names: ClassVar[tuple[str, ...]] = (
        "program_s", "finished_turns", "good_turns", "scheduled_tokens", "recomputed_tokens", "preemptions", "lost",
    )  # fmt: skip

    # -- spaces --------------------------------------------------------------------------------------------------------

    @property
    def default_params(self) -> ClusterParams:
        raise UserError(
            "no parameters", where=f"environment {self.name}", expected="those that js.make returned with it"
        )

    @property
    def total_items(self) -> int:
        """Places of an observation."""
        return min(self.num_items, self.static.num_instances * self.static.num_slots + self.static.num_paused)

    def action_space(self, params: ClusterParams | None = None) -> dict[str, Space]:
        n = self.total_items
        spaces: dict[str, Space] = {
            "order": Box(-float("inf"), float("inf"), (n,)),
            **{head: Discrete(self.static.num_instances) for head in INSTANCE_CHOICES},
            **{head: Discrete(num, (n,)) for head, num in ITEM_CHOICES.items()},
            **{head: Discrete(num) for head, num in CHOICES.items()},
        }
        return {head: spaces[head] for head in self.learned}

    # -- episodes ------------------------------------------------------------------------------------------------------

    def reset_env(self, key: Array, params: ClusterParams) -> tuple[Observation, ClusterState]:
        """Begin with an empty cluster and a workload drawn from the pool."""
        workload = jax.random.randint(key, (), 0, params.pool.first.shape[0], jnp.int32)
        return self.reset_to(workload, params)

    def reset_to(self, workload: Int[Array, ""], params: ClusterParams) -> tuple[Observation, ClusterState]:
        """Begin with this workload of the pool."""
        sim, _ = self._inputs(params, workload)
        programs = params.pool.first.shape[0] * self.num_programs  # attained service is kept by program
        machine = init_state(self.static, sim, params.pool.requests.num_rows if self.static.record else programs)
        machine = machine.replace(arrivals=params.pool.first[workload])
        controls = first_controls(self.learned, self.num_programs, self.static.num_instances)
        zero: Array = jnp.int32(0)
        state = ClusterState(
            machine=machine,
            workload=workload,
            controls=controls,
            items=self._items(machine, params, workload),
            clock_epoch=zero,
            clock_us=zero,
            dt_s=jnp.float32(0.0),
            step=zero,
            short_ticks=zero,
            own=self._own_start(),
        )
        return self.observe(state, params), state

    def _inputs(self, params: ClusterParams, workload: Int[Array, ""]) -> tuple[SimParams, Requests]:
        """Parameters and table of a lane."""
        pool = params.pool
        first = pool.first[workload]
        sim = params.sim.replace(
            usable_blocks=jnp.broadcast_to(pool.usable_blocks[workload], params.sim.usable_blocks.shape),
            measure_from=first + jnp.int32(int(self.num_programs * self.warmup_fraction)),
            measure_to=first + jnp.int32(int(self.num_programs * (1.0 - self.cooldown_fraction))),
        )
        return sim, pool.requests.replace(num_programs=first + self.num_programs)

    def _items(self, machine: State, params: ClusterParams, workload: Int[Array, ""]) -> features.Items:
        first = params.pool.first[workload]
        return features.find_items(self.static, params.pool.requests.program, machine, first, self.total_items)

    # -- observation ---------------------------------------------------------------------------------------------------

    def observe(self, state: ClusterState, params: ClusterParams) -> Observation:
        """What a policy sees of a state."""
        sim, _ = self._inputs(params, state.workload)
        items, machine = state.items, state.machine
        sigmas = params.length_error, params.work_error
        controls = [
            control.astype(jnp.float32) / size
            for head, size in CHOICES.items()
            if (control := getattr(state.controls, head)) is not None
        ]
        overall = features.global_features(machine, items, state.dt_s)
        if self.static.tenants:
            overall = jnp.concatenate([overall, features.tenant_features(machine)])
        return Observation(
            items=features.item_features(self.static, sim, params.pool, machine, items, sigmas),
            item_mask=items.present,
            instances=features.instance_features(self.static, sim, machine, items),
            globals=jnp.concatenate([overall, jnp.stack(controls)]) if controls else overall,
            masks=self._masks(state, items),
        )

    def _masks(self, state: ClusterState, items: features.Items) -> dict[str, Bool[Array, ...]]:
        """Legal choices: an item that cannot pause soon takes no decision about its retention."""
        masks: dict[str, Array] = {}
        for head in self.learned:
            if head == "order":
                masks[head] = items.waiting
            elif head in ITEM_CHOICES:
                decides = who_decides(head, items)[:, None]
                masks[head] = decides | (jnp.arange(ITEM_CHOICES[head]) == 0)[None, :]
            else:
                space = self.action_space()[head]
                assert isinstance(space, Discrete)
                masks[head] = jnp.ones(space.n, bool)
        return masks

    # -- a step --------------------------------------------------------------------------------------------------------

    def step_env(self, key, state, action, params) -> tuple[Observation, ClusterState, Array, Array, Array, dict]:
        del key  # nothing random happens after the reset
        static = self.static
        sim, requests = self._inputs(params, state.workload)
        first = params.pool.first[state.workload]
        items = state.items
        controls = after_action(state.controls, items, action)
        sim = in_force(sim, controls, first)
        before = state.machine
        if controls.retain is not None and isinstance(before.kv, RunTableState):
            before = before.replace(kv=with_deadlines(before.kv, before.paused, requests, controls.retain, first))

        until = self._until(sim, state, params)
        running = sim if until is None else sim.replace(horizon_epoch=until[0], horizon_us=until[1])
        may_arrive = jnp.bool_(True)
        if self.to_arrival:
            may_arrive = arrival_is_next(static, requests, before)
        after, admitted, ended, watched = run_burst(
            static, running, requests, before, self.burst, self.to_arrival, may_arrive, self._watch(state)
        )
        done = is_done(static, sim, requests, after)
        livelock = (after.flags & int(Flag.LIVELOCK)) != 0
        left = self._unfinished(requests, after, livelock)
        clock = (after.epoch, after.now)
        short = jnp.bool_(False)
        if until is not None:
            reached = is_done(static, running, requests, after)
            clock = where_pair(reached & ~done, until, clock)
            short = ~reached
        # At a horizon the last costs run up to it.
        cut_off = done & ~livelock & (jnp.sum(left) > 0) & (sim.horizon_epoch < _NO_HORIZON_EPOCH)
        clock = where_pair(cut_off, (sim.horizon_epoch, sim.horizon_us), clock)
        after = end_of_chunk(static, sim, requests, after)

        since = (state.clock_epoch, state.clock_us)
        dt_s = between_s(clock, since)
        area = self._area(requests, before, after, clock, since, dt_s, ended)
        new = growth(before, after)
        good = jnp.sum(after.metrics.class_good - before.metrics.class_good).astype(jnp.float32)
        # Turns that end a program without finishing it; it stays in the system as far as costs are concerned.
        lost = sum(new[which] for which in GONE)
        charge = jnp.where(done, jnp.sum(params.class_weight * left) * params.residual_s, 0.0)
        costs = jnp.stack([
            jnp.sum(area), new[Count.FINISHED], good, new[Count.SCHEDULED_TOKENS], new[Count.RECOMPUTED_TOKENS],
            new[Count.PREEMPTIONS], lost,
        ])  # fmt: skip
        held = jnp.sum(params.class_weight * area)
        reward = -held - charge if self.reward == "latency" else good - charge
        if self.reward == "fairness":
            reward = -1e-3 * (largest_gap(after) - largest_gap(before)) - charge
        if params.loss_cost is not None:
            assert after.quality is not None and before.quality is not None
            reward -= params.loss_cost * (after.quality.loss - before.quality.loss)
        state = state.replace(
            machine=after,
            controls=controls,
            items=self._items(after, params, state.workload),
            clock_epoch=clock[0],
            clock_us=clock[1],
            dt_s=dt_s,
            step=state.step + 1,
            short_ticks=state.short_ticks + short.astype(jnp.int32),
        )
        rank, num = executed_ranks(items, admitted)
        obs = self.observe(state, params)
        masks = {
            head: mask if head == "order" else mask | done for head, mask in obs.masks.items()
        }  # at the end everything is legal
        info: dict[str, Any] = {
            "dt_s": dt_s,
            "decision_valid": self._had_choice(items, may_arrive),
            "executed": rank,
            "num_executed": num,
            "costs": costs,
        }
        if watched is not None:
            info["watched"] = watched
        truncated = ~done & (state.step >= params.max_steps_in_episode)
        return obs.replace(masks=masks), state, reward, done, truncated, info

    def _own_start(self) -> Any:
        """`ClusterState.own` of a new episode."""
        return None

    def _watch(self, state: ClusterState) -> Watch | None:
        """What to sum over the micro-steps of a step, for ``info["watched"]``."""
        del state
        return None

    def _had_choice(self, items: features.Items, may_arrive: Array) -> Bool[Array, ""]:
        return may_arrive if self.to_arrival else jnp.any(jnp.stack(had_choice(self.learned, items)))

    def _until(self, sim: SimParams, state: ClusterState, params: ClusterParams) -> tuple[Array, Array] | None:
        """(epoch, us) at which a tick ends; None: there are no ticks."""
        if not self.ticks:
            return None
        us = state.clock_us + params.tick_us
        epoch, us = state.clock_epoch + (us >> EPOCH_BITS), us & (EPOCH_US - 1)
        before = (epoch < sim.horizon_epoch) | ((epoch == sim.horizon_epoch) & (us < sim.horizon_us))
        return where_pair(before, (epoch, us), (sim.horizon_epoch, sim.horizon_us))

    # -- costs ---------------------------------------------------------------------------------------------------------

    def _classes(self, requests: Requests, row: Int[Array, " k"]) -> Bool[Array, "k c"]:
        return requests.klass[row][:, None] == jnp.arange(self.static.num_classes)[None, :]

    def _unfinished(self, requests: Requests, machine: State, all_of_them: Bool[Array, ""]) -> Float[Array, " c"]:
        """Programs of each class that have arrived (or were to: `all_of_them`) and are not done."""
        came = jnp.where(all_of_them, self._class_counts(requests, requests.num_programs), 0)
        came = jnp.maximum(came, self._class_counts(requests, machine.arrivals))
        return (came - self._ended(machine)).astype(jnp.float32)

    def _class_counts(self, requests: Requests, stop: Int[Array, ""]) -> Int[Array, " c"]:
        """Programs of each class before row `stop`."""
        first = requests.num_programs - self.num_programs
        if self.static.num_classes == 1:
            return (stop - first)[None]
        rows = first + jnp.arange(self.num_programs)
        return jnp.sum(((rows < stop)[:, None] & self._classes(requests, rows)).astype(jnp.int32), axis=0)

    def _ended(self, machine: State) -> Int[Array, " c"]:
        """Programs of each class that are done (single turns are when they finish)."""
        if self.static.num_classes == 1:
            counts = machine.metrics.counts + (machine.metrics.counts_high << 30)
            return counts[Count.PROGRAMS_DONE][None]
        return machine.metrics.class_finished

    def _area(self, requests, before: State, after: State, clock, since, dt_s, ended) -> Float[Array, " c"]:
        """Program-seconds of each class in the step: all in the system at its start, plus arrivals, less ends."""
        window = before.arrivals + jnp.arange(min(self.burst, self.num_programs), dtype=jnp.int32)
        came = window < after.arrivals
        row = jnp.minimum(window, requests.num_rows - 1)
        in_step = between_s(clock, (requests.arrival_epoch[row], requests.arrival_us[row]))
        inside = self._class_counts(requests, before.arrivals) - self._ended(before)
        mine = self._classes(requests, row) if self.static.num_classes > 1 else jnp.ones((1, 1), bool)
        arrived = jnp.sum(jnp.where(came[:, None] & mine, in_step[:, None], 0.0), axis=0)
        num, sum_s = ended  # ends of each class, and the sum of their times since `before.now`
        sum_s = sum_s + num * between_s((before.epoch, before.now), since)
        return inside.astype(jnp.float32) * dt_s + arrived - (num * dt_s - sum_s)


__all__ = ["ClusterEnv", "ClusterParams", "ClusterState"]
