"""Orders by attained service (PLAS, ATLAS): the machine takes every decision of the plain-Python reference.

docs/semantics.md, section 10.
"""

from __future__ import annotations

from collections import Counter

import jax
import numpy as np
import pytest

from jaxsched import policies
from jaxsched.sim.state import Count, Flag, State
from tests.oracle.cluster import simulate
from tests.sim.clusters import RETENTION, TIMINGS, Lane, Variant, lane_inputs, random_lane, reference_step_time
from tests.sim.harness import first_difference, machine_records, machine_uniform, run_lanes

LANES = 100  # of each variant; five times as many with --full
PLAS = Variant("plas", "program_sticky", turns=True, size=RETENTION)
WITH_PINS = Variant("plas+static_ttl", "least_outstanding", turns=True, cache="runs", size=RETENTION, timeouts=True)


def _compare(variant: Variant, lanes: list[Lane], state: State, order: str) -> Counter[str]:
    """Every record of every lane equals the reference's. Returns what was seen."""
    seen: Counter[str] = Counter()
    for i, lane in enumerate(lanes):
        assert lane.engine.order == order
        if state.flags[i] & Flag.CACHE_COPIES:
            seen["copies"] += 1
            continue
        result = simulate(
            lane.workload,
            lane.engine,
            reference_step_time(TIMINGS[lane.timing]),
            num_instances=variant.size.num_instances,
            router=lane.router,
            uniform=machine_uniform(lane.router.seed),
        )
        difference = first_difference(result.records, machine_records(state, i, len(lane.workload.prompt_tokens)))
        assert not difference, f"lane {i}, {lane.engine}, {lane.router}, timing {lane.timing}:{difference}"
        assert state.flags[i] == (Flag.STUCK if any(result.stuck) else 0)
        seen.update(result.noted)
        seen.update(record.fate for record in result.records)
        seen["compared"] += 1
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("variant", [PLAS, WITH_PINS], ids=lambda v: v.name)
def test_every_record_equals_the_reference_and_runs_equal_single_steps(
    variant: Variant, full_size: bool, record_property
) -> None:
    lanes = [random_lane(variant, seed) for seed in range(5 * LANES if full_size else LANES)]
    inputs = lane_inputs(variant, lanes)
    runs = run_lanes(variant.static(max_run_steps=32), *inputs)
    seen = _compare(variant, lanes, runs, "plas")
    record_property("seen", dict(seen))
    print(f"{variant.name}: {dict(seen)}")
    assert seen["compared"] >= 0.9 * len(lanes)
    assert min(seen[what] for what in ("finished", "displaced", "promoted")) >= 200
    single = run_lanes(variant.static(max_run_steps=1), *inputs)
    for one, many in zip(jax.tree.leaves(single.record), jax.tree.leaves(runs.record), strict=True):
        np.testing.assert_array_equal(one, many)
    assert runs.metrics.counts[:, Count.MICRO_STEPS].sum() < single.metrics.counts[:, Count.MICRO_STEPS].sum()
    if variant is PLAS:  # calls one after the other: the longest chain is the sum
        import dataclasses

        atlas = dataclasses.replace(variant.static(), scheduler=policies.get("atlas").scheduler.spec)
        for one, many in zip(jax.tree.leaves(run_lanes(atlas, *inputs).record), jax.tree.leaves(runs.record)):
            np.testing.assert_array_equal(one, many)
