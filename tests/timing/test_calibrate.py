"""Calibration: accuracy on rows not fitted, recovery of a known model, files that can be loaded again, bad input."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls as scipy_nnls

from jaxsched.errors import UserError
from jaxsched.timing import StepFeatures, describe, fit_csv, load_coefficients
from jaxsched.timing.nnls import nonnegative_least_squares
from jaxsched.timing.reference import prefill_quad
from tests.shared_data import shared_path

PAIRS = [("llama-2-7b", 1), ("llama-3-8b", 1), ("codellama-34b", 2), ("llama-2-70b", 2), ("llama-3-70b", 2)]
#: The accuracy asked for on held-out rows.
TARGET = {"decode": 0.05, "prefill": 0.08, "mixed": 0.08}
HEADER = "num_prefill_tokens,prefill_context,num_decode,decode_context,iteration_ms"


@pytest.mark.parametrize(("model", "tp"), PAIRS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_held_out_rows_of_every_vidur_pair_are_within_the_target(model: str, tp: int, seed: int):
    fit = fit_csv(shared_path("data", "vidur_iteration_times.csv"), model=model, device="a100", seed=seed)
    report = fit.report
    assert report["tp"] == tp
    assert report["target_column"] == "iteration_ms_no_kv_save"
    assert report["rows_held_out"] >= 20 and report["rows_fitted"] + report["rows_held_out"] == 71
    assert list(report["excluded"].values()) == [2]
    for kind, target in TARGET.items():
        assert report["held_out"]["by_kind"][kind]["mean_abs_error"] <= target
        assert report["cross_validation"][kind] <= target
    worst = report["held_out"]["worst"]
    assert abs(worst[0]["error"]) == max(r["max_abs_error"] for r in report["held_out"]["by_region"])


def test_the_kv_save_artefact_would_spoil_the_fit_and_is_left_out():
    path = shared_path("data", "vidur_iteration_times.csv")
    clean = fit_csv(path, model="llama-3-8b", device="a100")
    raw = fit_csv(path, model="llama-3-8b", device="a100", target_column="iteration_ms")
    assert "artefact in 73 of 73 rows" in clean.report["target_reason"]
    prefill = StepFeatures(4096, 1, 4096, prefill_quad(4096, 0))
    # README of the data: 73.5 ms of KV save in a 4096-token prefill.
    assert raw.step_time.duration_us(prefill) - clean.step_time.duration_us(prefill) > 60_000


def write_rows(path: Path, rows: list[str], header: str = HEADER) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def synthetic_rows(seed: int = 0, num: int = 150) -> list[str]:
    """Steps timed by a described model, to 0.1 us, in random order."""
    truth = describe("qwen2.5-14b", "h100")
    draw = random.Random(seed)
    rows = []
    for _ in range(num):
        kind = draw.choice(["decode", "prefill", "mixed"])
        prefill = 0 if kind == "decode" else draw.choice([64, 128, 256, 512, 1024, 2048, 4096])
        before = draw.choice([0, 512, 2048]) if prefill else 0
        decodes = 0 if kind == "prefill" else draw.choice([1, 2, 4, 8, 16, 32, 64, 128])
        ctx = draw.randrange(100, 8000) if decodes else 0
        quad = prefill_quad(prefill, before)
        step = StepFeatures(prefill + decodes, int(prefill > 0), prefill, quad, decodes, decodes * (ctx + 1))
        rows.append(f"{prefill},{before},{decodes},{ctx},{truth.duration_us(step) / 1e3:.4f}")
    return rows


def test_a_known_model_is_recovered(tmp_path: Path):
    fit = fit_csv(write_rows(tmp_path / "steps.csv", synthetic_rows()))
    for kind, errors in fit.report["held_out"]["by_kind"].items():
        assert errors["mean_abs_error"] < 0.01, kind
    truth = describe("qwen2.5-14b", "h100").terms
    assert fit.step_time.terms.ctx_us == pytest.approx(truth.ctx_us, rel=0.02)
    assert fit.step_time.terms.quad_us == pytest.approx(truth.quad_us, rel=0.05)


def test_the_split_does_not_depend_on_the_order_of_the_rows(tmp_path: Path):
    rows = synthetic_rows()
    forward = fit_csv(write_rows(tmp_path / "a.csv", rows))
    backward = fit_csv(write_rows(tmp_path / "b.csv", rows[::-1]))
    ours, theirs = forward.report["held_out"]["by_kind"], backward.report["held_out"]["by_kind"]
    assert {kind: v["rows"] for kind, v in ours.items()} == {kind: v["rows"] for kind, v in theirs.items()}
    for kind in ours:
        assert ours[kind]["mean_abs_error"] == pytest.approx(theirs[kind]["mean_abs_error"], rel=1e-3, abs=1e-6)


def test_repeated_points_never_fall_on_both_sides(tmp_path: Path):
    rows = synthetic_rows(num=60)
    once = fit_csv(write_rows(tmp_path / "once.csv", rows))
    thrice = fit_csv(write_rows(tmp_path / "thrice.csv", rows * 3))
    assert thrice.report["rows_held_out"] == 3 * once.report["rows_held_out"]


def test_coefficients_survive_a_file(tmp_path: Path):
    fit = fit_csv(write_rows(tmp_path / "steps.csv", synthetic_rows()), model="qwen2.5-14b", device="h100", tp=2)
    fit.save(tmp_path / "fit.json")
    loaded = load_coefficients(tmp_path / "fit.json")
    for name, value in fit.params.__dict__.items():
        np.testing.assert_array_equal(getattr(loaded.params, name), value)
    assert (loaded.model, loaded.device, loaded.tp) == (fit.step_time.model, fit.step_time.device, 2)
    assert loaded.kv_blocks() == describe("qwen2.5-14b", "h100", tp=2).kv_blocks()
    assert json.loads((tmp_path / "fit.json").read_text())["report"] == json.loads(json.dumps(fit.report))
    assert [p.name for p in tmp_path.glob(".fit*")] == []


def test_host_overhead_is_added_after_the_fit(tmp_path: Path):
    path = write_rows(tmp_path / "steps.csv", synthetic_rows())
    bare, with_host = fit_csv(path), fit_csv(path, host_overhead_us=1500)
    step = StepFeatures(8, num_decode=8, decode_ctx=8000)
    assert with_host.step_time.duration_us(step) == bare.step_time.duration_us(step) + 1500
    assert with_host.report["held_out"] == bare.report["held_out"]


def test_several_prefill_rows_share_their_tokens(tmp_path: Path):
    rows = [f"{row},{1 if int(row.split(',')[0]) else 0}" for row in synthetic_rows()]
    one = fit_csv(write_rows(tmp_path / "one.csv", rows, f"{HEADER},num_prefill"))
    plain = fit_csv(write_rows(tmp_path / "plain.csv", synthetic_rows()))
    assert one.step_time.terms == plain.step_time.terms


def test_capacity_of_an_unnamed_fit_must_be_given(tmp_path: Path):
    fit = fit_csv(write_rows(tmp_path / "steps.csv", synthetic_rows()))
    with pytest.raises(UserError, match="number of KV blocks explicitly"):
        fit.step_time.kv_blocks()


def test_the_smallest_file_accepted_is_fitted_whatever_falls_into_a_fold(tmp_path: Path):
    counts = [1] * 10 + [2, 4]
    rows = [f"0,0,{num},{100 * (i + 1)},{10 + num + i * num / 10:.2f}" for i, num in enumerate(counts)]
    for seed in range(6):
        report = fit_csv(write_rows(tmp_path / "tiny.csv", rows), seed=seed).report
        assert report["not_measured"] == ["prefill", "mixed"]
        assert report["rows_fitted"] + report["rows_held_out"] == 12
        assert report["cross_validation"]["decode"] < 0.5


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("64,0,0,0,nan", r"line 5, column iteration_ms: found 'nan'"),
        ("64,0,0,0,-3", r"line 5, column iteration_ms: found '-3'"),
        ("64,0,0,0,0", r"line 5, column iteration_ms: the time is 0"),
        ("64,0,0,0,inf", r"line 5, column iteration_ms: found 'inf'"),
        ("64.5,0,0,0,3", r"line 5, column num_prefill_tokens: found '64.5'"),
        ("64,,0,0,3", r"line 5, column prefill_context: found ''"),
        ("0,0,0,0,3", r"line 5: a step of no tokens"),
        ("64,0,0,3", r"line 5: 4 fields; expected 5"),
    ],
)
def test_a_bad_value_is_named_by_file_line_and_column(tmp_path: Path, bad: str, message: str):
    rows = synthetic_rows()
    path = write_rows(tmp_path / "steps.csv", [*rows[:3], bad, *rows[3:]])
    with pytest.raises(UserError, match=rf"steps\.csv, {message}"):
        fit_csv(path)


def test_unusable_files_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"missing\.csv: cannot be read"):
        fit_csv(tmp_path / "missing.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(UserError, match="the file has no rows"):
        fit_csv(tmp_path / "empty.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UserError, match="cannot be read"):
        fit_csv(tmp_path / "binary.csv")
    renamed = write_rows(tmp_path / "renamed.csv", synthetic_rows(), HEADER.replace("num_decode", "num_decodes"))
    with pytest.raises(UserError, match=r"line 1: column 'num_decode' is missing.*Did you mean num_decodes"):
        fit_csv(renamed)
    with pytest.raises(UserError, match="at least 12 rows"):
        fit_csv(write_rows(tmp_path / "short.csv", synthetic_rows(num=5)))


def test_selection_problems_name_what_is_there(tmp_path: Path):
    rows = [f"{row},{name},a100,1" for row in synthetic_rows(num=30) for name in ("llama-3-8b", "my-model")]
    path = write_rows(tmp_path / "two.csv", rows, f"{HEADER},model,device,tp")
    with pytest.raises(UserError, match=r"2 models in the file; expected a choice of model: llama-3-8b, my-model"):
        fit_csv(path)
    with pytest.raises(
        UserError, match=r"no rows of model 'llama-3-9b'.*expected one of llama-3-8b, my-model.*Did you"
    ):
        fit_csv(path, model="llama-3-9b")
    with pytest.raises(UserError, match=r"no rows with tp = 2; expected one of \[1\]|no rows with tp = 2"):
        fit_csv(path, model="my-model", tp=2)
    assert fit_csv(path, model="meta-llama/Meta-Llama-3-8B").report["model"] == "llama-3-8b"
    assert fit_csv(path, model="My-Model").step_time.model is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "not a coefficient file"),
        ({"coefficients": {"base_us": 1.0}}, "coefficient 'token_slope_us' is missing"),
        ({"coefficients": {"base": 1.0}}, "unknown coefficient 'base'"),
        ({"coefficients": {"base_us": -1.0, "token_start": [0], "token_slope_us": [1.0]}}, "base_us is -1.0"),
        ({"coefficients": {"base_us": float("nan"), "token_start": [0], "token_slope_us": [1.0]}}, "base_us is nan"),
        ({"coefficients": {"base_us": 1.0, "token_start": 0, "token_slope_us": [1.0]}}, "token_start is 0"),
        ({"coefficients": {"base_us": 1e12, "token_start": [0], "token_slope_us": [1.0]}}, "base_us is 1000000000000"),
        ({"coefficients": {"base_us": 1.0, "token_start": [0], "token_slope_us": [1.0], "ctx_us": 5e3}}, "ctx_us is"),
        ({"tp": 0}, "tp is 0"),
    ],
)
def test_a_bad_coefficient_file_is_refused(tmp_path: Path, change: dict, message: str):
    good = {
        "format": "jaxsched-step-time/1",
        "coefficients": {"base_us": 1.0, "token_start": [0], "token_slope_us": [1.0]},
    }
    path = tmp_path / "fit.json"
    path.write_text(json.dumps({**good, **change}))
    with pytest.raises(UserError, match=message):
        load_coefficients(path)
    path.write_text(json.dumps(good))
    assert load_coefficients(path).duration_us(StepFeatures(10)) == 11
    path.write_text('{"format": ')
    with pytest.raises(UserError, match=r"fit\.json, line 1: is not JSON"):
        load_coefficients(path)


def test_an_unwritable_output_is_refused_and_leaves_nothing(tmp_path: Path):
    fit = fit_csv(write_rows(tmp_path / "steps.csv", synthetic_rows(num=60)))
    with pytest.raises(UserError, match="cannot be written"):
        fit.save(tmp_path / "no" / "such" / "folder.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        fit.save(tmp_path / "folder")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "steps.csv"]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 40))
def test_nonnegative_least_squares_equals_scipy(seed: int, num_columns: int, num_rows: int):
    draw = np.random.default_rng(seed)
    matrix, target = draw.normal(size=(num_rows, num_columns)), draw.normal(size=num_rows)
    ours = nonnegative_least_squares(matrix, target)
    _, residual = scipy_nnls(matrix, target)
    assert ours.min() >= 0
    assert np.linalg.norm(matrix @ ours - target) == pytest.approx(residual, rel=1e-6, abs=1e-7)
