"""Mooncake JSONL: ``{"timestamp": ms, "input_length": n, "output_length": n, "hash_ids": [...]}`` per line.

Source: github.com/kvcache-ai/Mooncake, FAST25-release/traces. The multi-turn dialect of AISimulate/Dynamo and AIPerf
adds `session_id` and `delay` (ms): rows of one session are its turns in file order; the first one arrives at its
`timestamp`, a later one `delay` ms after the previous answer was complete.

Pauses: `delay` exactly. A later turn with a `timestamp` instead of a `delay` gets the difference of the two timestamps,
which also holds the previous turn's service time: an upper bound (counted). `hash_ids` are not used yet (prefix
sharing). The published traces are quantised to 3 s ticks; they are replayed as they are unless `jitter_s` spreads them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxsched.errors import UserError
from jaxsched.workloads.hashing import keyed_uniform
from jaxsched.workloads.readers.sessions import TurnTable
from jaxsched.workloads.readers.text import Record, check_monotone, read_jsonl
from jaxsched.workloads.table import Workload


def read(path: Path, *, jitter_s: float = 0.0, seed: int = 0) -> Workload:
    """A Mooncake trace.

    Args:
        path: the JSONL file.
        jitter_s: spread every program's arrival uniformly over this many seconds (3 undoes the ticks of the published
            traces); keyed by (seed, line).
        seed: seed of the jitter.
    """
    if not 0.0 <= jitter_s < 1e6:
        raise UserError(f"jitter_s {jitter_s}", expected="seconds >= 0")
    table = TurnTable()
    sessions: dict[str, tuple[int, int, float]] = {}  # session -> (program, turns so far, ms of the last timestamp)
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
        session = record.text("session_id", default=None)
        known = sessions.get(session) if session is not None else None
        if known is None:
            if record.number("delay", default=0.0) > 0 and "timestamp" not in record.data:
                start = record.number(
                    "delay"
                )  # a first turn given only by a delay: counted from the start of the trace
            else:
                start = record.number("timestamp")
            program, turn, pause_ms = len(starts), 0, 0.0
            starts.append((start, record.line))
        else:
            program, turn, last = known
            pause_ms, start = _pause(record, last, counts)
        if session is not None:
            sessions[session] = (program, turn + 1, start)
        table.add(
            program, turn, round(starts[program][0] * 1e3), prompt, output, round(pause_ms * 1e3), record.line, priority
        )
    times, lines = np.array([s for s, _ in starts]), np.array([line for _, line in starts])
    check_monotone(times, lines, path, "field timestamp", "ms")
    notes = []
    if jitter_s > 0.0:
        shift = np.rint(keyed_uniform(seed, lines) * jitter_s * 1e6).astype(np.int64)
        arrival = np.asarray(table.columns["arrival_us"]) + shift[np.asarray(table.columns["program"])]
        table.columns["arrival_us"] = arrival.tolist()
        notes.append(f"arrivals spread uniformly over {jitter_s:g} s (seed {seed})")
    return table.workload(path.stem, source=str(path), format="mooncake", notes=notes, counts=counts)


def _pause(record: Record, last_ms: float, counts: dict[str, int]) -> tuple[float, float]:
    """(pause in ms, timestamp of this turn or the last known one) of a later turn."""
    if "delay" in record.data or "delay_ms" in record.data:
        name = "delay" if "delay" in record.data else "delay_ms"
        return record.number(name), record.number("timestamp", default=last_ms)
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
    return time - last_ms, time
