"""Rows shorter than full: a lane says when its row was too short, and is that of full rows when it does not."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxsched.sim.state import Flag
from tests.sim.clusters import MEDIUM, Variant, lane_inputs, random_lane
from tests.sim.harness import assert_same_trees, run_lanes
from tests.sim.test_machine_equals_reference import EPISODES

SHORT = 3  # slots; the lanes' engines admit up to 2, 8 or 16 requests
# Programs with full rows are those of test_machine_equals_reference: compiled once.
VARIANTS = [
    pytest.param(variant, id=variant.scheduler, marks=() if variant.scheduler == "vllm" else pytest.mark.slow)
    for variant in (
        Variant("vllm", "least_outstanding", turns=True),
        Variant("vllm-async", "least_kv", block_size=8, timeouts=True, delay=True),
        Variant("sarathi", "least_work", block_size=8, timeouts=True),
        Variant("vllm-v0", "least_kv", turns=True, delay=True),
        Variant("orca", "least_kv", timeouts=True),
        Variant("static", "power_of_two", block_size=8, turns=True),
    )
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_lanes_without_the_flag_are_those_of_full_rows_and_short_lanes_have_it(
    variant: Variant, full_size: bool
) -> None:
    if variant.scheduler in ("orca", "static") and not full_size:
        pytest.skip("admits as the others do as far as slots go: with --full")
    lanes = [random_lane(variant, seed) for seed in range(EPISODES)]
    inputs = lane_inputs(variant, lanes)
    full = run_lanes(variant.static(), *inputs)
    short = run_lanes(variant.static().with_slots(SHORT), *inputs)
    assert not (np.asarray(full.flags) & Flag.SLOTS_SHORT).any()

    flagged = (np.asarray(short.flags) & Flag.SLOTS_SHORT) != 0
    assert flagged.sum() >= 3 and (~flagged).sum() >= 10
    results = lambda state: jax.tree.map(
        lambda x: np.asarray(x)[~flagged], (state.record, state.metrics, state.flags, state.now, state.epoch)
    )
    assert_same_trees(results(short), results(full))

    # The flag is not raised for nothing: with up to SHORT seats no row can be too short ...
    seats = np.asarray([lane.engine.max_num_seqs for lane in lanes])
    assert not flagged[seats <= SHORT].any()
    # ... and most lanes that have it would have had other results.
    same = np.ones(EPISODES, bool)
    for ours, theirs in zip(jax.tree.leaves(short.record), jax.tree.leaves(full.record), strict=True):
        same &= (np.asarray(ours) == np.asarray(theirs)).reshape(EPISODES, -1).all(axis=1)
    assert same[flagged].mean() < 0.5


def test_full_rows_are_one_program_however_they_came_about() -> None:
    static = Variant("vllm", size=MEDIUM).static()
    short = static.with_slots(4)
    assert short != static and (short.num_slots, short.full_slots) == (4, MEDIUM.max_num_seqs)
    assert short.with_slots(8).with_slots(MEDIUM.max_num_seqs) == static == static.with_slots(10_000)
