"""`agentic_mooncake` version 2 JSONL: a header line, then one request per line with explicit dependencies.

The format is AISimulate's (and Dynamo's): header ``{"schema": "agentic_mooncake", "version": 2, "block_size": ...,
"hash_id_scope": "local", ...}``; rows with `request_id`, `play_id`, `session_id`, `input_length`, `output_length`,
`hash_ids`, `not_before_ms`, `priority` and `dependencies`: ``[{"request_id", "trigger": "completion" | "dispatch",
"delay_ms", "relation": "sequence" | "spawn" | "join" | "replay_barrier"}]``.

A play is a program; where rows have no `play_id`, requests that depend on each other are one. As in AISimulate's replay
(crates/core/src/replay, `release_edges`, `activate_play`), a request arrives at the largest of its dependencies' times
(of the dispatch or completion that they name) + `delay_ms`, and not before `not_before_ms`, counted from the earliest
request of the play that depends on nothing; there the program begins. Relations name the edges and change nothing. What
depends on a request that fails never arrives. Rows may come in any order; the turns of a program are numbered in the
order of the file as far as dependencies allow.

`hash_ids` (blocks of the header's `block_size` tokens of the prompt, the last one perhaps not full) become the
workload's block ids; equal ids are equal blocks anywhere in the file. Blocks with generated tokens are nobody else's.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from pathlib import Path

from jaxsched.errors import UserError
from jaxsched.workloads.graph import Edges
from jaxsched.workloads.readers.sessions import TurnTable, check_block_tokens
from jaxsched.workloads.readers.text import Record, empty_file, read_jsonl
from jaxsched.workloads.table import Workload

SCHEMAS, VERSION = ("agentic_mooncake", "dynamo.agentic_mooncake"), 2
TRIGGERS = ("completion", "dispatch")
RELATIONS = ("sequence", "spawn", "join", "replay_barrier")


@dataclass
class _Node:
    """A request, and what it waits for: {(request, fires at dispatch): delay in ms}."""

    record: Record
    not_before_ms: float
    waits: dict[tuple[str, bool], float] = field(default_factory=dict)


def read(path: Path, *, content_block_tokens: int | None = None) -> Workload:
    """An agentic_mooncake version 2 trace.

    Args:
        path: the JSONL file.
        content_block_tokens: tokens that one hash id covers; None = the header's `block_size`, 0 = leave the ids out.
    """
    records = read_jsonl(path)
    header = next(records)
    if header.data.get("schema") not in SCHEMAS or header.data.get("version") != VERSION:
        found = f"schema {header.data.get('schema')!r} version {header.data.get('version')!r}"
        raise UserError(found, where=header.where, expected=f"schema {SCHEMAS[0]!r} version {VERSION}")
    size = header.integer("block_size", 1, default=0) if content_block_tokens is None else content_block_tokens
    size = check_block_tokens(size)
    nodes: dict[str, _Node] = {}
    for record in records:
        name = record.text("request_id")
        if name in nodes:
            raise UserError(
                f"{name!r} occurs twice, first on line {nodes[name].record.line}",
                where=f"{record.where}, field request_id",
                expected="distinct ids",
            )
        nodes[name] = _Node(record, record.number("not_before_ms", default=0.0), _dependencies(record))
    if not nodes:
        raise empty_file(path)
    _check_references(nodes)

    table, row_of = TurnTable(), dict[str, int]()
    edges: list[tuple[int, int, float, bool]] = []  # row, row that it waits for, pause in us, at arrival
    for program, names in enumerate(_plays(nodes)):
        roots = [name for name in names if not nodes[name].waits]
        ordered = _in_order(nodes, names, min(roots, key=lambda n: nodes[n].not_before_ms, default=""))
        start_ms = nodes[ordered[0]].not_before_ms
        for turn, name in enumerate(ordered):
            node, record = nodes[name], nodes[name].record
            row = row_of[name] = len(table)
            prompt = record.integer("input_length", 1)
            table.add(
                program,
                turn,
                round(start_ms * 1e3),
                prompt,
                record.integer("output_length", 1),
                0,
                record.line,
                record.integer("priority", -(2**30), default=0),
                blocks=table.prompt_blocks(record, "hash_ids", prompt, size),
            )
            edges += [(row, row_of[before], delay * 1e3, late) for (before, late), delay in node.waits.items()]
            floor_ms = node.not_before_ms - start_ms
            if turn > 0 and (floor_ms > 0 or not node.waits):
                edges.append((row, -1, floor_ms * 1e3, True))
    return table.workload(
        path.stem,
        content_block_tokens=size,
        edges=Edges.of(*zip(*edges, strict=True)) if edges else None,
        source=str(path),
        format="agentic_v2",
    )


def _dependencies(record: Record) -> dict[tuple[str, bool], float]:
    """What a row waits for; of two edges of one kind from one request, the longer delay."""
    dependencies = record.data.get("dependencies") or []
    where = f"{record.where}, field dependencies"
    if not isinstance(dependencies, list) or not all(isinstance(d, dict) for d in dependencies):
        raise UserError("not a list of objects", where=where, expected="a list of objects")
    waits: dict[tuple[str, bool], float] = {}
    for item in dependencies:
        edge = Record(item, record.path, record.line)
        trigger, relation = edge.text("trigger", default=TRIGGERS[0]), edge.text("relation", default=RELATIONS[0])
        for name, value, known in (("trigger", trigger, TRIGGERS), ("relation", relation, RELATIONS)):
            if value not in known:
                raise UserError(f"{name} {value!r}", where=where, expected=f"one of {', '.join(known)}")
        key = (edge.text("request_id"), trigger == "dispatch")
        delay = edge.number("delay_ms", default=0.0)
        waits[key] = max(delay, waits.get(key, 0.0))
    return waits


def _check_references(nodes: dict[str, _Node]) -> None:
    for name, node in nodes.items():
        where = f"{node.record.where}, field dependencies"
        for before, _ in node.waits:
            if before not in nodes:
                raise UserError(
                    f"{name!r} depends on {before!r}, which is not in the file",
                    where=where,
                    expected="a request_id of the file",
                )
            plays = [nodes[n].record.text("play_id", default=None) for n in (name, before)]
            if None not in plays and plays[0] != plays[1]:
                raise UserError(
                    f"{name!r} of play {plays[0]!r} depends on {before!r} of play {plays[1]!r}",
                    where=where,
                    expected="dependencies inside one play",
                )


def _plays(nodes: dict[str, _Node]) -> list[list[str]]:
    """The requests of each play, in the order of the file."""
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        root = name
        while parent.setdefault(root, root) != root:
            root = parent[root]
        while parent[name] != root:
            parent[name], name = root, parent[name]
        return root

    for name, node in nodes.items():
        play = node.record.text("play_id", default=None)
        others = [f" {before}" for before, _ in node.waits] + ([] if play is None else [f"play {play}"])
        for other in others:
            parent[find(f" {name}")] = find(other)
    plays: dict[str, list[str]] = {}
    for name in nodes:
        plays.setdefault(find(f" {name}"), []).append(name)
    return list(plays.values())


def _in_order(nodes: dict[str, _Node], names: list[str], first: str) -> list[str]:
    """`names` with `first` at the beginning and every request behind those it waits for, else in the order given."""
    number = {name: i for i, name in enumerate(names)}
    missing = {name: len({before for before, _ in nodes[name].waits}) for name in names}
    followers: dict[str, list[str]] = {name: [] for name in names}
    for name in names:
        for before in {before for before, _ in nodes[name].waits}:
            followers[before].append(name)
    ready = [(name != first, number[name], name) for name in names if missing[name] == 0]
    heapq.heapify(ready)
    ordered: list[str] = []
    while ready:
        name = heapq.heappop(ready)[2]
        ordered.append(name)
        for later in followers[name]:
            missing[later] -= 1
            if missing[later] == 0:
                heapq.heappush(ready, (True, number[later], later))
    if len(ordered) < len(names):
        raise _cycle(nodes, next(name for name in names if missing[name] > 0), set(ordered))
    return ordered


def _cycle(nodes: dict[str, _Node], name: str, ordered: set[str]) -> UserError:
    """The error that shows one cycle; `name` waits for one, or is on it."""
    path: list[str] = []
    while name not in path:
        path.append(name)
        name = next(before for before, _ in nodes[name].waits if before not in ordered)
    cycle = [*path[path.index(name) :], name]
    shown = " -> ".join(repr(n) for n in cycle[:6]) + (" -> ..." if len(cycle) > 6 else "")
    return UserError(
        f"the dependencies form a cycle: {shown}",
        where=f"{nodes[name].record.where}, field dependencies",
        expected="a graph without cycles",
    )
