"""What must be true of the machine's results whatever the numbers: fairness, monotony, limits, the watchdog."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jaxsched.sim.machine import is_done
from jaxsched.sim.params import SimParams
from jaxsched.sim.requests import Requests
from jaxsched.sim.state import Count, Fate, Flag, State
from jaxsched.timing.step_time import scale
from tests.oracle.data import EngineConfig, RouterConfig, Workload
from tests.sim.clusters import MEDIUM, Lane, Variant, lane_inputs, random_lane
from tests.sim.harness import (
    advance_lanes,
    assert_same_trees,
    finish_lanes,
    machine_records,
    start_lanes,
)

VARIANT = Variant("vllm", "least_outstanding", size=MEDIUM)
LANES = 32


def lanes(**engine_changes) -> list[Lane]:
    """Random lanes with some settings the same in all."""
    drawn = [random_lane(VARIANT, seed) for seed in range(LANES)]
    return [dataclasses.replace(d, engine=dataclasses.replace(d.engine, **engine_changes)) for d in drawn]


def finished(state: State, lane: Lane, i: int) -> list:
    records = machine_records(state, i, len(lane.workload.prompt_tokens))
    return [r for r in records if r.fate == "finished"]


def counts_of(state: State, which: Count) -> np.ndarray:
    return np.asarray(state.metrics.counts)[:, which]


# Metamorphic ----------------------------------------------------------------------------------------------------------


def test_first_come_first_served_starves_nobody() -> None:
    drawn = lanes()
    state = finish_lanes(VARIANT.static(), *lane_inputs(VARIANT, drawn))
    compared = 0
    for i, lane in enumerate(drawn):
        by_instance = sorted(finished(state, lane, i), key=lambda r: (r.instance, r.row))  # rows arrive in order
        for a, b in itertools.pairwise(by_instance):
            if a.instance == b.instance:
                assert a.first_scheduled_us <= b.first_scheduled_us
                compared += 1
    assert compared > 300


def test_more_memory_means_fewer_preemptions_over_many_clusters_and_enough_of_it_means_none() -> None:
    # Of a single cluster it is not true: with more memory more requests are admitted, and grow at the same time.
    most_tokens = MEDIUM.max_prompt + MEDIUM.max_output
    enough = MEDIUM.max_num_seqs * -(-most_tokens // VARIANT.block_size)
    preemptions = []
    for usable_blocks in (45, 60, 90, 180, enough):
        inputs = lane_inputs(VARIANT, lanes(usable_blocks=usable_blocks, max_queue=0, watermark_blocks=0))
        preemptions.append(counts_of(finish_lanes(VARIANT.static(), *inputs), Count.PREEMPTIONS))
    totals = [int(p.sum()) for p in preemptions]
    assert totals == sorted(totals, reverse=True) and totals[0] > 100 and totals[-1] == 0
    assert any((more > less).any() for less, more in itertools.pairwise(preemptions))  # the comment above


def test_faster_hardware_never_raises_a_clusters_mean_latency_by_more_than_two_percent() -> None:
    drawn = lanes(usable_blocks=2000, max_queue=0, chunked_prefill=True)
    params, requests = lane_inputs(VARIANT, drawn)

    def mean_latencies(factor: float) -> np.ndarray:
        timing = jax.vmap(lambda t: scale(t, factor))(jax.tree.map(jnp.asarray, params.timing))
        state = finish_lanes(VARIANT.static(), params.replace(timing=timing), requests)
        assert (counts_of(state, Count.FINISHED) == counts_of(state, Count.ARRIVED)).all()
        latencies = [[r.finish_us - r.arrival_us for r in finished(state, d, i)] for i, d in enumerate(drawn)]
        return np.array([np.mean(lane) for lane in latencies])

    slow_to_fast = [mean_latencies(factor) for factor in (2.0, 1.4, 1.0, 0.5)]
    for slower, faster in itertools.pairwise(slow_to_fast):
        assert (faster < 1.02 * slower).all()
    assert slow_to_fast[-1].mean() < 0.5 * slow_to_fast[0].mean()


def test_what_lies_behind_the_last_turn_of_the_table_is_never_read() -> None:
    short = [d for d in (random_lane(VARIANT, s) for s in range(400)) if len(d.workload.prompt_tokens) <= 32][:LANES]
    params, requests = lane_inputs(VARIANT, short)
    plain = finish_lanes(VARIANT.static(), params, requests)
    draw = np.random.default_rng(0)
    num = np.array([len(lane.workload.prompt_tokens) for lane in short])
    padding = np.arange(MEDIUM.num_rows)[None, :] >= num[:, None]

    def scramble(column):
        if column.ndim == 1:  # num_programs
            return column
        return np.where(padding, draw.integers(-1000, 1000, column.shape, np.int32), column)

    assert_same_trees(finish_lanes(VARIANT.static(), params, jax.tree.map(scramble, requests)), plain)


def test_classes_are_only_names() -> None:
    drawn = lanes()
    swapped = [
        dataclasses.replace(d, workload=dataclasses.replace(d.workload, klass=[1 - k for k in d.workload.klass]))
        for d in drawn
    ]
    static = VARIANT.static()
    params, requests = lane_inputs(VARIANT, drawn)
    there = finish_lanes(static, params, requests)
    slos = {name: np.asarray(getattr(params, name))[:, ::-1] for name in ("slo_ttft_us", "slo_tpot_us", "slo_e2e_us")}
    back = finish_lanes(static, params.replace(**slos), lane_inputs(VARIANT, swapped)[1])
    assert_same_trees(there.record, back.record)
    assert_same_trees(there.metrics.class_good, back.metrics.class_good[:, ::-1])
    assert not np.array_equal(there.metrics.class_good, there.metrics.class_good[:, ::-1])


# The horizon ----------------------------------------------------------------------------------------------------------


def test_a_run_stops_at_its_horizon_with_everything_before_it_done_and_nothing_after() -> None:
    drawn = lanes()
    params, requests = lane_inputs(VARIANT, drawn)
    whole = finish_lanes(VARIANT.static(), params, requests)
    horizon_us = 400_000
    cut = params.replace(horizon_epoch=params.horizon_epoch * 0, horizon_us=params.horizon_us * 0 + horizon_us)
    state = finish_lanes(VARIANT.static(), cut, requests)
    unfinished = 0
    for i, lane in enumerate(drawn):
        num = len(lane.workload.prompt_tokens)
        for full, part in zip(machine_records(whole, i, num), machine_records(state, i, num), strict=True):
            for name in ("arrival_us", "first_scheduled_us", "finish_us"):
                time = getattr(full, name)
                assert getattr(part, name) == (time if time <= horizon_us else -1)
            unfinished += part.fate == "unfinished"
    assert unfinished > 100 and int(np.asarray(state.now).max()) <= horizon_us


# The watchdog ---------------------------------------------------------------------------------------------------------


def test_requests_that_preempt_themselves_for_ever_are_reported_as_a_livelock() -> None:
    # 7 blocks and no check of the whole prompt: the first needs more, so each time it gets that far it preempts itself.
    # The size test that keeps such requests out is told of a larger pool than there is.
    workload = Workload.simple([0, 0, 5], [110, 100, 20], [24, 24, 5])
    engine = EngineConfig(usable_blocks=7, reserve_full_isl=False, token_budget=64, max_num_seqs=8)
    state, params, requests = _run_without_size_test(Lane(workload, engine, RouterConfig("least_outstanding"), 1))
    static = VARIANT.static()
    assert set(np.asarray(state.flags)) == {Flag.LIVELOCK}
    assert (counts_of(state, Count.PREEMPTIONS) >= static.stall_limit).all()
    fates = np.asarray(state.record.fate)[:, :3]
    assert (fates == [Fate.UNFINISHED, Fate.UNFINISHED, Fate.FINISHED]).all()  # the last is on an instance of its own
    later, done = advance_lanes(static, params, requests, state)
    assert done
    assert_same_trees(later.record, state.record)  # it has stopped
    assert_same_trees(later.now, state.now)


def test_a_request_that_outgrows_the_pool_is_reported_as_stuck() -> None:
    workload = Workload.simple([0, 5], [60, 20], [90, 5])  # 149 tokens, and the pool has 112
    engine = EngineConfig(usable_blocks=7, token_budget=64, max_num_seqs=8)
    state, *_ = _run_without_size_test(Lane(workload, engine, RouterConfig("least_outstanding"), 1))
    assert set(np.asarray(state.flags)) == {Flag.STUCK}
    assert (np.asarray(state.record.fate)[:, :2] == [Fate.UNFINISHED, Fate.FINISHED]).all()


def _run_without_size_test(lane: Lane) -> tuple[State, SimParams, Requests]:
    params, requests = lane_inputs(VARIANT, [lane] * LANES)
    static = VARIANT.static()
    start = start_lanes(static, params, requests)
    larger = params.replace(usable_blocks=params.usable_blocks + 1000)
    return finish_lanes(static, larger, requests, start), larger, requests


def test_a_clock_that_stands_still_is_reported_as_a_livelock() -> None:
    drawn = lanes()
    static = VARIANT.static()
    params, requests = lane_inputs(VARIANT, drawn)
    state, _ = advance_lanes(static, params, requests, start_lanes(static, params, requests))
    under_way = np.asarray(state.locked) >= 0  # the next micro-step is at the same instant
    assert under_way.any() and not under_way.all()
    state = state.replace(stalled=jnp.where(under_way, static.stall_limit, state.stalled))
    state = finish_lanes(static, params, requests, state)
    np.testing.assert_array_equal(np.asarray(state.flags), np.where(under_way, Flag.LIVELOCK, 0))
    done = jax.vmap(lambda p, r, s: is_done(static, p, r, s))(params, requests, state)
    assert np.asarray(done).all()
