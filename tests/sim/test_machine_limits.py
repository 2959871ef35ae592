"""Bounded arrays: what fits is exact, what does not is flagged or rejected, and nothing is lost."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jaxsched.sim.state import Count, Flag
from jaxsched.sim.static import SimStatic
from tests.oracle.cluster import simulate
from tests.sim.clusters import TIMINGS, Lane, Size, Variant, lane_inputs, random_lane, reference_step_time
from tests.sim.differential import assert_equal_lane, reference
from tests.sim.harness import first_difference, machine_records, run_lanes, run_lanes_checked

LANES = 128
CROWDED = Size(1, 8, 32, 120, 24, (200, 400, 2000))
COUNTED = (Count.FINISHED, Count.REJECTED_SIZE, Count.REJECTED_QUEUE, Count.TIMED_OUT)


def run_checked(variant: Variant, lanes: list[Lane], static: SimStatic):
    """Final states, after checking that no invariant was violated and that every turn that arrived met its fate."""
    state, found = run_lanes_checked(static, *lane_inputs(variant, lanes))
    assert not np.asarray(found).any()
    counts = np.asarray(state.metrics.counts)
    np.testing.assert_array_equal(counts[:, Count.ARRIVED], counts[:, COUNTED].sum(axis=1))
    return state


def assert_equal_to_the_reference(variant: Variant, lane: Lane, state, i: int) -> None:
    assert_equal_lane(state, i, lane, reference(variant, lane))


@pytest.mark.slow
def test_a_full_fifo_rejects_and_a_full_table_of_pauses_is_flagged() -> None:
    variant = Variant("vllm", "least_kv", turns=True, size=CROWDED)
    static = dataclasses.replace(variant.static(), queue_capacity=16, num_paused=2)
    room = static.queue_capacity - static.num_slots  # entries kept free for requests that are preempted
    lanes = [random_lane(variant, seed) for seed in range(LANES)]
    lanes = [dataclasses.replace(d, engine=dataclasses.replace(d.engine, max_queue=0)) for d in lanes]
    state = run_checked(variant, lanes, static)
    flags = np.asarray(state.flags)
    assert set(flags) == {0, Flag.PAUSED_OVERFLOW}
    # The room of the FIFO acts like `max_queue`, and lanes without a flag are exact.
    rejected = np.asarray(state.metrics.counts)[:, Count.REJECTED_QUEUE]
    assert (rejected[flags == 0] > 0).any() and (flags == 0).sum() >= 20
    for i in np.nonzero(flags == 0)[0]:
        limited = dataclasses.replace(lanes[i], engine=dataclasses.replace(lanes[i].engine, max_queue=room))
        assert_equal_to_the_reference(variant, limited, state, i)


@pytest.mark.slow
def test_an_ordered_queue_longer_than_its_window_is_flagged_and_served_all_the_same() -> None:
    variant = Variant("sjf", "least_work", size=CROWDED)
    static = dataclasses.replace(variant.static(), num_slots=CROWDED.max_num_seqs)
    lanes = [random_lane(variant, seed) for seed in range(LANES)]
    state = run_checked(variant, lanes, static)
    flags, queued = np.asarray(state.flags), np.asarray(state.metrics.counts)[:, Count.QUEUED]
    assert set(flags) == {0, Flag.WINDOW_OVERFLOW}
    assert (queued[flags > 0] > 0).all()  # the requests beyond the window are counted
    assert (flags > 0).sum() >= 10
    for i in np.nonzero(flags == 0)[0]:
        assert_equal_to_the_reference(variant, lanes[i], state, i)


@pytest.mark.slow
def test_a_cluster_of_sixty_four_instances_equals_the_reference() -> None:
    variant = Variant("vllm", "least_outstanding", size=Size(64, 4, 256, 120, 24, (160, 300)))
    drawn = [random_lane(variant, seed) for seed in range(4)]
    busy = [
        dataclasses.replace(
            d,
            engine=dataclasses.replace(d.engine, max_queue=0),
            workload=dataclasses.replace(d.workload, arrival_us=[time // 50 for time in d.workload.arrival_us]),
        )
        for d in drawn
    ]
    state = run_lanes(variant.static(), *lane_inputs(variant, busy))
    used = set()
    for i, lane in enumerate(busy):
        step_time = reference_step_time(TIMINGS[lane.timing])
        result = simulate(lane.workload, lane.engine, step_time, num_instances=64, router=lane.router)
        assert first_difference(result.records, machine_records(state, i, len(lane.workload.prompt_tokens))) == ""
        used |= {r.instance for r in result.records}
    assert used == set(range(64))
