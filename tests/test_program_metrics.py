"""Longest completion time and slowdown of programs, by hand and in a rollout."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from jaxsched.metrics.programs import program_metrics
from jaxsched.sim.state import Fate
from jaxsched.timing.step_time import affine

TIMING = affine(10_000, 10, 0)  # 10 ms a step, 10 us a token


def table(chain):
    """Program 0: turns 0 and 2; program 1: turn 1."""
    columns = {
        "prompt_tokens": [100, 40, 150],
        "output_tokens": [5, 1, 3],
        "next_turn": [2, -1, -1],
        "program": [0, 1, 0],
        "pause_epoch": [0, 0, 0],
        "pause_us": [0, 0, 2_000_000],
    }
    arrays = {name: np.asarray(values, np.int32) for name, values in columns.items()}
    return SimpleNamespace(num_programs=2, edges=None, chain=None if chain is None else np.asarray(chain), **arrays)


def record(finish_s, fates=(Fate.FINISHED,) * 3):
    times = lambda seconds: np.asarray([[(0, round(s * 1e6)) for s in seconds]])
    return SimpleNamespace(fate=np.asarray([fates]), arrival=times([1.0, 2.0, 9.0]), finish=times(finish_s))


#: Turn 0: 11 ms and four tokens of 10.01 ms; turn 1: 10.4 ms; turn 2 finds 104 of its 150 tokens: 10.46 ms and two.
FIRST = 0.011 + 4 * 0.01001
SECOND = 0.0104
THIRD = 0.01046 + 2 * 0.01001


def test_by_hand():
    alone = FIRST + THIRD + 2.0
    got = program_metrics(table([0, 1, 0]), record([3.0, 2.104, 1.0 + 3 * alone]), TIMING, [(0, 2)])
    slowdowns = [3.0, 0.104 / SECOND]
    assert got["jct_max_s"] == pytest.approx([3 * alone], rel=1e-5)
    assert got["slowdown_mean"] == pytest.approx([np.mean(slowdowns)], rel=1e-4)
    assert got["slowdown_p99"] == pytest.approx([np.quantile(slowdowns, 0.99)], rel=1e-4)


def test_without_shared_content_a_later_turn_is_computed_whole():
    alone = FIRST + 2.0 + 0.0115 + 2 * 0.01001
    for chain in (None, [0, 1, 2]):
        got = program_metrics(table(chain), record([3.0, 9.9, 1.0 + alone]), TIMING, [(0, 1)])
        assert got["slowdown_mean"] == pytest.approx([1.0], rel=1e-5)


def test_programs_outside_the_cohort_or_cut_short_do_not_count():
    got = program_metrics(table([0, 1, 0]), record([3.0, 2.5, 9.9]), TIMING, [(1, 2)])
    assert got["jct_max_s"] == pytest.approx([0.5])
    cut = record([3.0, 2.5, 9.9], (Fate.FINISHED, Fate.FINISHED, Fate.TIMED_OUT))
    assert program_metrics(table([0, 1, 0]), cut, TIMING, [(0, 2)])["jct_max_s"] == pytest.approx([0.5])
    assert np.isnan(program_metrics(table([0, 1, 0]), cut, TIMING, [(0, 1)])["slowdown_p99"]).all()


def test_the_turns_of_a_graph_that_run_side_by_side_count_once():
    # Program 0: turns 0, 2 and 3, of which 2 and 3 wait for 0 alone; 3 comes 2 s later and is the last to finish here.
    columns = {"prompt_tokens": [100, 40, 150, 150], "output_tokens": [5, 1, 3, 3], "next_turn": [2, -1, 3, -1]}
    columns |= {"program": [0, 1, 0, 0], "heir": [2, -1, -1, -1], "chain": [0, 1, 0, 3]}
    edges = np.full((4, 2, 3), -1)
    edges[0] = [[2, 0, 0], [3, 0, 2_000_000]]
    arrays = {name: np.asarray(values, np.int32) for name, values in columns.items()}
    graph = SimpleNamespace(num_programs=2, edges=edges, spawns=None, not_before=None, **arrays)
    alone = FIRST + 2.0 + 0.0115 + 2 * 0.01001  # turn 3 finds nothing
    lives = lambda fates=(Fate.FINISHED,) * 4: SimpleNamespace(
        fate=np.asarray([fates]),
        arrival=np.asarray([[(0, 1_000_000)] * 4]),
        finish=np.asarray([[(0, round(s * 1e6)) for s in (1.1, 1.5, 1.2, 1.0 + 2 * alone)]]),
    )
    got = program_metrics(graph, lives(), TIMING, [(0, 1)])
    assert got["jct_max_s"] == pytest.approx([2 * alone]) and got["slowdown_mean"] == pytest.approx([2.0], rel=1e-5)
    cut = program_metrics(graph, lives((Fate.FINISHED, Fate.FINISHED, Fate.TIMED_OUT, Fate.FINISHED)), TIMING, [(0, 1)])
    assert np.isnan(cut["jct_max_s"]).all()
