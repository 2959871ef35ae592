"""What the turns of programs that are graphs wait for, on host: edges, what is refused of them, their device columns.

Semantics: docs/semantics.md, section 2. The machine's form: `edges`, `spawns`, `needed` and `not_before` of
jaxsched/sim/requests.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jaxsched.errors import UserError
from jaxsched.sim.clock import split_us
from jaxsched.workloads.checks import MAX_TIME_US, place

#: Most turns that may wait for the finish, or for the arrival, of one turn, and most edges of one turn. The table has a
#: place for each on every row.
MAX_WIDTH = 64

Columns = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Edges:
    """Edges between rows of a workload, in order of the rows that wait."""

    row: np.ndarray  # int64 [edges]: row that waits
    before: np.ndarray  # int64: earlier row of the same program that it waits for; -1 = the arrival of the program
    pause_us: np.ndarray  # int64: the row arrives this long after the edge fired, or later
    on_arrival: np.ndarray  # bool: fires when `before` arrives; else when it finishes

    @classmethod
    def of(cls, row, before, pause_us, on_arrival=None) -> Edges:
        """From sequences in any order."""
        row = np.asarray(row, np.int64)
        order = np.argsort(row, kind="stable")
        arrival = np.zeros(len(row), bool) if on_arrival is None else np.asarray(on_arrival, bool)
        return cls(
            row[order],
            np.asarray(before, np.int64)[order],
            np.rint(np.asarray(pause_us)).astype(np.int64)[order],
            arrival[order],
        )

    @classmethod
    def of_chains(cls, turn: np.ndarray, pause_us: np.ndarray) -> Edges:
        """Every later turn waits for the finish of the one before."""
        later = np.flatnonzero(np.asarray(turn) > 0)
        return cls.of(later, later - 1, np.asarray(pause_us)[later])

    def take(self, index: slice | np.ndarray, num_rows: int) -> Edges:
        """The edges of some of the rows (whole programs), numbered as these are."""
        kept = np.zeros(num_rows, bool)
        kept[index] = True
        mine = kept[self.row]
        chosen = Edges(self.row[mine], self.before[mine], self.pause_us[mine], self.on_arrival[mine])
        return chosen.renumbered(np.cumsum(kept) - 1)

    def renumbered(self, number: np.ndarray) -> Edges:
        """Between the same turns where `number` is the new row of each."""
        number = np.append(number, -1)  # -1 stays -1
        return Edges.of(number[self.row], number[self.before], self.pause_us, self.on_arrival)

    def longest_pause_us(self, num_rows: int) -> np.ndarray:
        """int64 [rows]: the longest pause of each row's edges, 0 without any."""
        longest = np.zeros(num_rows, np.int64)
        np.maximum.at(longest, self.row, self.pause_us)
        return longest

    def are_chains(self, turn: np.ndarray) -> bool:
        """Whether they say no more than that every later turn waits for the finish of the one before."""
        later = np.flatnonzero(np.asarray(turn) > 0)
        plain = len(later) == len(self.row) and (self.row == later).all() and (self.before == later - 1).all()
        return bool(plain and not self.on_arrival.any())


