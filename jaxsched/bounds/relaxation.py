"""Lower bounds on mean latency: the SRPT relaxation, and service alone.

Take away everything but work: one server that does as many microseconds of work in a microsecond as there are
instances, that may split any job at will, with no memory, no batches and no pauses. On it, shortest remaining
processing time first minimises the mean response time on every sample path (Schrage 1968), so no schedule of the
cluster can have a smaller mean. Neither can it be smaller than the mean time that the jobs take alone. The larger of
the two is the bound (learning sheet 11).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np

from jaxsched.bounds.work import TurnWork, turn_work
from jaxsched.errors import UserError
from jaxsched.workloads import Preset, Workload

if TYPE_CHECKING:
    from jaxsched.policies.base import Policy
    from jaxsched.scenario import Scenario


def srpt_responses(arrival_us: np.ndarray, work_us: np.ndarray, speed: float = 1.0) -> np.ndarray:
    """Response times of jobs on one server under shortest remaining processing time first, microseconds.

    Args:
        arrival_us: float64 ``[n]``, in any order.
        work_us: float64 ``[n]``; a job takes ``work / speed`` alone.
    """
    order = np.argsort(arrival_us, kind="stable")
    arrival, left = np.asarray(arrival_us, np.float64)[order], np.asarray(work_us, np.float64)[order] / speed
    done = np.zeros(len(order))
    waiting: list[tuple[float, int]] = []  # (time left, job)
    now, next_job = 0.0, 0
    while waiting or next_job < len(order):
        if not waiting:
            now = max(now, arrival[next_job])
        while next_job < len(order) and arrival[next_job] <= now:
            heapq.heappush(waiting, (left[next_job], next_job))
            next_job += 1
        until = arrival[next_job] if next_job < len(order) else np.inf
        time_left, job = heapq.heappop(waiting)
        if now + time_left <= until:
            now += time_left
            done[job] = now
        else:
            heapq.heappush(waiting, (time_left - (until - now), job))
            now = until
    responses = np.empty(len(order))
    responses[order] = done - arrival
    return responses


def latency_bounds(
    scenario: Scenario, seeds: int | Sequence[int] = 1, *, rate_per_s: float | None = None, policy: Policy | None = None
) -> dict[str, np.ndarray]:
    """No policy that finishes every turn has a smaller mean on these workloads.

    Args:
        seeds: how many from the scenario's own on, or which.
        rate_per_s: programs per second; None: the scenario's load 1.
        policy: whose limits count (tokens and requests of a step); None: the scenario's own, or any that fits into
            the KV pool.

    Returns:
        ``jct_mean_s`` of programs, and for programs of one turn ``e2e_mean_s``, by seed (seconds, of the measured
        cohort). Later turns arrive when the schedule lets them, so their E2E times have no such bound.
    """
    found: dict[str, list[float]] = {}
    for seed in scenario.lane_seeds(seeds):
        workload = workload_of(scenario, seed, rate_per_s)
        work = turn_work(workload, scenario.timing, *step_limits(scenario, policy),
                         prefix_cache=scenario.prefix_cache != "off")  # fmt: skip
        bound_s = _mean_jct_us(workload, work, scenario) * 1e-6
        found.setdefault("jct_mean_s", []).append(bound_s)
        if workload.turn.max() == 0:
            found.setdefault("e2e_mean_s", []).append(bound_s)
    return {name: np.asarray(values) for name, values in found.items()}


def _mean_jct_us(workload: Workload, work: TurnWork, scenario: Scenario) -> float:
    """Of the measured programs; the others are left out, as if they took nothing."""
    first = np.flatnonzero(workload.turn == 0)
    number = np.cumsum(workload.turn == 0) - 1  # of its program
    if workload.edges is None:
        alone = np.bincount(number, work.alone_us + np.where(workload.turn > 0, workload.pause_us, 0))
    else:  # turns of a graph run side by side
        alone = np.zeros(len(first))
        np.maximum.at(alone, number, work.alone_us)
    cohort = measured(scenario, len(first))
    arrival_us = workload.arrival_us[first][cohort]
    means = [
        float(srpt_responses(arrival_us, np.bincount(number, each)[cohort], scenario.num_instances).mean())
        for each in work.work_us
    ]
    return max(*means, float(alone[cohort].mean()))


# -- What a run of a scenario consists of -----------------------------------------------------------------------------


def workload_of(scenario: Scenario, seed: int, rate_per_s: float | None = None) -> Workload:
    """The turns of a lane."""
    rate = scenario.rate_per_s if rate_per_s is None else rate_per_s
    if scenario.speculation is not None:
        raise UserError(
            "speculative decoding", where=f"scenario {scenario.name}", expected="a step for every token",
            hint="A step that accepts several tokens makes them cheaper than these bounds count.",
        )  # fmt: skip
    if scenario.rounds is not None:
        raise UserError(
            "rounds of rollouts", where=f"scenario {scenario.name}", expected="programs that arrive by a clock",
            hint="When a round begins depends on the policy.",
        )  # fmt: skip
    if not isinstance(scenario.workload, Preset):
        raise UserError(
            f"a recorded trace ({scenario.workload.name})", where=f"scenario {scenario.name}", expected="a preset",
            hint="Lanes are windows of a trace: give theirs to `turn_work` and `goodput_bound`.",
        )  # fmt: skip
    table = scenario.workload.generate(jax.random.key(seed), scenario.num_programs, float(rate), prediction_sigma=0.0)
    return Workload.from_requests(jax.tree.map(np.asarray, table), scenario.workload.name)


def measured(scenario: Scenario, num_programs: int) -> slice:
    """Programs whose latencies count."""
    return slice(
        int(scenario.warmup_fraction * num_programs), int(num_programs - scenario.cooldown_fraction * num_programs)
    )


def step_limits(scenario: Scenario, policy: Policy | None = None) -> tuple[int, int]:
    """Tokens that a step may have, and requests that may run at once."""
    policy = policy or scenario.policy
    pool = scenario.usable_blocks * scenario.block_size
    if policy is None:
        return pool, scenario.usable_blocks
    running = min(int(policy.settings()["max_num_seqs"]), scenario.usable_blocks)
    return min(pool, scenario.step_tokens(policy)), running
