"""Rollouts: devices, traces, windows, capacity, and that the numbers of a summary are those of the records."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

import jaxsched as js
from jaxsched.comparison import measure_capacity, measure_rate, timeline
from jaxsched.errors import UserError
from jaxsched.metrics.histogram import RELATIVE_ERROR, upper_edges_us
from jaxsched.scenario import Scenario, SloClass
from jaxsched.timing import affine
from jaxsched.workloads import Preset, Workload, get_preset
from jaxsched.workloads.arrivals import Renewal
from jaxsched.workloads.laws import Constant, Exponential, LogNormalMixture
from jaxsched.workloads.sessions import Pause, SessionSpec
from tests.shared_data import shared_path

SMALL = Scenario(
    name="small", workload=get_preset("chat_smooth"), num_programs=60, rate_per_s=8.0, num_instances=2,
    usable_blocks=2000, timing=affine(8000, 60, 40), warmup_fraction=0.0,
    slo=(SloClass("all", ttft_us=500_000, tpot_us=40_000),),
)  # fmt: skip
VLLM = js.policies.get("vllm", max_num_seqs=64)


@pytest.fixture(scope="module")
def recorded():
    return js.rollout(SMALL, VLLM, seeds=3, record=True, num_devices=1)


def test_lanes_spread_over_devices_give_the_same_bits(recorded):
    assert len(jax.local_devices()) >= 2, "conftest gives the tests two CPU devices"
    spread = js.rollout(SMALL, VLLM, seeds=3, record=True, num_devices=2)
    for name, values in recorded.metrics.items():
        np.testing.assert_array_equal(values, spread.metrics[name], err_msg=name)
    np.testing.assert_array_equal(recorded.histograms, spread.histograms)


def test_histogram_quantiles_are_the_records_quantiles_within_the_stated_error(recorded):
    for lane in range(3):
        rows = recorded.records(lane)
        e2e, ttft = rows["finish_s"] - rows["arrival_s"], rows["first_token_s"] - rows["arrival_s"]
        tpot = (rows["finish_s"] - rows["first_token_s"])[rows["output_tokens"] > 1] / (
            rows["output_tokens"][rows["output_tokens"] > 1] - 1
        )
        for name, values in (("e2e", e2e), ("ttft", ttft), ("tpot", tpot)):
            assert recorded.metrics[f"{name}_mean_s"][lane] == pytest.approx(values.mean(), rel=RELATIVE_ERROR)
            exact = np.quantile(values, 0.5, method="inverted_cdf")
            assert recorded.metrics[f"{name}_p50_s"][lane] == pytest.approx(exact, rel=2.1 * RELATIVE_ERROR)


def test_goodput_counts_the_requests_of_the_records_that_meet_every_promise(recorded):
    for lane in range(3):
        rows = recorded.records(lane)
        ttft = rows["first_token_s"] - rows["arrival_s"]
        tpot = (rows["finish_s"] - rows["first_token_s"]) / np.maximum(rows["output_tokens"] - 1, 1)
        good = ((ttft <= 0.5) & (tpot <= 0.04)).sum()
        assert recorded.metrics["slo_attainment"][lane] * 60 == pytest.approx(good, abs=1e-9)


def test_every_gap_between_tokens_is_in_the_histogram(recorded):
    from jaxsched.sim.state import Hist

    for lane in range(3):
        rows = recorded.records(lane)
        gaps = recorded.histograms[lane, :, Hist.TBT].sum()
        assert gaps == (rows["output_tokens"] - 1).sum()
        middle = (upper_edges_us() + np.concatenate([[0], upper_edges_us()[:-1]])) / 2
        total = (recorded.histograms[lane, 0, Hist.TBT] * middle).sum() * 1e-6
        assert total == pytest.approx((rows["finish_s"] - rows["first_token_s"]).sum(), rel=RELATIVE_ERROR)


def test_the_summary_names_every_fate_and_prints_no_nan(recorded):
    text = str(recorded.summary())
    none = ("unfinished", "rejected_size", "rejected_queue", "timed_out", "never_arrived")
    for fate in ("finished 60", *(f"{name} 0" for name in none)):
        assert fate in text
    assert "nan" not in text


def test_unfinished_requests_are_counted_when_the_horizon_cuts_the_run():
    result = js.rollout(dataclasses.replace(SMALL, horizon_us=4_000_000), VLLM, seeds=2)
    assert np.all(result.metrics["fate_unfinished"] > 0) and np.all(result.metrics["fate_never_arrived"] > 0)
    total = sum(v for k, v in result.metrics.items() if k.startswith("fate_"))
    np.testing.assert_array_equal(total, 60)


def test_timed_out_and_rejected_requests_are_counted():
    crowded = dataclasses.replace(SMALL, usable_blocks=150, slo=(SloClass("all", timeout_us=2_000_000),))
    result = js.rollout(crowded, VLLM, seeds=2, rate_per_s=100.0)
    assert np.all(result.metrics["fate_timed_out"] > 0) and np.all(result.metrics["fate_rejected_size"] > 0)
    np.testing.assert_array_equal(sum(v for k, v in result.metrics.items() if k.startswith("fate_")), 60)


def test_a_pool_that_no_request_fits_is_said_in_words():
    # `usable_blocks` is traced: the program is that of the crowded run above.
    result = js.rollout(
        dataclasses.replace(SMALL, usable_blocks=1, slo=(SloClass("all", timeout_us=2_000_000),)),
        VLLM,
        seeds=2,
        rate_per_s=100.0,
    )
    (said,) = result.warnings()
    assert "nothing finished: 120 requests were refused" in said and "1 usable KV blocks" in said


def trace(num: int = 90) -> Workload:
    return Workload.build(
        "t", arrival_us=np.arange(num) * 100_000, prompt_tokens=np.full(num, 100), output_tokens=np.full(num, 5)
    )


def test_seeds_of_a_trace_are_windows_that_share_one_table():
    scenario = dataclasses.replace(SMALL, workload=trace(), num_programs=30, rate_per_s=trace().rate_per_s)
    result = js.rollout(scenario, VLLM, seeds=3, record=True)
    np.testing.assert_array_equal(result.metrics["fate_finished"], 30)
    starts = [result.records(lane)["arrival_s"][result.records(lane)["fate"] == "finished"].min() for lane in range(3)]
    np.testing.assert_allclose(starts, [0.0, 3.0, 6.0])
    np.testing.assert_allclose(result.metrics["e2e_mean_s"], result.metrics["e2e_mean_s"][0], rtol=1e-6)


def test_a_trace_replayed_whole_reads_each_arrival_at_its_time():
    path = shared_path("traces", "azure_llm_2023", "AzureLLMInferenceTrace_code.csv")
    workload = js.workloads.read(str(path)).head(400)
    scenario = dataclasses.replace(
        SMALL, workload=workload, num_programs=400, rate_per_s=workload.rate_per_s, usable_blocks=20000
    )
    rows = js.rollout(scenario, VLLM, record=True).records()
    np.testing.assert_allclose(rows["arrival_s"], workload.arrival_us * 1e-6, atol=1e-6)
    np.testing.assert_array_equal(rows["prompt_tokens"], workload.prompt_tokens)
    assert np.all(rows["fate"] == "finished")


def test_capacity_is_that_of_a_server_whose_capacity_is_known():
    """One request at a time, 100 steps of 10 ms each: at most one request per second."""
    workload = get_preset("renewal").with_options(
        interarrival="exponential", size="constant", mean_output_tokens=100, prompt_tokens=1
    )
    server = dataclasses.replace(
        SMALL, workload=workload, num_instances=1, timing=affine(10_000, 0, 0), rate_per_s=0.5, queue_capacity=4096,
    )  # fmt: skip
    capacity = measure_capacity(server, js.policies.get("vllm", max_num_seqs=1), seeds=range(4))
    assert capacity.capacity == pytest.approx(1.0, rel=0.04)


def test_stability_of_programs_of_several_turns_is_that_of_whole_programs():
    """Ten turns of 4 steps of 25 ms, one at a time: 1 program per second, though turns only arrive as they are served.

    (At 1.5 times that rate 95 % of the turns that arrive are delivered. Of the programs, which share the server turn by
    turn, 42 % are done in the time: exp(-c) with 1.5 (1 - exp(-c)) = c.)
    """
    spec = SessionSpec(
        arrivals=Renewal(Exponential()), turns=Constant(10.0), first_prompt=Constant(1.0), new_tokens=Constant(1.0),
        output=Constant(4.0), pauses=(Pause("none", 1.0, LogNormalMixture(((1.0, -9.0, 0.1),))),), max_turns=10,
    )  # fmt: skip
    server = dataclasses.replace(
        SMALL, workload=Preset("ten_turns", "", "", spec, rate_per_s=0.5), num_instances=1, timing=affine(25_000, 0, 0),
        num_programs=300, max_paused_programs=512, prefix_cache="off",
    )  # fmt: skip
    fast, slow = (measure_rate(server, js.policies.get("vllm", max_num_seqs=1), rate, [0]) for rate in (1.5, 0.6))
    assert 0.3 * 1.5 < fast["throughput"] < 0.75 * 1.5 and fast["backlog_slope"] > 0.3
    assert slow["throughput"] > 0.95 * 0.6


def test_the_timeline_ends_empty(recorded):
    line = timeline(recorded)
    assert line.batch.shape[1] == 2 and np.all(np.diff(line.t_s) >= 0)
    assert line.batch[-1].sum() == 0 and line.kv_used_fraction[-1].sum() == 0 and line.batch.max() > 0


@pytest.mark.parametrize(("seeds", "rate"), [([], 1.0), (1, 0.0), (1, -2.0)])
def test_nothing_to_run_is_refused(seeds, rate):
    with pytest.raises(UserError):
        js.rollout(SMALL, VLLM, seeds=seeds, rate_per_s=rate)


def test_a_step_that_could_outgrow_the_clock_is_refused():
    with pytest.raises(UserError, match="step"):
        js.rollout(dataclasses.replace(SMALL, timing=affine(10_000_000, 300_000, 40)), VLLM)
