"""Programs that are graphs: the machine takes every decision of the plain-Python reference, step by step and in runs.

docs/semantics.md, section 2.
"""

from __future__ import annotations

import dataclasses
from collections import Counter

import jax
import numpy as np
import pytest

from jaxsched.metrics.histogram import NUM_BINS
from jaxsched.sim.state import Count, Flag, Hist
from tests.oracle.cluster import simulate
from tests.oracle.data import RouterConfig, Workload
from tests.sim.clusters import RETENTION, SMALL, TIMINGS, Lane, Variant, lane_inputs, random_lane, reference_step_time
from tests.sim.differential import assert_equal_lane, reference
from tests.sim.harness import run_lanes, run_lanes_checked

LANES = 150  # of each variant; five times as many with --full

VARIANTS = [
    Variant("vllm", "least_outstanding", turns=True, graphs=True, timeouts=True, cache="blocks", size=SMALL),
    Variant("vllm-async", "program_sticky", block_size=8, turns=True, graphs=True, size=SMALL),
    Variant("pfcfs+static_ttl", "program_sticky", turns=True, graphs=True, cache="runs", size=RETENTION),
]


def _diamond(variant: Variant) -> Lane:
    """A -> B, C -> D on two instances: see `test_the_diamond_by_hand`."""
    workload = Workload.simple(
        [0, 0, 0, 0],
        [16, 16, 32, 16],
        [2, 3, 2, 1],
        num_programs=1,
        next_turn=[1, 2, 3, -1],
        waits=[[], [(0, "finish", 0)], [(0, "finish", 0)], [(1, "finish", 1_000), (2, "finish", 3_000)]],
        not_before=[0] * 4,
    )
    if variant.cache != "none":
        tokens = [[(("u", row), k) for k in range(n)] for row, n in enumerate(workload.prompt_tokens)]
        workload.prompt_content = tokens
        workload.chain, workload.group, workload.group_tokens = list(range(4)), [-1] * 4, [0] * 4
    base = random_lane(variant, 0).engine
    engine = dataclasses.replace(
        base,
        usable_blocks=50,
        token_budget=256,
        max_num_seqs=8,
        chunked_prefill=True,
        watermark_blocks=0,
        max_queue=0,
        timeouts_us=(0, 0),
    )
    return Lane(workload, engine, RouterConfig(variant.router), 0)  # steps of 1 ms


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_every_record_equals_the_reference_and_runs_equal_single_steps(
    variant: Variant, full_size: bool, record_property
) -> None:
    lanes = [_diamond(variant)] + [random_lane(variant, seed) for seed in range(5 * LANES if full_size else LANES)]
    inputs = lane_inputs(variant, lanes)
    runs = run_lanes(variant.static(max_run_steps=32), *inputs)
    histograms = np.asarray(runs.metrics.histograms).reshape(len(lanes), 2, len(Hist), NUM_BINS)
    counts = np.asarray(runs.metrics.counts)
    seen: Counter[str] = Counter()
    for i, lane in enumerate(lanes):
        result = reference(variant, lane)
        records = result.records
        if runs.flags[i] & Flag.CACHE_COPIES:  # chains of runs say where they do not hold the content exactly
            seen["copies"] += 1
            continue
        seen.update(result.noted)
        assert_equal_lane(runs, i, lane, result)
        assert runs.flags[i] == (Flag.STUCK if any(result.stuck) else 0)
        done = _programs_done(lane.workload, records)
        assert counts[i, Count.PROGRAMS_DONE] == len(done)
        assert histograms[i, :, Hist.JCT].sum() == sum(first in variant.measured for first in done)
        seen.update(record.fate for record in records)
        seen["cached"] += sum(record.cached_tokens_total for record in records)
        seen["preemptions"] += sum(record.preemptions for record in records)
        seen["programs done"] += len(done)
        seen["at once"] += _at_once(lane.workload, records)
        seen["orphans"] += _orphans(lane.workload, records)
    record_property("seen", dict(seen))
    print(f"{variant.name}: {dict(seen)}")
    at_least = {"finished": 1500, "never_arrived": 50, "programs done": 300, "orphans": 30}
    at_least |= {"at once": 200} if "sticky" not in variant.router else {}
    at_least |= {"cached": 5000, "timed_out": 50} if variant.cache != "none" else {"preemptions": 10}
    at_least |= {"pinned_block_taken": 10, "kept_out_by_pins": 10, "timed_out": 0} if variant.cache == "runs" else {}
    assert seen["copies"] <= 0.1 * len(lanes)
    assert {name: seen[name] for name, least in at_least.items() if seen[name] < least} == {}
    if variant == VARIANTS[0]:  # one is enough: graphs are not told from chains where runs are made
        single, found = run_lanes_checked(variant.static(max_run_steps=1), *inputs)
        assert not np.asarray(found).any()  # conservation, after every event
        for (path, one), many in zip(
            jax.tree_util.tree_leaves_with_path((single.record, single.metrics.histograms, single.fired)),
            jax.tree.leaves((runs.record, runs.metrics.histograms, runs.fired)),
            strict=True,
        ):
            np.testing.assert_array_equal(one, many, jax.tree_util.keystr(path))
        others = [count for count in Count if count != Count.MICRO_STEPS]
        np.testing.assert_array_equal(np.asarray(single.metrics.counts)[:, others], counts[:, others])


def _programs_of(workload: Workload) -> dict[int, list[int]]:
    rows = {}
    for first in range(workload.num_programs):
        rows[first], row = [], first
        while row >= 0:
            rows[first].append(row)
            row = workload.next_turn[row]
    return rows


def _programs_done(workload: Workload, records) -> list[int]:
    programs = _programs_of(workload).items()
    return [first for first, rows in programs if all(records[r].fate == "finished" for r in rows)]


def _at_once(workload: Workload, records) -> int:
    """Turns that begin to run while another turn of the program runs on another instance."""
    num = 0
    for rows in _programs_of(workload).values():
        for a in rows:
            begin = records[a].first_scheduled_us
            num += begin >= 0 and any(
                records[b].instance != records[a].instance
                and 0 <= records[b].first_scheduled_us <= begin < records[b].finish_us
                for b in rows
            )
    return num


def _orphans(workload: Workload, records) -> int:
    """Turns that finish in a program of which a turn failed."""
    num = 0
    for rows in _programs_of(workload).values():
        failed = [records[r].arrival_us for r in rows if records[r].fate not in ("finished", "never_arrived")]
        num += sum(bool(failed) and records[r].arrival_us > min(failed) and records[r].fate == "finished" for r in rows)
    return num


def test_the_diamond_by_hand() -> None:
    # Every step takes 1 ms. A (2 tokens) runs 0-2 ms on instance 0. B and C are ready at once, in table order: B goes
    # to instance 0 for three steps, 2-5 ms, C to instance 1, 2-4 ms. D waits for both: max(5 + 1, 4 + 3) = 7 ms, one
    lane = _diamond(VARIANTS[0])
    result = simulate(lane.workload, lane.engine, reference_step_time(TIMINGS[0]), num_instances=2, router=lane.router)
    times = [(r.arrival_us, r.first_scheduled_us, r.finish_us) for r in result.records]
    assert times == [(0, 0, 2_000), (2_000, 2_000, 5_000), (2_000, 2_000, 4_000), (7_000, 7_000, 8_000)]
    assert [r.instance for r in result.records] == [0, 0, 1, 0]
