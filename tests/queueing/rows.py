"""The rows of the validation table (docs/validation.md), grouped by compiled program.

``python -m tests.queueing`` prints it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from tests.queueing import theory
from tests.queueing.estimates import Estimate, estimate, offered_load, settled_before, work_found
from tests.queueing.systems import Plan, Runs, System, Traffic, all_share, at_a_time, routed, run, shortest_remaining
from tests.queueing.theory import H2, D, Law, M

Estimator = Callable[[Runs], Estimate]


def by_wait(runs: Runs) -> Estimate:
    """Mean time in system as mean wait + 1, sharpened by what is settled before."""
    return estimate(runs.wait.mean(axis=1), settled_before(runs)).plus(1.0)


def wait_alone(runs: Runs) -> Estimate:
    return by_wait(runs).plus(-1.0)


def by_load(runs: Runs) -> Estimate:
    """Mean time in system as mean wait + 1, sharpened by the load that was drawn."""
    return estimate(runs.wait.mean(axis=1), offered_load(runs)).plus(1.0)


def by_work(runs: Runs) -> Estimate:
    """Mean time in system, sharpened by the work that arrivals find."""
    return estimate(runs.time_in_system.mean(axis=1), work_found(runs))


def late_share(runs: Runs) -> Estimate:
    """Share of requests not admitted at the first step boundary after their arrival."""
    boundary = 1 / runs.system.mean_steps
    return estimate((runs.wait >= boundary).mean(axis=1), offered_load(runs))


@dataclasses.dataclass(frozen=True)
class Row:
    """One number of the table."""

    queue: str
    system: System
    traffic: Traffic
    limit: float  # continuous service, infinitely many servers
    exact: float  # this very system
    estimator: Estimator
    quantity: str = "time in system"

    @property
    def name(self) -> str:
        return f"{self.queue}, load {self.traffic.load:g}, {self.system.mean_steps} steps, {self.quantity}"


def _fcfs(queue: str, law: Law, load: float, steps: int = 100) -> Row:
    return Row(
        queue, at_a_time(1, steps), Traffic(law, load),
        theory.fcfs_limit(law, load), theory.fcfs(law, load, steps), by_wait,
    )  # fmt: skip


def _ps(queue: str, law: Law, load: float, steps: int = 100) -> Row:
    return Row(queue, all_share(steps), Traffic(law, load), theory.ps_limit(load), theory.ps(law, load, steps), by_work)


def _srpt(queue: str, law: Law, load: float, steps: int = 20) -> Row:
    return Row(
        queue, shortest_remaining(steps), Traffic(law, load),
        theory.srpt_limit(law, load), theory.srpt(law, load, steps), by_work,
    )  # fmt: skip


def _ten(steps: int) -> list[Row]:
    limits, exact = theory.erlang_c(8, 10), theory.many_servers(8, 10, steps)
    system, traffic = at_a_time(10, steps), Traffic(M, 0.8)
    return [
        Row("M/M/10", system, traffic, limits[0], exact[0], late_share, "P(wait)"),
        Row("M/M/10", system, traffic, limits[1], exact[1] - 1, wait_alone, "wait"),
    ]


def _routed(router: str, load: float, limit: float, exact: float, steps: int = 1000, servers: int = 64) -> Row:
    system = routed(router.replace(" ", "_"), servers, steps)
    return Row(f"{servers} x M/M/1, {router}", system, Traffic(M, load), limit, exact, by_load)


@dataclasses.dataclass(frozen=True)
class Program:
    """Rows that run as lanes of one compiled program."""

    plan: Plan
    rows: list[Row]

    def run(self, scale: int = 1, base_seed: int = 0) -> dict[tuple[System, Traffic], Runs]:
        """Every distinct case of the rows; `scale` times as many requests."""
        cases = list(dict.fromkeys((row.system, row.traffic) for row in self.rows))
        plan = dataclasses.replace(self.plan, num_requests=self.plan.num_requests * scale, base_seed=base_seed)
        return dict(zip(cases, run(cases, plan), strict=True))


def first_come_and_sharing() -> Program:
    """One or ten servers first come first served, and processor sharing."""
    rows = [
        *(_fcfs("M/M/1 FCFS", M, load) for load in (0.5, 0.7, 0.8, 0.9)),
        *(_fcfs("M/D/1 FCFS", D, load) for load in (0.5, 0.8)),
        *(_fcfs("M/H2/1 FCFS", H2, load) for load in (0.5, 0.8)),
        *(_ps("M/M/1 PS", M, load) for load in (0.5, 0.8, 0.9)),
        _ps("M/M/1 PS", M, 0.8, steps=4),
        *(_ps("M/H2/1 PS", H2, load) for load in (0.5, 0.8)),
        *_ten(100),
        *_ten(4),
    ]
    return Program(Plan(num_requests=8000, num_seeds=20), rows)


def srpt() -> Program:
    """Shortest remaining first; the coarse rows would be off by several per cent if step boundaries were ignored."""
    rows = [
        *(_srpt("M/M/1 SRPT", M, load) for load in (0.5, 0.7, 0.8, 0.9)),
        _srpt("M/M/1 SRPT", M, 0.8, steps=4),
        *(_srpt("M/H2/1 SRPT", H2, load) for load in (0.5, 0.8)),
    ]
    return Program(Plan(num_requests=3500, num_seeds=20, cool_down=0.12), rows)


def power_of_two() -> Program:
    """Power-of-two routing over 64 servers."""
    rows = [
        _routed("power of two", load, theory.power_of_two_limit(load), theory.power_of_two(load, 64))
        for load in (0.7, 0.9)
    ]
    return Program(Plan(num_requests=16_000, num_seeds=20), rows)


def random_routing() -> Program:
    """Random routing over 64 servers: a Poisson stream split at random is Poisson, so each is an M/M/1."""
    rows = [_routed("random", 0.7, theory.fcfs_limit(M, 0.7), theory.fcfs(M, 0.7, 1000))]
    return Program(Plan(num_requests=16_000, num_seeds=20), rows)


PROGRAMS = (first_come_and_sharing, srpt, power_of_two, random_routing)


def table(programs: list[tuple[Program, dict]]) -> str:
    """The table in Markdown."""
    lines = [
        "| queue | load | steps per service | quantity | limit | theory | machine | SE | off by | seeds x requests |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for program, results in programs:
        for row in program.rows:
            runs = results[row.system, row.traffic]
            found = row.estimator(runs)
            measured = np.size(runs.wait[0])
            lines.append(
                f"| {row.queue} | {row.traffic.load:g} | {row.system.mean_steps} | {row.quantity} | {row.limit:.4f} | "
                f"{row.exact:.4f} | {found.mean:.4f} | {found.se:.4f} | {found.errors_from(row.exact):+.2f} SE | "
                f"{len(runs.wait)} x {measured} |"
            )
    return "\n".join(lines)
