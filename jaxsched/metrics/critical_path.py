"""How long programs take when nothing is in their way: the longest path through their turns. Host side."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxsched.sim.clock import join_us


def turns_of_programs(table: Any) -> list[np.ndarray]:
    """Rows of the programs' first turns, second turns, ...; each turn behind those that it waits for."""
    following = np.asarray(table.next_turn)
    row = np.arange(min(int(np.max(np.asarray(table.num_programs))), len(following)))
    rows = []
    while len(row):
        rows.append(row)
        row = following[row]
        row = row[row >= 0]
    return rows


def critical_path_s(table: Any, service_s: np.ndarray) -> np.ndarray:
    """Seconds from the arrival of each program to the finish of its last turn if row r takes `service_s[r]` from its
    arrival on: along the chain of turns and pauses that takes longest (of chains: their sum).

    Args:
        table: the machine's table of one lane (jaxsched/sim/requests.py).
        service_s: ``[rows]``.

    Returns:
        ``[rows]``: by row of the program's first turn; 0 elsewhere.
    """
    program = np.asarray(table.program)
    start, longest = np.zeros(len(program)), np.zeros(len(program))
    if table.edges is None:
        pause = join_us(np.asarray(table.pause_epoch), np.asarray(table.pause_us)) * 1e-6
        for step, row in enumerate(turns_of_programs(table)):
            longest[program[row]] += service_s[row] + (pause[row] if step else 0.0)
        return longest
    kinds = [(np.asarray(table.edges), True)]
    if table.spawns is not None:
        kinds.append((np.asarray(table.spawns), False))
    if table.not_before is not None:
        start = join_us(*np.asarray(table.not_before).T) * 1e-6
    for row in turns_of_programs(table):
        end = start[row] + service_s[row]
        np.maximum.at(longest, program[row], end)
        for edges, after_finish in kinds:
            turn, place = np.nonzero(edges[row, :, 0] >= 0)
            waits, epoch, us = edges[row[turn], place].T
            begin = (end if after_finish else start[row])[turn] + join_us(epoch, us) * 1e-6
            np.maximum.at(start, waits, begin)
    return longest
