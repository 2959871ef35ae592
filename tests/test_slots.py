"""Rows begin as short as the load allows, grow when they must, and the result is that of full rows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import jaxsched as js
from jaxsched import simulation
from jaxsched.scenario import Scenario
from jaxsched.slots import MIN_SLOTS, first_slots, mean_turn, served_per_s
from jaxsched.timing import affine
from jaxsched.workloads import Workload, get_preset

NUM = 240
VLLM = js.policies.get("vllm", max_num_seqs=128)


def burst() -> Workload:
    """Requests that arrive together, far more than the mean rate lets expect, among others that come one by one."""
    at_once = np.full(100, 30_000_000)
    alone = np.arange(NUM - 100) * 1_000_000
    return Workload.build(
        "burst",
        arrival_us=np.sort(np.concatenate([at_once, alone])),
        prompt_tokens=50 + np.arange(NUM) % 7,
        output_tokens=30 + np.arange(NUM) % 11,
    )


BURST = Scenario(
    name="burst", workload=burst(), num_programs=NUM, rate_per_s=burst().rate_per_s, num_instances=1,
    usable_blocks=4000, timing=affine(8000, 60, 40), warmup_fraction=0.0,
)  # fmt: skip


@pytest.fixture
def rows(monkeypatch) -> list[int]:
    """Slots of every attempt at a batch."""
    tried: list[int] = []
    run = simulation.run_once

    def noted(static, *rest):
        tried.append(static.num_slots)
        return run(static, *rest)

    monkeypatch.setattr(simulation, "run_once", noted)
    return tried


def test_a_run_whose_rows_had_to_grow_is_that_of_full_rows_bit_for_bit(rows):
    shown = []
    progress = lambda done, of: shown.append((done, of))
    grown = js.rollout(BURST, VLLM, seeds=1, record=True, progress=progress)
    assert rows == [32, 64, 128]
    full = js.rollout(dataclasses.replace(BURST, num_slots=128), VLLM, seeds=1, record=True)
    assert rows == [32, 64, 128, 128]

    assert grown.metrics.keys() == full.metrics.keys()
    for name, values in full.metrics.items():
        np.testing.assert_array_equal(grown.metrics[name], values, err_msg=name)
    np.testing.assert_array_equal(grown.histograms, full.histograms)
    np.testing.assert_array_equal(grown.flags, full.flags)
    for name, values in full.records().items():
        np.testing.assert_array_equal(grown.records()[name], values, err_msg=name)
    for name, values in vars(full.trajectory).items():
        np.testing.assert_array_equal(getattr(grown.trajectory, name), values, err_msg=name)
    assert full.trajectory.running.max() > 64

    # What a progress bar is told never falls, and ends at the end.
    done = [settled for settled, _ in shown]
    assert done == sorted(done) and shown[-1] == (NUM, NUM)


def test_rows_that_suffice_are_not_grown(rows):
    calm = dataclasses.replace(BURST, workload=burst().head(25), num_programs=25)
    result = js.rollout(calm, VLLM, seeds=1)
    assert rows == [32] and result.metrics["fate_finished"].sum() == 25


def test_slots_that_the_scenario_gives_and_rows_of_ordered_queues_stay_as_they_are():
    def begins_with(policy, **changes) -> int:
        scenario = dataclasses.replace(BURST, **changes)
        requests = scenario.workload.to_requests()
        return simulation.with_first_slots(simulation.static_of(scenario, policy), scenario, requests, 1.0).num_slots

    assert begins_with(VLLM) == 32
    assert begins_with(VLLM, num_slots=200) == 200
    assert begins_with(js.policies.get("sjf", max_num_seqs=128)) == 256
    assert begins_with(js.policies.get("vllm", max_num_seqs=20)) == 20


def test_the_first_row_is_the_shortest_power_of_two_half_of_which_keeps_up():
    """One token costs 1 ms a step and nothing else: n requests at a time finish n / (n * output) ms = 1 in 40 ms."""
    timing = affine(0, 1000, 0)
    one = Workload.build("w", arrival_us=np.arange(3), prompt_tokens=np.full(3, 10), output_tokens=np.full(3, 30))
    requests = one.to_requests()
    assert mean_turn(requests) == (10.0, 30.0, 1.0)
    assert served_per_s(timing, 90, 10, 30) == pytest.approx(1000 / 40)
    assert first_slots(128, timing, requests, 24.0) == MIN_SLOTS
    assert first_slots(128, timing, requests, 26.0) == 128  # overload: full rows at once
    # A fixed cost of 100 ms a step: 32 at a time finish 32 / 30 per 100 ms, 16 half as many.
    fixed = affine(100_000, 0, 0)
    assert served_per_s(fixed, 32, 10, 30) == pytest.approx(320 / 30)
    assert [first_slots(100, fixed, requests, rate) for rate in (5.0, 6.0, 11.0, 50.0)] == [32, 64, 100, 100]


def test_the_mean_turn_counts_later_turns_and_leaves_out_rows_that_no_program_reaches():
    preset = get_preset("chat_sessions")
    lanes = simulation.synthetic_lanes(
        dataclasses.replace(BURST, workload=preset, num_programs=2000, max_paused_programs=8), VLLM, [0], [1.0]
    )
    prompt, output, turns = mean_turn(lanes.requests)
    assert turns == pytest.approx(preset.mean_turns, rel=0.1) and turns > 1.2
    assert prompt == pytest.approx(preset.mean_prompt_tokens, rel=0.1)
    assert output == pytest.approx(preset.mean_output_tokens, rel=0.1)


@pytest.mark.parametrize("max_num_seqs", [128, 1024, 3000])
def test_the_waiting_queue_has_room_beside_a_full_row_that_is_preempted(max_num_seqs):
    static = simulation.static_of(BURST, js.policies.get("vllm", max_num_seqs=max_num_seqs))
    assert static.queue_capacity - static.full_slots >= max(max_num_seqs, 512)
