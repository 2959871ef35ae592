"""Recorded decisions of the real vLLM scheduler: load, replay, compare (format: shared/oracle/vllm/README.md)."""

from __future__ import annotations

import csv
import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.oracle.cluster import Result, simulate
from tests.oracle.data import EngineConfig, StepFeatures, StepLog, Token, Workload

STEP_FIELDS = (
    "step",
    "t_sched_us",
    "t_start_us",
    "t_end_us",
    "tokens",
    "total",
    "ctx",
    "admitted",
    "preempted",
    "running",
    "waiting",
    "free_blocks",
    "finished",
    "free_blocks_after",
)
REQUEST_FIELDS = (
    "first_scheduled_us",
    "first_token_us",
    "finish_us",
    "preemptions",
    "cached_tokens_first",
    "cached_tokens_total",
    "scheduled_tokens_total",
)


@dataclass(frozen=True)
class Recording:
    """A recorded scenario. Rows are in arrival order; `request_ids[row]` is the recording's name of a row."""

    name: str
    workload: Workload
    engine: EngineConfig
    time_a_us: int
    time_b_us_per_token: int
    time_c_ns_per_ctx: int
    request_ids: list[int]
    steps: list[StepLog]
    requests: list[dict[str, int]]  # rows of requests.csv

    def step_time(self, features: StepFeatures) -> int:
        return (
            self.time_a_us
            + self.time_b_us_per_token * features.total_tokens
            + self.time_c_ns_per_ctx * features.ctx // 1000
        )


@dataclass(frozen=True)
class Difference:
    """The first thing that differs; None = it exists on one side only. `at` = step number or request id."""

    at: int
    field: str
    recorded: Any
    own: Any


def load(folder: Path) -> Recording:
    """Read config.json, workload.csv, requests.csv and steps.jsonl.gz."""
    document = json.loads((folder / "config.json").read_text())
    config = document["config"]
    rows = _read_csv(folder / "workload.csv")

    def column(name: str) -> list[int]:
        return [int(row[name]) for row in rows]

    workload = Workload.simple(column("arrival_us"), column("prompt_tokens"), column("output_tokens"))
    workload.priority = column("priority")
    workload.prompt_content = [_content(row["segments"]) for row in rows]
    workload.output_stream = [f"o{row['request_id']}" for row in rows]
    engine = EngineConfig(
        usable_blocks=document["usable_blocks"],
        order=config["policy"],
        asynchronous=config["async_scheduling"],
        token_budget=config["max_num_batched_tokens"],
        max_num_seqs=config["max_num_seqs"],
        long_prefill_threshold=config["long_prefill_token_threshold"],
        adaptive=config["long_prefill_token_threshold_adaptive"],
        chunked_prefill=config["enable_chunked_prefill"],
        watermark_blocks=int(config["watermark"] * config["num_gpu_blocks"]),
        reserve_full_isl=config["scheduler_reserve_full_isl"],
        block_size=config["block_size"],
        max_model_len=config["max_model_len"],
        prefix_caching=config["enable_prefix_caching"],
    )
    with gzip.open(folder / "steps.jsonl.gz", "rt") as lines:
        steps = [json.loads(line) for line in lines]
    return Recording(
        name=folder.name,
        workload=workload,
        engine=engine,
        time_a_us=config["time_a_us"],
        time_b_us_per_token=config["time_b_us_per_token"],
        time_c_ns_per_ctx=config["time_c_ns_per_ctx"],
        request_ids=column("request_id"),
        steps=steps,
        requests=[{k: int(v) for k, v in row.items()} for row in _read_csv(folder / "requests.csv")],
    )


def replay(recording: Recording) -> Result:
    """The reference's run of the recorded workload."""
    return simulate(recording.workload, recording.engine, recording.step_time)


def named_steps(recording: Recording, steps: list[StepLog]) -> list[StepLog]:
    """Step logs with rows replaced by the recording's request ids."""
    ids = recording.request_ids
    return [
        step
        | {
            "tokens": [[ids[row], n] for row, n in step["tokens"]],
            "admitted": [[ids[row], cached, resumed] for row, cached, resumed in step["admitted"]],
            "preempted": [ids[row] for row in step["preempted"]],
            "finished": [ids[row] for row in step["finished"]],
        }
        for step in steps
    ]


def named_requests(recording: Recording, result: Result) -> list[dict[str, int]]:
    """The result's records as rows of requests.csv, in workload order."""
    ids = recording.request_ids
    return [
        {"request_id": ids[r.row], "arrival_us": r.arrival_us} | {name: getattr(r, name) for name in REQUEST_FIELDS}
        for r in result.records
    ]


def first_difference(recorded_steps: list[StepLog], own_steps: list[StepLog]) -> Difference | None:
    """The first differing step, None when all are equal. Later differences are consequences."""
    for i in range(max(len(recorded_steps), len(own_steps))):
        if i >= len(recorded_steps):
            return Difference(i, "step", None, own_steps[i])
        if i >= len(own_steps):
            return Difference(i, "step", recorded_steps[i], None)
        for name in STEP_FIELDS:
            recorded, own = recorded_steps[i][name], own_steps[i][name]
            if recorded != own:
                return Difference(i, name, recorded, own)
    return None


def first_request_difference(recorded: list[dict[str, int]], own: list[dict[str, int]]) -> Difference | None:
    """The first differing request (lowest id), None when all are equal."""
    recorded_by_id, own_by_id = ({row["request_id"]: row for row in rows} for rows in (recorded, own))
    for request_id in sorted(recorded_by_id.keys() | own_by_id.keys()):
        theirs, ours = recorded_by_id.get(request_id), own_by_id.get(request_id)
        if theirs is None or ours is None:
            return Difference(request_id, "request_id", theirs, ours)
        for name in ("arrival_us", *REQUEST_FIELDS):
            if theirs[name] != ours[name]:
                return Difference(request_id, name, theirs[name], ours[name])
    return None


def _read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _content(segments: str) -> list[Token]:
    tokens: list[Token] = []
    for segment in segments.split("|"):
        stream, start, length = segment.split(":")
        tokens += [(stream, int(start) + k) for k in range(int(length))]
    return tokens
