"""How long programs that are chains or graphs take alone, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from jaxsched.metrics.critical_path import critical_path_s
from jaxsched.workloads import Workload
from jaxsched.workloads.graph import Edges


def build(turns: list[int], **columns) -> Workload:
    """Programs with that many turns."""
    rows = sum(turns)
    return Workload.build(
        "w",
        arrival_us=np.repeat(np.arange(len(turns)) * 1000, turns),
        program=np.repeat(np.arange(len(turns)), turns),
        turn=np.concatenate([np.arange(n) for n in turns]),
        prompt_tokens=np.full(rows, 9),
        output_tokens=np.full(rows, 2),
        **columns,
    )


def test_a_chain_takes_the_sum_of_its_turns_and_pauses() -> None:
    table = build([3, 1], pause_us=np.array([0, 500_000, 2_000_000, 0])).to_requests()
    service = np.array([1.0, 7.0, 2.0, 4.0])  # first turns come first in the table
    assert critical_path_s(table, service)[:2] == pytest.approx([1.0 + 0.5 + 2.0 + 2.0 + 4.0, 7.0])


def test_a_graph_takes_as_long_as_its_longest_path() -> None:
    # 0 -> 1 (pause 1 s), 0 -> 2, both -> 3; 4 begins 0.5 s after the arrival of 0, nothing waits for it; 5 waits for
    # 2, and comes 30 s after the program at the earliest. A second program of one turn between them in the table.
    edges = Edges.of(
        [1, 2, 3, 3, 4, 5, 5],
        [0, 0, 1, 2, 0, 2, -1],
        [1_000_000, 0, 0, 0, 500_000, 0, 30_000_000],
        [False, False, False, False, True, False, True],
    )
    table = build([6, 1], edges=edges).to_requests()
    service = np.array([2.0, 9.0, 3.0, 5.0, 1.0, 6.5, 0.25])  # rows: 0 and the other program, then 1, 2, 3, 4, 5
    assert critical_path_s(table, service)[:2] == pytest.approx([30.25, 9.0])
    service[6] = 0.0
    service[3] = 40.0  # turn 2: 0 -> 2 -> 3
    assert critical_path_s(table, service)[:2] == pytest.approx([2.0 + 40.0 + 1.0, 9.0])
    service[5] = 100.0  # turn 4
    assert critical_path_s(table, service)[0] == pytest.approx(100.5)
