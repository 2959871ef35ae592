"""From host workloads to the machine's int32 table and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from jaxsched.errors import UserError
from jaxsched.sim.clock import join_us, split_us
from jaxsched.sim.requests import Requests
from jaxsched.workloads.content import dense, gather, num_full_blocks
from jaxsched.workloads.graph import Edges, chain_heirs, device_columns, widths

if TYPE_CHECKING:
    from jaxsched.workloads.table import Workload

_PLAIN = ("prompt_tokens", "output_tokens", "predicted_tokens", "klass", "priority")
#: What the rows behind the last turn hold; everything else is 0 there.
_INERT = {"prompt_tokens": 1, "output_tokens": 1, "predicted_tokens": 1, "next_turn": -1, "group": -1, "heir": -1}


def to_table(workloads: Sequence[Workload], size: int, block_size: int | None) -> list[dict[str, np.ndarray]]:
    """int32 columns of `Requests` for each workload (lane), `size` rows, with the same columns in every lane."""
    content = [w.content is not None for w in workloads]
    shares = any(w.shares for w in workloads)
    for w in workloads:
        if size < len(w):
            raise UserError(f"table of {size} rows for {len(w)} turns", where=w.name, expected=f">= {len(w)}")
        if any(content):
            _check_block_size(w, block_size or max(v.content_block_size for v in workloads))
    graphs = any(w.edges is not None for w in workloads)
    width = _widest([widths(_edges(w), w.turn) for w in workloads]) if graphs else None
    sessions = any(w.turn.size and w.turn.max() > 0 for w in workloads)
    lanes = [_columns(w, size, shares and not any(content), width, sessions) for w in workloads]
    if any(content):
        longest = max(len(lane["content"]) for lane in lanes)
        for lane in lanes:
            lane["content"] = np.pad(lane["content"], (0, longest - len(lane["content"])), constant_values=-1)
    return lanes


def _edges(workload: Workload) -> Edges:
    return workload.edges if workload.edges is not None else Edges.of_chains(workload.turn, workload.pause_us)


def _widest(found: list[tuple[int, int, bool]]) -> tuple[int, int, bool]:
    finish, arrival, floor = zip(*found, strict=True)
    return max(finish), max(arrival), any(floor)


def from_table(requests: Requests) -> tuple[dict[str, Any], np.ndarray]:
    """Columns of a workload, programs in order, and the device row of each of its rows."""
    table = {k: np.asarray(v) for k, v in vars(requests).items() if v is not None}
    programs = int(table["num_programs"])
    rows, owner, turn = [np.arange(programs)], [np.arange(programs)], [np.zeros(programs, np.int32)]
    while True:
        following = table["next_turn"][rows[-1]]
        alive = following >= 0
        if not alive.any():
            break
        rows.append(following[alive])
        owner.append(owner[-1][alive])
        turn.append(np.full(int(alive.sum()), len(turn), np.int32))
    row, program, turns = np.concatenate(rows), np.concatenate(owner), np.concatenate(turn)
    order = np.lexsort((turns, program))
    row, program, turns = row[order], program[order], turns[order]
    known = [name for name in (*_PLAIN, "chain", "group", "group_tokens", "tool") if name in table]
    columns: dict[str, Any] = {name: table[name][row] for name in known}
    columns |= {
        "arrival_us": join_us(table["arrival_epoch"], table["arrival_us"])[program],
        "program": program,
        "turn": turns,
        "pause_us": np.where(turns == 0, 0, join_us(table["pause_epoch"], table["pause_us"])[row]),
    }
    if "edges" in table:
        columns["edges"] = _edges_of(table, row, turns)
    return columns, row


def _edges_of(table: dict[str, np.ndarray], row: np.ndarray, turns: np.ndarray) -> Edges:
    """The edges between the rows of a workload; `row` is the device row of each."""
    number = np.full(len(table["program"]), -1, np.int64)
    number[row] = np.arange(len(row))
    parts = []
    for name in ("edges", "spawns"):
        if name in table:
            used = table[name][row]
            before, place = np.nonzero(used[:, :, 0] >= 0)
            later, epoch, us = used[before, place].T
            on_arrival = np.full(len(before), name == "spawns")
            parts.append((number[later], before, join_us(epoch, us), on_arrival))
    if "not_before" in table:
        floor = join_us(table["not_before"][row, 0], table["not_before"][row, 1])
        late = np.flatnonzero((floor > 0) & (turns > 0))
        parts.append((late, np.full(len(late), -1), floor[late], np.ones(len(late), bool)))
    return Edges.of(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def content_of(requests: Requests, row: np.ndarray, block_size: int) -> np.ndarray | None:
    """The block ids of some device rows, one row after another; None when the table has none."""
    if requests.content is None or requests.content_start is None:
        return None
    if block_size < 1:
        raise UserError("the table has block ids", expected="content_block_size, the tokens that one id covers")
    prompt, output = np.asarray(requests.prompt_tokens)[row], np.asarray(requests.output_tokens)[row]
    counts = num_full_blocks(prompt, output, block_size)
    return gather(np.asarray(requests.content), np.asarray(requests.content_start)[row], counts)


def _check_block_size(workload: Workload, block_size: int) -> None:
    if workload.content is None:
        raise UserError(
            "no block ids, but another lane has them", where=workload.name, expected="block ids in all lanes or in none"
        )
    if workload.content_block_size != block_size:
        raise UserError(
            f"block ids of {workload.content_block_size} tokens in a cache with blocks of {block_size}",
            where=workload.source or workload.name,
            expected="the same block size",
            hint=f"Set the engine's block size to {workload.content_block_size}, or use Workload.split_content.",
        )


def _columns(
    workload: Workload, size: int, with_chains: bool, width: tuple[int, int, bool] | None, with_turns: bool
) -> dict[str, np.ndarray]:
    w = workload
    first = w.first_mask
    order = np.concatenate([np.flatnonzero(first), np.flatnonzero(~first)])
    position = np.empty(len(w), np.int32)
    position[order] = np.arange(len(w), dtype=np.int32)
    following = np.full(len(w), -1, np.int32)
    has_next = np.flatnonzero(w.turn[1:] > 0)  # row i is followed by a later turn of the same program
    following[has_next] = position[has_next + 1]
    arrival_epoch, arrival_us = split_us(np.where(first, w.arrival_us, 0))
    pause_epoch, pause_us = split_us(w.pause_us)
    columns = {
        "arrival_epoch": arrival_epoch,
        "arrival_us": arrival_us,
        "next_turn": following,
        "pause_epoch": pause_epoch,
        "pause_us": pause_us,
        **{name: getattr(w, name) for name in _PLAIN},
        **({"turn": w.turn} if with_turns else {}),
    }
    table: dict[str, np.ndarray] = {"num_programs": np.asarray(w.num_programs, np.int32)}
    own = ["program"]
    if with_chains:
        _, begins, place = np.unique(w.chain, return_index=True, return_inverse=True)
        columns |= {"chain": position[begins[place]], "group": w.group, "group_tokens": w.group_tokens, "tool": w.tool}
        own.append("chain")
        if width is not None:
            heir = chain_heirs(w.chain)
            columns["heir"] = np.where(heir >= 0, position[heir], -1)
    if w.content is not None and w.content_start is not None:
        columns |= {"tool": w.tool, "content_start": w.content_start}
        table["content"] = dense(w.content)
    if width is not None:
        table |= device_columns(_edges(w), w.turn, position, size, width)
    columns["program"] = np.cumsum(first, dtype=np.int32) - 1
    for name, value in columns.items():
        # Padding belongs to itself.
        table[name] = np.arange(size, dtype=np.int32) if name in own else np.full(size, _INERT.get(name, 0), np.int32)
        table[name][: len(w)] = value[order]
    return table


def as_requests(table: dict[str, np.ndarray]) -> Requests:
    """The machine's table on device."""
    columns: dict[str, Any] = {name: jnp.asarray(values) for name, values in table.items()}
    return Requests(**columns)
