"""`jaxsched verify`: the machine takes the recorded decisions, and a recording that is wrong is found out.

Besides the recordings of the real scheduler, recordings are made with the plain-Python reference, which equals all of
those (tests/oracle), for settings that they do not cover.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from jaxsched.verify import main, replay, verify_folder
from jaxsched.verify.content import block_ids
from jaxsched.verify.recording import REQUEST_FIELDS, STEP_FIELDS, Row
from tests.recorded import read_steps, record, sharing_rows, workload_rows, write_csv, write_steps
from tests.shared_data import shared_path

# The machine equals the engine ------------------------------------------------------------------------------------

RECORDINGS = [
    "a_light", "b_chunk512", "c_kv_preempt", "d_prefix", "e_longprefill",
    "f_priority", "g_multi_turn", "h_async", "i_watermark", "j_no_chunking",
]  # fmt: skip


@pytest.mark.parametrize("name", RECORDINGS)
def test_every_recorded_step_and_request_is_equal(name: str) -> None:
    [report] = verify_folder(shared_path("oracle", "vllm", name))
    assert report.status == "equal" and report.difference is None
    assert report.steps_compared == report.steps == len(read_steps(shared_path("oracle", "vllm", name)))
    assert report.requests_compared >= 100


@pytest.mark.parametrize("name", ["f_priority", "h_async", "i_watermark"])
def test_the_same_workloads_served_without_caching_are_equal(name: str, tmp_path: Path) -> None:
    source = shared_path("oracle", "vllm", name)
    with (source / "workload.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    config = json.loads((source / "config.json").read_text())["config"] | {"enable_prefix_caching": False}
    [report] = verify_folder(record(tmp_path / name, rows, **config))
    assert report.status == "equal", report
    assert sum(len(step["preempted"]) for step in read_steps(tmp_path / name)) > 40


#: Settings x workloads that the recordings do not cover. Block sizes go with the compiled program, to have few of them.
ASYNC = {"async_scheduling": True}
PRIORITY = {"policy": "priority"}
THRESHOLD = {"long_prefill_token_threshold": 24}
ADAPTIVE = {"long_prefill_token_threshold": 24, "long_prefill_token_threshold_adaptive": True}
TINY_BUDGET = {"max_num_batched_tokens": 5, "num_gpu_blocks": 13, "time_a_us": 900}  # below max_num_seqs
NO_CHUNKING = {"enable_chunked_prefill": False, "max_num_batched_tokens": 512, "max_model_len": 330}
NO_ISL = {"scheduler_reserve_full_isl": False}
WATERMARK = {"watermark": 0.2}
LATTICE = {"time_a_us": 1000, "time_b_us_per_token": 0, "time_c_ns_per_ctx": 0}
SETTINGS: dict[str, dict[str, Any]] = {
    "fcfs_small_pool": {},
    "fcfs_watermark_no_isl": WATERMARK | NO_ISL,
    "fcfs_no_chunking_length_cap": NO_CHUNKING,
    "fcfs_threshold": THRESHOLD,
    "fcfs_adaptive_watermark": ADAPTIVE | WATERMARK,
    "fcfs_tiny_budget": TINY_BUDGET,
    "async_small_pool": ASYNC,
    "async_no_chunking_no_isl": ASYNC | NO_CHUNKING | NO_ISL,
    "async_watermark_one_seat": ASYNC | WATERMARK | {"max_num_seqs": 1},
    "async_adaptive_no_isl_blocks_of_24": ASYNC | ADAPTIVE | NO_ISL | {"block_size": 24, "num_gpu_blocks": 20},
    "async_tiny_budget_blocks_of_24": ASYNC | TINY_BUDGET | {"block_size": 24, "num_gpu_blocks": 10},
    "priority_small_pool": PRIORITY,
    "priority_tiny_budget": PRIORITY | TINY_BUDGET,
    "priority_threshold_watermark_no_isl": PRIORITY | THRESHOLD | WATERMARK | NO_ISL,
    "priority_no_chunking": PRIORITY | NO_CHUNKING,
    "priority_async_blocks_of_8": PRIORITY | ASYNC | {"block_size": 8, "num_gpu_blocks": 60},
    "priority_async_adaptive_blocks_of_8": PRIORITY | ASYNC | ADAPTIVE | {"block_size": 8, "num_gpu_blocks": 60},
    "priority_async_lattice_blocks_of_8": PRIORITY | ASYNC | LATTICE | {"block_size": 8, "num_gpu_blocks": 60},
}
FEW_PREEMPTIONS = {"async_watermark_one_seat": 0}


@pytest.mark.parametrize("name", SETTINGS)
def test_recordings_of_other_settings_are_equal(name: str, tmp_path: Path) -> None:
    timing = {"mean_gap_us": 2000, "grid_us": 1000} if "lattice" in name else {}
    rows = workload_rows(seed=len(name), chatty="tiny" in name or "watermark" in name, **timing)
    folder = record(tmp_path / name, rows, **SETTINGS[name])
    steps = read_steps(folder)
    assert sum(len(step["preempted"]) for step in steps) >= FEW_PREEMPTIONS.get(name, 10), "puts no pressure on memory"
    [report] = verify_folder(folder)
    assert report.status == "equal", report
    assert (report.steps_compared, report.requests_compared) == (len(steps), len(rows))


def test_times_beyond_int32_and_idle_hours_are_equal(tmp_path: Path) -> None:
    rows = workload_rows(seed=4, num=40)
    for i, row in enumerate(rows):
        row["arrival_us"] += (i // 10) * 90 * 60 * 1_000_000
    [report] = verify_folder(record(tmp_path / "hours", rows))
    assert report.status == "equal", report


def test_a_priority_queue_longer_than_the_window_is_run_again_with_a_larger_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = []
    steps = replay._steps
    monkeypatch.setattr(replay, "_steps", lambda static, *rest: slots.append(static.num_slots) or steps(static, *rest))
    rows = workload_rows(seed=5, num=160, mean_gap_us=100)
    [report] = verify_folder(record(tmp_path / "crowd", rows, **PRIORITY))
    assert report.status == "equal", report
    assert slots == [128, 256]


def test_a_request_preempted_with_its_last_token_in_flight_finishes_in_batch_order(tmp_path: Path) -> None:
    # Three blocks of 16. Step 2 makes the last token of requests 4 and 7; request 1 takes its 17th token in the call
    # after, one ahead, and gets the block of request 7, the last of the running list.
    rows = workload_rows(num=3)
    for row, (prompt, output) in zip(rows, ((14, 6), (10, 3), (10, 3)), strict=True):
        segments = f"u{row['request_id']}:0:{prompt}"
        row |= {"arrival_us": 0, "prompt_tokens": prompt, "output_tokens": output, "segments": segments}
    folder = record(tmp_path / "in_flight", rows, num_gpu_blocks=4, **ASYNC)
    steps = read_steps(folder)
    assert (steps[2]["finished"], steps[3]["preempted"]) == ([4, 7], [7])
    [report] = verify_folder(folder)
    assert report.status == "equal", report


# Prefix caching ---------------------------------------------------------------------------------------------------

NO_CHUNKING_LONG = {"enable_chunked_prefill": False, "max_num_batched_tokens": 1024, "max_model_len": 900}
LOW_BUDGET = {"max_num_batched_tokens": 48}
BLOCKS_OF_8 = {"block_size": 8, "num_gpu_blocks": 128}
#: Content is shared in every way (`sharing_rows`): copies, forks, continuations, re-hits after preemption.
CACHING: dict[str, dict[str, Any]] = {
    "fcfs": {},
    "fcfs_low_budget_no_isl": LOW_BUDGET | NO_ISL,
    "fcfs_threshold_watermark": THRESHOLD | WATERMARK,
    "fcfs_no_chunking": NO_CHUNKING_LONG,
    "fcfs_adaptive_blocks_of_8": ADAPTIVE | BLOCKS_OF_8,
    "async": ASYNC,
    "async_low_budget": ASYNC | LOW_BUDGET,
    "async_threshold": ASYNC | THRESHOLD,
    "async_no_chunking_no_isl": ASYNC | NO_CHUNKING_LONG | NO_ISL,
    "priority": PRIORITY,
    "priority_low_budget_no_isl": PRIORITY | LOW_BUDGET | NO_ISL,
    "priority_adaptive_blocks_of_8": PRIORITY | ADAPTIVE | BLOCKS_OF_8,
    "priority_async_blocks_of_8": PRIORITY | ASYNC | BLOCKS_OF_8,
    "priority_async_lattice": PRIORITY | ASYNC | LATTICE,
}


@pytest.mark.parametrize("name", CACHING)
def test_recordings_with_shared_content_are_equal(name: str, tmp_path: Path) -> None:
    resumed_hits = 0
    for seed in range(2):
        config = {"num_gpu_blocks": (60, 95)[seed]} | CACHING[name] | {"enable_prefix_caching": True}
        grid = {"mean_gap_us": 2000, "grid_us": 1000} if "lattice" in name else {"mean_gap_us": (2000, 8000)[seed % 2]}
        rows = sharing_rows(seed, block_size=config.get("block_size", 16), **grid)
        folder = record(tmp_path / f"{name}_{seed}", rows, **config)
        [report] = verify_folder(folder)
        assert report.status == "equal", report
        assert report.steps_compared == report.steps and report.requests_compared == len(rows)
        admitted = [entry for step in read_steps(folder) for entry in step["admitted"]]
        assert sum(hit > 0 for _, hit, _ in admitted) > 20, "finds little in the cache"
        resumed_hits += sum(hit > 0 and resumed for _, hit, resumed in admitted)
    assert resumed_hits > 0, "no preempted request finds its own blocks again"


def test_a_change_of_what_was_found_in_the_cache_is_named(tmp_path: Path) -> None:
    folder = record(tmp_path / "shared", sharing_rows(1), enable_prefix_caching=True, num_gpu_blocks=70)
    steps = read_steps(folder)
    where = next(i for i, step in enumerate(steps) if any(hit for _, hit, _ in step["admitted"]))
    steps[where]["admitted"][0][1] += 16
    write_steps(folder, steps)
    [report] = verify_folder(folder)
    assert report.difference is not None and (report.difference.step, report.difference.field) == (where, "admitted")


def test_block_ids_are_equal_iff_all_tokens_up_to_the_end_of_the_block_are() -> None:
    whole = row_with((("g1", 0, 40),))
    split = row_with((("g1", 0, 10), ("g1", 10, 30)), request_id=1)
    shorter = row_with((("g1", 0, 15), ("u2", 0, 20)), request_id=2)
    moved = row_with((("g1", 1, 40),), request_id=3)
    answer = row_with((("g1", 0, 40), ("o0", 0, 9), ("u4", 0, 9)), request_id=4)
    other_start = row_with((("u5", 0, 16), ("g1", 16, 24)), request_id=5)
    rows = [whole, split, shorter, moved, answer, other_start]
    ids, starts = block_ids(rows, [10, 1, 1, 1, 1, 1], 16)
    own = [ids[a:b].tolist() for a, b in zip(starts, [*starts[1:], len(ids)], strict=True)]
    assert [len(blocks) for blocks in own] == [3, 2, 2, 2, 3, 2]  # whole: 40 + 10 - 1 tokens
    assert own[1] == own[0][:2] and own[4] == own[0]  # the answer's first tokens fill block 2
    assert len({own[i][0] for i in (0, 2, 3, 5)}) == 4
    assert own[5][1] not in own[0]  # the same tokens after another beginning are other content


def row_with(segments: tuple[tuple[str, int, int], ...], output_tokens: int = 50, request_id: int = 0) -> Row:
    return Row(request_id, 10 * request_id, sum(n for _, _, n in segments), output_tokens, 0, segments)


# A wrong recording is found out ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("good") / "small_pool", workload_rows(num=40), num_gpu_blocks=28)


@pytest.fixture
def folder(good_folder: Path, tmp_path: Path) -> Path:
    """A sound recording, to be spoilt."""
    return Path(shutil.copytree(good_folder, tmp_path / "spoilt"))


@pytest.mark.parametrize("field", [name for name in STEP_FIELDS if name != "step"])
def test_a_changed_field_of_a_step_is_named(folder: Path, field: str, capsys: pytest.CaptureFixture[str]) -> None:
    steps = read_steps(folder)
    where = next(i for i, step in enumerate(steps) if i > 5 and step[field] not in ([], 0))
    before = json.loads(json.dumps(steps[where][field]))
    if isinstance(before, int):
        steps[where][field] += 1
    elif isinstance(before[0], int):
        steps[where][field][0] += 1
    else:
        steps[where][field][-1][-1] += 1
    write_steps(folder, steps)
    assert main(folder) == 1
    assert f"spoilt: differs at step {where}, field {field} " in capsys.readouterr().out
    [report] = verify_folder(folder)
    assert report.difference is not None and report.steps_compared == where
    assert (report.difference.recorded, report.difference.machine) == (steps[where][field], before)


def test_a_missing_and_a_surplus_last_step_are_found(folder: Path) -> None:
    steps = read_steps(folder)
    for changed, at in ((steps[:-1], len(steps) - 1), ([*steps, steps[-1] | {"step": len(steps)}], len(steps))):
        write_steps(folder, changed)
        [report] = verify_folder(folder)
        assert report.status == "differs" and report.difference is not None
        assert (report.difference.step, report.difference.field) == (at, "step")
        assert (report.difference.recorded is None) == (len(changed) < len(steps))


@pytest.mark.parametrize("field", REQUEST_FIELDS)
def test_a_changed_number_of_requests_csv_is_named(
    folder: Path, field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with (folder / "requests.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[7][field] = str(int(rows[7][field]) + 1)
    write_csv(folder / "requests.csv", rows)
    assert main(folder) == 1
    assert f"differs at requests.csv, request {rows[7]['request_id']}, field {field} " in capsys.readouterr().out


def test_output_and_exit_code_of_a_folder_of_scenarios(
    good_folder: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(good_folder) == 0
    assert capsys.readouterr().out.startswith("small_pool: equal (")
    shutil.copytree(good_folder, tmp_path / "good")
    (tmp_path / "notes").mkdir()
    steps = read_steps(folder)
    steps[9]["free_blocks"] -= 1
    write_steps(folder, steps)
    config = json.loads((good_folder / "config.json").read_text())
    config["config"]["num_speculative_tokens"] = 3
    shutil.copytree(good_folder, tmp_path / "speculative")
    (tmp_path / "speculative" / "config.json").write_text(json.dumps(config))

    assert main(tmp_path) == 1
    text = capsys.readouterr().out
    assert "speculative: NOT CHECKED: the machine does not know the settings num_speculative_tokens" in text
    assert "spoilt: differs at step 9, field free_blocks" in text and "good: equal" in text
    assert "notes: skipped" in text and "3 scenarios: 1 equal, 1 differ, 1 not checked" in text

    assert main(tmp_path, json=True) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["equal"] is False and document["counts"] == {"equal": 1, "differs": 1, "unsupported": 1}
    assert [s["name"] for s in document["scenarios"]] == ["good", "speculative", "spoilt"]
    assert document["scenarios"][2]["difference"]["machine"] == steps[9]["free_blocks"] + 1
    shutil.rmtree(folder)
    assert main(tmp_path, json=True) == 1  # not checked is not equal
    shutil.rmtree(tmp_path / "speculative")
    capsys.readouterr()
    assert main(tmp_path, json=True) == 0 and json.loads(capsys.readouterr().out)["equal"] is True
