"""Workloads that episodes draw from, as one table that all lanes share.

An episode runs on a window of the table: `Pool.first` says where its programs begin, and the machine never looks
beyond them. So a lane's state holds no workload, and beginning a new episode copies nothing (a table per lane, in the
state, would be copied at every step: 1.7 MB for 300 agent programs). Built on the host, once.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from jaxsched.errors import UserError
from jaxsched.scenario import Scenario
from jaxsched.sim.clock import split_us
from jaxsched.sim.requests import Requests
from jaxsched.workloads import Preset
from jaxsched.xla import quick_compiler_options

#: Seeds generated in one call (their tables are as wide as the longest program may be, before they are cut).
_AT_ONCE = 16
#: Throughput that a KV pool sustains grows with its size to this power (mixed agents at kappa 0.5, 1, 2: 0.56, 0.66,
#: 0.79 of what an unlimited one does; regime study, section 1).
CAPACITY_EXPONENT = 0.25


class Pool(struct.PyTreeNode):
    """Workloads side by side. Rows ``[first[w], first[w] + programs)`` are workload w's first turns."""

    requests: Requests  # of all; `num_programs` is not used (a lane's is `first + programs`)
    first: Int[Array, " w"]
    usable_blocks: Int[Array, " w"]  # KV blocks of every instance
    turn: Int[Array, " n"]  # turns of the program before this one
    before_tokens: Int[Array, " n"]  # prompt + outputs of the turn before (0: first turns): the context of a pause
    left_tokens: Int[Array, " n"]  # tokens to compute in this turn and those after it, their histories cached
    error: Float[Array, " n"]  # standard normal, one per program: its error of prediction


@dataclasses.dataclass(frozen=True)
class Ranges:
    """What differs between workloads; each uniform between its bounds, the pool's size log-uniform."""

    load: tuple[float, float] = (1.0, 1.0)  # times the scenario's rate, which follows the pool's size
    pool: tuple[float, float] = (1.0, 1.0)  # times the scenario's KV pool
    tool_tail: tuple[float, float] = (1.0, 1.0)
    arrival_cv: tuple[float, float] | None = None  # of the gaps; None: the workload's own arrivals
    short_share: tuple[float, float] | None = None  # None: the workload's own


def make_pool(scenario: Scenario, seeds: Sequence[int], ranges: Ranges | None = None) -> Pool:
    """Workloads of a scenario, one per seed; the same seed is the same workload in any pool.

    Raises:
        UserError: no seeds, or a range that the scenario's workload does not have.
    """
    if not len(seeds):
        raise UserError("no seeds", where="environment", expected="at least one workload, e.g. seeds=range(64)")
    if not isinstance(scenario.workload, Preset) or scenario.workload.graphs:
        raise UserError(
            f"scenario {scenario.name} is a {'trace' if scenario.is_trace else 'graph workload'}",
            where="environment",
            expected="a synthetic preset whose programs are chains of turns",
        )
    ranges = ranges or Ranges()
    for name in ("short_share", "tool_tail"):
        if getattr(ranges, name) not in (None, (1.0, 1.0)) and name not in scenario.workload.options:
            raise UserError(f"preset {scenario.workload.name} has no {name}", where="environment, ranges")
    parts = [_workload(scenario, seed, ranges) for seed in seeds]
    tables = _tables(scenario, [part.seed for part in parts], parts)
    return _joined(scenario, parts, tables)


@dataclasses.dataclass(frozen=True)
class _Workload:
    """What one seed drew."""

    seed: int
    rate_per_s: float
    usable_blocks: int
    tool_tail: float
    short_share: float | None
    arrivals: np.random.Generator | None  # for gaps of another variation than the preset's
    arrival_cv: float


def _workload(scenario: Scenario, seed: int, ranges: Ranges) -> _Workload:
    rng = np.random.default_rng([seed, 1])
    load, pool, tail, cv, share = rng.random(5)
    between = lambda u, bounds: bounds[0] + u * (bounds[1] - bounds[0])
    size = float(np.exp(between(pool, np.log(ranges.pool))))
    preset = scenario.workload
    assert isinstance(preset, Preset)
    own = getattr(preset.spec, "short_share", None)
    short = own if ranges.short_share is None else between(share, ranges.short_share)
    rate = scenario.rate_per_s * between(load, ranges.load) * size**CAPACITY_EXPONENT
    if ranges.short_share is not None:
        light, heavy = _mean_tokens(preset)
        mean = lambda s: s * light + (1.0 - s) * heavy
        rate *= mean(own) / mean(short)
    return _Workload(
        seed=seed,
        rate_per_s=rate,
        usable_blocks=round(scenario.usable_blocks * size),
        tool_tail=between(tail, ranges.tool_tail),
        short_share=short,
        arrivals=None if ranges.arrival_cv is None else rng,
        arrival_cv=1.0 if ranges.arrival_cv is None else between(cv, ranges.arrival_cv),
    )


@functools.lru_cache(maxsize=8)
def _mean_tokens(preset: Preset) -> tuple[float, float]:
    """Tokens to compute of a short and of a long program, means of a fixed sample."""
    means = []
    for share in (1.0, 0.0):
        table = jax.device_get(preset.with_options(short_share=share).generate(jax.random.key(0), 512))
        means.append(float(_columns(table, 512)["left_tokens"][:512].mean()))
    return means[0], means[1]


