"""Reading one recorded scenario: config.json, workload.csv, requests.csv, steps.jsonl.gz.

The format is that of the recordings of the real vLLM scheduler; docs/verify.md lists every field. Everything is checked
here, with file, line and field in the error, so that what follows can rely on it.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxsched.errors import UserError

CONFIG_FILE, WORKLOAD_FILE, REQUESTS_FILE, STEPS_FILE = "config.json", "workload.csv", "requests.csv", "steps.jsonl.gz"
FILES = (CONFIG_FILE, WORKLOAD_FILE, REQUESTS_FILE, STEPS_FILE)

#: Fields of a step in the order in which they are compared: the decisions before what follows from them.
STEP_FIELDS = (
    "step", "t_sched_us", "admitted", "preempted", "tokens", "total", "ctx", "t_start_us", "t_end_us",
    "running", "waiting", "free_blocks", "finished", "free_blocks_after",
)  # fmt: skip
#: Those that are lists, with the integers in one entry (0 = the entries are plain integers).
LIST_FIELDS = {"tokens": 2, "admitted": 3, "preempted": 0, "finished": 0}
REQUEST_FIELDS = (
    "arrival_us", "first_scheduled_us", "first_token_us", "finish_us", "preemptions",
    "cached_tokens_first", "cached_tokens_total", "scheduled_tokens_total",
)  # fmt: skip
POLICIES = ("fcfs", "priority")

Step = dict[str, Any]
_MAX = 2**31 - 1
#: Times of the machine are int32 with this room for the steps in flight (HOLD_US in jaxsched/sim/machine.py).
MAX_STEP_US = 2**26
#: Keys of `config`, each with its type and, for numbers, the smallest and largest value.
_CONFIG: dict[str, tuple[type, float, float]] = {
    "max_num_seqs": (int, 1, _MAX),
    "max_num_batched_tokens": (int, 1, 2**30),
    "long_prefill_token_threshold": (int, 0, 2**30),
    "long_prefill_token_threshold_adaptive": (bool, 0, 1),
    "num_gpu_blocks": (int, 2, 2**30),
    "block_size": (int, 1, 2**20),
    "max_model_len": (int, 2, 2**30),
    "enable_chunked_prefill": (bool, 0, 1),
    "enable_prefix_caching": (bool, 0, 1),
    "policy": (str, 0, 0),
    "scheduler_reserve_full_isl": (bool, 0, 1),
    "watermark": (float, 0.0, 1.0),
    "async_scheduling": (bool, 0, 1),
    "time_a_us": (int, 0, _MAX),
    "time_b_us_per_token": (int, 0, _MAX >> 8),  # see jaxsched.timing.step_time.affine
    "time_c_ns_per_ctx": (int, 0, _MAX // 1000),
}
#: Integer columns of the workload, each with its smallest and largest value.
_WORKLOAD = {
    "request_id": (0, 2**60),
    "arrival_us": (0, 2**60),
    "prompt_tokens": (1, 2**30),
    "output_tokens": (1, 2**30),
    "priority": (-(2**31), _MAX),
}
_TYPE_NAMES = {int: "an integer", bool: "true or false", str: "a string", float: "a number"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One request of the workload."""

    request_id: int
    arrival_us: int
    prompt_tokens: int
    output_tokens: int
    priority: int
    segments: tuple[tuple[str, int, int], ...]  # the prompt's content: (stream, start, length)


@dataclasses.dataclass(frozen=True)
class Recording:
    """A recorded scenario. `rows` are in arrival order."""

    name: str
    config: Mapping[str, Any]  # keys of `_CONFIG`
    usable_blocks: int
    unknown: tuple[str, ...]  # keys of `config` that the machine knows nothing of
    rows: list[Row]
    requests: dict[int, dict[str, int]]  # requests.csv by request id
    steps: list[Step]


def scenario_folders(path: Path) -> tuple[list[Path], list[Path]]:
    """The scenario folders that `path` names (itself, or those in it), and the folders in it that hold no recording.

    Raises:
        UserError: no such folder, or nothing in it is a recording.
    """
    if not path.is_dir():
        found = "is a file" if path.exists() else "no such folder"
        raise UserError(found, where=str(path), expected="a scenario folder, or a folder of scenario folders")
    if _is_scenario(path):
        return [path], []
    inside = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    scenarios = [p for p in inside if _is_scenario(p)]
    if not scenarios:
        deeper = next((p for p in inside if any(q.is_dir() and _is_scenario(q) for q in p.iterdir())), None)
        raise UserError(
            "holds no recording",
            where=str(path),
            expected=f"a folder with {', '.join(FILES)}, or a folder of such folders",
            hint=f"Did you mean {deeper}?" if deeper else "",
        )
    return scenarios, [p for p in inside if p not in scenarios]


