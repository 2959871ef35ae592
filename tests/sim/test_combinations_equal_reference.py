"""Parts that are tested one by one elsewhere, together: graphs, memory tiers, retention and cache-aware routers.

The machine takes every decision of the plain-Python reference, and a run of decode steps changes nothing.
"""

from __future__ import annotations

import pytest

from tests.sim.clusters import Size
from tests.sim.differential import assert_equal_records, assert_same_but_fewer_events
from tests.sim.harness import run_lanes
from tests.sim.test_cache_aware_routing import ANY_READER, Routed, lane_and_inputs

LANES = 120  # five times as many with --full
#: llmd_score compares in float32: lanes with a decision closer than this are left out.
CLOSE = 1e-5
TOGETHER = Routed(
    "continuum+static_ttl+offload", ANY_READER.name, block_size=8, turns=True, graphs=True, cache="runs", tiers="host",
    size=Size(2, 8, 32, 100, 60, (190, 300, 500)),
)  # fmt: skip


@pytest.mark.slow
def test_graphs_tiers_pins_and_cache_aware_routers_together(full_size: bool, record_property) -> None:
    lanes, inputs = lane_and_inputs(TOGETHER, 5 * LANES if full_size else LANES)
    runs = run_lanes(TOGETHER.static(max_run_steps=32), *inputs)
    seen = assert_equal_records(TOGETHER, lanes, runs, closest=CLOSE)
    record_property("seen", dict(seen))
    assert seen["compared"] >= 0.6 * LANES, seen
    at_least = {
        "finished": 1000, "cached": 5000, "preemptions": 20, "kept_out_by_pins": 10, "host_out_blocks": 1000,
        "host_in_blocks": 100, "dropped_on_host": 10,
    }  # fmt: skip
    assert {name: seen[name] for name, least in at_least.items() if seen[name] < least} == {}
    assert_same_but_fewer_events(run_lanes(TOGETHER.static(max_run_steps=1), *inputs), runs)
