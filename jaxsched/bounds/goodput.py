"""An upper bound on goodput: a linear program over which requests are served in time.

A request is good when its tokens keep the limits of its class, so its last token comes by
``deadline = arrival + min(e2e limit, ttft limit + tpot limit x (tokens - 1))``. Whatever the schedule, those that
arrive after s and are good by t get all of their work, and hold all of their KV, within [s, t]::

    maximise    sum_i x_i,   0 <= x_i <= 1,   x_i = 0 where even alone a limit is missed
    subject to, over i with s <= arrival_i and deadline_i <= t,
                sum work_i x_i   <= instances (t - s)          (by every account of work)
                sum alone_i x_i  <= instances seats (t - s)
                sum memory_i x_i <= instances pool (t - s)

for a grid of windows (learning sheet 11; the windows are the demand-bound conditions of real-time scheduling, Baruah et
al. 1990). `work` is of `work.py`; `memory` is token-seconds of its own tokens while it runs alone. Fractions are
allowed and batches are free, so it is a bound and not a schedule. The duals are prices: good requests lost for each
microsecond of work, or token-microsecond of memory, that there is less.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxsched.bounds.relaxation import measured, step_limits, workload_of
from jaxsched.bounds.work import ROUNDING_US, cacheable_tokens, step_us, turn_work
from jaxsched.errors import UserError
from jaxsched.sim.build import NO_LIMIT_US
from jaxsched.timing.step_time import StepTimeParams
from jaxsched.workloads import Workload

if TYPE_CHECKING:
    from jaxsched.policies.base import Policy
    from jaxsched.scenario import Scenario

#: Windows begin at one of so many arrivals and end at one of so many deadlines.
GRID = 32


@dataclasses.dataclass(frozen=True)
class GoodputBound:
    """Of one sample path."""

    good: float  # requests that can be good, at most
    served: np.ndarray  # float64 [requests]: the share of each that the program serves
    work_price: float  # good requests gained by one more microsecond of work in every window that binds
    seat_price: float  # ... by one more microsecond of a seat
    memory_price: float  # ... by one more token-microsecond of KV memory
    hopeless: int  # requests that miss a limit even alone
    per_s: float = float("nan")  # `goodput_per_s` of the measured cohort (`goodput_bounds`)


def goodput_bound(
    workload: Workload, timing: StepTimeParams, *, instances: int, pool_tokens: int, most_step_tokens: int,
    most_running: int, ttft_us: Sequence[int], tpot_us: Sequence[int], e2e_us: Sequence[int],
    prefix_cache: bool = True, cohort: slice = slice(None), grid: int = GRID,
) -> GoodputBound:  # fmt: skip
    """At most so many requests of a workload can be good.

    Args:
        workload: programs of one turn.
        instances, pool_tokens: of the cluster; tokens of KV of one instance.
        most_step_tokens, most_running: tokens that a step may have, and requests that may run at once in an instance.
        ttft_us, tpot_us, e2e_us: limits by class, `NO_LIMIT_US` = none.
        cohort: requests that count; the others are left out, as if they took nothing.

    Raises:
        UserError: programs of several turns, whose later arrivals a schedule decides.
    """
    from scipy.optimize import linprog
    from scipy.sparse import csr_matrix

    if workload.turn.max() > 0:
        raise UserError("programs of several turns", where=f"workload {workload.name}", expected="single requests",
                        hint="When later turns arrive is up to the schedule: use latency_bounds.")  # fmt: skip
    work = turn_work(workload, timing, most_step_tokens, most_running, prefix_cache=prefix_cache)
    num, later = len(workload), workload.output_tokens - 1.0
    limit = lambda values: np.asarray(values, np.float64)[workload.klass]
    ttft, tpot, e2e = limit(ttft_us), limit(tpot_us), limit(e2e_us)
    tpot = np.where(tpot >= NO_LIMIT_US, np.inf, tpot)
    whole = np.where(ttft >= NO_LIMIT_US, np.inf, ttft) + later * np.where(later > 0, tpot, 0.0)
    allowed = np.minimum(whole, np.where(e2e >= NO_LIMIT_US, np.inf, e2e))
    possible = (work.alone_us <= allowed) & ((work.first_us <= ttft) | (ttft >= NO_LIMIT_US))
    counts = np.zeros(num, bool)
    counts[cohort] = True
    hopeless, possible = int((counts & ~possible).sum()), possible & counts
    arrival = workload.arrival_us.astype(np.float64)
    deadline = arrival + allowed
    fresh = workload.prompt_tokens - (cacheable_tokens(workload) if prefix_cache else 0)
    each_us = max(float(step_us(timing, np.array([1]))[0]) - ROUNDING_US, 0.0)
    memory = (later * fresh + later * (later + 1.0) / 2.0) * each_us

    used = (*work.work_us, work.alone_us, memory)
    sizes = (*[1] * len(work.work_us), most_running, pool_tokens)

    begin = np.unique(arrival[np.linspace(0, num - 1, min(grid, num)).astype(int)])
    some = np.sort(deadline[np.isfinite(deadline)])
    end = np.unique(some[np.linspace(0, len(some) - 1, min(grid, len(some))).astype(int)]) if len(some) else some
    windows = [(s, t) for s in begin for t in end if t > s]
    rows, sides = [], []
    for s, t in windows:
        inside = (arrival >= s) & (deadline <= t)
        rows += [np.where(inside, each, 0.0) / (t - s) for each in used]
        sides += [float(instances * size) for size in sizes]
    bounds = np.stack([np.zeros(num), possible.astype(np.float64)], axis=1)
    if not windows:
        return GoodputBound(float(possible.sum()), possible.astype(np.float64), 0.0, 0.0, 0.0, hopeless)
    found = linprog(-np.ones(num), A_ub=csr_matrix(np.stack(rows)), b_ub=np.asarray(sides), bounds=bounds,
                    method="highs")  # fmt: skip
    if not found.success:
        raise RuntimeError(f"the linear program was not solved: {found.message}")
    length = np.array([t - s for s, t in windows])
    prices = (-np.asarray(found.ineqlin.marginals).reshape(-1, len(used)) / length[:, None]).sum(0)
    return GoodputBound(
        float(-found.fun), np.asarray(found.x), float(prices[:-2].sum()), float(prices[-2]), float(prices[-1]),
        hopeless,
    )  # fmt: skip


def goodput_bounds(
    scenario: Scenario, seeds: int | Sequence[int] = 1, *, rate_per_s: float | None = None, policy: Policy | None = None
) -> list[GoodputBound]:
    """A bound for every seed of a scenario, with `per_s`: no policy has more `goodput_per_s` than that.

    Arguments as of `jaxsched.bounds.latency_bounds`.
    """
    found, limits = [], step_limits(scenario, policy)
    for seed in scenario.lane_seeds(seeds):
        workload = workload_of(scenario, seed, rate_per_s)
        bound = goodput_bound(
            workload, scenario.timing, cohort=measured(scenario, len(workload)), instances=scenario.num_instances,
            pool_tokens=scenario.usable_blocks * scenario.block_size,
            most_step_tokens=limits[0], most_running=limits[1], prefix_cache=scenario.prefix_cache != "off",
            ttft_us=scenario.limits("ttft_us"), tpot_us=scenario.limits("tpot_us"), e2e_us=scenario.limits("e2e_us"),
        )  # fmt: skip
        span_s = float(np.ptp(workload.arrival_us)) * 1e-6
        share = 1.0 - scenario.warmup_fraction - scenario.cooldown_fraction
        found.append(dataclasses.replace(bound, per_s=bound.good / max(span_s * share, 1e-9)))
    return found
