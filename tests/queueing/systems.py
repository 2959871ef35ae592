"""The machine set up as a queue: a configuration, a workload of whole service steps, and what came out, per request.

Nothing here simulates. Each `System` is a policy of the catalogue with ordinary parameters and an ordinary step-time model:

- one at a time: `max_num_seqs` 1 and a constant step, so a request of O output tokens is served for O steps;
- all share: everybody is admitted and a step costs its tokens, so each of B requests goes at rate 1/B;
- ten at a time: `max_num_seqs` 10 and a constant step, so each of up to ten goes at rate 1;
- prompts only: one output token, and a prompt token costs as much as a step above, so a request is served in a single step.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from jaxsched.policies import Policy, get
from jaxsched.sim.build import make_params, make_static
from jaxsched.sim.clock import join_us, split_us
from jaxsched.sim.requests import Requests
from jaxsched.sim.state import Count
from jaxsched.timing.step_time import StepTimeParams, affine
from tests.queueing.theory import Law
from tests.sim.harness import run_lanes, stack

STEP_US = 1000
BUDGET = 1 << 24  # no chunking: a preempted request is recomputed in one step, which yields its next token
BLOCK_SIZE, BLOCKS = 1 << 16, 1 << 14  # memory that never binds
WARM_UP, COOL_DOWN = 0.10, 0.05  # shares of the arrivals left out at either end; the run goes on until all have left


@dataclasses.dataclass(frozen=True)
class System:
    """One special configuration, and how finely it cuts service."""

    policy: Policy
    timing: StepTimeParams
    mean_steps: int  # E[O]
    num_slots: int
    max_run_steps: int
    num_instances: int = 1
    servers: int = 1  # requests served at rate 1 at a time, over all instances
    queue_capacity: int = 1024
    prompts: bool = False  # service is in the prompt, not in the output

    def __hash__(self) -> int:
        return id(self)


def one_at_a_time(scheduler: str, *, mean_steps: int, num_slots: int = 1, max_run_steps: int = 32) -> System:
    return System(
        get(scheduler, max_num_seqs=1, token_budget=BUDGET), affine(STEP_US, 0, 0), mean_steps, num_slots, max_run_steps
    )


def all_share(*, mean_steps: int, num_slots: int, max_run_steps: int = 32) -> System:
    policy = get("vllm", max_num_seqs=num_slots, token_budget=BUDGET)
    return System(policy, affine(0, STEP_US, 0), mean_steps, num_slots, max_run_steps)


def several_at_a_time(servers: int, *, mean_steps: int, max_run_steps: int = 32) -> System:
    policy = get("vllm", max_num_seqs=servers, token_budget=BUDGET)
    return System(policy, affine(STEP_US, 0, 0), mean_steps, servers, max_run_steps, servers=servers)


def prompts_only(router: str, num_instances: int, *, mean_steps: int) -> System:
    policy = get(f"vllm+{router}", max_num_seqs=1, token_budget=BUDGET)
    return System(
        policy, affine(0, STEP_US, 0), mean_steps, 1, 1, num_instances, num_instances, queue_capacity=256, prompts=True
    )


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Poisson arrivals of `load` (per server) and service by `law`, for several seeds."""

    law: Law
    load: float
    num_seeds: int = 24


@dataclasses.dataclass(frozen=True)
class Runs:
    """What became of the requests of one `Traffic`: int64 microseconds ``[seeds, requests]``, and counters ``[seeds]``."""

    system: System
    traffic: Traffic
    arrival: np.ndarray
    service: np.ndarray
    first_scheduled: np.ndarray
    finish: np.ndarray
    preemptions: np.ndarray
    counts: np.ndarray  # [seeds, Count]
    batch_us: np.ndarray  # time integral of the number admitted, as the machine accumulates it

    @property
    def unit_us(self) -> int:
        """The mean service time."""
        return self.system.mean_steps * STEP_US

    @property
    def cohort(self) -> slice:
        """The requests that are measured."""
        num = self.arrival.shape[1]
        return slice(round(WARM_UP * num), round((1 - COOL_DOWN) * num))

    @property
    def time_in_system(self) -> np.ndarray:
        """In mean service times."""
        return (self.finish - self.arrival) / self.unit_us