def _is_scenario(path: Path) -> bool:
    return any((path / name).exists() for name in FILES)


def load(folder: Path) -> Recording:
    """Read and check one scenario folder.

    Raises:
        UserError: a file is missing or malformed; says where.
    """
    for name in FILES:
        if not (folder / name).is_file():
            raise UserError("file is missing", where=str(folder / name), expected=f"a recording has {', '.join(FILES)}")
    config, usable_blocks, unknown = _read_config(folder / CONFIG_FILE)
    rows = _read_workload(folder / WORKLOAD_FILE, config["max_model_len"])
    requests = _read_requests(folder / REQUESTS_FILE, rows)
    return Recording(folder.name, config, usable_blocks, unknown, rows, requests, _read_steps(folder / STEPS_FILE))


def _read_config(path: Path) -> tuple[dict[str, Any], int, tuple[str, ...]]:
    try:
        document = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"not JSON ({error.msg})", where=f"{path}, line {error.lineno}") from None
    _need_keys(document, ("config", "usable_blocks"), str(path))
    config = document["config"]
    _need_keys(config, tuple(_CONFIG), f"{path}, config")
    for key, (kind, low, high) in _CONFIG.items():
        _check_value(config[key], kind, low, high, f"{path}, config.{key}")
    if config["policy"] not in POLICIES:
        raise UserError(
            f"unknown policy {config['policy']!r}",
            where=f"{path}, config.policy",
            expected=f"one of {', '.join(POLICIES)}",
        )
    usable = document["usable_blocks"]
    _check_value(usable, int, 1, _MAX, f"{path}, usable_blocks")
    if usable != config["num_gpu_blocks"] - 1:
        raise UserError(
            f"usable_blocks is {usable} and num_gpu_blocks {config['num_gpu_blocks']}",
            where=str(path),
            expected="usable_blocks = num_gpu_blocks - 1 (the engine keeps one null block)",
        )
    _check_duration(config, usable, path)
    known = {key: config[key] for key in _CONFIG}
    return known, usable, tuple(key for key in config if key not in _CONFIG)


def _check_duration(config: dict[str, Any], usable_blocks: int, path: Path) -> None:
    """The longest step there can be must fit the machine's clock."""
    context = usable_blocks * config["block_size"]
    tokens = min(config["max_num_batched_tokens"], context)
    longest = config["time_a_us"] + config["time_b_us_per_token"] * tokens
    longest += config["time_c_ns_per_ctx"] * context // 1000
    if longest > MAX_STEP_US:
        raise UserError(
            f"a step of {tokens} tokens could take {longest} us",
            where=f"{path}, config.time_*",
            expected=f"at most {MAX_STEP_US}",
        )


def _check_value(value: Any, kind: type, low: float, high: float, where: str) -> None:
    # JSON's true is Python's 1: only a bool may be one.
    fits = isinstance(value, bool) if kind is bool else isinstance(value, kind) and not isinstance(value, bool)
    if kind is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
    if not fits:
        raise UserError(f"is {value!r}", where=where, expected=_TYPE_NAMES[kind])
    if kind in (int, float) and not low <= value <= high:  # also refuses NaN
        raise UserError(f"is {value!r}", where=where, expected=f"{low} to {high}")


def _need_keys(document: Any, keys: tuple[str, ...], where: str) -> None:
    if not isinstance(document, dict):
        raise UserError(f"a {type(document).__name__}", where=where, expected="a JSON object")
    for key in keys:
        if key not in document:
            raise UserError(f"key {key!r} is missing", where=where, expected=f"the keys {', '.join(keys)}")


def _read_workload(path: Path, max_model_len: int) -> list[Row]:
    rows: list[Row] = []
    seen: set[int] = set()
    for line, fields in _read_csv(path, (*_WORKLOAD, "segments")):
        where = f"{path}, line {line}"
        numbers = {name: _integer(fields[name], f"{where}, column {name}") for name in _WORKLOAD}
        row = Row(**numbers, segments=_segments(fields["segments"], f"{where}, column segments"))
        for name, (low, high) in _WORKLOAD.items():
            if not low <= numbers[name] <= high:
                raise UserError(f"is {numbers[name]}", where=f"{where}, column {name}", expected=f"{low} to {high}")
        if row.prompt_tokens >= max_model_len:
            raise UserError(
                f"prompt of {row.prompt_tokens} tokens",
                where=f"{where}, column prompt_tokens",
                expected=f"less than max_model_len {max_model_len}: the engine refuses it",
            )
        in_segments = sum(length for _, _, length in row.segments)
        if in_segments != row.prompt_tokens:
            raise UserError(
                f"segments of {in_segments} tokens",
                where=f"{where}, column segments",
                expected=f"{row.prompt_tokens}, the prompt_tokens of this row",
            )
        if rows and row.arrival_us < rows[-1].arrival_us:
            raise UserError(
                f"arrival {row.arrival_us} after {rows[-1].arrival_us}",
                where=f"{where}, column arrival_us",
                expected="rows in arrival order",
            )
        if row.request_id in seen:
            raise UserError(f"request_id {row.request_id} occurs twice", where=where)
        seen.add(row.request_id)
        rows.append(row)
    return rows


