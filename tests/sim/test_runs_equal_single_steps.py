"""Taking a run of decode steps as one event changes nothing.

10,000 random clusters, step by step and in runs of up to 32. The step-by-step programs also check every invariant of
the state after every micro-step.
"""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxsched.sim.invariants import Violation
from jaxsched.sim.state import Count
from tests.sim.clusters import SMALL, Variant, lane_inputs, random_lane
from tests.sim.harness import run_lanes, run_lanes_checked

LANES = 1280  # of each variant; five times as many with --full
VARIANTS = [
    Variant("vllm", "least_kv", turns=True, size=SMALL),
    Variant("vllm", "round_robin", block_size=8, timeouts=True, delay=True, thresholds=True, size=SMALL),
    Variant("sarathi", "least_outstanding", block_size=8, turns=True, size=SMALL),
    Variant("vllm-v0", "least_kv", turns=True, size=SMALL),
    Variant("orca", "least_outstanding", turns=True, timeouts=True, size=SMALL),
    Variant("static", "power_of_two", turns=True, delay=True, size=SMALL),
    Variant("sjf", "least_work", turns=True, delay=True, size=SMALL),
    Variant("ewsjf", "least_kv", turns=True, size=SMALL),
    Variant("vllm", "least_outstanding", block_size=4, turns=True, size=SMALL),  # prompts in runs of chunks
]


def test_there_are_ten_thousand_clusters() -> None:
    assert LANES * len(VARIANTS) >= 10_000


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_runs_of_decode_steps_equal_single_steps_and_no_state_violates_an_invariant(
    variant: Variant, full_size: bool
) -> None:
    num_lanes = 5 * LANES if full_size else LANES
    inputs = lane_inputs(variant, [random_lane(variant, seed) for seed in range(num_lanes)])
    single, found = run_lanes_checked(variant.static(max_run_steps=1), *inputs)
    found = np.asarray(found)
    assert not found.any(), f"lane {found.argmax()}: {Violation(int(found.max()))!r}"
    runs = run_lanes(variant.static(max_run_steps=32), *inputs)

    np.testing.assert_array_equal(single.flags, runs.flags)
    for (path, one), many in zip(
        jax.tree_util.tree_leaves_with_path((single.record, single.metrics)),
        jax.tree.leaves((runs.record, runs.metrics)),
        strict=True,
    ):
        name = jax.tree_util.keystr(path)
        one, many = np.asarray(one), np.asarray(many)
        if name.endswith("counts"):  # the number of micro-steps is what runs are there to change
            one, many = (np.delete(x, int(Count.MICRO_STEPS), axis=1) for x in (one, many))
        if not name.endswith("area"):
            np.testing.assert_array_equal(one, many, name)
    _assert_areas_agree(np.asarray(single.metrics.area), np.asarray(runs.metrics.area))

    counts = np.asarray(runs.metrics.counts)
    assert counts[:, Count.FINISHED].sum() > 4 * num_lanes
    if variant.scheduler not in ("orca", "static"):
        assert counts[:, Count.PREEMPTIONS].sum() >= 20
    saved = np.asarray(single.metrics.counts)[:, Count.MICRO_STEPS] - counts[:, Count.MICRO_STEPS]
    assert (saved >= 0).all() and (saved > 0).mean() > 0.1  # with timeouts most lanes go step by step


def _assert_areas_agree(single: np.ndarray, runs: np.ndarray) -> None:
    """Float32 time integrals ``[lanes, (batch, KV blocks), (high, low part)]``."""
    single, runs = single.astype(np.float64).sum(axis=2), runs.astype(np.float64).sum(axis=2)
    np.testing.assert_allclose(runs[:, 0], single[:, 0], rtol=1e-4)
    # Inside a run blocks are taken to grow steadily; block by block that is rough, over many runs it is not.
    np.testing.assert_allclose(runs[:, 1].sum(), single[:, 1].sum(), rtol=1e-2)
