"""The clock: episodes far from time 0, across epochs, with long idle gaps, and in other units."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsched.sim.clock import EPOCH_US
from jaxsched.sim.machine import LONGEST_RUN_US
from tests.oracle.cluster import simulate
from tests.oracle.data import Record, Workload
from tests.sim.clusters import (
    SMALL,
    TIMINGS,
    Lane,
    Variant,
    lane_inputs,
    random_lane,
    reference_step_time,
)
from tests.sim.harness import finish_lanes, first_difference, machine_records, machine_uniform

VARIANT = Variant("vllm", "least_kv", turns=True, size=SMALL)
DELAYED = Variant("vllm", "least_outstanding", turns=True, delay=True, size=SMALL)
LANES = 16
HOUR_US = 3_600_000_000


def run(variant: Variant, lanes: list[Lane]) -> list[list[Record]]:
    """Records of up to LANES lanes (padded with copies of the last, so that one program serves)."""
    padded = lanes + [lanes[-1]] * (LANES - len(lanes))
    state = finish_lanes(variant.static(), *lane_inputs(variant, padded))
    return [machine_records(state, i, len(lane.workload.prompt_tokens)) for i, lane in enumerate(lanes)]


def at(lane: Lane, start_us: int) -> Lane:
    """The lane with all its programs `start_us` later."""
    num = lane.workload.num_programs
    arrival = [time + start_us for time in lane.workload.arrival_us[:num]] + lane.workload.arrival_us[num:]
    return dataclasses.replace(lane, workload=dataclasses.replace(lane.workload, arrival_us=arrival))


def relative(records: list[Record], start_us: int) -> list[Record]:
    def back(time: int) -> int:
        return time if time < 0 else time - start_us

    return [
        dataclasses.replace(
            r,
            arrival_us=back(r.arrival_us),
            first_scheduled_us=back(r.first_scheduled_us),
            first_token_us=back(r.first_token_us),
            finish_us=back(r.finish_us),
        )
        for r in records
    ]


STARTS = st.one_of(
    st.integers(0, 2**20).map(lambda k: k * EPOCH_US),  # whole epochs
    # Across the end of an epoch.
    st.tuples(st.integers(1, 4), st.integers(-400_000, 0)).map(lambda t: t[0] * EPOCH_US + t[1]),
    st.integers(0, 2**50),
)


@settings(derandomize=True, deadline=None, max_examples=6, database=None)
@given(st.integers(0, 10_000), st.lists(STARTS, min_size=LANES - 1, max_size=LANES - 1))
def test_an_episode_is_the_same_whenever_it_starts(seed: int, starts: list[int]) -> None:
    lane = random_lane(VARIANT, seed)
    here, *elsewhere = run(VARIANT, [lane] + [at(lane, start) for start in starts])
    for start, records in zip(starts, elsewhere, strict=True):
        difference = first_difference(here, relative(records, start))
        assert not difference, f"started at {start}:{difference}"


@settings(derandomize=True, deadline=None, max_examples=4, database=None)
@given(st.integers(0, 10_000), st.integers(2, 400))
def test_an_episode_in_which_everything_takes_longer_by_a_factor_takes_longer_by_that_factor(seed: int, k: int) -> None:
    lane = next(lane for s in range(seed, seed + 100) if (lane := random_lane(VARIANT, s)).timing == 0)
    slow = dataclasses.replace(
        lane.workload,
        arrival_us=[k * time for time in lane.workload.arrival_us],
        pause_us=[k * time for time in lane.workload.pause_us],
    )
    lanes = [lane, dataclasses.replace(lane, workload=slow)] + [lane] * (LANES - 2)
    params, requests = lane_inputs(VARIANT, lanes)
    base_us = np.array(params.timing.base_us)
    base_us[1] *= k
    state = finish_lanes(VARIANT.static(), params.replace(timing=params.timing.replace(base_us=base_us)), requests)
    num = len(lane.workload.prompt_tokens)
    plain, stretched = machine_records(state, 0, num), machine_records(state, 1, num)
    times = ("arrival_us", "first_scheduled_us", "first_token_us", "finish_us")
    expected = [
        dataclasses.replace(r, **{name: k * t if (t := getattr(r, name)) >= 0 else t for name in times}) for r in plain
    ]
    assert first_difference(expected, stretched) == ""


def two_weeks(variant: Variant, seed: int) -> Lane:
    """Bursts of requests with hours or days between them, and sessions that pause for hours, over two weeks."""
    lane = random_lane(variant, seed)
    draw = np.random.default_rng(seed)
    workload, num = lane.workload, lane.workload.num_programs
    bursts = np.append(draw.integers(0, 14 * 24 * HOUR_US, 3), 14 * 24 * HOUR_US)
    arrival = np.sort(draw.choice(bursts, num) + draw.choice([0, 1000, 70_000, 900_000], num))
    turns = len(workload.pause_us) - num
    pause = [0] * num + draw.choice([0, 5000, HOUR_US // 3, 9 * HOUR_US + 1], turns).tolist()
    workload = dataclasses.replace(workload, arrival_us=arrival.tolist() + [0] * turns, pause_us=pause)
    delay_us = int(draw.choice([HOUR_US // 60, HOUR_US // 8])) if variant.delay else 0
    return dataclasses.replace(lane, workload=workload, router=dataclasses.replace(lane.router, delay_us=delay_us))


@pytest.mark.slow
@pytest.mark.parametrize("variant", [VARIANT, DELAYED], ids=lambda v: v.name)
def test_two_weeks_with_idle_hours_and_long_pauses_equal_the_reference_to_the_microsecond(variant: Variant) -> None:
    lanes = [two_weeks(variant, seed) for seed in range(LANES)]
    span_us = 0
    for lane, records in zip(lanes, run(variant, lanes), strict=True):
        result = simulate(
            lane.workload,
            lane.engine,
            reference_step_time(TIMINGS[lane.timing]),
            num_instances=variant.size.num_instances,
            router=lane.router,
            uniform=machine_uniform(lane.router.seed),
        )
        assert first_difference(result.records, records) == "", lane
        span_us = max(span_us, result.end_us)
    assert span_us > 13 * 24 * HOUR_US


@pytest.mark.parametrize("step_us", [1, 999, 10**6, LONGEST_RUN_US // 32])
def test_steps_from_a_microsecond_to_the_longest_allowed_equal_the_reference(step_us: int) -> None:
    workload = Workload.simple([0, 0, 5, 6 * step_us, 6 * step_us + 1], [30, 9, 60, 3, 40], [9, 4, 12, 6, 2])
    lane = dataclasses.replace(random_lane(VARIANT, 0), workload=workload, timing=0)
    params, requests = lane_inputs(VARIANT, [lane] * LANES)
    base_us = np.full(LANES, step_us, np.int32)
    state = finish_lanes(VARIANT.static(), params.replace(timing=params.timing.replace(base_us=base_us)), requests)
    result = simulate(workload, lane.engine, lambda _: step_us, num_instances=2, router=lane.router)
    assert first_difference(result.records, machine_records(state, 0, 5)) == ""
    assert sum(r.fate == "finished" for r in result.records) >= 3
