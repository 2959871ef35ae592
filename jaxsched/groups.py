"""Many short runs: lanes in groups small enough for a core's cache, each lane with weights, load and pool of its own.

A population of learned policies is a lane axis: the same workload (seed) under many weights, or the same weights on
many seeds. On a CPU a batch that has outgrown the cache takes about twice the time per lane (8 lanes a core: 0.6 s per
lane of 300 agents; 32: 1.4 s), so lanes run in groups.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsched.caching import with_block_size, with_cache, with_graphs
from jaxsched.lanes import Lanes, lane_params, static_of, with_truth
from jaxsched.metrics.result import RolloutResult, Trajectory
from jaxsched.policies.base import Policy
from jaxsched.scenario import Scenario
from jaxsched.sim.requests import Requests
from jaxsched.sim.state import State
from jaxsched.sim.static import SimStatic
from jaxsched.simulation import SNAPSHOT_STRIDE, SNAPSHOTS, place_lanes, run_once
from jaxsched.workloads import Preset
from jaxsched.workloads.table import stack

#: Lanes per device and group on a CPU; accelerators take all lanes at once.
CPU_LANES = 8


@dataclasses.dataclass(frozen=True)
class LaneSpec:
    """What differs between lanes; one array entry each. None: the same for all, as the policy or scenario says."""

    seeds: np.ndarray  # int, workload seeds
    weights: np.ndarray | None = None  # float32 [lanes, w]: of a learned policy
    rates_per_s: np.ndarray | None = None  # programs per second
    usable_blocks: np.ndarray | None = None  # int, KV blocks of every instance
    knobs: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # traced options of the preset

    def __len__(self) -> int:
        return len(self.seeds)

    def part(self, index: np.ndarray) -> LaneSpec:
        """Some of the lanes."""
        pick = lambda x: None if x is None else np.asarray(x)[index]
        return LaneSpec(
            np.asarray(self.seeds)[index],
            pick(self.weights),
            pick(self.rates_per_s),
            pick(self.usable_blocks),
            {name: np.asarray(value)[index] for name, value in self.knobs.items()},
        )


class GroupRunner:
    """Runs lanes of one scenario and policy; what was compiled, and the table sizes found to suffice, are kept.

    A trace's sessions start anew in each lane (`Workload.restarted`): its recorded arrivals are not used.

    Args:
        record: keep every turn's life.
        group: lanes per device and group.
        most_micro_steps: lanes that are not done by then stay as they are (about: whole chunks); None: no limit.
    """

    def __init__(
        self,
        scenario: Scenario,
        policy: Policy,
        *,
        record: bool = False,
        group: int | None = None,
        most_micro_steps: int | None = None,
    ):
        scenario.check(policy)
        self.scenario, self.policy = scenario, policy
        self._base = static_of(scenario, policy, record)
        self._static: SimStatic | None = None
        chunk = SNAPSHOT_STRIDE * SNAPSHOTS
        self._most_chunks = None if most_micro_steps is None else -(-most_micro_steps // chunk)
        self._devices = self._size = 0
        self._per_device = group or (CPU_LANES if jax.default_backend() == "cpu" else 0)

    def run(self, lanes: LaneSpec, say: Callable[[int, int], None] | None = None) -> tuple[State, Any, Trajectory]:
        """Final states, tables and trajectories of all lanes (NumPy, lanes first)."""
        num = len(lanes)
        if self._size == 0:  # the first call's, for all: another size would be another program
            devices = min(len(jax.local_devices()), num)
            num_groups = -(-num // (devices * (self._per_device or num)))
            # Groups of about equal size: the last one is filled up with copies of the last lane.
            self._devices, self._size = devices, devices * -(-num // (devices * num_groups))
        size, devices = self._size, self._devices
        parts = []
        for first in range(0, num, size):
            index = np.minimum(np.arange(first, first + size), num - 1)
            parts.append(self._run_group(lanes.part(index), devices))
            if say is not None:
                say(min(first + size, num), num)
        join = lambda *leaves: np.concatenate(leaves)[:num]
        state, requests = (jax.tree.map(join, *[part[i] for part in parts]) for i in (0, 1))
        return state, requests, _joined([part[2] for part in parts], num)

    def rollout(self, lanes: LaneSpec, say: Callable[[int, int], None] | None = None) -> RolloutResult:
        """Metrics of all lanes, as `jaxsched.rollout` gives them; `rate_per_s` is the mean over lanes."""
        state, requests, trajectory = self.run(lanes, say)
        assert self._static is not None
        rates = self.scenario.rate_per_s if lanes.rates_per_s is None else float(np.mean(lanes.rates_per_s))
        first = np.zeros(len(lanes), np.int64)
        seeds = [int(seed) for seed in lanes.seeds]
        return RolloutResult.collect(
            self.scenario, self.policy, seeds, rates, self._static, requests, first, state, trajectory
        )

    def _run_group(self, spec: LaneSpec, devices: int) -> tuple[State, Any, Trajectory]:
        lanes = _lanes(self.scenario, self.policy, spec)
        if self._static is None:
            self._static = with_graphs(with_cache(self._base, self.scenario, lanes.requests), lanes.requests)
        placed = place_lanes(lanes, devices)
        run = lambda static: run_once(static, placed, devices, len(spec), lambda _: None, self._most_chunks)
        while isinstance(found := run(self._static), SimStatic):
            self._static = found
        # Tables may have grown from group to group; what is left of them at the end is of no use.
        unused = dict.fromkeys(("slots", "request", "kv", "late", "service", "fair", "pending_writes"))
        state = found[0].replace(**unused)
        return state, jax.tree.map(np.asarray, lanes.requests), found[1]


def _lanes(scenario: Scenario, policy: Policy, spec: LaneSpec) -> Lanes:
    num = len(spec)
    rates = np.full(num, scenario.rate_per_s) if spec.rates_per_s is None else spec.rates_per_s
    requests = with_truth(policy, _tables(scenario, spec, np.asarray(rates)), scenario)
    first, stop = np.zeros(num, np.int64), np.full(num, scenario.num_programs)
    params, axes = lane_params(scenario, policy, np.asarray(spec.seeds), first, stop)
    if spec.weights is not None:
        weights = jnp.asarray(spec.weights, jnp.float32)
        params = params.replace(scheduler=params.scheduler.replace(weights=weights))
        axes = axes.replace(scheduler=axes.scheduler.replace(weights=0))
    if spec.usable_blocks is not None:
        blocks = np.broadcast_to(np.asarray(spec.usable_blocks, np.int32)[:, None], (num, scenario.num_instances))
        params, axes = params.replace(usable_blocks=jnp.asarray(blocks)), axes.replace(usable_blocks=0)
    return Lanes(params, axes, requests, jax.tree.map(lambda _: 0, requests), first, np.zeros(num, np.int64), 1)


def _tables(scenario: Scenario, spec: LaneSpec, rates: np.ndarray) -> Requests:
    """The lanes' tables; a trace's sessions start anew in every lane, in an order of its seed."""
    trace = scenario.workload
    if isinstance(trace, Preset):
        names = tuple(spec.knobs)
        generate = _generator(trace, scenario.num_programs, scenario.prediction_error, names)
        knobs = [jnp.asarray(spec.knobs[name], jnp.float32) for name in names]
        return generate(jnp.asarray(spec.seeds, jnp.uint32), jnp.asarray(rates, jnp.float32), *knobs)
    if spec.knobs:
        raise ValueError(f"a trace has no knobs: {', '.join(spec.knobs)}")
    trace = with_block_size(trace.head(scenario.num_programs), scenario)
    lanes = [trace.restarted(float(rate), int(seed)) for rate, seed in zip(rates, spec.seeds, strict=True)]
    return stack(lanes, block_size=scenario.block_size if trace.content is not None else None)


@functools.lru_cache(maxsize=32)
def _generator(preset: Preset, num_programs: int, prediction_error: float, knobs: Sequence[str]):
    def one(seed, rate, *values):
        options = dict(zip(knobs, values, strict=True))
        return preset.generate(jax.random.key(seed), num_programs, rate, prediction_sigma=prediction_error, **options)

    return jax.jit(jax.vmap(one))


def _joined(parts: list[Trajectory], num: int) -> Trajectory:
    """Trajectories of all groups; those of shorter runs stand still at their ends."""
    longest = max(part.t_s.shape[1] for part in parts)

    def pad(values: np.ndarray) -> np.ndarray:
        return np.concatenate([values, np.repeat(values[:, -1:], longest - values.shape[1], axis=1)], axis=1)

    def join(name: str) -> Any:
        found = [getattr(part, name) for part in parts]
        return None if found[0] is None else np.concatenate([pad(values) for values in found])[:num]

    return Trajectory(**{field.name: join(field.name) for field in dataclasses.fields(Trajectory)})
