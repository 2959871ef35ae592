"""Memory tiers: the machine takes every decision of the plain-Python reference, and books the same transfers.

docs/semantics.md, section 10. Links are from much faster to much slower than recomputation, hosts hold from nothing to
more than everything, copies overlap or the engine waits: all as lanes of one program.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from jaxsched.sim.invariants import Violation, violations
from jaxsched.sim.machine import init_state
from jaxsched.sim.state import Count
from tests.oracle.cluster import Result
from tests.sim.clusters import RETENTION, Lane, Variant, lane_inputs, random_lane
from tests.sim.differential import assert_equal_records, assert_same_but_fewer_events
from tests.sim.harness import run_lanes, run_lanes_checked

LANES = 150  # of each variant; four times as many with --full
#: Lanes that must be compared. The others meet second copies of a block: a preempted request whose known tokens end
#: with a block finds all of them, which happens more often with small blocks and with displacement.
LEAST_COMPARED = 100
COUNTS = {
    Count.HOST_OUT_BLOCKS: "host_out_blocks",
    Count.HOST_IN_BLOCKS: "host_in_blocks",
    Count.REMOTE_OUT_BLOCKS: "remote_out_blocks",
    Count.REMOTE_IN_BLOCKS: "remote_in_blocks",
    Count.TRANSFERS: "transfers",
    Count.STALL_US: "stall_us",
}
#: Pins, prefetches, timeouts and a remote pool, preemption by memory only; displacement by changing priorities.
SPILL = Variant(
    "continuum+static_ttl+prefetch", "program_sticky", timeouts=True, turns=True, cache="runs", size=RETENTION,
    tiers="remote",
)  # fmt: skip
SWITCH = Variant("fastswitch", "least_kv", block_size=8, turns=True, cache="runs", size=RETENTION, tiers="host")
EXERCISED = {
    SPILL: ("prefetched", "remote_out_blocks", "remote_in_blocks", "dropped_in_pool", "kept_out_by_pins"),
    SWITCH: ("waited_for_copies",),
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", EXERCISED, ids=lambda v: v.name)
def test_every_record_and_transfer_equals_the_reference_and_every_block_is_somewhere(
    variant: Variant, full_size: bool, record_property
) -> None:
    lanes = [random_lane(variant, seed) for seed in range(4 * LANES if full_size else LANES)]
    if variant is SPILL:  # ... and some where many share prefixes: the same program
        shared = dataclasses.replace(variant, prefixes=True)
        lanes += [random_lane(shared, seed) for seed in range(LANES // 3)]
    inputs = lane_inputs(variant, lanes)
    state, found = run_lanes_checked(variant.static(max_run_steps=32), *inputs)
    assert {Violation(int(mask)) for mask in np.unique(found)} == {Violation(0)}

    def equal_transfers(i: int, lane: Lane, result: Result) -> None:
        counts = {name: int(state.metrics.counts[i, which]) for which, name in COUNTS.items()}
        assert counts == {name: result.noted[name] for name in COUNTS.values()}, f"lane {i}, {lane.engine.tiers}"

    seen = assert_equal_records(variant, lanes, state, equal_transfers)
    record_property("seen", dict(seen))
    assert seen["compared"] >= LEAST_COMPARED
    names = ("host_out_blocks", "host_in_blocks", "dropped_on_host", "only_increment_written", "only_part_written")
    at_least = dict.fromkeys(("finished", "host_out_blocks", "transfers", "stall_us"), 1000) | {"preemptions": 50}
    at_least |= {name: at_least.get(name, 10) for name in (*names, *EXERCISED[variant])}
    assert {name: seen[name] for name, least in at_least.items() if seen[name] < least} == {}
    if variant is SPILL:
        assert_same_but_fewer_events(run_lanes(variant.static(max_run_steps=1), *inputs), state)


def test_an_overfull_tier_an_empty_copy_and_a_context_held_twice_are_found() -> None:
    variant = SPILL
    params, requests = jax.tree.map(lambda x: x[0], lane_inputs(variant, [random_lane(variant, 0)]))
    static = variant.static()
    state = jax.jit(lambda p: init_state(static, p, variant.size.num_rows))(params)
    check = jax.jit(functools.partial(violations, static))
    assert state.tiers is not None and params.tiers is not None

    def with_copies(*copies: tuple[int, int, int]) -> int:
        table = np.array(state.tiers.host)
        for place, copy in enumerate(copies):
            table[0, :3, place] = copy
        damaged = state.replace(tiers=state.tiers.replace(host=table))
        return int(check(params.replace(tiers=params.tiers.replace(host_blocks=np.int32(10))), requests, damaged))

    assert with_copies((3, 1, 5), (4, 0, 6)) == 0
    assert with_copies((3, 1, 5), (4, 0, 7)) == Violation.TIERS
    assert with_copies((3, 1, 5), (3, 0, 2)) == Violation.TIERS
    assert with_copies((3, 1, 1)) == Violation.TIERS
