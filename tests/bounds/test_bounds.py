"""Bounds that no schedule beats: against hand-worked cases, queueing theory, and policies in the machine."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import jaxsched as js
from jaxsched import bounds, policies
from jaxsched.bounds.work import step_us, token_us
from jaxsched.config import load
from jaxsched.errors import UserError
from jaxsched.scenario import from_config
from jaxsched.sim.build import NO_LIMIT_US
from jaxsched.simulation import rollouts
from jaxsched.timing.step_time import affine, make_params
from jaxsched.workloads import Workload


def single(arrival_us, prompt, output) -> Workload:
    num = len(arrival_us)
    return Workload.build("by hand", arrival_us=np.asarray(arrival_us, np.int64), program=np.arange(num),
                          prompt_tokens=np.asarray(prompt), output_tokens=np.asarray(output))  # fmt: skip


# -- Work -------------------------------------------------------------------------------------------------------------


def test_a_token_costs_at_least_its_share_of_the_largest_step() -> None:
    """20 us and 4 us a token up to 10, 1 us beyond: steps of 20 tokens take 70 us, 3 of them rounding."""
    timing = make_params(base_us=20, token_start=[0, 10], token_slope=[4 << 8, 1 << 8])
    np.testing.assert_allclose(step_us(timing, np.array([1, 10, 20])), [24, 60, 70])
    np.testing.assert_allclose(token_us(timing, 20)[[0, 9, 19]], [21.0, 5.7, 3.35])
    # Where further tokens get dearer, larger steps do not help.
    timing = make_params(base_us=20, token_start=[0, 10], token_slope=[1 << 8, 9 << 8])
    np.testing.assert_allclose(token_us(timing, 20)[[9, 19]], [2.7, 2.7])


def test_work_of_one_request_by_hand() -> None:
    """97 us a step, 2 us a token, 1 ns per context token: prompt 4, 3 tokens, steps of up to 10 tokens."""
    timing = affine(100, 2, 1000)
    found = bounds.turn_work(single([0], [4], [3]), timing, 10, 8)
    rho = (97 + 20) / 10
    np.testing.assert_allclose(found.work_us[-1], [6 * rho + (5 + 6)])  # contexts of 4 + 1 and 4 + 2 tokens
    np.testing.assert_allclose(found.work_us[0], [2 * (97 + 2) / 8 + (5 + 6)])
    slope = 0.4 * rho  # above 2 us, so the fixed part is least at 10 tokens
    np.testing.assert_allclose(found.work_us[2], [6 * slope + 2 * (117 - 10 * slope) / 8 + (5 + 6)])
    np.testing.assert_allclose(found.first_us, [97 + 8])
    np.testing.assert_allclose(found.alone_us, [97 + 8 + 2 * 99 + 11])


# -- SRPT -------------------------------------------------------------------------------------------------------------


def test_srpt_by_hand() -> None:
    """A job of 10 at 0 is displaced by one of 3 at 2 and one of 1 at 3: done at 14, 6 and 4."""
    found = bounds.srpt_responses(np.array([0.0, 2.0, 3.0]), np.array([10.0, 3.0, 1.0]))
    np.testing.assert_allclose(found, [14.0, 4.0, 1.0])
    np.testing.assert_allclose(bounds.srpt_responses(np.array([5.0]), np.array([8.0]), speed=4.0), [2.0])


@pytest.mark.parametrize(("rho", "mean"), [(0.5, 1.425), (0.8, 2.353)])
def test_srpt_of_an_mm1_queue_has_the_mean_of_theory(rho: float, mean: float) -> None:
    """Learning sheet 11; 20 runs of 20,000 jobs, two standard errors."""
    means = []
    for seed in range(20):
        random = np.random.default_rng([seed, int(rho * 10)])
        arrival = np.cumsum(random.exponential(1 / rho, 20_000))
        means.append(bounds.srpt_responses(arrival, random.exponential(1.0, 20_000))[2_000:].mean())
    error = np.std(means, ddof=1) / np.sqrt(len(means))
    assert abs(np.mean(means) - mean) < 2 * error + 1e-3


# -- Goodput ----------------------------------------------------------------------------------------------------------


def test_goodput_by_hand_is_what_fits_before_the_deadlines() -> None:
    """Ten requests at once, each 1,000 us of work and all due after 3,500 us: three and a half."""
    timing = make_params(base_us=3, token_start=[0], token_slope=[100 << 8])
    workload = single([0] * 10, [10] * 10, [1] * 10)
    common = dict(
        instances=1, pool_tokens=10**6, most_step_tokens=10, most_running=99, ttft_us=[3500], tpot_us=[NO_LIMIT_US]
    )
    found = bounds.goodput_bound(workload, timing, e2e_us=[NO_LIMIT_US], **common)
    assert found.good == pytest.approx(3.5, rel=1e-6) and found.hopeless == 0
    assert found.work_price == pytest.approx(1 / 1000) and found.memory_price == 0
    assert bounds.goodput_bound(workload, timing, e2e_us=[900], **common).hopeless == 10  # each takes 1,000 us alone
    half = bounds.goodput_bound(workload, timing, e2e_us=[NO_LIMIT_US], **common, cohort=slice(0, 2))
    assert half.good == pytest.approx(2.0)


def test_goodput_is_bounded_by_memory_where_that_is_scarce() -> None:
    """A step takes 1,000 us whatever is in it. Answers of 101 tokens to prompts of 50: 100 x 50 + 5,050 token-steps."""
    timing = make_params(base_us=1003, token_start=[0], token_slope=[0])
    workload = single([0] * 40, [50] * 40, [101] * 40)
    limits = dict(ttft_us=[NO_LIMIT_US], tpot_us=[NO_LIMIT_US], e2e_us=[1_000_000])
    cluster = dict(instances=1, pool_tokens=200, most_step_tokens=2048, most_running=99)
    found = bounds.goodput_bound(workload, timing, **cluster, **limits)
    assert found.good == pytest.approx(200 * 1000 / (100 * 50 + 5050), rel=1e-6)
    assert found.memory_price > 0 and found.work_price == 0


def test_goodput_is_bounded_by_seats_and_by_the_steps_that_so_many_seats_need() -> None:
    """A step takes 1,000 us; answers of 101 tokens (101 steps) until 1 s: two seats have 2 s of steps."""
    timing = make_params(base_us=1003, token_start=[0], token_slope=[0])
    workload = single([0] * 40, [50] * 40, [101] * 40)
    limits = dict(ttft_us=[NO_LIMIT_US], tpot_us=[NO_LIMIT_US], e2e_us=[1_000_000])
    common = dict(instances=1, pool_tokens=10**6, most_step_tokens=2048, most_running=2, **limits)
    found = bounds.goodput_bound(workload, timing, **common)
    prefill_us = 50 * 1000 / 50  # the cheapest share of a step of its own 50 tokens
    by_seats, by_steps = 2_000_000 / (100 * 1000 + prefill_us), 1_000_000 / (100 * 1000 / 2)
    assert found.good == pytest.approx(min(by_seats, by_steps), rel=1e-6)


def test_goodput_of_programs_has_no_such_bound() -> None:
    two = Workload.build("two turns", arrival_us=np.array([0, 0]), program=np.array([0, 0]), turn=np.array([0, 1]),
                         prompt_tokens=np.array([9, 30]), output_tokens=np.array([4, 4]))  # fmt: skip
    with pytest.raises(UserError, match="programs of several turns"):
        bounds.goodput_bound(two, affine(10, 1, 0), instances=1, pool_tokens=99, most_step_tokens=9, most_running=9,
                             ttft_us=[1], tpot_us=[1], e2e_us=[1])  # fmt: skip


# -- Never beaten -----------------------------------------------------------------------------------------------------


def test_no_policy_beats_the_bounds_on_chat_below_and_beyond_capacity() -> None:
    scenario = from_config(load("configs/scenarios/chat.yaml", {"workload.num_requests": 200}))
    rates, seeds = [0.7 * 18.9, 1.3 * 18.9], 2
    goodput = [[b.per_s for b in bounds.goodput_bounds(scenario, seeds, rate_per_s=rate)] for rate in rates]
    latency = [bounds.latency_bounds(scenario, seeds, rate_per_s=rate)["e2e_mean_s"] for rate in rates]
    assert np.min(goodput) > 0 and np.min(latency) > 0
    for name in ("sarathi", "srpt-oracle", "edd+early_reject"):
        for i, found in enumerate(rollouts(scenario, policies.get(name), seeds, rates)):
            assert np.all(found.metrics["goodput_per_s"] <= np.asarray(goodput[i]) * (1 + 1e-6)), name
            if "reject" not in name:
                assert np.all(found.metrics["e2e_mean_s"] >= latency[i]), name


def test_no_policy_beats_the_bound_on_agents() -> None:
    scenario = from_config(load("configs/scenarios/agents_mixed.yaml", {"workload.num_requests": 40}))
    scenario = dataclasses.replace(scenario, num_slots=48, max_paused_programs=48)
    latency = bounds.latency_bounds(scenario, 3, rate_per_s=0.3)
    assert list(latency) == ["jct_mean_s"]
    policy = policies.get("srpt_program+clair+peak", max_num_seqs=48)
    assert np.all(js.rollout(scenario, policy, 3, rate_per_s=0.3).metrics["jct_mean_s"] >= latency["jct_mean_s"])
