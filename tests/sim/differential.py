"""Lanes of the machine against the plain-Python reference, record by record."""

from __future__ import annotations

from collections import Counter

from jaxsched.sim.state import Flag, State
from tests.oracle.cluster import Result, simulate
from tests.sim.clusters import TIMINGS, Lane, Variant, reference_step_time
from tests.sim.harness import first_difference, machine_records, machine_uniform


def reference(variant: Variant, lane: Lane) -> Result:
    """The lane as the reference plays it."""
    return simulate(
        lane.workload,
        lane.engine,
        reference_step_time(TIMINGS[lane.timing]),
        num_instances=variant.size.num_instances,
        router=lane.router,
        uniform=machine_uniform(lane.router.seed),
    )


def assert_equal_records(variant: Variant, lanes: list[Lane], state: State) -> Counter[str]:
    """Every record of every lane is the reference's (lanes that met second copies of a block left out).

    Returns what was seen: fates, preemptions, and what the reference noted.
    """
    seen: Counter[str] = Counter()
    for i, lane in enumerate(lanes):
        if state.flags[i] & Flag.CACHE_COPIES:
            seen["copies"] += 1
            continue
        result = reference(variant, lane)
        difference = first_difference(result.records, machine_records(state, i, len(lane.workload.prompt_tokens)))
        assert not difference, f"lane {i}, {lane.engine}, {lane.router}, timing {lane.timing}:{difference}"
        assert state.flags[i] == (Flag.STUCK if any(result.stuck) else 0)
        seen["compared"] += 1
        seen.update(result.noted)
        seen.update(record.fate for record in result.records)
        seen["preemptions"] += sum(record.preemptions for record in result.records)
    print(f"{variant.name}: {dict(seen)}")
    return seen
