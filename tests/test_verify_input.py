"""A recording that is broken is refused, saying where, before anything is run."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxsched.errors import UserError
from jaxsched.verify import main, verify_folder
from tests.recorded import read_steps, record, workload_rows, write_csv, write_steps


@pytest.fixture(scope="module")
def good_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("good") / "small_pool", workload_rows(num=40), num_gpu_blocks=28)


@pytest.fixture
def folder(good_folder: Path, tmp_path: Path) -> Path:
    """A sound recording, to be spoilt."""
    return Path(shutil.copytree(good_folder, tmp_path / "spoilt"))


def config_with(**changes: Any) -> Callable[[Path], None]:
    """Set keys of `config` (None = remove)."""

    def change(folder: Path) -> None:
        document = json.loads((folder / "config.json").read_text())
        for key, value in changes.items():
            document["config"].pop(key)
            if value is not None:
                document["config"][key] = value
        (folder / "config.json").write_text(json.dumps(document))

    return change


def line_with(file: str, number: int, column: int, value: str) -> Callable[[Path], None]:
    """Set one cell of a CSV file (lines from 1, columns from 0)."""

    def change(folder: Path) -> None:
        lines = (folder / file).read_text().splitlines()
        cells = lines[number - 1].split(",")
        cells[column] = value
        lines[number - 1] = ",".join(cells)
        (folder / file).write_text("\n".join(lines) + "\n")

    return change


def step_with(number: int, edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        steps = read_steps(folder)
        edit(steps[number - 1])
        write_steps(folder, steps)

    return change


def broken_json(folder: Path) -> None:
    with gzip.open(folder / "steps.jsonl.gz", "rt") as file:
        lines = file.readlines()
    lines[2] = lines[2][:40] + "\n"
    with gzip.open(folder / "steps.jsonl.gz", "wt") as file:
        file.writelines(lines)


def cut_short(folder: Path) -> None:
    path = folder / "steps.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-200])


BAD_INPUT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no steps file": (lambda f: (f / "steps.jsonl.gz").unlink(), "steps.jsonl.gz: file is missing"),
    "no config file": (lambda f: (f / "config.json").unlink(), "config.json: file is missing"),
    "config not JSON": (lambda f: (f / "config.json").write_text("{\n oh"), "config.json, line 2: not JSON"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "config.json: a list; expected a JSON object"),
    "config key missing": (config_with(block_size=None), "key 'block_size' is missing"),
    "unknown policy": (config_with(policy="sjf"), "config.policy: unknown policy 'sjf'; expected one of fcfs"),
    "text for a number": (config_with(max_num_seqs="many"), "config.max_num_seqs: is 'many'; expected an integer"),
    "true for a number": (config_with(max_num_seqs=True), "config.max_num_seqs: is True; expected an integer"),
    "number for a switch": (config_with(async_scheduling=1), "config.async_scheduling: is 1; expected true or false"),
    "negative budget": (config_with(max_num_batched_tokens=-4), "is -4; expected 1 to"),
    "watermark NaN": (config_with(watermark=float("nan")), "config.watermark: is nan"),
    "pool sizes disagree": (config_with(num_gpu_blocks=50), "usable_blocks is 27 and num_gpu_blocks 50"),
    "time too large": (config_with(time_b_us_per_token=2**30), "config.time_b_us_per_token: is 1073741824"),
    "step too long": (config_with(time_a_us=2**31 - 1), "config.time_*: a step of 432 tokens could take 21475"),
    "prompt of 0": (line_with("workload.csv", 5, 2, "0"), "workload.csv, line 5, column prompt_tokens: is 0"),
    "output of 0": (line_with("workload.csv", 5, 3, "0"), "workload.csv, line 5, column output_tokens: is 0"),
    "arrival not a number": (line_with("workload.csv", 3, 1, "soon"), "line 3, column arrival_us: is 'soon'"),
    "arrivals out of order": (line_with("workload.csv", 4, 1, "1"), "line 4, column arrival_us: arrival 1 after"),
    "priority too large": (line_with("workload.csv", 4, 4, "4294967296"), "line 4, column priority: is 4294967296"),
    "same id twice": (line_with("workload.csv", 4, 0, "1"), "workload.csv, line 4: request_id 1 occurs twice"),
    "segments too short": (line_with("workload.csv", 6, 10, "u1:0:1"), "line 6, column segments: segments of 1 tokens"),
    "segments malformed": (line_with("workload.csv", 6, 10, "u1:0"), "line 6, column segments: segment 'u1:0'"),
    "column missing": (line_with("workload.csv", 1, 10, "seg"), "workload.csv, line 1: column 'segments' is missing"),
    "field missing": (lambda f: (f / "workload.csv").open("a").write("7,8\n"), "workload.csv, line 42: 2 fields"),
    "prompt beyond the model": (config_with(max_model_len=40), "expected less than max_model_len 40"),
    "unknown request": (line_with("requests.csv", 9, 0, "999"), "requests.csv, line 9: request_id 999 is not in"),
    "request row missing": (
        lambda f: write_csv(f / "requests.csv", list(csv.DictReader((f / "requests.csv").open()))[1:]),
        "requests.csv: no row for request 1",
    ),
    "step not JSON": (broken_json, "steps.jsonl.gz, line 3: not JSON"),
    "steps cut short": (cut_short, "cannot be read"),
    "not gzip": (lambda f: (f / "steps.jsonl.gz").write_text("{}\n"), "steps.jsonl.gz, after line 0: cannot be read"),
    "no steps": (lambda f: write_steps(f, []), "steps.jsonl.gz: no steps"),
    "step field missing": (step_with(2, lambda s: s.pop("ctx")), "steps.jsonl.gz, line 2: key 'ctx' is missing"),
    "step field unknown": (step_with(2, lambda s: s.update(spec=1)), "steps.jsonl.gz, line 2: unknown field 'spec'"),
    "step field of another type": (
        step_with(4, lambda s: s.update(tokens=[[1]])),
        "line 4, field tokens: is [[1]]; expected a list of lists of 2 integers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_refused_saying_where(folder: Path, case: str) -> None:
    spoil, message = BAD_INPUT[case]
    spoil(folder)
    with pytest.raises(UserError) as caught:
        main(folder)
    assert message in str(caught.value) and str(folder) in str(caught.value) and caught.value.exit_code == 2


def test_a_path_without_recordings_is_refused(tmp_path: Path, good_folder: Path) -> None:
    for path, message in {
        tmp_path / "nowhere": "no such folder",
        good_folder / "config.json": "is a file",
        tmp_path: "holds no recording",
        good_folder.parent.parent: "Did you mean",
    }.items():
        with pytest.raises(UserError, match=message):
            verify_folder(path)
