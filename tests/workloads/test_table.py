"""The host-side workload: validation, operations, and the way to the machine's table and back."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsched.errors import UserError
from jaxsched.sim.clock import EPOCH_US, join_us
from jaxsched.workloads import Workload, stack
from jaxsched.workloads.table import COLUMNS


def plain(arrival_us, **columns) -> Workload:
    n = len(arrival_us)
    tokens = {"prompt_tokens": np.full(n, 10), "output_tokens": np.full(n, 5)}
    return Workload.build("w", arrival_us=np.asarray(arrival_us), **{**tokens, **columns})


@st.composite
def workloads(draw) -> Workload:
    """Programs of 1-4 turns with arrivals over many epochs."""
    num_turns = draw(st.lists(st.integers(1, 4), min_size=1, max_size=8))
    gaps = draw(st.lists(st.integers(0, 3 * EPOCH_US), min_size=len(num_turns), max_size=len(num_turns)))
    rows = sum(num_turns)
    numbers = st.lists(st.integers(1, 10**6), min_size=rows, max_size=rows)
    turn = np.concatenate([np.arange(t) for t in num_turns])
    pauses = np.array(draw(st.lists(st.integers(0, 5 * EPOCH_US), min_size=rows, max_size=rows)))
    return Workload.build(
        "random",
        arrival_us=np.repeat(np.cumsum(gaps), num_turns),
        program=np.repeat(np.arange(len(num_turns)), num_turns),
        turn=turn,
        prompt_tokens=np.array(draw(numbers)),
        output_tokens=np.array(draw(numbers)),
        predicted_tokens=np.array(draw(numbers)),
        klass=np.array(draw(numbers)),
        priority=-np.array(draw(numbers)),
        pause_us=np.where(turn == 0, 0, pauses),
    )


def by_first_use(identity: np.ndarray) -> list[int]:
    """Identities renumbered in the order in which they first occur."""
    seen: dict[int, int] = {}
    return [seen.setdefault(int(value), len(seen)) for value in identity]


@settings(max_examples=60, deadline=None)
@given(workloads(), st.integers(0, 3))
def test_to_requests_and_back_is_the_identity(workload, padding):
    back = Workload.from_requests(workload.to_requests(pad_to=len(workload) + padding))
    for name in COLUMNS:
        given, got = getattr(workload, name), getattr(back, name)
        if name == "chain":  # renamed after device rows
            given, got = by_first_use(given), by_first_use(got)
        np.testing.assert_array_equal(got, given, err_msg=name)


@settings(max_examples=40, deadline=None)
@given(workloads())
def test_first_turns_come_first_in_arrival_order_and_later_turns_are_reached_once(workload):
    table = {k: np.asarray(v) for k, v in vars(workload.to_requests(pad_to=len(workload) + 2)).items()}
    programs = workload.num_programs
    assert int(table["num_programs"]) == programs
    arrival = join_us(table["arrival_epoch"], table["arrival_us"])[:programs]
    assert (np.diff(arrival) >= 0).all()
    reached = table["next_turn"][table["next_turn"] >= 0]
    assert sorted(reached) == list(range(programs, len(workload)))
    assert (table["next_turn"][len(workload) :] == -1).all()
    np.testing.assert_array_equal(table["program"][:programs], np.arange(programs))
    owner = table["program"]
    for row in np.flatnonzero(table["next_turn"] >= 0):
        assert owner[table["next_turn"][row]] == owner[row]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"arrival_us": [5, 3]}, "earlier than the one before"),
        ({"arrival_us": [-1, 3]}, "arrival_us is -1"),
        ({"arrival_us": [0, np.nan]}, "arrival_us is nan"),
        ({"arrival_us": []}, "empty workload"),
        ({"arrival_us": [0, 1], "prompt_tokens": [1, 0]}, "prompt_tokens is 0"),
        ({"arrival_us": [0, 1], "output_tokens": [-4, 1]}, "output_tokens is -4"),
        ({"arrival_us": [0, 1], "turn": [0, 2]}, "does not follow"),
        (
            {"arrival_us": [0, 1], "turn": [0, 1]},
            "does not follow",
        ),  # of another program
        ({"arrival_us": [0, 1], "pause_us": [7, 0]}, "first turn has a pause"),
        ({"arrival_us": [0, 1], "klass": [0]}, "has 1 rows"),
    ],
)
def test_bad_columns_are_refused_by_name(columns, message):
    with pytest.raises(UserError, match=message):
        plain(**columns)


def test_an_error_names_file_and_line():
    with pytest.raises(UserError, match=r"trace\.csv, line 17: timestamp 0\.000003"):
        plain([5, 3], line=np.array([16, 17]), source="trace.csv")


def test_scaling_the_load_divides_every_arrival_and_leaves_pauses():
    w = plain([0, 0, 1_000_000, 3_000_001], program=[4, 4, 5, 6], turn=[0, 1, 0, 0], pause_us=[0, 9, 0, 0])
    fast = w.scale_load(2.0)
    assert fast.arrival_us.tolist() == [0, 0, 500_000, 1_500_000]
    assert fast.pause_us.tolist() == w.pause_us.tolist()
    assert fast.program.tolist() == w.program.tolist()
    assert w.scale_load(1.0).arrival_us.tolist() == w.arrival_us.tolist()


def test_to_rate_reaches_the_rate():
    w = plain(np.cumsum(np.random.default_rng(0).integers(1, 10**6, 500)))
    assert w.to_rate(7.5).rate_per_s == pytest.approx(7.5, rel=1e-6)
    with pytest.raises(UserError, match="no arrival rate"):
        plain([3, 3, 3]).to_rate(1.0)


def test_a_time_slice_keeps_whole_programs_of_its_interval():
    w = plain(np.array([0, 1, 1, 2, 3]) * 10**6, program=[0, 1, 1, 2, 3], turn=[0, 0, 1, 0, 0])
    part = w.slice_time(1.0, 3.0)
    assert part.program.tolist() == [1, 1, 2]
    assert part.arrival_us.tolist() == [0, 0, 10**6]
    with pytest.raises(UserError, match="no program arrives"):
        w.slice_time(10.0, 20.0)
    with pytest.raises(UserError, match="0 <= start_s < end_s"):
        w.slice_time(2.0, 1.0)


def test_head_counts_programs():
    w = plain([0, 0, 1, 2], program=[0, 0, 1, 2], turn=[0, 1, 0, 0])
    assert w.head(2).program.tolist() == [0, 0, 1]
    assert len(w.head(99)) == 4


def test_thinning_is_nested_and_commutes_with_slicing():
    w = plain(np.arange(20_000) * 1000)
    kept = {f: set(w.thin(f, seed=3).program.tolist()) for f in (0.1, 0.3, 0.9)}
    assert kept[0.1] < kept[0.3] < kept[0.9]
    assert len(kept[0.3]) == pytest.approx(6000, abs=4 * np.sqrt(20_000 * 0.3 * 0.7))
    a, b = w.thin(0.3, 3).slice_time(2.0, 9.0), w.slice_time(2.0, 9.0).thin(0.3, 3)
    assert a.program.tolist() == b.program.tolist()
    assert kept[0.3] != set(w.thin(0.3, seed=4).program.tolist())


def test_sessions_that_start_anew_keep_their_turns_and_come_in_an_order_of_the_seed():
    turns = 1 + np.arange(200) % 3
    rows = int(turns.sum())
    lengths = np.arange(1, rows + 1)
    workload = plain(
        np.repeat(np.arange(200) * 1_000_000, turns), program=np.repeat(np.arange(200), turns),
        turn=np.concatenate([np.arange(n) for n in turns]), prompt_tokens=lengths, output_tokens=lengths,
    )  # fmt: skip
    first, again, other = (workload.restarted(0.5, seed) for seed in (3, 3, 4))
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    order = first.program[first.first_mask]
    assert sorted(order) == list(range(200)) and list(order) != list(other.program[other.first_mask])
    assert list(order) != list(range(200))
    for program in (0, 1, 2, 199):
        np.testing.assert_array_equal(
            first.prompt_tokens[first.program == program], workload.prompt_tokens[workload.program == program]
        )
    gaps = np.diff(first.program_arrival_us) * 1e-6
    assert first.program_arrival_us[0] > 0 and abs(gaps.mean() - 2.0) < 5 * 2.0 / np.sqrt(199)
    assert 0.8 < gaps.std() / gaps.mean() < 1.2  # of a Poisson process: 1
    # The order does not follow from the gaps, which the same seed draws.
    assert abs(np.corrcoef(order[1:], gaps)[0, 1]) < 0.25


def test_prediction_errors_belong_to_the_request_not_to_its_position():
    w = plain(np.arange(4000) * 1000, output_tokens=np.full(4000, 500))
    noisy = w.with_predictions(0.5, seed=1)
    part = w.slice_time(1.0, 3.0).with_predictions(0.5, seed=1)
    np.testing.assert_array_equal(part.predicted_tokens, noisy.slice_time(1.0, 3.0).predicted_tokens)
    error = np.log(noisy.predicted_tokens / 500)
    assert abs(error.mean()) < 4 * 0.5 / np.sqrt(4000)
    assert error.std() == pytest.approx(0.5, rel=0.06)
    np.testing.assert_array_equal(w.with_predictions(0.0).predicted_tokens, w.output_tokens)


def test_stack_pads_lanes_to_the_longest():
    table = stack([plain([0, 1]), plain([0, 1, 2])])
    assert table.arrival_us.shape == (2, 3)
    assert table.num_programs.tolist() == [2, 3]
    assert int(table.next_turn[0, 2]) == -1
    with pytest.raises(UserError, match="table of 2 rows for 3 turns"):
        stack([plain([0, 1, 2])], pad_to=2)


def test_a_million_rows_over_two_weeks_take_seconds_and_stay_exact():
    n, two_weeks_us = 1_000_000, 14 * 86_400 * 10**6
    arrival = np.sort(np.random.default_rng(0).integers(0, two_weeks_us, n))
    started = time.perf_counter()
    w = plain(arrival).scale_load(1.0).thin(0.5, 0).with_predictions(0.3, 0)
    table = w.to_requests()
    assert time.perf_counter() - started < 10.0
    joined = join_us(np.asarray(table.arrival_epoch), np.asarray(table.arrival_us))
    np.testing.assert_array_equal(joined, w.arrival_us)
    assert joined[-1] > 13.9 * 86_400 * 10**6