def check_edges(edges: Edges, columns: Columns, where: str) -> None:
    """Refuse edges that do not make every program a graph with one beginning, or that are too many."""
    program, turn, line = columns["program"], columns["turn"], columns["line"]
    num_rows = len(turn)
    at = lambda i: place(line, int(np.clip(edges.row[i], 0, num_rows - 1)), where)
    outside = np.flatnonzero(
        (edges.row < 0) | (edges.row >= num_rows) | (edges.before < -1) | (edges.before >= num_rows)
    )
    if len(outside):
        i = int(outside[0])
        raise UserError(
            f"row {edges.row[i]} waits for row {edges.before[i]}", where=at(i), expected="rows of the table"
        )
    real = edges.before >= 0
    stranger = np.flatnonzero(real & (program[edges.row] != program[edges.before]))
    if len(stranger):
        i = int(stranger[0])
        raise UserError(
            f"a turn of program {program[edges.row[i]]} waits for one of program {program[edges.before[i]]}",
            where=at(i),
            expected="edges inside one program",
        )
    back = np.flatnonzero(edges.before >= edges.row)
    if len(back):
        i = int(back[0])
        raise UserError(
            f"turn {turn[edges.row[i]]} waits for turn {turn[edges.before[i]]} of its program: a cycle, or turns that "
            "are out of order",
            where=at(i),
            expected="graphs without cycles, every turn behind those that it waits for",
        )
    wrong = np.flatnonzero((edges.pause_us < 0) | (edges.pause_us > MAX_TIME_US))
    if len(wrong):
        i = int(wrong[0])
        raise UserError(
            f"a pause of {edges.pause_us[i]} us", where=at(i), expected=f"0 <= pause <= {MAX_TIME_US} us on every edge"
        )
    key = np.stack([edges.row, edges.before, edges.on_arrival.astype(np.int64)], axis=1)
    _, first, number = np.unique(key, axis=0, return_index=True, return_counts=True)
    if (number > 1).any():
        i = int(first[np.argmax(number > 1)])
        raise UserError(
            f"{number.max()} edges from turn {turn[edges.before[i]] if real[i] else 'start'} to turn "
            f"{turn[edges.row[i]]}",
            where=at(i),
            expected="one edge, with the longest of the pauses",
        )
    waits = np.bincount(edges.row, minlength=num_rows) > 0
    odd = np.flatnonzero(waits != (turn > 0))
    if len(odd):
        row = int(odd[0])
        found = "waits for another" if waits[row] else "waits for nothing"
        raise UserError(
            f"turn {turn[row]} of program {program[row]} {found}",
            where=place(line, row, where),
            expected="first turns that wait for nothing, and later ones that wait for a turn or the program's arrival",
        )
    _check_width(edges, columns, where)


def _check_width(edges: Edges, columns: Columns, where: str) -> None:
    real = edges.before >= 0
    for chosen, of, what in (
        (~edges.on_arrival & real, edges.before, "turns wait for the finish of turn"),
        (edges.on_arrival & real, edges.before, "turns wait for the arrival of turn"),
        (real, edges.row, "turns are waited for by turn"),
    ):
        number = np.bincount(of[chosen], minlength=1)
        if number.max() > MAX_WIDTH:
            row = int(np.argmax(number))
            raise UserError(
                f"{number[row]} {what} {columns['turn'][row]} of program {columns['program'][row]}",
                where=place(columns["line"], row, where),
                expected=f"graphs of bounded width: at most {MAX_WIDTH}",
            )


def derive_chains(edges: Edges, prompt_tokens: np.ndarray, output_tokens: np.ndarray) -> np.ndarray:
    """int64 [rows]: the chain of each turn when nothing is known but the lengths and the edges.

    A turn that waits for one finish alone, and is the only one to wait for it, goes on with that turn's content where
    its prompt is longer than the history; every other turn begins a chain.
    """
    num_rows = len(prompt_tokens)
    chain = np.arange(num_rows, dtype=np.int64)
    finish = ~edges.on_arrival & (edges.before >= 0)
    waits = np.bincount(edges.row[edges.before >= 0], minlength=num_rows)
    followers = np.bincount(edges.before[finish], minlength=num_rows)
    history = np.asarray(prompt_tokens, np.int64) + output_tokens
    for row, before in zip(edges.row[finish].tolist(), edges.before[finish].tolist(), strict=True):
        if waits[row] == 1 and followers[before] == 1 and prompt_tokens[row] > history[before]:
            chain[row] = chain[before]
    return chain


def check_forks(edges: Edges, columns: Columns, where: str) -> None:
    """Refuse two turns of one chain that may run side by side: a chain is a line, forks need block ids."""
    chain = columns["chain"]
    order = np.argsort(chain, kind="stable")
    before, after = order[:-1], order[1:]
    linked = chain[before] == chain[after]
    start = np.searchsorted(edges.row, np.arange(len(chain) + 1))
    for a, b in zip(before[linked].tolist(), after[linked].tolist(), strict=True):
        todo, seen = [b], {b}
        while todo and a not in seen:
            row = todo.pop()
            here = slice(start[row], start[row + 1])
            fresh = {
                int(r)
                for r, late in zip(edges.before[here], edges.on_arrival[here], strict=True)
                if r >= a and not late
            }
            todo += fresh - seen
            seen |= fresh
        if a not in seen:
            raise UserError(
                f"turns {columns['turn'][a]} and {columns['turn'][b]} of program {columns['program'][b]} go on with "
                f"chain {chain[b]} side by side",
                where=place(columns["line"], b, where),
                expected="each turn of a chain to wait, perhaps through others, for the finish of the one before",
                hint="Say what forks share with block ids (content), or begin a new chain.",
            )


