"""Mooncake JSONL: ``{"timestamp": ms, "input_length": n, "output_length": n, "hash_ids": [...]}`` per line.

Source: github.com/kvcache-ai/Mooncake, FAST25-release/traces. The multi-turn dialect of AISimulate/Dynamo and AIPerf
adds `session_id` and `delay` (ms): rows of one session are its turns in file order; the first one arrives at its
`timestamp`, a later one `delay` ms after the previous answer was complete.

Replay (`arrivals`): "closed" follows the sessions of the file, a row without `session_id` is a program of its own;
"open" makes every row a program of its own at its `timestamp`; "reconstructed" makes sessions of rows without
`session_id` too: a row whose blocks begin with all full blocks of an earlier row (at least two: the first one is common
to all rows) is that row's next turn. If two rows extend the same one, the second starts a program (counted).

Pauses: `delay` exactly. A later turn with a `timestamp` instead of a `delay` gets the difference of the two timestamps
less an estimate of the previous service time, ``service_s + service_s_per_token * output_length``; with the default
estimate of 0 the pause is an upper bound (counted). The published traces are quantised to 3 s ticks; they are replayed
as they are unless `jitter_s` spreads them.

`hash_ids` (blocks of 512 tokens of the prompt) become the workload's block ids; the id of a last block that is not full
is ignored. Blocks with generated tokens are nobody else's: the ids of a next turn say what it shares.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxsched.errors import UserError
from jaxsched.workloads.hashing import keyed_uniform
from jaxsched.workloads.readers.sessions import TurnTable, check_block_tokens, check_service, estimated_pause_s
from jaxsched.workloads.readers.text import Record, check_monotone, read_jsonl
from jaxsched.workloads.table import Workload

ARRIVALS = ("closed", "open", "reconstructed")


def read(
    path: Path,
    *,
    arrivals: str = "closed",
    service_s: float = 0.0,
    service_s_per_token: float = 0.0,
    jitter_s: float = 0.0,
    seed: int = 0,
    content_block_tokens: int = 512,
) -> Workload:
    """A Mooncake trace.

    Args:
        path: the JSONL file.
        arrivals: "closed", "open" or "reconstructed", see the module's docstring.
        service_s: estimated service time that a difference of timestamps contains, fixed part.
        service_s_per_token: the same, per token of the answer.
        jitter_s: spread every program's arrival uniformly over this many seconds (3 undoes the ticks of the published
            traces); keyed by (seed, line).
        seed: seed of the jitter.
        content_block_tokens: tokens that one hash id covers; 0 = leave the ids out.
    """
    if not 0.0 <= jitter_s < 1e6:
        raise UserError(f"jitter_s {jitter_s}", expected="seconds >= 0")
    if arrivals not in ARRIVALS:
        raise UserError(f"arrivals {arrivals!r}", expected=f"one of {', '.join(ARRIVALS)}")
    check_block_tokens(content_block_tokens)
    check_service(service_s, service_s_per_token)
    table, finder = TurnTable(), _Finder()
    sessions: dict[str, _Session] = {}
    starts: list[tuple[float, int]] = []  # (ms, line) of first turns
    counts = {"pauses_from_timestamps": 0}
    for record in read_jsonl(path):
        if "wait_for" in record.data or "dependencies" in record.data:
            raise UserError(
                "the row has dependencies on other requests",
                where=record.where,
                expected="plain Mooncake rows, or an agentic_mooncake version 2 file with its header line",
            )
        prompt, output = record.integer("input_length", 1), record.integer("output_length", 1)
        priority = record.integer("priority", -(2**30), default=0)
        blocks = table.prompt_blocks(record, "hash_ids", prompt, content_block_tokens)
        name = record.text("session_id", default=None) if arrivals != "open" else None
        if name is None:
            name = f"line {record.line}"
            if arrivals == "reconstructed" and blocks is not None:
                name = finder.session_of(blocks, prompt, name)
        session = sessions.get(name)
        if session is None:
            time = _start(record)
            session = sessions[name] = _Session(program=len(starts), time_ms=time)
            starts.append((time, record.line))
            pause_ms = 0.0
        else:
            pause_ms = _pause(record, session, (service_s, service_s_per_token), counts)
        start_us = round(starts[session.program][0] * 1e3)
        table.add(
            session.program,
            session.turns,
            start_us,
            prompt,
            output,
            round(pause_ms * 1e3),
            record.line,
            priority,
            blocks=blocks,
        )
        session.turns, session.output = session.turns + 1, output
    times, lines = np.array([s for s, _ in starts]), np.array([line for _, line in starts])
    check_monotone(times, lines, path, "field timestamp", "ms")
    notes = []
    if jitter_s > 0.0:
        shift = np.rint(keyed_uniform(seed, lines) * jitter_s * 1e6).astype(np.int64)
        arrival = np.asarray(table.columns["arrival_us"]) + shift[np.asarray(table.columns["program"])]
        table.columns["arrival_us"] = arrival.tolist()
        notes.append(f"arrivals spread uniformly over {jitter_s:g} s (seed {seed})")
    if arrivals == "reconstructed":
        if content_block_tokens == 0 or not table.blocks:
            raise UserError("no hash_ids to find sessions by", where=str(path), expected="hash_ids on all rows")
        counts["branches"] = finder.branches
        notes.append(f"{len(table)} rows taken as {len(starts)} sessions by the blocks that their prompts share")
    return table.workload(
        path.stem,
        content_block_tokens=content_block_tokens,
        tool_names=("user",),
        source=str(path),
        format="mooncake",
        notes=notes,
        counts=counts,
    )


@dataclass
class _Session:
    """The turns of a session so far."""

    program: int
    time_ms: float  # of the last turn that has one
    turns: int = 0
    output: int = 0  # of the last turn


class _Finder:
    """Finds the session that a prompt goes on with, by its blocks."""

    def __init__(self) -> None:
        self.branches = 0
        self._ends: dict[int, tuple[str, int]] = {}  # last full block of a prompt -> session, prompt tokens
        self._continued: set[int] = set()

    def session_of(self, blocks: np.ndarray, prompt: int, fresh: str) -> str:
        """Name of the session, `fresh` for a new one; the prompt becomes one that a later row may extend."""
        name = fresh
        for block in blocks[:0:-1].tolist():
            known = self._ends.get(block)
            if known is not None and known[1] < prompt:
                if block in self._continued:
                    self.branches += 1
                else:
                    self._continued.add(block)
                    name = known[0]
                break
        if len(blocks) > 1:
            last = int(blocks[-1])
            self._ends[last] = (name, prompt)
            self._continued.discard(last)
        return name


def _start(record: Record) -> float:
    """Arrival of a first turn, ms from the start of the trace; one given only by a delay counts from there too."""
    if record.number("delay", default=0.0) > 0 and "timestamp" not in record.data:
        return record.number("delay")
    return record.number("timestamp")


def _pause(record: Record, session: _Session, service: tuple[float, float], counts: dict[str, int]) -> float:
    """Pause before a later turn, ms."""
    last_ms = session.time_ms
    if "delay" in record.data or "delay_ms" in record.data:
        session.time_ms = record.number("timestamp", default=last_ms)
        return record.number("delay" if "delay" in record.data else "delay_ms")
    time = record.number("timestamp", default=None)
    if time is None:
        raise UserError(
            "a later turn of a session has neither delay nor timestamp",
            where=record.where,
            expected="one of the two fields",
        )
    if time < last_ms:
        raise UserError(
            f"{time:g} ms after {last_ms:g} ms: time goes backwards in the session",
            where=f"{record.where}, field timestamp",
            expected="times that never decrease",
        )
    counts["pauses_from_timestamps"] += 1
    session.time_ms = time
    return 1e3 * estimated_pause_s((time - last_ms) / 1e3, session.output, *service)
