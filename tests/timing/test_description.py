"""Descriptions of models and devices: orderings that must hold, sizes that are known, and the KV capacity."""

from __future__ import annotations

import csv
import dataclasses

import numpy as np
import pytest

from jaxsched.errors import UserError
from jaxsched.timing import StepFeatures, describe, find_device, find_model, kv_capacity, list_devices, list_models
from jaxsched.timing.reference import prefill_quad
from tests.shared_data import shared_path

STEPS = {
    "one decode": StepFeatures(1, num_decode=1, decode_ctx=1000),
    "decode batch": StepFeatures(64, num_decode=64, decode_ctx=64 * 2000),
    "prefill": StepFeatures(2048, 1, 2048, prefill_quad(2048, 0)),
    "mixed": StepFeatures(544, 1, 512, prefill_quad(512, 1024), 32, 32 * 1000),
}


@pytest.mark.parametrize(
    ("slower", "faster"),
    [
        ("a10", "a40"),
        ("a40", "l40s"),
        ("a100-40g", "a100-80g"),
        ("a100-80g", "h100"),
        ("h100", "h200"),
        ("h200", "b200"),
    ],
)
@pytest.mark.parametrize("model", list_models())
def test_a_faster_device_is_never_slower(model: str, slower: str, faster: str):
    slow, fast = describe(model, slower), describe(model, faster)
    for name, step in STEPS.items():
        assert fast.duration_us(step) <= slow.duration_us(step), name


@pytest.mark.parametrize("model", list_models())
@pytest.mark.parametrize("device", list_devices())
def test_every_described_pair_gives_valid_increasing_coefficients(model: str, device: str):
    step_time = describe(model, device)
    times = [step_time.duration_us(StepFeatures(tokens)) for tokens in range(1, 9000, 61)]
    assert times == sorted(times)
    assert times[-1] > times[0] > 1000


@pytest.mark.parametrize(("name", "billions"), [
    ("llama-2-7b", 6.74), ("llama-2-13b", 13.02), ("llama-2-70b", 68.98), ("llama-3-8b", 8.03), ("llama-3-70b", 70.55),
    ("codellama-34b", 33.74), ("qwen2.5-7b", 7.62), ("qwen2.5-14b", 14.77), ("qwen2.5-32b", 32.76),
    ("qwen2.5-72b", 72.71), ("qwen-72b", 72.29), ("mistral-7b", 7.24), ("mixtral-8x7b", 46.70),
    ("qwen3-30b-a3b", 30.53), ("phi-2", 2.78),
    ("internlm-20b", 20.08),
])  # fmt: skip
def test_parameter_counts_are_the_published_ones(name: str, billions: float):
    # Published on the model cards; biases and norms, left out here, are below 0.2 %.
    assert find_model(name).total_params == pytest.approx(billions * 1e9, rel=0.003)


def test_weights_per_gpu_equal_those_of_the_profiles():
    with shared_path("data", "vidur_derived_efficiency.csv").open() as stream:
        for row in csv.DictReader(stream):
            spec = find_model(row["model"])
            gigabytes = spec.layer_params * spec.dtype_bytes / int(row["tp"]) / 1e9
            assert gigabytes == pytest.approx(float(row["GB_weights_per_gpu"]), rel=0.002, abs=0.006), row


@pytest.mark.parametrize("device", ["a100", "h100", "a40"])
def test_description_is_within_5_percent_of_profiled_linear_layers(device: str):
    # Linear layers only: no attention floor, no output head, no host, no all-reduce. Achieved fractions were fitted to
    # this table, so this guards the transcription, not the generalisation.
    errors = []
    with shared_path("data", "vidur_linear_times.csv").open() as stream:
        for row in csv.DictReader(stream):
            if row["device"] != device:
                continue
            tp = int(row["tp"])
            spec = dataclasses.replace(find_model(row["model"]), vocab=0)
            quiet = {"attention_overhead_us": 0.0, "link_latency_us": 0.0, "link_bandwidth": 1e18}
            step_time = describe(spec, device, tp, host_overhead_us=0.0, overrides=quiet)
            predicted_ms = step_time.duration_us(StepFeatures(int(row["num_tokens"]))) / 1e3
            errors.append(abs(predicted_ms / float(row["linear_ms"]) - 1))
    assert np.mean(errors) < 0.05


def test_description_is_within_11_percent_of_vidur_iterations_per_kind():
    # Measured here: 3-9 % on decode, 5-7 % on prefill, 6-11 % on mixed rows. Vidur counts no output head and no host.
    errors: dict[tuple[str, str], list[float]] = {}
    with shared_path("data", "vidur_iteration_times.csv").open() as stream:
        for row in csv.DictReader(stream):
            prefill, before, decodes, ctx = (
                int(row[k]) for k in ("num_prefill_tokens", "prefill_context", "num_decode", "decode_context")
            )
            if prefill + before > 4096:
                continue
            spec = dataclasses.replace(find_model(row["model"]), vocab=0)
            step = StepFeatures(
                prefill + decodes,
                int(prefill > 0),
                prefill,
                prefill_quad(prefill, before),
                decodes,
                decodes * (ctx + 1),
            )
            predicted = describe(spec, row["device"], int(row["tp"]), host_overhead_us=0.0).duration_us(step) / 1e3
            error = abs(predicted / float(row["iteration_ms_no_kv_save"]) - 1)
            errors.setdefault((row["model"], row["kind"]), []).append(error)
    assert len(errors) == 15
    assert {key: np.mean(values) for key, values in errors.items() if np.mean(values) > 0.11} == {}


