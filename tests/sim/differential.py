"""Lanes of the machine against the plain-Python reference, record by record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import jax
import numpy as np

from jaxsched.sim.state import Count, Flag, State
from tests.oracle.cluster import Result, simulate
from tests.sim.clusters import TIMINGS, Lane, Variant, reference_step_time
from tests.sim.harness import first_difference, machine_records, machine_uniform


def reference(variant: Variant, lane: Lane) -> Result:
    """The lane as the reference plays it."""
    return simulate(
        lane.workload,
        lane.engine,
        reference_step_time(TIMINGS[lane.timing]),
        num_instances=variant.size.num_instances,
        router=lane.router,
        uniform=machine_uniform(lane.router.seed),
    )


def assert_equal_records(
    variant: Variant,
    lanes: list[Lane],
    state: State,
    also: Callable[[int, Lane, Result], None] | None = None,
    closest: float = 0.0,
) -> Counter[str]:
    """Every record of every lane is the reference's (lanes that met second copies of a block left out).

    Lanes with a decision in float32 that is closer than `closest` are left out too. `also` (index, lane, what the
    reference did) is called for every lane compared. Returns what was seen: fates, preemptions, tokens found in the
    cache, and what the reference noted.
    """
    seen: Counter[str] = Counter()
    for i, lane in enumerate(lanes):
        if state.flags[i] & Flag.CACHE_COPIES:
            seen["copies"] += 1
            continue
        result = reference(variant, lane)
        if result.smallest_gap < closest:
            seen["close"] += 1
            continue
        assert_equal_lane(state, i, lane, result)
        assert state.flags[i] == (Flag.STUCK if any(result.stuck) else 0)
        if also is not None:
            also(i, lane, result)
        seen["compared"] += 1
        seen.update(result.noted)
        seen.update(record.fate for record in result.records)
        seen["preemptions"] += sum(record.preemptions for record in result.records)
        seen["cached"] += sum(record.cached_tokens_total for record in result.records)
    print(f"{variant.name}: {dict(seen)}")
    return seen


def assert_equal_lane(state: State, i: int, lane: Lane, result: Result) -> None:
    """Every record of lane `i` is the reference's."""
    difference = first_difference(result.records, machine_records(state, i, len(lane.workload.prompt_tokens)))
    assert not difference, f"lane {i}, {lane.engine}, {lane.router}, timing {lane.timing}:{difference}"


def assert_same_but_fewer_events(single: State, runs: State) -> None:
    """Records, histograms, flags and counters of single steps and of runs, of all lanes."""
    for (path, one), many in zip(
        jax.tree_util.tree_leaves_with_path((single.record, single.metrics.histograms, single.flags)),
        jax.tree.leaves((runs.record, runs.metrics.histograms, runs.flags)),
        strict=True,
    ):
        np.testing.assert_array_equal(one, many, jax.tree_util.keystr(path))
    one, many = np.asarray(single.metrics.counts), np.asarray(runs.metrics.counts)
    others = [count for count in Count if count != Count.MICRO_STEPS]
    np.testing.assert_array_equal(one[:, others], many[:, others])
    assert many[:, Count.MICRO_STEPS].sum() < one[:, Count.MICRO_STEPS].sum()