def run(system: System, traffics: list[Traffic], num_requests: int, base_seed: int = 0) -> dict[Traffic, Runs]:
    """All traffics and seeds as lanes of one compiled program."""
    lanes = [(traffic, seed) for traffic in traffics for seed in range(traffic.num_seeds)]
    arrival, steps = (np.stack(x) for x in zip(*(_draw(system, *lane, num_requests, base_seed) for lane in lanes), strict=True))
    static = make_static(
        system.policy,
        num_instances=system.num_instances,
        num_slots=system.num_slots,
        max_run_steps=system.max_run_steps,
        queue_capacity=system.queue_capacity,
        block_size=BLOCK_SIZE,
        record=True,
    )
    params = stack(
        make_params(system.policy, system.timing, BLOCKS, num_instances=system.num_instances, seed=base_seed + lane)
        for lane in range(len(lanes))
    )
    final = jax.device_get(run_lanes(static, params, _requests(arrival, steps, system.prompts)))
    # Nothing was refused, cut short, left out of a comparison (see State.flags) or lost.
    counts = (final.metrics.counts_high.astype(np.int64) << 30) + final.metrics.counts
    assert not final.flags.any(), f"flags {np.unique(final.flags)}"
    assert (counts[:, Count.FINISHED] == num_requests).all()
    result = {}
    for i, traffic in enumerate(traffics):
        rows = slice(sum(t.num_seeds for t in traffics[:i]), sum(t.num_seeds for t in traffics[: i + 1]))
        result[traffic] = Runs(
            system, traffic, arrival[rows], steps[rows] * STEP_US,
            *(join_us(time[rows, :, 0], time[rows, :, 1]) for time in (final.record.first_scheduled, final.record.finish)),
            final.record.preemptions[rows], counts[rows], final.metrics.area[rows, 0].astype(float).sum(axis=-1),
        )  # fmt: skip
    return result


def _draw(system: System, traffic: Traffic, seed: int, num: int, base_seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Arrival times (us) and service (steps). Systems of equally fine steps get the same requests for the same traffic."""
    key = [base_seed, seed, round(1000 * traffic.load), *traffic.law.name.encode()]
    generator = np.random.default_rng(key)
    gaps = generator.exponential(system.mean_steps * STEP_US / (traffic.load * system.servers), num)
    return np.cumsum(gaps).astype(np.int64), traffic.law.draw(generator, system.mean_steps, num)


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


# -- estimates -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its standard error."""

    mean: float
    se: float
    num_seeds: int

    def errors_from(self, theory: float) -> float:
        """Distance from `theory` in standard errors."""
        return (self.mean - theory) / self.se


def estimate(per_seed: np.ndarray, *controls: tuple[np.ndarray, float]) -> Estimate:
    """Mean of a per-seed quantity, adjusted by control variates: (per-seed values, their known expectation).

    Least squares over the seeds; the standard error is that of the regression's intercept at the known expectations, with
    the degrees of freedom that the coefficients cost (Lavenberg and Welch 1981).
    """
    num = len(per_seed)
    design = np.stack([np.ones(num), *(values - expected for values, expected in controls if np.ptp(values) > 0)], axis=1)
    coefficients, *_ = np.linalg.lstsq(design, per_seed, rcond=None)
    residual = per_seed - design @ coefficients
    variance = residual @ residual / (num - design.shape[1])
    return Estimate(float(coefficients[0]), float(np.sqrt(variance * np.linalg.inv(design.T @ design)[0, 0])), num)


def input_controls(runs: Runs) -> list[tuple[np.ndarray, float]]:
    """What the workload's own draws came to, against their expectations: mean gap, mean and mean square of service."""
    end = runs.cohort.stop
    law, steps = runs.traffic.law, runs.system.mean_steps
    service = runs.service[:, :end] / runs.unit_us
    return [
        (runs.arrival[:, end - 1] / end / runs.unit_us, 1 / (runs.traffic.load * runs.system.servers)),
        (service.mean(axis=1), 1.0),
        ((service**2).mean(axis=1), law.second_moment_steps(steps) / steps**2),
    ]


def lindley_start(arrival: np.ndarray, service: np.ndarray) -> np.ndarray:
    """When each request starts on one first-come-first-served server; ``[seeds, requests]``, microseconds.

    The wait is also the work that an arrival finds, whatever the (work-conserving) discipline.
    """
    start = np.empty_like(arrival)
    free_at = np.zeros(len(arrival), arrival.dtype)
    for i in range(arrival.shape[1]):
        start[:, i] = np.maximum(arrival[:, i], free_at)
        free_at = start[:, i] + service[:, i]
    return start