def test_tensor_parallel_is_faster_but_not_free():
    one, two, eight = (describe("llama-3-70b", "h200", tp=tp) for tp in (1, 2, 8))
    for step in STEPS.values():
        assert eight.duration_us(step) < two.duration_us(step) < one.duration_us(step)
        assert eight.duration_us(step) > one.duration_us(step) / 8
    # 8 KV heads: at tp 16 each GPU still keeps one, so the KV read no longer shrinks.
    wide, wider = describe("llama-3-70b", "h200", tp=8), describe("llama-3-70b", "h200", tp=16)
    assert wider.terms.ctx_us == wide.terms.ctx_us


def test_pipeline_stages_help_large_batches_and_not_a_single_decode():
    one, four = describe("llama-3-70b", "h200", tp=2), describe("llama-3-70b", "h200", tp=2, pp=4)
    assert four.duration_us(STEPS["one decode"]) >= one.duration_us(STEPS["one decode"]) * 0.99
    assert four.duration_us(STEPS["prefill"]) < 0.4 * one.duration_us(STEPS["prefill"])
    assert four.capacity().num_blocks > 4 * one.capacity().num_blocks


def test_experts_make_small_batches_read_few_weights_and_large_ones_all():
    mixtral = find_model("mixtral-8x7b")
    assert mixtral.active_layer_params < 0.3 * mixtral.layer_params
    moe = describe(mixtral, "h200", host_overhead_us=0.0)
    dense = describe(dataclasses.replace(mixtral, name="all", experts_per_token=8), "h200", host_overhead_us=0.0)
    small = dataclasses.replace(mixtral, name="two", num_experts=2)
    two_experts = describe(small, "h200", host_overhead_us=0.0)
    one_token, prefill = StepFeatures(1), StepFeatures(8192)
    # One token reads exactly its 2 experts; a long prefill reads all 8 but multiplies with 2.
    assert moe.duration_us(one_token) == pytest.approx(two_experts.duration_us(one_token), rel=0.01)
    assert moe.duration_us(StepFeatures(64)) > 2.5 * moe.duration_us(one_token)
    assert moe.duration_us(StepFeatures(64)) == pytest.approx(dense.duration_us(one_token), rel=0.10)
    assert moe.duration_us(prefill) < 0.4 * dense.duration_us(prefill)


def test_kv_capacity_agrees_with_vidurs_planner_up_to_what_it_leaves_out():
    # Vidur ignores embeddings, output head and reserve, so it has more; it rounds down to whole requests of 4096.
    # 70B on 2 x 80 GB has 8 GiB left of 72, where the 2 GiB reserve and the 2 GiB of embeddings weigh most.
    with shared_path("data", "vidur_kv_capacity_a100.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 5
    for row in rows:
        ours = kv_capacity(find_model(row["model"]), find_device(row["device"]), tp=int(row["tp"]))
        theirs = int(row["kv_capacity_tokens"])
        assert 0.5 * theirs < ours.num_tokens <= 1.02 * theirs, ours.explanation
        if "70" not in row["model"]:
            assert ours.num_tokens > 0.9 * theirs, ours.explanation
        bare = dataclasses.replace(find_model(row["model"]), vocab=0)
        same = kv_capacity(bare, find_device(row["device"]), tp=int(row["tp"]), reserved_bytes=0)
        assert theirs <= same.num_tokens < theirs + 4096 + 16, same.explanation


def test_kv_capacity_explains_itself_and_kv_blocks_agrees():
    step_time = describe("llama-3-8b", "a100")
    capacity = step_time.capacity()
    assert step_time.kv_blocks() == capacity.num_blocks == 28182
    for part in ("80.0 GiB x 0.9", "weights 15.0 GiB", "reserve 2.0 GiB", "131072 bytes/token", "28182 blocks"):
        assert part in capacity.explanation
    assert capacity.explanation in step_time.explain()


def test_a_model_that_does_not_fit_is_refused_with_the_arithmetic():
    with pytest.raises(UserError, match=r"does not fit.*larger tp or pp.*weights 131.4 GiB"):
        describe("llama-3-70b", "a100").kv_blocks()
    assert "does not fit" in describe("llama-3-70b", "a100").explain()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("llama-3-9b", "a100"), r"unknown model 'llama-3-9b'.*Did you mean llama-3-8b"),
        (("llama-3-8b", "h1000"), r"unknown device 'h1000'.*Did you mean h100"),
        (("llama-3-8b", "a100", 3), "tp is 3.*a divisor of the 32 attention heads"),
        (("llama-3-8b", "a100", 1, 33), "pp is 33.*1 to 32"),
    ],
)
def test_impossible_descriptions_are_refused(arguments: tuple, message: str):
    with pytest.raises(UserError, match=message):
        describe(*arguments)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"weight_read_fractoin": 0.5}, "unknown override.*Did you mean weight_read_fraction"),
        ({"weight_read_fraction": 1.5}, "weight_read_fraction is 1.5"),
        ({"bandwidth": 0.0}, "bandwidth is 0.0"),
        ({"bandwidth": float("nan")}, "bandwidth is nan"),
        ({"layer_overhead_us": "x"}, "layer_overhead_us is 'x'"),
    ],
)
def test_bad_overrides_are_refused(overrides: dict, message: str):
    with pytest.raises(UserError, match=message):
        describe("llama-3-8b", "a100", overrides=overrides)


def test_names_are_found_by_id_alias_and_case():
    assert find_model("meta-llama/Meta-Llama-3-8B-Instruct").name == "llama-3-8b"
    assert find_model("meta-llama/Llama-2-70b-hf").name == find_model("LLAMA2-70B").name == "llama-2-70b"
    assert find_device("A100").name == "a100-80g"