def chain_heirs(chain: np.ndarray) -> np.ndarray:
    """int64 [rows]: the row that goes on with each row's chain, -1 = none."""
    heir = np.full(len(chain), -1, np.int64)
    order = np.argsort(chain, kind="stable")
    linked = chain[order[:-1]] == chain[order[1:]]
    heir[order[:-1][linked]] = order[1:][linked]
    return heir


def widths(edges: Edges, turn: np.ndarray) -> tuple[int, int, bool]:
    """Places that a table needs on a row: for edges of a finish and of an arrival; and whether any has `not_before`."""
    device = _DeviceEdges.of(edges, turn)
    most = lambda chosen: int(np.bincount(device.before[chosen]).max()) if chosen.any() else 0
    return max(most(~device.on_arrival), 1), most(device.on_arrival), bool(len(device.floor_row))


def device_columns(
    edges: Edges, turn: np.ndarray, position: np.ndarray, size: int, width: tuple[int, int, bool]
) -> dict[str, np.ndarray]:
    """int32 columns of `Requests`. `position` is the device row of each row, `width` as `widths` gives it."""
    device = _DeviceEdges.of(edges, turn)
    columns = {"edges": _table(device, ~device.on_arrival, position, size, width[0])}
    if width[1]:
        columns["spawns"] = _table(device, device.on_arrival, position, size, width[1])
    needed = np.zeros(size, np.int32)
    needed[position] = np.bincount(device.row, minlength=len(turn))
    first = np.flatnonzero(np.asarray(turn) == 0)
    needed[position[first]] = np.diff(np.append(first, len(turn)))
    columns["needed"] = needed
    if width[2]:
        floor = np.zeros((size, 2), np.int32)
        floor[position[device.floor_row]] = np.stack(split_us(device.floor_us), axis=-1)
        columns["not_before"] = floor
    return columns


@dataclass(frozen=True)
class _DeviceEdges:
    """Edges between rows only: one from a program's arrival is an arrival edge of its first turn, where the row waits
    for nothing else, and the row's `not_before` elsewhere."""

    row: np.ndarray
    before: np.ndarray
    pause_us: np.ndarray
    on_arrival: np.ndarray
    floor_row: np.ndarray
    floor_us: np.ndarray

    @classmethod
    def of(cls, edges: Edges, turn: np.ndarray) -> _DeviceEdges:
        first = np.maximum.accumulate(np.where(np.asarray(turn) == 0, np.arange(len(turn)), 0))
        start = edges.before < 0
        alone = np.bincount(edges.row[~start], minlength=len(turn))[edges.row] == 0
        floor = start & ~alone
        kept = ~floor
        before = np.where(start, first[edges.row], edges.before)
        arrival = edges.on_arrival | start
        late = floor & (edges.pause_us > 0)
        return cls(
            edges.row[kept], before[kept], edges.pause_us[kept], arrival[kept], edges.row[late], edges.pause_us[late]
        )


def _table(device: _DeviceEdges, chosen: np.ndarray, position: np.ndarray, size: int, width: int) -> np.ndarray:
    """[size, width, 3]: (row that waits, pause) of the chosen edges by the row that they wait for."""
    table = np.tile(np.array([-1, 0, 0], np.int32), (size, width, 1))
    before, row, pause = device.before[chosen], device.row[chosen], device.pause_us[chosen]
    order = np.argsort(before, kind="stable")
    before, row, pause = before[order], row[order], pause[order]
    rank = np.arange(len(before)) - np.searchsorted(before, before)
    epoch, us = split_us(pause)
    table[position[before], rank] = np.stack([position[row], epoch, us], axis=-1)
    return table
