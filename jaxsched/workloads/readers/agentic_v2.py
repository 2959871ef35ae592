"""`agentic_mooncake` version 2 JSONL: a header line, then one request per line with explicit dependencies.

The format is AISimulate's: header ``{"schema": "agentic_mooncake", "version": 2, "block_size": ..., ...}``; rows with
`request_id`, `play_id`, `session_id`, `input_length`, `output_length`, `not_before_ms`, `priority` and `dependencies`:
``[{"request_id", "trigger": "completion" | "dispatch", "delay_ms", "relation": "sequence" | "spawn" | "join" | ...}]``.

Chains become programs: a request without dependencies starts one at `not_before_ms`; a request that waits for the
completion of exactly one other is its next turn, with `delay_ms` as the pause (exact, closed loop). Graphs with
fan-out, joins, spawns
or dispatch triggers are refused: programs that are graphs come with the KV-and-sessions work.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxsched.errors import UserError
from jaxsched.workloads.readers.sessions import TurnTable
from jaxsched.workloads.readers.text import Record, empty_file, read_jsonl
from jaxsched.workloads.table import Workload

SCHEMA, VERSION = "agentic_mooncake", 2
_LATER = "Programs that are graphs arrive with the KV-and-sessions work; until then use a trace of chains."


def read(path: Path) -> Workload:
    """An agentic_mooncake version 2 trace whose plays are chains."""
    records = read_jsonl(path)
    header = next(records)
    if header.data.get("schema") != SCHEMA or header.data.get("version") != VERSION:
        found = f"schema {header.data.get('schema')!r} version {header.data.get('version')!r}"
        raise UserError(found, where=header.where, expected=f"schema {SCHEMA!r} version {VERSION}")
    table = TurnTable()
    places: dict[str, tuple[int, int, float]] = {}  # request -> (program, turn, start of the program in ms)
    followed: dict[str, int] = {}  # request -> line of the request that follows it
    programs = 0
    for record in records:
        name = record.text("request_id")
        if name in places:
            raise UserError(
                f"{name!r} occurs twice", where=f"{record.where}, field request_id", expected="distinct ids"
            )
        not_before = record.number("not_before_ms", default=0.0)
        dependency = _dependency(record)
        if dependency is None:
            program, turn, start, pause_ms = programs, 0, not_before, 0.0
            programs += 1
        else:
            before = Record(dependency, path, record.line)
            previous, pause_ms = before.text("request_id"), before.number("delay_ms", default=0.0)
            if previous not in places:
                raise UserError(
                    f"request {previous!r} is not above this line",
                    where=f"{record.where}, field dependencies",
                    expected="rows in an order in which dependencies come first",
                )
            if previous in followed:
                raise _not_chain(
                    record, f"requests on lines {followed[previous]} and {record.line} both follow {previous!r}"
                )
            followed[previous] = record.line
            program, turn, start = places[previous][0], places[previous][1] + 1, places[previous][2]
            if not_before > start:
                raise _not_chain(record, f"a later turn also has not_before_ms {not_before:g}")
        places[name] = (program, turn, start)
        table.add(
            program,
            turn,
            round(start * 1e3),
            record.integer("input_length", 1),
            record.integer("output_length", 1),
            round(pause_ms * 1e3),
            record.line,
            record.integer("priority", -(2**30), default=0),
        )
    if not len(table):
        raise empty_file(path)
    return table.workload(path.stem, source=str(path), format="agentic_v2")


def _dependency(record: Record) -> dict[str, Any] | None:
    """The single completion-sequence dependency of a row, or None for a root."""
    dependencies = record.data.get("dependencies") or []
    if not isinstance(dependencies, list) or not all(isinstance(d, dict) for d in dependencies):
        raise UserError(
            "not a list of objects", where=f"{record.where}, field dependencies", expected="a list of objects"
        )
    if not dependencies:
        return None
    if len(dependencies) > 1:
        raise _not_chain(record, f"the request waits for {len(dependencies)} others (a join)")
    (dependency,) = dependencies
    trigger, relation = dependency.get("trigger", "completion"), dependency.get("relation", "sequence")
    if trigger != "completion":
        raise _not_chain(record, f"a dependency with trigger {trigger!r}")
    if relation != "sequence":
        raise _not_chain(record, f"a dependency with relation {relation!r}")
    return dependency


def _not_chain(record: Record, problem: str) -> UserError:
    return UserError(
        f"the graph is not a chain: {problem}", where=record.where, expected="chains of requests", hint=_LATER
    )
