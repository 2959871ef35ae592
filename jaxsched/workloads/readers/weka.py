"""Coding-agent sessions (WEKA kv-cache-tester): a folder of ``trace_*.json``, one session a file.

Source: github.com/callanjfox/kv-cache-tester, traces/. A file has `id`, `block_size`, `requests`; a request has `t` (s
from the start of the session), `in`, `out` (tokens), `hash_ids`, `input_types`, `api_time` and `think_time` (s). An
entry of type "subagent" holds requests of its own, with `t` counted from its start.

A session is one program. The pause before a turn is its recorded `think_time` (from the previous answer to this
request: tool run, approval or typing); where it is missing, ``t - (previous t + previous api_time)``, at least 0
(counted). Requests without output (`out` 0) are left out and counted; the pause of the next one then also holds the
time they took.
The kind of the pause (`tool`) is "tool" before a request whose input holds a tool result, else "user". Sessions have no
common clock: they start as a Poisson process of `rate_per_s`, keyed by (seed, position in file order).

`hash_ids` (full blocks of `block_size` tokens of the prompt) become the workload's block ids. They mean something only
inside one file, so nothing is shared between sessions; a sub-agent shares its session's. Sub-agents are programs of
their own, not turns of the session: they run beside it (several at once), and as turns they would wait for each other
and hold up the session, whose recorded pauses contain their time already.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxsched.errors import UserError
from jaxsched.workloads.readers.sessions import TurnTable, check_block_tokens
from jaxsched.workloads.readers.text import Record, empty_file, open_bytes
from jaxsched.workloads.readers.vidur import poisson_arrivals_us
from jaxsched.workloads.table import Workload


def session_files(path: Path) -> list[Path]:
    """The session files of a folder (or of its `traces` folder), or the file itself."""
    if path.is_file():
        return [path]
    return sorted(path.glob("trace_*.json")) or sorted(path.glob("traces/trace_*.json"))


TOOLS = ("tool", "user")


def read(
    path: Path,
    *,
    rate_per_s: float | None = None,
    seed: int = 0,
    subagents: str = "skip",
    arrivals: str = "closed",
    content_block_tokens: int | None = None,
) -> Workload:
    """Sessions of a coding agent.

    Args:
        path: the folder, or one session file.
        rate_per_s: sessions that start per second; needed when there is more than one session.
        seed: seed of the session starts.
        subagents: "skip", or "independent" to add each as a program that starts at its recorded offset from the start
            of its session, whatever the session does meanwhile.
        arrivals: "closed": a turn arrives when its pause after the previous answer is over; "open": every request is a
            program of its own, at its recorded time `t` after the start of its session.
        content_block_tokens: tokens per block id; None = `block_size` of the files, 0 = leave the ids out.
    """
    files = session_files(path)
    if not files:
        raise UserError("no session files", where=str(path), expected="files named trace_*.json")
    if subagents not in ("skip", "independent"):
        raise UserError(f"subagents {subagents!r}", expected="'skip' or 'independent'")
    if arrivals not in ("closed", "open"):
        raise UserError(f"arrivals {arrivals!r}", expected="'closed' or 'open'")
    if rate_per_s is None and len(files) > 1:
        raise UserError(
            f"{len(files)} sessions without a common clock",
            where=str(path),
            expected="an arrival rate of sessions",
            hint="Give rate_per_s (sessions per second).",
        )
    starts = [0] if rate_per_s is None else poisson_arrivals_us(seed, len(files), rate_per_s).tolist()
    adder = _Adder(arrivals == "open", content_block_tokens)
    counts = adder.counts
    for file, start_us in zip(files, starts, strict=True):
        session, requests = _load(file)
        adder.begin_file(session)
        counts["sessions"] += 1
        adder.add([r for r in requests if r.data.get("type") != "subagent"], start_us)
        for record in requests:
            if record.data.get("type") == "subagent":
                nested = [_Request(r, file, record.line) for r in _list(record, "requests")]
                counts["subagents"] += 1
                counts["subagent_requests"] += len(nested)
                if subagents == "independent":
                    adder.add(nested, start_us + round(record.number("t") * 1e6))
    table = adder.table
    if not len(table):
        raise empty_file(path)
    verb = "left out" if subagents == "skip" else "added as independent programs"
    notes = [f"{counts['subagents']} sub-agents with {counts['subagent_requests']} requests {verb}"]
    if rate_per_s is not None:
        notes.append(f"sessions start at {rate_per_s:g}/s (Poisson, seed {seed}): the files have no common clock")
    return table.workload(
        path.stem,
        content_block_tokens=adder.block_tokens or 0,
        tool_names=TOOLS,
        source=str(path),
        format="weka",
        notes=notes,
        counts=counts,
    )


class _Request(Record):
    """A request entry; `line` is its position in the session, counted from 1."""

    @property
    def where(self) -> str:
        return f"{self.path}, request {self.line}"


def _load(file: Path) -> tuple[Record, list[Record]]:
    """One session file: the whole, and its requests."""
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
    session = Record(data, file, 1)
    entries = _list(session, "requests")
    return session, [_Request(entry, file, position) for position, entry in enumerate(entries, start=1)]


def _list(record: Record, name: str) -> list[dict[str, Any]]:
    value = record.data.get(name)
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise UserError(
            "missing or not a list of objects", where=f"{record.where}, field {name}", expected="a list of objects"
        )
    return value


class _Adder:
    """Adds the requests of sessions to a table."""

    def __init__(self, opened: bool, block_tokens: int | None):
        self.table = TurnTable()
        self.counts = {
            "sessions": 0,
            "subagents": 0,
            "subagent_requests": 0,
            "pauses_derived": 0,
            "requests_without_output": 0,
        }
        self.opened = opened
        self.block_tokens = None if block_tokens is None else check_block_tokens(block_tokens)
        self._given = block_tokens is not None
        self._first_id, self._next_id = 0, 0  # ids of a file are shifted behind those of the files before it
        self._programs = 0

    def begin_file(self, session: Record) -> None:
        """The block size that the file names, which must be that of the others."""
        self._first_id = self._next_id
        if not self._given and ("block_size" in session.data or self.block_tokens is None):
            size = session.integer("block_size", 1, default=0)
            if self.block_tokens not in (None, size):
                raise UserError(
                    f"{size}, but {self.block_tokens} in the files before",
                    where=f"{session.path}, field block_size",
                    expected="one block size",
                    hint="content_block_tokens 0 ignores the block ids.",
                )
            self.block_tokens = size

    def add(self, requests: Sequence[Record], start_us: int) -> None:
        """One program (or one per request); the first request arrives at `start_us` plus its own `t`."""
        turn, arrival_us, previous_end, skipped = 0, 0, None, False
        for record in requests:
            time, prompt, output = record.number("t"), record.integer("in", 1), record.integer("out", 0)
            think = record.number("think_time", default=None)
            if output == 0:
                self.counts["requests_without_output"] += 1
                skipped = True
                continue
            pause_s, tool = 0.0, 0
            if turn == 0:
                arrival_us = start_us + round(time * 1e6)
                self._programs += 1
            else:
                tool = TOOLS.index("tool" if "tool_result" in (record.data.get("input_types") or ()) else "user")
                if think is None or skipped:
                    self.counts["pauses_derived"] += 1
                    pause_s = max(time - (previous_end if previous_end is not None else time), 0.0)
                else:
                    pause_s = think
            blocks = self.table.prompt_blocks(record, "hash_ids", prompt, self.block_tokens or 0, self._first_id)
            if blocks is not None and len(blocks):
                self._next_id = max(self._next_id, int(np.max(blocks)) + 1)
            pause_us = round(pause_s * 1e6)
            self.table.add(
                self._programs - 1, turn, arrival_us, prompt, output, pause_us, record.line, tool=tool, blocks=blocks
            )
            skipped, previous_end = False, time + record.number("api_time", default=0.0)
            turn = 0 if self.opened else turn + 1