def _segments(text: str, where: str) -> tuple[tuple[str, int, int], ...]:
    result = []
    for part in text.split("|"):
        pieces = part.split(":")
        if len(pieces) != 3 or not pieces[0]:
            raise UserError(f"segment {part!r}", where=where, expected="stream:start:length joined by |")
        start, length = _integer(pieces[1], where), _integer(pieces[2], where)
        if start < 0 or length < 1:
            raise UserError(f"segment {part!r}", where=where, expected="start >= 0 and length >= 1")
        result.append((pieces[0], start, length))
    return tuple(result)


def _read_requests(path: Path, rows: list[Row]) -> dict[int, dict[str, int]]:
    requests: dict[int, dict[str, int]] = {}
    expected = {row.request_id for row in rows}
    for line, fields in _read_csv(path, ("request_id", *REQUEST_FIELDS)):
        where = f"{path}, line {line}"
        request = _integer(fields["request_id"], f"{where}, column request_id")
        if request not in expected or request in requests:
            found = "occurs twice" if request in requests else f"is not in {WORKLOAD_FILE}"
            raise UserError(
                f"request_id {request} {found}", where=where, expected="one row per request of the workload"
            )
        requests[request] = {name: _integer(fields[name], f"{where}, column {name}") for name in REQUEST_FIELDS}
    missing = sorted(expected - requests.keys())
    if missing:
        raise UserError(
            f"no row for request {missing[0]}", where=str(path), expected="one row per request of the workload"
        )
    return requests


def _read_steps(path: Path) -> list[Step]:
    steps: list[Step] = []
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for text in file:
                steps.append(_step(text, f"{path}, line {len(steps) + 1}"))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        where = f"{path}, after line {len(steps)}"
        raise UserError(
            f"cannot be read ({error})", where=where, expected="a complete gzip file of UTF-8 text"
        ) from None
    if not steps:
        raise UserError("no steps", where=str(path), expected="one JSON object per line")
    return steps


def _step(text: str, where: str) -> Step:
    try:
        step = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"not JSON ({error.msg}, column {error.colno})", where=where) from None
    _need_keys(step, STEP_FIELDS, where)
    unknown = [name for name in step if name not in STEP_FIELDS]
    if unknown:
        raise UserError(
            f"unknown field {unknown[0]!r}", where=where, expected=f"only {', '.join(STEP_FIELDS)}",
            hint="The recording has another version of the format.",
        )  # fmt: skip
    for name in STEP_FIELDS:
        value, width = step[name], LIST_FIELDS.get(name)
        if width is None:
            fits, expected = _is_int(value), "an integer"
        elif width == 0:
            fits, expected = isinstance(value, list) and all(map(_is_int, value)), "a list of integers"
        else:
            expected = f"a list of lists of {width} integers"
            fits = isinstance(value, list) and all(
                isinstance(entry, list) and len(entry) == width and all(map(_is_int, entry)) for entry in value
            )
        if not fits:
            raise UserError(f"is {str(value)[:60]}", where=f"{where}, field {name}", expected=expected)
    return step


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _integer(text: str, where: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise UserError(f"is {text!r}", where=where, expected="an integer") from None
    return value


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read ({error})", where=str(path), expected="UTF-8 text") from None


def _read_csv(path: Path, columns: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """The rows with their line numbers. At least one row; every column of `columns` present, others allowed."""
    reader = csv.reader(_read_text(path).splitlines())
    header = next(reader, [])
    missing = [name for name in columns if name not in header]
    if missing:
        raise UserError(f"column {missing[0]!r} is missing", where=f"{path}, line 1", expected=f"{', '.join(columns)}")
    rows = []
    for fields in reader:
        if len(fields) != len(header):
            where = f"{path}, line {reader.line_num}"
            raise UserError(f"{len(fields)} fields", where=where, expected=f"{len(header)}, as in the header")
        rows.append((reader.line_num, dict(zip(header, fields, strict=True))))
    if not rows:
        raise UserError("no rows", where=str(path), expected="one line per request")
    return rows
