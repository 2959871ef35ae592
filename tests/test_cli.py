"""The command line as a user meets it: outputs, exit codes, messages that say where and what, nothing half-written."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jaxsched.cli import main
from tests.shared_data import ROOT, shared_path

CHAT = str(ROOT / "configs" / "scenarios" / "chat.yaml")
DEMO = str(ROOT / "configs" / "compare" / "demo.yaml")
SMALL = ["--workload.num_requests", "60", "--cluster.num_instances", "2"]


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_simulate_prints_a_summary_with_every_fate(capsys):
    code, out, _ = run(capsys, "simulate", CHAT, *SMALL)
    assert code == 0
    for word in (
        "TTFT",
        "TPOT",
        "TBT",
        "E2E",
        "goodput_per_s",
        "preemptions",
        "finished 60",
        "unfinished 0",
        "rejected_size 0",
    ):
        assert word in out


def test_simulate_json_is_one_document_with_a_seed_axis(capsys):
    code, out, err = run(capsys, "simulate", CHAT, *SMALL, "--seeds", "3", "--json")
    document = json.loads(out)
    assert code == 0 and err == ""
    assert len(document["metrics"]["e2e_mean_s"]) == 3 == len(document["seeds"])


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_simulate_records_every_request_s_life(capsys, tmp_path, ending):
    target = tmp_path / f"requests.{ending}"
    code, out, _ = run(capsys, "simulate", CHAT, *SMALL, "--policy", "sarathi", "--record", str(target))
    assert code == 0 and str(target) in out
    if ending == "parquet":
        import pyarrow.parquet as pq

        rows = pq.read_table(target).to_pylist()
    elif ending == "csv":
        import csv

        rows = list(csv.DictReader(target.open()))
    else:
        rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert len(rows) == 60
    for row in rows:
        assert row["fate"] == "finished"
        times = [float(row[k]) for k in ("arrival_s", "first_scheduled_s", "first_token_s", "finish_s")]
        assert times == sorted(times)


def test_simulate_writes_a_report(capsys, tmp_path):
    target = tmp_path / "run.html"
    assert run(capsys, "simulate", CHAT, *SMALL, "--report", str(target))[0] == 0
    assert "<svg" in target.read_text()


def test_compare_writes_report_and_json_and_names_a_winner_or_a_tie(capsys, tmp_path):
    out_folder = tmp_path / "out"
    code, out, _ = run(
        capsys, "compare", DEMO, *SMALL, "--policies", "vllm,static",
        "--compare.seeds", "4", "--compare.loads", "[0.5, 0.9]", "--compare.capacity", "10.0",
        "--out", str(out_folder), "--json",
    )  # fmt: skip
    assert code == 0
    document = json.loads(out)
    assert document == json.loads((out_folder / "comparison.json").read_text())
    assert document["capacity_per_s"] == 10.0 and len(document["winners"]) == 2
    html = (out_folder / "report.html").read_text()
    assert "static" in html and "vllm" in html and "jaxsched" in html


def test_a_pipe_gets_no_progress_and_no_colours(capsys):
    _, out, err = run(capsys, "simulate", CHAT, *SMALL)
    assert "\x1b" not in out and err == ""


@pytest.mark.parametrize("what", ["policies", "routers", "workloads", "models", "devices", "scenarios"])
def test_list_names_what_there_is(capsys, what):
    code, out, _ = run(capsys, "list", what, "--json")
    names = [row["name"] for row in json.loads(out)]
    assert code == 0 and len(names) == len(set(names)) >= 4


def test_calibrate_reports_the_error_by_region(capsys, tmp_path):
    table = shared_path("data", "vidur_iteration_times.csv")
    target = tmp_path / "fit.json"
    code, out, _ = run(
        capsys, "calibrate", str(table), "--model", "llama-3-8b", "--device", "a100", "--out", str(target)
    )
    assert code == 0 and "decode" in out and "prefill" in out and target.exists()
    scenario = f"timing={{kind: coefficients, path: {target}}}"
    code, out, _ = run(capsys, "simulate", CHAT, *SMALL, "--set", scenario, "--cluster.kv_blocks", "20000")
    assert code == 0 and "finished 60" in out


MISTAKES = {
    "unknown key": (["--workload.num_request", "5"], ["num_request", "num_requests"]),
    "unknown scheduler": (["--policy.scheduler", "vlm"], ["vlm", "vllm"]),
    "unknown router": (["--policy.router", "least_kvv"], ["least_kvv", "least_kv"]),
    "unknown preset": (["--workload.preset", "chat_smoth"], ["chat_smoth", "chat_smooth"]),
    "unknown parameter": (["--policy.params.token_budgett", "5"], ["token_budgett", "token_budget"]),
    "unknown device": (["--timing.device", "a1000"], ["a1000"]),
    "impossible memory": (["--timing.model", "llama-3-70b"], ["llama-3-70b"]),
    "negative rate": (["--workload.rate_per_s", "-1"], ["rate_per_s"]),
    "too few slots": (["--cluster.num_slots", "8"], ["num_slots", "max_num_seqs"]),
    "missing trace": (["--workload.path", "nowhere.csv"], ["nowhere.csv"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_exit_code_2_and_no_traceback(capsys, mistake):
    arguments, words = MISTAKES[mistake]
    code, out, err = run(capsys, "simulate", CHAT, *SMALL, *arguments)
    assert code == 2 and out == ""
    assert err.startswith("error: ") and "Traceback" not in err
    for word in words:
        assert word in err


TRACES = {
    "negative tokens": (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00.0000000,-5,3\n",
        ["line 2", "ContextTokens"],
    ),
    "time goes back": (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:01.0000000,5,3\n2023-11-16 18:00:00.0000000,5,3\n",
        ["line 3"],
    ),
    "empty": ("TIMESTAMP,ContextTokens,GeneratedTokens\n", ["trace.csv"]),
    "not a trace": ("a,b\n1,2\n", ["trace.csv"]),
}


@pytest.mark.parametrize("mistake", TRACES)
def test_a_bad_trace_is_refused_with_file_and_line(capsys, tmp_path, mistake):
    text, words = TRACES[mistake]
    path = tmp_path / "trace.csv"
    path.write_text(text)
    code, out, err = run(capsys, "simulate", CHAT, "--workload.path", str(path))
    assert code == 2 and out == ""
    for word in ["trace.csv", *words]:
        assert word in err


def test_a_trace_whose_every_prompt_exceeds_the_pool_is_refused_at_load(capsys, tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00.0000000,5000,3\n")
    code, _, err = run(capsys, "simulate", CHAT, "--workload.path", str(path), "--cluster.kv_blocks", "100")
    assert code == 2 and "KV" in err and "trace.csv" in err


def test_a_prompt_that_exceeds_the_pool_in_a_longer_trace_is_rejected_and_counted(capsys, tmp_path):
    path = tmp_path / "trace.csv"
    rows = "".join(f"2023-11-16 18:00:0{i}.0000000,{5000 if i == 3 else 50},3\n" for i in range(6))
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    code, out, _ = run(capsys, "simulate", CHAT, "--workload.path", str(path), "--cluster.kv_blocks", "100")
    assert code == 0 and "finished 5" in out and "rejected_size 1" in out


@pytest.mark.parametrize("option", ["--record", "--report"])
def test_an_unwritable_output_is_refused_before_any_work(capsys, tmp_path, option):
    blocker = tmp_path / "file"
    blocker.write_text("x")
    code, _, err = run(capsys, "simulate", CHAT, *SMALL, option, str(blocker / "x.csv"))
    assert code == 2 and str(blocker) in err
    assert list(tmp_path.iterdir()) == [blocker]


def test_version_and_help_need_no_jax(capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jax", None)
    assert run(capsys, "--version")[0] == 0
    code, out, _ = run(capsys)
    assert code == 0 and "compare" in out


def test_a_seed_is_the_same_workload_for_every_policy():
    import jaxsched as js

    scenario = js.load(CHAT, {"workload.num_requests": 40, "cluster.num_instances": 2})
    runs = [js.rollout(scenario, js.policies.get(name), seeds=2, record=True) for name in ("vllm", "static")]
    for lane in range(2):
        a, b = (r.records(lane) for r in runs)
        for column in ("arrival_s", "prompt_tokens", "output_tokens"):
            np.testing.assert_array_equal(a[column], b[column])
    assert not np.array_equal(runs[0].metrics["e2e_mean_s"], runs[1].metrics["e2e_mean_s"])
