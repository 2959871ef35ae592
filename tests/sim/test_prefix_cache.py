"""The prefix cache of the machine: both representations equal the plain-Python reference, hit by hit.

The reference's block pool follows the code of the engine block by block, and its recordings (tests/oracle,
tests/test_verify.py). Workloads share system prompts, and later turns go on with their program's context or cut it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter

import jax
import numpy as np
import pytest

import jaxsched as js
from jaxsched import caching, simulation
from jaxsched.sim.invariants import Violation
from jaxsched.sim.state import Count, Flag
from tests.sim.clusters import SMALL, Lane, Variant, lane_inputs, random_lane
from tests.sim.differential import assert_equal_lane, reference
from tests.sim.harness import first_difference, machine_records, run_lanes, run_lanes_checked

EPISODES = 30  # of each variant; five times as many with --full
VARIANTS = [
    Variant("vllm", "least_outstanding", turns=True, cache="blocks"),
    Variant("vllm", "least_outstanding", turns=True, cache="runs"),
    Variant("vllm", "random", block_size=8, turns=True, timeouts=True, thresholds=True, cache="blocks"),
    Variant("vllm-async", "round_robin", turns=True, cache="blocks"),
    Variant("vllm-async", "round_robin", turns=True, timeouts=True, delay=True, cache="runs"),
    Variant("vllm-priority", "power_of_two", turns=True, cache="blocks"),
    Variant("srpt", "random", turns=True, cache="blocks"),
    Variant("sjf", "least_work", block_size=8, turns=True, cache="runs"),
]


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_every_record_and_hit_equals_the_reference(variant: Variant, full_size: bool) -> None:
    lanes = [random_lane(variant, seed) for seed in range(5 * EPISODES if full_size else EPISODES)]
    state = run_lanes(variant.static(), *lane_inputs(variant, lanes))
    seen: Counter[str] = Counter()
    for i, lane in enumerate(lanes):
        if int(state.flags[i]) & (Flag.CACHE_COPIES | Flag.CACHE_ENTRIES):
            seen["flagged"] += 1
            continue
        result = reference(variant, lane)
        assert_equal_lane(state, i, lane, result)
        seen["hits"] += sum(record.cached_tokens_total > 0 for record in result.records)
        seen["after_preemption"] += sum(r.cached_tokens_total > r.cached_tokens_first for r in result.records)
        seen["preemptions"] += sum(record.preemptions for record in result.records)
    assert seen["hits"] > 150 and seen["preemptions"] >= 5 and seen["after_preemption"] >= 3, seen
    assert seen["flagged"] <= (0 if variant.cache == "blocks" else len(lanes) // 20), seen


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["blocks", "runs"])
def test_runs_of_decode_steps_equal_single_steps_and_no_state_violates_an_invariant(
    cache: str, full_size: bool
) -> None:
    variant = Variant("vllm", "least_kv", block_size=8, turns=True, cache=cache, size=SMALL)
    num_lanes = 4096 if full_size else 256
    inputs = lane_inputs(variant, [random_lane(variant, seed) for seed in range(num_lanes)])
    single, found = run_lanes_checked(variant.static(max_run_steps=1), *inputs)
    found = np.asarray(found)
    assert not found.any(), f"lane {found.argmax()}: {Violation(int(found.max()))!r}"
    runs = run_lanes(variant.static(max_run_steps=32), *inputs)
    for one, many in zip(jax.tree.leaves(single.record), jax.tree.leaves(runs.record), strict=True):
        np.testing.assert_array_equal(one, many)
    assert np.asarray(single.metrics.counts)[:, Count.CACHED_TOKENS].sum() > 10 * num_lanes
    one, many = (np.delete(np.asarray(s.metrics.counts), int(Count.MICRO_STEPS), axis=1) for s in (single, runs))
    np.testing.assert_array_equal(one, many)
    saved = np.asarray(single.metrics.counts - runs.metrics.counts)[:, Count.MICRO_STEPS]
    assert (saved > 0).mean() > 0.3


def test_a_prompt_found_whole_is_flagged_by_runs_and_exact_in_the_block_table() -> None:
    # Two requests with the same prompt of three blocks: the second recomputes the last one, a second copy of it.
    variant = Variant("vllm", "round_robin", turns=True, cache="runs", size=SMALL)
    lane = next(lane for lane in (random_lane(variant, seed) for seed in range(99)) if _is_plain(lane))
    prompt = [(("g", 0), k) for k in range(48)]
    num = len(lane.workload.prompt_tokens)
    workload = dataclasses.replace(
        lane.workload,
        arrival_us=[200_000 * i for i in range(lane.workload.num_programs)] + [0] * (num - lane.workload.num_programs),
        prompt_tokens=[48] * num,
        output_tokens=[4] * num,
        next_turn=[-1] * num,
        prompt_content=[prompt] * num,
        chain=list(range(num)),
        group=[0] * num,
        group_tokens=[48] * num,
    )
    lane = dataclasses.replace(lane, workload=workload)
    for cache in ("runs", "blocks"):
        variant = dataclasses.replace(variant, cache=cache)
        state = run_lanes(variant.static(), *lane_inputs(variant, [lane]))
        assert bool(int(state.flags[0]) & Flag.CACHE_COPIES) == (cache == "runs")
        if cache == "blocks":
            records = reference(variant, lane).records
            assert first_difference(records, machine_records(state, 0, num)) == ""
            assert {r.cached_tokens_first for r in records if r.fate == "finished"} == {0, 32}


def _is_plain(lane: Lane) -> bool:
    engine = lane.engine
    fits = engine.usable_blocks * engine.block_size >= 200 and engine.chunked_prefill and engine.max_queue == 0
    return fits and engine.token_budget >= 48


def test_a_table_of_runs_that_is_too_small_grows_until_the_result_is_that_of_a_large_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    overrides = {"workload.num_requests": 40, "cluster.kv_blocks": 2000}
    scenario = js.load("configs/scenarios/chat_sessions.yaml", overrides)
    results = []
    for first in (2, 512):
        monkeypatch.setattr(caching, "FIRST_RUNS", first)
        monkeypatch.setattr(caching, "FEWEST_RUNS", first)
        sizes = []
        once = simulation.run_once
        monkeypatch.setattr(
            simulation, "run_once", lambda static, *a, once=once, sizes=sizes: sizes.append(static) or once(static, *a)
        )
        results.append(js.rollout(scenario, js.policies.get("vllm"), seeds=2, record=True))
        monkeypatch.setattr(simulation, "run_once", once)
        assert (len(sizes) > 2) == (first == 2) and sizes[-1].prefix_cache == "runs"
    small, large = results
    for name, value in small.metrics.items():
        np.testing.assert_array_equal(value, large.metrics[name], name)


def test_without_shared_content_the_cache_is_off_and_with_block_ids_it_is_the_table() -> None:
    scenario = js.load("configs/scenarios/chat.yaml", {"workload.num_requests": 8})
    static = simulation.static_of(scenario, js.policies.get("vllm"))
    lanes = simulation.synthetic_lanes(scenario, js.policies.get("vllm"), [0], [1.0])
    assert caching.with_cache(static, scenario, lanes.requests).prefix_cache == "none"
    with pytest.raises(js.errors.UserError, match="needs chains and groups"):
        caching.with_cache(static, dataclasses.replace(scenario, prefix_cache="runs"), lanes.requests)
    shared = lanes.requests.replace(content=np.zeros(9, np.int32), content_start=np.zeros(8, np.int32))
    chosen = caching.with_cache(static, scenario, shared)
    assert (chosen.prefix_cache, chosen.cache_entries) == ("blocks", scenario.usable_blocks)


def test_block_ids_of_a_trace_are_split_to_the_blocks_of_the_engine_or_dropped() -> None:
    ids = np.asarray([0, 1, 0, 2], np.int64)
    trace = js.workloads.Workload.build(
        "two", arrival_us=np.asarray([0, 1]), prompt_tokens=np.asarray([70, 70]), output_tokens=np.asarray([5, 5]),
        content=ids, content_block_size=32,
    )  # fmt: skip
    scenario = js.load("configs/scenarios/chat.yaml", {"workload.num_requests": 8})
    split = caching.with_block_size(trace, scenario)
    assert split.content_block_size == 16 and split.content is not None
    first, second = split.content[:4], split.content[4:]
    assert first[:2].tolist() == second[:2].tolist() and not set(first[2:]) & set(second[2:])
    off = caching.with_block_size(trace, dataclasses.replace(scenario, prefix_cache="off"))
    assert off.content is None
    with pytest.raises(js.errors.UserError, match="32 tokens in a cache with blocks of 24"):
        other = dataclasses.replace(scenario, block_size=24)
        caching.with_block_size(trace, other).to_requests(block_size=24)
