"""Fair orders (VTC, with predictions too, WFQ, DRR) and those of AIOS: the machine decides as the reference does.

docs/semantics.md, section 13. The reference goes step by step and keeps its accounts in Python integers.
"""

from __future__ import annotations

import dataclasses

import pytest

from tests.sim.clusters import RETENTION, Lane, Variant, lane_inputs, random_lane
from tests.sim.differential import assert_equal_records, reference
from tests.sim.harness import run_lanes

LANES = 60  # of each variant; five times as many with --full
VARIANTS = {
    "vtc": Variant("vtc", "least_outstanding", turns=True, cache="runs", size=RETENTION, timeouts=True),
    "vtc-predict": Variant("vtc-predict", size=RETENTION),
    "wfq": Variant("wfq", "program_sticky", turns=True, size=RETENTION),
    "drr": Variant("drr", size=RETENTION, thresholds=True),
    "aios-rr": Variant("aios-rr", turns=True, size=RETENTION),
    "aios-fifo": Variant("aios-fifo", turns=True, size=RETENTION),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(VARIANTS))
def test_fair_orders_equal_the_reference(name: str, full_size: bool) -> None:
    variant = VARIANTS[name]
    lanes = [random_lane(variant, seed) for seed in range(5 * LANES if full_size else LANES)]
    seen = assert_equal_records(variant, lanes, run_lanes(variant.static(), *lane_inputs(variant, lanes)))
    assert seen["compared"] >= 0.7 * LANES and seen["finished"] >= 200 and seen["preemptions"] >= 5


def _records(variant: Variant, lane: Lane, **engine):
    return reference(variant, dataclasses.replace(lane, engine=dataclasses.replace(lane.engine, **engine))).records


@pytest.mark.parametrize("name", ["vtc", "vtc-predict", "drr"])
def test_one_tenant_is_served_as_by_fcfs_and_two_are_not(name: str) -> None:
    """(WFQ is not FCFS inside a tenant: its programs share what it gets.)"""
    variant, differ = VARIANTS[name], 0
    for seed in range(30):
        lane = random_lane(variant, seed)
        differ += _records(variant, lane) != _records(variant, lane, order="arrival")
        workload = dataclasses.replace(lane.workload, klass=[1] * len(lane.workload.klass))
        lane = dataclasses.replace(lane, workload=workload, engine=dataclasses.replace(lane.engine, timeouts_us=(0, 0)))
        assert _records(variant, lane) == _records(variant, lane, order="arrival")
    assert differ >= 5
