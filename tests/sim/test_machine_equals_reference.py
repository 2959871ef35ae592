"""The machine takes every decision of the plain-Python reference.

Records, counters, and histograms of random clusters.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from jaxsched.metrics.histogram import NUM_BINS
from jaxsched.sim.arrivals import hash_bits
from jaxsched.sim.state import Count, Flag, Hist
from tests.oracle.cluster import simulate
from tests.sim.clusters import SLOS_US, TIMINGS, Variant, lane_inputs, random_lane, reference_step_time
from tests.sim.differential import assert_equal_lane, reference
from tests.sim.expected_metrics import Expected
from tests.sim.harness import first_difference, machine_uniform, run_lanes

EPISODES = 40  # of each variant; five times as many with --full
VARIANTS = [
    Variant("vllm", "least_outstanding", turns=True),
    Variant("vllm", "random", block_size=8, thresholds=True, timeouts=True),
    Variant("vllm-async", "round_robin", turns=True),
    Variant("vllm-async", "least_kv", block_size=8, timeouts=True, delay=True),
    Variant("vllm-priority", "power_of_two", turns=True),
    Variant("sarathi", "least_work", block_size=8, timeouts=True),
    Variant("vllm-v0", "least_kv", turns=True, delay=True),
    Variant("orca", "least_kv", timeouts=True),
    Variant("static", "power_of_two", block_size=8, turns=True),
    Variant("sjf", "least_work", turns=True, delay=True),
    Variant("srpt", "random", block_size=8, timeouts=True),
    Variant("mlfq", "least_kv", turns=True, thresholds=True),
    Variant("ewsjf", "least_outstanding", turns=True, timeouts=True),
]
#: Scores of `ewsjf` closer than this may be ordered differently in float32 (docs/semantics.md, 3).
CLOSE = 1e-5


def test_there_are_five_hundred_episodes_and_every_scheduler_and_router() -> None:
    assert EPISODES * len(VARIANTS) >= 500
    assert len({v.scheduler for v in VARIANTS}) == 11 and len({v.router for v in VARIANTS}) == 6


def _on_the_newest_too(variant: Variant) -> bool:
    """One variant of each kind of running pass: budget as a sum, decodes first, in list order."""
    return (variant.scheduler, variant.router) in (
        ("vllm", "least_outstanding"),
        ("sarathi", "least_work"),
        ("srpt", "random"),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(variant, id=variant.name, marks=pytest.mark.newest if _on_the_newest_too(variant) else ())
        for variant in VARIANTS
    ],
)
def test_every_record_counter_and_histogram_equals_the_reference(
    variant: Variant, full_size: bool, record_property
) -> None:
    num_lanes = 5 * EPISODES if full_size else EPISODES
    lanes = [random_lane(variant, seed) for seed in range(num_lanes)]
    state = run_lanes(variant.static(), *lane_inputs(variant, lanes))
    histograms = np.asarray(state.metrics.histograms).reshape(num_lanes, 2, len(Hist), NUM_BINS)
    counts, flags = np.asarray(state.metrics.counts), np.asarray(state.flags)
    seen: Counter[str] = Counter()
    for i, lane in enumerate(lanes):
        result = reference(variant, lane)
        if result.smallest_gap < CLOSE:
            seen["too_close"] += 1
            continue
        assert_equal_lane(state, i, lane, result)
        assert flags[i] == (Flag.STUCK if any(result.stuck) else 0)
        expected = Expected(lane.workload, result, variant.measured, SLOS_US)
        _assert_equal_metrics(variant, expected, counts[i], histograms[i])
        np.testing.assert_array_equal(state.metrics.class_finished[i], expected.class_finished)
        np.testing.assert_array_equal(state.metrics.class_good[i], expected.class_good)
        seen.update(record.fate for record in result.records)
        seen["preemptions"] += expected.counts[Count.PREEMPTIONS]
        seen["good"] += int(expected.class_good.sum())
    record_property("seen", dict(seen))
    print(f"{variant.name}: {num_lanes} episodes, {dict(seen)}")
    _assert_exercised(variant, seen)


def _assert_equal_metrics(variant: Variant, expected: Expected, counts: np.ndarray, histograms: np.ndarray) -> None:
    assert {which: int(counts[which]) for which in expected.counts} == expected.counts
    # An engine one step ahead books a token when it is scheduled; its request may time out before it is delivered.
    ahead = variant.timeouts and variant.scheduler == "vllm-async"
    for hist in Hist:
        if hist == Hist.JCT and not variant.turns:
            assert not histograms[:, hist].any()  # it would be E2E once more
        elif not (ahead and hist in (Hist.TTFT, Hist.TBT, Hist.TTST)):
            np.testing.assert_array_equal(histograms[:, hist], expected.histograms[:, hist], hist.name)


def _assert_exercised(variant: Variant, seen: Counter[str]) -> None:
    """That the comparison was of something."""
    assert seen["too_close"] <= 10
    at_least = {"finished": 500, "rejected_queue": 30, "rejected_size": 10, "good": 20}
    if variant.scheduler not in ("orca", "static"):
        at_least["preemptions"] = 25
    if variant.timeouts:
        at_least["timed_out"] = 50
    if variant.turns:
        at_least["never_arrived"] = 50
    assert {name: seen[name] for name, least in at_least.items() if seen[name] < least} == {}


def test_the_routing_hash_is_the_one_given_to_the_reference() -> None:
    for seed in (0, 1, 12345, 2**31 - 1):
        uniform = machine_uniform(seed)
        for row in (0, 1, 99, 2**30):
            for draw in (0, 1):
                assert int(hash_bits(np.int32(seed), np.int32(row), draw)) == uniform(row, draw)


def test_the_comparison_finds_a_change_in_any_field_of_a_record() -> None:
    variant = VARIANTS[0]
    lane = random_lane(variant, 0)
    records = simulate(lane.workload, lane.engine, reference_step_time(TIMINGS[lane.timing])).records
    assert first_difference(records, records) == ""
    assert records[0].fate == "finished"
    for name in ("instance", "arrival_us", "first_scheduled_us", "first_token_us", "finish_us", "preemptions"):
        changed = [type(r)(**vars(r)) for r in records]
        setattr(changed[0], name, getattr(records[0], name) + 1)
        assert first_difference(records, changed) != ""
