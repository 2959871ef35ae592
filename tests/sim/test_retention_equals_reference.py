"""Retention and the gate: the machine takes every decision of the plain-Python reference, step by step and in runs.

docs/semantics.md, section 9. The reference keeps blocks one by one, the machine runs of them; where it meets second
copies of a block it says so (`CACHE_COPIES`), and those lanes are not compared.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.sim.clusters import RETENTION, Variant, lane_inputs, random_lane
from tests.sim.differential import assert_equal_records, assert_same_but_fewer_events
from tests.sim.harness import run_lanes

LANES = 100  # of each variant; five times as many with --full
MOST_COPIES = 0.1  # share of lanes that may go uncompared; where many share prefixes, 0.3


def _variant(scheduler: str, router: str, **switches) -> Variant:
    return Variant(scheduler, router, turns=True, cache="runs", size=RETENTION, **switches)


VARIANTS = [
    _variant("vllm+static_ttl", "program_sticky"),
    _variant("pfcfs+preserve", "least_outstanding", block_size=8),
    _variant("continuum+static_ttl", "program_sticky", timeouts=True, prefixes=True),
    _variant("vllm-async+static_ttl", "least_outstanding"),
    _variant("srpt_program+clair+peak", "program_sticky"),
    _variant("pfcfs+belady", "program_sticky", prefixes=True),
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
    seen = assert_equal_records(variant, lanes, runs)
    record_property("seen", dict(seen))
    _assert_exercised(variant, seen, len(lanes))
    if "async" not in variant.scheduler:  # which decides every step on its own
        assert_same_but_fewer_events(run_lanes(variant.static(max_run_steps=1), *inputs), runs)


def _assert_exercised(variant: Variant, seen: Counter[str], num_lanes: int) -> None:
    """That the comparison was of something."""
    assert seen["copies"] <= (0.3 if variant.prefixes else MOST_COPIES) * num_lanes and seen["compared"] >= 30
    at_least = {"finished": 1000, "preemptions": 15, "cached": 10_000}
    if variant.parts != ["gate"]:
        at_least |= {"pinned_block_taken": 10, "kept_out_by_pins": 10}
    if variant.prefixes:
        at_least["pinned_prefix_taken"] = 1
    if "belady" in variant.parts:
        at_least |= {"context_block_taken": 100}
    if {"gate", "peak"} & set(variant.parts):
        at_least["kept_out_by_gate"] = 500
    assert {name: seen[name] for name, least in at_least.items() if seen[name] < least} == {}
