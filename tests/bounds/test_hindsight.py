"""The best schedule in hindsight: against every schedule there is, and against rules in the machine."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

import jaxsched as js
from jaxsched import policies
from jaxsched.bounds import hindsight_optimum
from jaxsched.config import load
from jaxsched.errors import UserError
from jaxsched.scenario import from_config
from jaxsched.timing.step_time import make_params
from jaxsched.workloads import Workload

cp_model = pytest.importorskip("ortools.sat.python.cp_model", reason="needs the extra `hindsight` (OR-Tools)")
STEP_US = 1000


def best_of_all(arrival, prompt, output, pool_blocks, most_running, block_size, weights) -> int:
    """The smallest sum over all start times, one by one."""
    last = int(arrival.max() + output.sum())
    t = np.arange(last)
    best = 10**9
    for start in itertools.product(*(range(a, last - o + 1) for a, o in zip(arrival, output, strict=True))):
        cost = int(np.sum(weights * (np.asarray(start) + output - arrival)))
        if cost >= best:
            continue
        own = t[None] - np.asarray(start)[:, None]
        runs = (own >= 0) & (own < output[:, None])
        blocks = np.where(runs, -(-(prompt[:, None] + own) // block_size), 0)
        if np.all(runs.sum(0) <= most_running) and np.all(blocks.sum(0) <= pool_blocks):
            best = cost
    return best


def test_a_short_request_goes_first_where_memory_holds_one() -> None:
    """One block of 16 tokens; 8 steps and 2 steps, both there: 2 + (2 + 8) = 12, not 8 + 10."""
    found = hindsight_optimum([0, 0], [4, 4], [8, 2], pool_blocks=1, most_running=2)
    assert found.is_optimal and found.response == found.bound == 12 and found.start.tolist() == [2, 0]
    assert hindsight_optimum([0, 0], [4, 4], [8, 2], pool_blocks=1, most_running=2, weights=[9, 1]).response == 82
    assert hindsight_optimum([0, 0], [4, 4], [8, 2], pool_blocks=2, most_running=2).response == 10
    assert hindsight_optimum([0, 0], [4, 4], [8, 2], pool_blocks=2, most_running=1).response == 12
    # It knows what comes: the long one waits for the short one that arrives a step later.
    late = hindsight_optimum([0, 1], [4, 4], [8, 2], pool_blocks=1, most_running=2)
    assert late.start.tolist() == [3, 1] and late.mean_response == (11 + 2) / 2


@pytest.mark.parametrize("seed", range(6))
def test_it_is_the_best_of_all_schedules(seed: int) -> None:
    """Four requests whose blocks (of 2 tokens) grow while they run."""
    random = np.random.default_rng(seed)
    arrival, prompt, output = random.integers(0, 4, 4), random.integers(1, 5, 4), random.integers(1, 5, 4)
    weights = random.integers(1, 4, 4)
    pool, seats = int(random.integers(4, 6)), int(random.integers(2, 4))
    found = hindsight_optimum(
        arrival, prompt, output, pool_blocks=pool, most_running=seats, block_size=2, weights=weights
    )
    assert found.is_optimal
    assert found.response == best_of_all(arrival, prompt, output, pool, seats, 2, weights)
    np.testing.assert_array_equal(found.completion, found.start + output)


def test_no_rule_that_does_not_preempt_beats_it_and_shortest_first_comes_close() -> None:
    """Six windows of 12 requests on an engine whose steps all take 1 ms, with memory for about five of them."""
    windows, num = 6, 12
    random = np.random.default_rng(7)
    arrival = np.sort(random.integers(0, 24, (windows, num)), axis=1)
    arrival -= arrival[:, :1]
    # No request outgrows its blocks, so nothing is ever preempted.
    prompt, output = 1 + 16 * random.integers(1, 8, (windows, num)), random.integers(4, 16, (windows, num))
    at = (arrival + 10_000 * np.arange(windows)[:, None]) * STEP_US
    workload = Workload.build(
        "small", arrival_us=at.ravel().astype(np.int64), program=np.arange(windows * num),
        prompt_tokens=prompt.ravel(), output_tokens=output.ravel(),
    )  # fmt: skip
    scenario = dataclasses.replace(
        from_config(load("configs/scenarios/chat.yaml", {})), workload=workload, num_programs=num, usable_blocks=24,
        timing=make_params(base_us=STEP_US, token_start=[0], token_slope=[0]), num_instances=1, num_slots=16,
        warmup_fraction=0.0, cooldown_fraction=0.0,
    )  # fmt: skip
    best = [
        hindsight_optimum(*each, pool_blocks=24, most_running=16) for each in zip(arrival, prompt, output, strict=True)
    ]
    assert all(each.is_optimal for each in best)
    optimum = np.array([each.mean_response for each in best]) * STEP_US * 1e-6
    ratios = {}
    for name in ("vllm", "sjf-oracle"):
        found = js.rollout(scenario, policies.get(name, max_num_seqs=16), windows, record=True)
        assert found.record is not None
        life = (
            found.record.finish[..., 1]
            - found.record.arrival[..., 1]
            + ((found.record.finish[..., 0] - found.record.arrival[..., 0]) * 2.0**30)
        )
        served = found.record.fate == 2
        assert served.sum(1).tolist() == [num] * windows
        mean_s = np.where(served, life, 0.0).sum(1) / num * 1e-6
        assert not found.metrics["preemptions"].any()
        assert np.all(mean_s >= optimum - 1e-9), name
        ratios[name] = mean_s / optimum
    assert np.mean(ratios["vllm"]) > 1.03 and np.mean(ratios["sjf-oracle"]) < np.mean(ratios["vllm"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"arrival_steps": [0] * 17, "prompt_tokens": [1] * 17, "output_tokens": [1] * 17}, "17 requests"),
        ({"output_tokens": [1]}, "lengths 2, 2, 1, 2"),
        ({"output_tokens": [0, 1]}, "output_tokens 0"),
        ({"prompt_tokens": [900, 1]}, "request 0 needs 57 KV blocks"),
        ({"most_running": 0}, "most_running 0"),
        ({"weights": [1, -1]}, "weights -1"),
    ],
)
def test_what_is_no_small_instance_is_refused(change: dict, says: str) -> None:
    fine = {"arrival_steps": [0, 0], "prompt_tokens": [4, 4], "output_tokens": [8, 2], "most_running": 2}
    with pytest.raises(UserError, match=says):
        hindsight_optimum(**{**fine, **change}, pool_blocks=8)
