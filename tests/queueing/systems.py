"""The machine set up as a queue: a configuration, a workload of whole service steps, and what came out, per request.

Nothing here simulates. Each `System` is a policy of the catalogue with ordinary parameters and an ordinary step-time
model:

- one at a time: `max_num_seqs` 1 and a constant step, so a request of O output tokens is served for O steps;
- ten at a time: `max_num_seqs` 10 and a constant step, so each of up to ten is served at rate 1;
- all share: everybody is admitted and a step costs its tokens, so each of B requests is served at rate 1/B;
- prompts only: one output token, and a prompt token costs what a step did, so a request is served in one long step.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxsched.policies import Policy, get
from jaxsched.sim.build import make_params, make_static
from jaxsched.sim.clock import join_us, split_us
from jaxsched.sim.params import SimParams
from jaxsched.sim.requests import Requests
from jaxsched.sim.state import Count
from jaxsched.sim.static import SimStatic
from jaxsched.timing.step_time import affine
from tests.queueing.theory import Law
from tests.sim.harness import run_lanes, stack

STEP_US = 1000
BUDGET = 1 << 24  # no chunking: a preempted request is recomputed in one step, which yields its next token
BLOCK_SIZE, BLOCKS = 1 << 16, 1 << 14  # memory that never binds
CONSTANT_STEP, STEP_COSTS_ITS_TOKENS = (STEP_US, 0, 0), (0, STEP_US, 0)


@dataclasses.dataclass(frozen=True)
class System:
    """One special configuration, and how finely it cuts service."""

    name: str  # of the policy in the catalogue
    max_num_seqs: int
    timing: tuple[int, int, int]  # arguments of `affine`
    mean_steps: int  # E[O]
    num_slots: int
    max_run_steps: int
    num_instances: int = 1
    servers: int = 1  # requests served at rate 1 at a time, over all instances
    queue_capacity: int = 1024
    prompts: bool = False  # service is in the prompt, not in the output

    @property
    def policy(self) -> Policy:
        return get(self.name, max_num_seqs=self.max_num_seqs, token_budget=BUDGET)

    @property
    def static(self) -> SimStatic:
        """What is compiled."""
        return make_static(
            self.policy,
            num_instances=self.num_instances,
            num_slots=self.num_slots,
            max_run_steps=self.max_run_steps,
            queue_capacity=self.queue_capacity,
            block_size=BLOCK_SIZE,
            record=True,
        )


#: First come first served, ten servers and processor sharing differ in traced parameters only: one compiled program.
SHARED_SLOTS, SHARED_RUN_STEPS = 128, 64


def at_a_time(servers: int, mean_steps: int) -> System:
    """First come first served by `servers` servers."""
    return System("vllm", servers, CONSTANT_STEP, mean_steps, SHARED_SLOTS, SHARED_RUN_STEPS, servers=servers)


def all_share(mean_steps: int) -> System:
    """Processor sharing."""
    return System("vllm", SHARED_SLOTS, STEP_COSTS_ITS_TOKENS, mean_steps, SHARED_SLOTS, SHARED_RUN_STEPS)


def shortest_remaining(mean_steps: int) -> System:
    """SRPT on one server; up to 64 requests are compared (a flag tells if there were more)."""
    return System("srpt-oracle", 1, CONSTANT_STEP, mean_steps, 64, 16)


def routed(router: str, num_instances: int, mean_steps: int) -> System:
    """Many first-come-first-served servers behind a router."""
    return System(
        f"vllm+{router}", 1, STEP_COSTS_ITS_TOKENS, mean_steps, 1, 1, num_instances, num_instances,
        queue_capacity=256, prompts=True,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Poisson arrivals of `load` per server, and service by `law`."""

    law: Law
    load: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long and how often.

    The first and last shares of the arrivals are not measured (the run goes on till all have left).
    """

    num_requests: int
    num_seeds: int
    warm_up: float = 0.25
    cool_down: float = 0.05
    base_seed: int = 0

    @property
    def cohort(self) -> slice:
        """The requests that are measured."""
        return slice(round(self.warm_up * self.num_requests), round((1 - self.cool_down) * self.num_requests))


@dataclasses.dataclass(frozen=True)
class Runs:
    """What became of the requests: int64 microseconds ``[seeds, requests]``, and per-seed totals ``[seeds]``."""

    system: System
    traffic: Traffic
    plan: Plan
    arrival: np.ndarray
    service: np.ndarray
    instance: np.ndarray
    first_scheduled: np.ndarray
    finish: np.ndarray
    preemptions: np.ndarray
    queued: np.ndarray  # arrivals that found every slot taken
    busy_us: np.ndarray  # time with a step in execution, as the machine counts it
    batch_us: np.ndarray  # time integral of the number admitted, as the machine accumulates it (float32 sums)

    @property
    def unit_us(self) -> int:
        """The mean service time."""
        return self.system.mean_steps * STEP_US

    @property
    def rate(self) -> float:
        """Arrivals per mean service time."""
        return self.traffic.load * self.system.servers

    @property
    def time_in_system(self) -> np.ndarray:
        """Of each measured request, in mean service times."""
        return ((self.finish - self.arrival) / self.unit_us)[:, self.plan.cohort]

    @property
    def wait(self) -> np.ndarray:
        """Until admission, of each measured request, in mean service times."""
        return ((self.first_scheduled - self.arrival) / self.unit_us)[:, self.plan.cohort]


def run(cases: list[tuple[System, Traffic]], plan: Plan) -> list[Runs]:
    """All cases and seeds as lanes of one compiled program."""
    static = cases[0][0].static
    assert all(system.static == static for system, _ in cases), "the cases differ in more than traced parameters"
    drawn = [_draw(system, traffic, plan, seed) for system, traffic in cases for seed in range(plan.num_seeds)]
    arrival, steps = (np.stack(column) for column in zip(*drawn, strict=True))
    params = stack(
        [
            make_params(
                system.policy,
                affine(*system.timing),
                BLOCKS,
                num_instances=system.num_instances,
                seed=1000 * plan.base_seed + seed,
            )
            for system, _ in cases
            for seed in range(plan.num_seeds)
        ]
    )
    final = jax.device_get(run_lanes(static, params, _requests(arrival, steps, cases[0][0].prompts)))
    counts = _totals(final.metrics)
    # Nothing was refused, cut short or lost, and no comparison left a request out (State.flags).
    assert not final.flags.any(), f"flags {np.unique(final.flags)}"
    assert (counts[:, Count.FINISHED] == plan.num_requests).all()

    def of_case(i: int, values: np.ndarray) -> np.ndarray:
        return values[i * plan.num_seeds : (i + 1) * plan.num_seeds]

    result = []
    for i, (system, traffic) in enumerate(cases):
        first, finish = (of_case(i, t) for t in (final.record.first_scheduled, final.record.finish))
        result.append(
            Runs(
                system,
                traffic,
                plan,
                arrival=of_case(i, arrival),
                service=of_case(i, steps) * STEP_US,
                instance=of_case(i, final.record.instance),
                first_scheduled=join_us(first[..., 0], first[..., 1]),
                finish=join_us(finish[..., 0], finish[..., 1]),
                preemptions=of_case(i, final.record.preemptions),
                queued=of_case(i, counts)[:, Count.QUEUED],
                busy_us=of_case(i, counts)[:, Count.BUSY_US],
                batch_us=of_case(i, final.metrics.area)[:, 0].astype(float).sum(axis=-1),
            )
        )
    return result


def _params(system: System, plan: Plan, seed: int) -> SimParams:
    routing = 1000 * plan.base_seed + seed
    return make_params(system.policy, affine(*system.timing), BLOCKS, num_instances=system.num_instances, seed=routing)


def _totals(metrics: Any) -> np.ndarray:
    """Counters ``[lanes, Count]``, int64."""
    return (metrics.counts_high.astype(np.int64) << 30) + metrics.counts


def _draw(system: System, traffic: Traffic, plan: Plan, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Arrival times (us) and service (steps).

    Disciplines with equally many servers and equal steps get the same requests.
    """
    shape = [system.servers, system.mean_steps, round(1000 * traffic.load)]
    generator = np.random.default_rng([plan.base_seed, seed, *shape, *traffic.law.name.encode()])
    gap = system.mean_steps * STEP_US / (traffic.load * system.servers)
    arrival = np.cumsum(generator.exponential(gap, plan.num_requests)).astype(np.int64)
    return arrival, traffic.law.draw(generator, system.mean_steps, plan.num_requests)


def _requests(arrival: np.ndarray, steps: np.ndarray, prompts: bool) -> Requests:
    lanes, num = arrival.shape
    epoch, us = split_us(arrival)
    ones, zeros = np.ones((lanes, num), np.int32), np.zeros((lanes, num), np.int32)
    service = steps.astype(np.int32)
    return Requests(
        num_programs=np.full(lanes, num, np.int32),
        arrival_epoch=epoch,
        arrival_us=us,
        prompt_tokens=service if prompts else ones,
        output_tokens=ones if prompts else service,
        predicted_tokens=ones if prompts else service,
        klass=zeros,
        priority=zeros,
        program=np.broadcast_to(np.arange(num, dtype=np.int32), (lanes, num)).copy(),
        next_turn=zeros - 1,
        pause_epoch=zeros,
        pause_us=zeros,
    )
