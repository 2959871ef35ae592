"""The best schedule in hindsight of a few requests: an exact optimum by constraint programming.

Time is counted in steps that all take equally long. A request runs from its start to its end without a break, one
output token in each step (the first computes its whole prompt), and holds in its j-th step the blocks of prompt + j
tokens, as the engine does. Start times are to be found that keep KV memory and seats and minimise the weighted sum of
completion times (learning sheet 11; the integer program of Jaillet et al., "Online Scheduling for LLM Inference with KV
Cache Constraints", 2025, section 3). What a request comes to hold is a pile of intervals, one for each block that
it grows by, that begin at its start plus a constant and end with it.

So no rule that never preempts, whatever it knows, has a smaller sum on an engine whose steps all take the same time,
with arrivals at whole steps: token budgets only delay. It is for small instances: sixteen requests take seconds.
Needs OR-Tools (``pip install 'jaxsched[hindsight]'``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxsched.errors import UserError

#: Requests of an instance that is still solved in a reasonable time.
MOST_REQUESTS = 16


@dataclasses.dataclass(frozen=True)
class HindsightOptimum:
    """Times are steps; sums are over requests, weighted."""

    start: np.ndarray  # int64 [n]: first step of each request, in the best schedule that was found
    completion: np.ndarray  # int64 [n]: the end of its last step
    response: float  # sum of weight x (completion - arrival) of that schedule
    bound: float  # no schedule has a smaller sum
    is_optimal: bool  # the two are equal; otherwise the time ran out

    @property
    def mean_response(self) -> float:
        """Steps from arrival to completion, of the schedule that was found."""
        return float(self.response / len(self.start))


def hindsight_optimum(
    arrival_steps: Sequence[int] | np.ndarray,
    prompt_tokens: Sequence[int] | np.ndarray,
    output_tokens: Sequence[int] | np.ndarray,
    *,
    pool_blocks: int,
    most_running: int,
    block_size: int = 16,
    weights: Sequence[int] | np.ndarray | None = None,
    time_limit_s: float = 30.0,
) -> HindsightOptimum:
    """The start times with the smallest weighted sum of response times.

    Args:
        arrival_steps: [n] before which step each request arrives.
        prompt_tokens, output_tokens: [n] its lengths, known in hindsight.
        pool_blocks: usable KV blocks of the engine (`Scenario.usable_blocks`).
        most_running: requests that may run at once.
        weights: [n] whole and positive; None: all 1.
        time_limit_s: after which the best so far is returned, with a bound.

    Raises:
        UserError: OR-Tools is missing; more than `MOST_REQUESTS` requests; one that cannot fit into the pool.
    """
    arrival, prompt, output = (np.asarray(x, np.int64) for x in (arrival_steps, prompt_tokens, output_tokens))
    weight = np.ones_like(arrival) if weights is None else np.asarray(weights, np.int64)
    _check(arrival, prompt, output, weight, pool_blocks, most_running, block_size)
    try:
        from ortools.sat.python import cp_model
    except ModuleNotFoundError as error:
        raise UserError("OR-Tools is not installed", where="hindsight_optimum", expected="the package ortools",
                        hint="pip install 'jaxsched[hindsight]'") from error  # fmt: skip

    model = cp_model.CpModel()
    last = int(arrival.max() + output.sum())  # one by one, all would be done
    starts, seats, piles, demands = [], [], [], []
    for i in range(len(arrival)):
        steps = int(output[i])
        start = model.new_int_var(int(arrival[i]), last - steps, f"start_{i}")
        starts.append(start)
        seats.append(model.new_fixed_size_interval_var(start, steps, f"run_{i}"))
        for offset, blocks in _growth(int(prompt[i]), steps, block_size):
            piles.append(model.new_fixed_size_interval_var(start + offset, steps - offset, f"hold_{i}_{offset}"))
            demands.append(blocks)
    model.add_cumulative(seats, [1] * len(seats), most_running)
    model.add_cumulative(piles, demands, pool_blocks)
    model.minimize(sum(int(w) * start for w, start in zip(weight, starts, strict=True)))

    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = time_limit_s
    solver.parameters.num_workers = 1  # the same schedule every time
    solver.parameters.random_seed = 0
    status = solver.solve(model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        raise UserError(
            "no schedule was found in time", where="hindsight_optimum",
            expected="a longer time limit, or fewer requests", hint=f"time_limit_s={2 * time_limit_s:g}",
        )  # fmt: skip
    start = np.array([solver.value(each) for each in starts], np.int64)
    completion = start + output
    rest = float(np.sum(weight * (output - arrival)))  # what of the sum no start time changes
    return HindsightOptimum(
        start, completion, float(np.sum(weight * (completion - arrival))), rest + solver.best_objective_bound,
        status == cp_model.OPTIMAL,
    )  # fmt: skip


def _growth(prompt: int, steps: int, block_size: int) -> list[tuple[int, int]]:
    """(step of the request, blocks that it takes then), of all its steps that take any."""
    held = -(-(prompt + np.arange(steps)) // block_size)
    taken = np.diff(held, prepend=0)
    return [(int(step), int(taken[step])) for step in np.flatnonzero(taken)]


def _check(arrival, prompt, output, weight, pool_blocks: int, most_running: int, block_size: int) -> None:
    where = "hindsight_optimum"
    if not len(arrival) == len(prompt) == len(output) == len(weight) > 0:
        sizes = ", ".join(str(len(x)) for x in (arrival, prompt, output, weight))
        raise UserError(f"lengths {sizes}", where=where, expected="arrival, prompt, output and weight of each request")
    if len(arrival) > MOST_REQUESTS:
        raise UserError(
            f"{len(arrival)} requests", where=where, expected=f"at most {MOST_REQUESTS}",
            hint="For larger workloads use the relaxations: latency_bounds, goodput_bounds.",
        )  # fmt: skip
    for name, values, least in (("arrival_steps", arrival, 0), ("prompt_tokens", prompt, 1),
                                ("output_tokens", output, 1), ("weights", weight, 1)):  # fmt: skip
        if values.min() < least:
            raise UserError(f"{name} {values.min()}", where=where, expected=f"at least {least}")
    if most_running < 1:
        raise UserError(f"most_running {most_running}", where=where, expected="at least 1")
    blocks = -(-(prompt + output - 1) // block_size)
    if blocks.max() > pool_blocks:
        worst = int(blocks.argmax())
        raise UserError(f"request {worst} needs {blocks[worst]} KV blocks", where=where,
                        expected=f"at most the {pool_blocks} of the pool")  # fmt: skip
