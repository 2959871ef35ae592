"""Retention and the gate: the machine takes every decision of the plain-Python reference, step by step and in runs.

docs/semantics.md, section 9. The reference keeps blocks one by one, the machine runs of them; where it meets second
copies of a block it says so (`CACHE_COPIES`), and those lanes are not compared.
"""

from __future__ import annotations

from collections import Counter

import jax
import numpy as np
import pytest

from jaxsched.sim.state import Count, Flag, State
from tests.oracle.cluster import Result, simulate
from tests.sim.clusters import RETENTION, TIMINGS, Lane, Variant, lane_inputs, random_lane, reference_step_time
from tests.sim.harness import first_difference, machine_records, machine_uniform, run_lanes

LANES = 100  # of each variant; five times as many with --full
MOST_COPIES = 0.1  # share of lanes that may go uncompared


def _variant(scheduler: str, router: str, **switches) -> Variant:
    return Variant(scheduler, router, turns=True, cache="runs", size=RETENTION, **switches)


VARIANTS = [
    _variant("vllm+static_ttl", "program_sticky"),
    _variant("pfcfs+preserve", "least_outstanding"),
    _variant("continuum+static_ttl", "program_sticky", block_size=8, timeouts=True),
    _variant("vllm-async+static_ttl", "least_outstanding"),
    _variant("pfcfs+clair", "program_sticky"),
    _variant("vllm+gate", "least_kv", thresholds=True),
    _variant("pfcfs+static_ttl+gate", "program_sticky", block_size=8),
]


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_every_record_equals_the_reference_and_runs_equal_single_steps(
    variant: Variant, full_size: bool, record_property
) -> None:
    lanes = [random_lane(variant, seed) for seed in range(5 * LANES if full_size else LANES)]
    inputs = lane_inputs(variant, lanes)
    runs = run_lanes(variant.static(max_run_steps=32), *inputs)
    seen: Counter[str] = Counter()
    for i, lane in enumerate(lanes):
        result = _reference(variant, lane)
        if runs.flags[i] & Flag.CACHE_COPIES:
            seen["copies"] += 1
            continue
        difference = first_difference(result.records, machine_records(runs, i, len(lane.workload.prompt_tokens)))
        assert not difference, f"lane {i}, {lane.engine}, {lane.router}, timing {lane.timing}:{difference}"
        assert runs.flags[i] == (Flag.STUCK if any(result.stuck) else 0)
        seen["compared"] += 1
        seen.update(result.noted)
        seen.update(record.fate for record in result.records)
        seen["preemptions"] += sum(record.preemptions for record in result.records)
        seen["cached"] += sum(record.cached_tokens_total for record in result.records)
    record_property("seen", dict(seen))
    print(f"{variant.name}: {dict(seen)}")
    _assert_exercised(variant, seen, len(lanes))
    if "async" not in variant.scheduler:  # which decides every step on its own
        _assert_same_but_fewer_events(run_lanes(variant.static(max_run_steps=1), *inputs), runs)


def _reference(variant: Variant, lane: Lane) -> Result:
    return simulate(
        lane.workload,
        lane.engine,
        reference_step_time(TIMINGS[lane.timing]),
        num_instances=variant.size.num_instances,
        router=lane.router,
        uniform=machine_uniform(lane.router.seed),
    )


def _assert_exercised(variant: Variant, seen: Counter[str], num_lanes: int) -> None:
    """That the comparison was of something."""
    assert seen["copies"] <= MOST_COPIES * num_lanes and seen["compared"] >= 30
    at_least = {"finished": 1000, "preemptions": 15, "cached": 10_000}
    if variant.parts != ["gate"]:
        at_least |= {"pinned_block_taken": 10, "kept_out_by_pins": 10}
    if "gate" in variant.parts:
        at_least["kept_out_by_gate"] = 500
    assert {name: seen[name] for name, least in at_least.items() if seen[name] < least} == {}


def _assert_same_but_fewer_events(single: State, runs: State) -> None:
    """Records, counters and histograms of single steps and of runs, of all lanes."""
    np.testing.assert_array_equal(single.flags, runs.flags)
    for (path, one), many in zip(
        jax.tree_util.tree_leaves_with_path((single.record, single.metrics.histograms)),
        jax.tree.leaves((runs.record, runs.metrics.histograms)),
        strict=True,
    ):
        np.testing.assert_array_equal(one, many, jax.tree_util.keystr(path))
    one, many = np.asarray(single.metrics.counts), np.asarray(runs.metrics.counts)
    others = [count for count in Count if count != Count.MICRO_STEPS]
    np.testing.assert_array_equal(one[:, others], many[:, others])
    assert many[:, Count.MICRO_STEPS].sum() < one[:, Count.MICRO_STEPS].sum()
