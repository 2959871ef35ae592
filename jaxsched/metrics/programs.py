"""Metrics of whole programs from the records of their turns: the longest completion time and slowdowns. Host side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsched.metrics.critical_path import critical_path_s, turns_of_programs
from jaxsched.sim.clock import EPOCH_US
from jaxsched.sim.state import Fate, Record
from jaxsched.timing.step_time import StepTimeParams, constant_us, context_us


def program_metrics(
    requests: Any, record: Record, timing: StepTimeParams, measured: list[tuple[int, int]]
) -> dict[str, np.ndarray]:
    """Of each lane's measured programs that finished all turns (docs/metrics.md); NaN where there is none.

    Args:
        requests: the table, one for all lanes or with a leading lane axis.
        record: lives of its turns, leaves ``[lanes, turns, ...]``.
        timing: the step-time model.
        measured: of each lane, the programs [from, to) of the cohort.

    Returns:
        ``jct_max_s``, ``active_mean_s`` (job completion time less the pauses), ``slowdown_mean``, ``slowdown_p99``,
        each ``[lanes]``.
    """
    names = ("jct_max_s", "active_mean_s", "slowdown_mean", "slowdown_p99")
    found = {name: np.full(len(measured), np.nan) for name in names}
    for lane, (_, jct, slowdown, pauses) in enumerate(finished_programs(requests, record, timing, measured)):
        if len(jct):
            found["jct_max_s"][lane] = jct.max()
            found["active_mean_s"][lane] = (jct - pauses).mean()
            found["slowdown_mean"][lane] = slowdown.mean()
            found["slowdown_p99"][lane] = np.quantile(slowdown, 0.99)
    return found


def finished_programs(
    requests: Any, record: Record, timing: StepTimeParams, measured: list[tuple[int, int]]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Lane by lane, of the measured programs that finished all turns: rows, completion times, slowdowns, pauses (s)."""
    one_table = np.ndim(requests.prompt_tokens) == 1
    shared = _facts(requests, timing) if one_table else None
    for lane, (first, stop) in enumerate(measured):
        table = requests if one_table else jax.tree.map(lambda x, i=lane: np.asarray(x)[i], requests)
        alone, pauses, turns = shared if shared is not None else _facts(table, timing)
        rows = np.arange(first, min(stop, int(np.max(table.num_programs))))
        program, finish = np.asarray(table.program), _seconds(record.finish[lane])
        finished = np.asarray(record.fate[lane]) == Fate.FINISHED
        end, done = finish.copy(), finished.copy()  # by row of the first turn: of all turns so far
        for row in turns[1:]:
            np.maximum.at(end, program[row], finish[row])
            np.logical_and.at(done, program[row], finished[row])
        rows = rows[done[rows]]
        jct = end[rows] - _seconds(record.arrival[lane])[rows]
        yield rows, jct, jct / np.maximum(alone[rows], 1e-6), pauses[rows]


def _facts(table: Any, timing: StepTimeParams) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Of each program, by row of its first turn: seconds alone, seconds of pauses; and the rows of its turns."""
    pauses = critical_path_s(table, np.zeros(np.shape(table.program)))
    return _alone(table, timing), pauses, turns_of_programs(table)


def _seconds(times: Any) -> np.ndarray:
    pairs = np.asarray(times, np.float64)
    return (pairs[:, 0] * EPOCH_US + pairs[:, 1]) * 1e-6


def _alone(table: Any, timing: StepTimeParams) -> np.ndarray:
    """By row of the first turn: seconds that a program takes alone, along its longest path of turns and pauses.

    Alone: every turn runs by itself on an instance that still holds the context that it goes on with (where the table
    says that turns share content): its new prompt tokens in one step, then its outputs one step each, at the mean
    context.
    """
    column = {name: np.asarray(getattr(table, name)) for name in ("prompt_tokens", "output_tokens", "next_turn")}
    prompt, output, following = (column[name].astype(np.int64) for name in column)
    cached = np.zeros_like(prompt)
    if table.chain is not None:
        chain = np.asarray(table.chain)
        following = following if table.edges is None else np.asarray(table.heir)
        has_next = np.flatnonzero(following >= 0)
        goes_on = has_next[chain[following[has_next]] == chain[has_next]]
        after = following[goes_on]
        cached[after] = np.minimum(prompt[goes_on] + output[goes_on] - 1, prompt[after] - 1)
    return critical_path_s(table, _turn_us(timing, prompt, cached, output) * 1e-6)


def _turn_us(timing: StepTimeParams, prompt: np.ndarray, cached: np.ndarray, output: np.ndarray) -> np.ndarray:
    new = prompt - cached
    quad = np.minimum(new * ((2 * cached + new) >> 6), 2**31 - 1)
    arrays = [jnp.asarray(x, jnp.int32) for x in (new, quad, prompt, prompt + output // 2)]

    zero, one = jnp.int32(0), jnp.int32(1)

    def alone(new, quad, context, middle):
        prefill = constant_us(timing, new, one, new, quad, zero) + context_us(timing, timing.prefill_in_ctx * context)
        decode = constant_us(timing, one, zero, zero, zero, one) + context_us(timing, middle)
        return prefill, decode

    prefill, decode = jax.jit(jax.vmap(alone))(*arrays)
    return np.asarray(prefill, np.float64) + np.asarray(decode, np.float64) * np.maximum(output - 1, 0)
