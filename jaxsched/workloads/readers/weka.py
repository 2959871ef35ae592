"""Coding-agent sessions (WEKA kv-cache-tester): a folder of ``trace_*.json``, one session a file.

Source: github.com/callanjfox/kv-cache-tester, traces/. A file has `id`, `block_size`, `requests`; a request has `t` (s
from the start of the session), `in`, `out` (tokens), `api_time` and `think_time` (s). An entry of type "subagent" holds
requests of its own, with `t` counted from its start.

A session is one program. The pause before a turn is its recorded `think_time` (from the previous answer to this
request: tool run, approval or typing); where it is missing, ``t - (previous t + previous api_time)``, at least 0
(counted). Requests without output (`out` 0) are left out and counted; the pause of the next one then also holds the
time they took.
Sessions have no common clock: they start as a Poisson process of `rate_per_s`, keyed by (seed, position in file order).
`hash_ids` are not used yet.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxsched.errors import UserError
from jaxsched.workloads.readers.sessions import TurnTable
from jaxsched.workloads.readers.text import Record, empty_file, open_bytes
from jaxsched.workloads.readers.vidur import poisson_arrivals_us
from jaxsched.workloads.table import Workload


def session_files(path: Path) -> list[Path]:
    """The session files of a folder (or of its `traces` folder), or the file itself."""
    if path.is_file():
        return [path]
    return sorted(path.glob("trace_*.json")) or sorted(path.glob("traces/trace_*.json"))


def read(path: Path, *, rate_per_s: float | None = None, seed: int = 0, subagents: str = "skip") -> Workload:
    """Sessions of a coding agent.

    Args:
        path: the folder, or one session file.
        rate_per_s: sessions that start per second; needed when there is more than one session.
        seed: seed of the session starts.
        subagents: "skip", or "independent" to add each as a program that starts at its recorded offset from the start
            of its session, whatever the session does meanwhile.
    """
    files = session_files(path)
    if not files:
        raise UserError("no session files", where=str(path), expected="files named trace_*.json")
    if subagents not in ("skip", "independent"):
        raise UserError(f"subagents {subagents!r}", expected="'skip' or 'independent'")
    if rate_per_s is None and len(files) > 1:
        raise UserError(
            f"{len(files)} sessions without a common clock",
            where=str(path),
            expected="an arrival rate of sessions",
            hint="Give rate_per_s (sessions per second).",
        )
    starts = [0] if rate_per_s is None else poisson_arrivals_us(seed, len(files), rate_per_s).tolist()
    table = TurnTable()
    counts = {"sessions": 0, "subagents": 0, "subagent_requests": 0, "pauses_derived": 0, "requests_without_output": 0}
    for file, start_us in zip(files, starts, strict=True):
        requests = _load(file)
        counts["sessions"] += 1
        main = [r for r in requests if r.data.get("type") != "subagent"]
        _add_program(table, main, start_us, counts)
        for record in requests:
            if record.data.get("type") == "subagent":
                nested = [_Request(r, file, record.line) for r in _list(record, "requests")]
                counts["subagents"] += 1
                counts["subagent_requests"] += len(nested)
                if subagents == "independent":
                    _add_program(table, nested, start_us + round(record.number("t") * 1e6), counts)
    if not len(table):
        raise empty_file(path)
    verb = "left out" if subagents == "skip" else "added as independent programs"
    notes = [f"{counts['subagents']} sub-agents with {counts['subagent_requests']} requests {verb}"]
    if rate_per_s is not None:
        notes.append(f"sessions start at {rate_per_s:g}/s (Poisson, seed {seed}): the files have no common clock")
    return table.workload(path.stem, source=str(path), format="weka", notes=notes, counts=counts)


class _Request(Record):
    """A request entry; `line` is its position in the session, counted from 1."""

    @property
    def where(self) -> str:
        return f"{self.path}, request {self.line}"


def _load(file: Path) -> list[Record]:
    """The entries of one session file."""
    with open_bytes(file) as handle:
        text = handle.read()
    try:
        data = json.loads(text)
    except ValueError as problem:
        where = f"{file}, line {getattr(problem, 'lineno', 1)}"
        cut = not text.rstrip().endswith(b"}")
        hint = "The file looks truncated: download it again." if cut else ""
        raise UserError(f"not valid JSON ({problem})", where=where, expected="one session", hint=hint) from None
    if not isinstance(data, dict):
        raise UserError(f"a JSON {type(data).__name__}", where=str(file), expected="an object with a list 'requests'")
    entries = _list(Record(data, file, 1), "requests")
    return [_Request(entry, file, position) for position, entry in enumerate(entries, start=1)]


def _list(record: Record, name: str) -> list[dict[str, Any]]:
    value = record.data.get(name)
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise UserError(
            "missing or not a list of objects", where=f"{record.where}, field {name}", expected="a list of objects"
        )
    return value


def _add_program(table: TurnTable, requests: Sequence[Record], start_us: int, counts: dict[str, int]) -> None:
    """Add one session; its first request arrives at `start_us` plus its own `t`."""
    program = table.columns["program"][-1] + 1 if len(table) else 0
    turn, arrival_us, previous_end, skipped = 0, 0, None, False
    for record in requests:
        time, prompt, output = record.number("t"), record.integer("in", 1), record.integer("out", 0)
        think = record.number("think_time", default=None)
        if output == 0:
            counts["requests_without_output"] += 1
            skipped = True
            continue
        if turn == 0:
            arrival_us, pause_s = start_us + round(time * 1e6), 0.0
        elif think is None or skipped:
            counts["pauses_derived"] += 1
            pause_s = max(time - (previous_end if previous_end is not None else time), 0.0)
        else:
            pause_s = think
        table.add(program, turn, arrival_us, prompt, output, round(pause_s * 1e6), record.line)
        turn, skipped = turn + 1, False
        previous_end = time + record.number("api_time", default=0.0)