def _tables(scenario: Scenario, seeds: list[int], parts: list[_Workload]) -> list[Requests]:
    """The workloads as the preset generates them, on the host."""
    preset = scenario.workload
    assert isinstance(preset, Preset)
    knobs = [name for name in ("tool_tail", "short_share") if name in preset.options]

    def one(seed, rate, values):
        key = jax.random.key(seed)
        traced = dict(zip(knobs, values, strict=True))
        return preset.generate(key, scenario.num_programs, rate, prediction_sigma=scenario.prediction_error, **traced)

    generate = jax.jit(jax.vmap(one), compiler_options=quick_compiler_options())
    values = np.asarray([[getattr(part, name) for name in knobs] for part in parts], np.float32).reshape(len(parts), -1)
    rates = np.asarray([part.rate_per_s for part in parts], np.float32)
    tables: list[Requests] = []
    for start in range(0, len(parts), _AT_ONCE):
        at = [min(start + i, len(parts) - 1) for i in range(min(_AT_ONCE, len(parts)))]
        keys, traced = jnp.asarray(np.asarray(seeds, np.uint32)[at]), list(jnp.asarray(values[at]).T)
        batch = jax.device_get(generate(keys, jnp.asarray(rates[at]), traced))
        tables += [jax.tree.map(lambda x, i=i: x[i], batch) for i in range(min(_AT_ONCE, len(parts) - start))]
    return tables


def _columns(table: Requests, num_programs: int) -> dict[str, np.ndarray]:
    """Which rows of a table are used, in the order of the turns, and what of them depends on their program."""
    following, prompt, output = (np.asarray(x) for x in (table.next_turn, table.prompt_tokens, table.output_tokens))
    num = len(following)
    turn, before = np.full(num, -1, np.int32), np.zeros(num, np.int64)
    row, order = np.arange(num_programs), []
    turn[row] = 0
    while len(row):
        order.append(row)
        has = following[row] >= 0
        row, last = following[row][has], row[has]
        turn[row] = turn[last] + 1
        before[row] = prompt[last] + output[last]
    goes_on = before <= prompt  # else the history was cut
    if table.chain is not None:
        chain = np.asarray(table.chain)
        goes_on &= (turn == 0) | (chain[np.maximum(_previous(following), 0)] == chain)
    left = np.where(goes_on, prompt - before, prompt) + output.astype(np.int64)
    for rows in reversed(order):
        after = following[rows]
        left[rows] += np.where(after >= 0, left[np.maximum(after, 0)], 0)
    return {"turn": turn, "before_tokens": before.astype(np.int32), "left_tokens": left}


def _previous(following: np.ndarray) -> np.ndarray:
    """Row of the turn before, -1 = none."""
    previous = np.full(len(following), -1)
    at = np.flatnonzero(following >= 0)
    previous[following[at]] = at
    return previous


def _joined(scenario: Scenario, parts: list[_Workload], tables: list[Requests]) -> Pool:
    """One table: first turns of all workloads, then all later turns."""
    num, count = scenario.num_programs, len(tables)
    extra = [_columns(table, num) for table in tables]
    used = [column["turn"] >= 0 for column in extra]
    starts = count * num + np.cumsum([0] + [int(u.sum()) - num for u in used])
    place = []
    for w, u in enumerate(used):
        new = np.full(len(u), -1, np.int64)
        new[:num] = w * num + np.arange(num)
        later = np.flatnonzero(u[num:]) + num
        new[later] = starts[w] + np.arange(len(later))
        place.append(new)

    def join(columns: list[np.ndarray]) -> np.ndarray:
        out = np.zeros(int(starts[-1]), columns[0].dtype)
        for column, new, u in zip(columns, place, used, strict=True):
            out[new[u]] = column[u]
        return out

    def rows(columns: list[np.ndarray]) -> np.ndarray:  # columns that are rows themselves
        return join([np.where(c >= 0, new[np.maximum(c, 0)], -1) for c, new in zip(columns, place, strict=True)])

    columns = {}
    for field in dataclasses.fields(Requests):
        values = [getattr(table, field.name) for table in tables]
        if field.name == "num_programs" or values[0] is None:
            continue
        values = [np.asarray(value) for value in values]
        columns[field.name] = (rows if field.name in ("program", "next_turn", "chain") else join)(values)
    for w, part in enumerate(parts):
        if part.arrivals is not None:
            shape = part.arrival_cv**-2.0
            gaps = part.arrivals.gamma(shape, 1.0 / (shape * part.rate_per_s), num)
            epoch, us = split_us((np.cumsum(gaps) * 1e6).astype(np.int64))
            columns["arrival_epoch"][w * num : (w + 1) * num] = epoch
            columns["arrival_us"][w * num : (w + 1) * num] = us
    normal = np.concatenate([np.random.default_rng([part.seed, 2]).standard_normal(num) for part in parts])
    as_device = lambda x: jnp.asarray(x, jnp.float32 if x.dtype.kind == "f" else jnp.int32)
    on_device: dict[str, Any] = {name: as_device(column) for name, column in columns.items()}
    requests = Requests(num_programs=jnp.int32(count * num), **on_device)
    return Pool(
        requests=requests,
        first=jnp.arange(count, dtype=jnp.int32) * num,
        usable_blocks=jnp.asarray([part.usable_blocks for part in parts], jnp.int32),
        error=as_device(normal[columns["program"]]),
        **{name: as_device(join([column[name] for column in extra])) for name in extra[0]},
    )
