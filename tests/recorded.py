"""Recordings in the format of shared/oracle/vllm, made with the plain-Python reference (which equals all of those)."""

from __future__ import annotations

import csv
import gzip
import json
import random
from pathlib import Path
from typing import Any

from jaxsched.verify.recording import REQUEST_FIELDS
from tests.oracle import recordings
from tests.oracle.cluster import simulate

BASE_CONFIG: dict[str, Any] = {
    "max_num_seqs": 24,
    "max_num_batched_tokens": 512,
    "long_prefill_token_threshold": 0,
    "long_prefill_token_threshold_adaptive": False,
    "num_gpu_blocks": 30,
    "block_size": 16,
    "max_model_len": 32768,
    "enable_chunked_prefill": True,
    "enable_prefix_caching": False,
    "policy": "fcfs",
    "scheduler_reserve_full_isl": True,
    "watermark": 0.0,
    "async_scheduling": False,
    "time_a_us": 8000,
    "time_b_us_per_token": 60,
    "time_c_ns_per_ctx": 40,
}


def workload_rows(
    seed: int = 0, num: int = 80, mean_gap_us: int = 15_000, grid_us: int = 1, chatty: bool = False
) -> list[dict[str, Any]]:
    """Rows of workload.csv: lognormal lengths; a fifth arrives with the one before; ids are not row numbers.

    `chatty`: short prompts and long answers, so that memory fills after admission.
    """
    draw = random.Random(seed)
    rows, clock = [], 50_000
    for row in range(num):
        if draw.random() < 0.8:
            clock += int(draw.expovariate(1 / mean_gap_us)) // grid_us * grid_us
        prompt = min(60 if chatty else 300, max(1, int(draw.lognormvariate(2 if chatty else 4, 1))))
        output = min(120, max(1, int(draw.lognormvariate(4.4 if chatty else 3, 1))))
        request = 3 * row + 1
        rows.append(
            {"request_id": request, "arrival_us": clock, "prompt_tokens": prompt, "output_tokens": output,
             "priority": draw.randint(0, 2), "session_id": -1, "turn": 0, "parent_id": -1, "prefix_group": -1,
             "prefix_tokens": 0, "segments": f"u{request}:0:{prompt}"}
        )  # fmt: skip
    return rows


def sharing_rows(seed: int = 0, num: int = 80, block_size: int = 16, **options: Any) -> list[dict[str, Any]]:
    """`workload_rows` whose prompts share content in every way that a prefix cache can meet.

    Shared system prompts, repeats of a whole prompt (often a multiple of the block size: copies arise), forks in the
    middle of one, and continuations of an earlier request's answer, also before that is written.
    """
    draw = random.Random(seed)
    rows = workload_rows(seed, num, **options)
    for i, row in enumerate(rows):
        own = f"u{row['request_id']}"
        earlier = rows[draw.randrange(max(0, i - 12), i)] if i else row
        history = [tuple(part.split(":")) for part in earlier["segments"].split("|")] if i else []
        segments = [(stream, int(start), int(length)) for stream, start, length in history]
        kind = draw.choice(["own", "group", "group", "repeat", "fork", "continue", "continue"]) if i else "group"
        fresh = draw.choice([0, 1, block_size, draw.randint(1, 60), draw.randint(1, 200)])
        if kind == "repeat" and sum(n for _, _, n in segments) % block_size and draw.random() < 0.7:
            kind = "group"
        if kind == "own":
            segments = []
        elif kind == "group":
            segments = [(f"g{draw.randint(1, 3)}", 0, draw.choice([1, 2, 3, 5]) * block_size - draw.choice([0, 0, 5]))]
        elif kind == "repeat":
            fresh = 0
        elif kind == "fork":
            segments = _first(segments, draw.randint(1, sum(n for _, _, n in segments)))
        else:
            segments.append((f"o{earlier['request_id']}", 0, draw.randint(1, earlier["output_tokens"])))
        segments = _first(segments, 600)
        if fresh or not segments:
            segments.append((own, 0, fresh or 20))
        row["prompt_tokens"] = sum(n for _, _, n in segments)
        row["segments"] = "|".join(f"{stream}:{start}:{length}" for stream, start, length in segments)
    return rows


def _first(segments: list[tuple[str, int, int]], num_tokens: int) -> list[tuple[str, int, int]]:
    """The segments of the first `num_tokens` tokens."""
    kept = []
    for stream, start, length in segments:
        taken = min(length, num_tokens)
        if taken > 0:
            kept.append((stream, start, taken))
        num_tokens -= taken
    return kept


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def write_steps(folder: Path, steps: list[dict[str, Any]]) -> None:
    with gzip.open(folder / "steps.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(step) + "\n" for step in steps)


def read_steps(folder: Path) -> list[dict[str, Any]]:
    with gzip.open(folder / "steps.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def record(folder: Path, rows: list[dict[str, Any]], **overrides: Any) -> Path:
    """Let the reference serve the workload and write what it did as a recording."""
    config = BASE_CONFIG | overrides
    folder.mkdir(parents=True)
    document = {"scenario": folder.name, "usable_blocks": config["num_gpu_blocks"] - 1, "config": config}
    (folder / "config.json").write_text(json.dumps(document, indent=1))
    write_csv(folder / "workload.csv", rows)
    write_csv(folder / "requests.csv", [dict.fromkeys(("request_id", *REQUEST_FIELDS), 0)])
    write_steps(folder, [])
    recording = recordings.load(folder)
    # The reference knows no max_model_len; the engine stops there.
    workload = recording.workload
    workload.output_tokens = [
        min(output, config["max_model_len"] - prompt)
        for prompt, output in zip(workload.prompt_tokens, workload.output_tokens, strict=True)
    ]
    result = simulate(workload, recording.engine, recording.step_time)
    assert all(r.fate == "finished" for r in result.records), "a recording in which every request finishes"
    write_csv(folder / "requests.csv", recordings.named_requests(recording, result))
    write_steps(folder, recordings.named_steps(recording, result.steps[0]))
    return folder
