"""Block ids of traces: what each reader takes from `hash_ids`, and how it refuses lists that do not fit."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jaxsched.errors import UserError
from jaxsched.workloads import Workload, read
from tests.shared_data import shared_path
from tests.workloads.test_readers import chat, jsonl, write


def rows_of(workload: Workload) -> list[list[int]]:
    """The block ids of each row."""
    return [ids.tolist() for ids in np.split(workload.content, workload.content_start[1:])]


def request(timestamp, prompt, output, ids, **fields):
    return {"timestamp": timestamp, "input_length": prompt, "output_length": output, "hash_ids": ids, **fields}


# -- Mooncake ----------------------------------------------------------------------------------------------------------


def test_mooncake_full_blocks_keep_their_ids_and_generated_ones_get_their_own(tmp_path):
    path = jsonl(
        tmp_path / "m.jsonl",
        [
            request(0, 1100, 1, [4, 5, 6]),  # two full blocks, the third ends in the prompt
            request(1, 1100, 500, [4, 5, 6]),  # the answer fills the third
            request(2, 1024, 1, [4, 5]),
            request(3, 300, 2000, [9]),
        ],
    )
    w = read(path)
    assert w.content_block_size == 512
    first, second, third, fourth = rows_of(w)
    assert first == third == [4, 5] and second[:2] == [4, 5]
    own = [second[2], *fourth]
    assert len(second) == 3 and len(fourth) == 4 and len(set(own)) == 5 and not set(own) & {4, 5}
    assert read(path, content_block_tokens=0).content is None


def test_mooncake_can_be_replayed_open_closed_or_with_reconstructed_sessions(tmp_path):
    rows = [
        request(0, 1500, 10, [0, 1, 2]),
        request(3000, 2600, 10, [0, 1, 3, 4, 5, 6], session_id="s"),
        request(9000, 2100, 20, [0, 1, 7, 8, 9]),  # goes on with the first row
        request(12_000, 2300, 10, [0, 1, 7, 8, 10], session_id="s"),
        request(15_000, 2200, 10, [0, 1, 11, 12, 13]),  # a second child of the first row
    ]
    path = jsonl(tmp_path / "m.jsonl", rows)
    assert read(path).turn.tolist() == [0, 0, 1, 0, 0]
    assert read(path, arrivals="open").num_programs == 5
    found = read(path, arrivals="reconstructed", service_s=1.0, service_s_per_token=0.1)
    assert found.turn.tolist() == [0, 1, 0, 1, 0]
    assert found.prompt_tokens[:2].tolist() == [1500, 2100]
    assert found.pause_us.tolist() == [0, 7_000_000, 0, 7_000_000, 0]
    assert found.counts == {"pauses_from_timestamps": 2, "branches": 1}
    with pytest.raises(UserError, match="no hash_ids to find sessions by"):
        read(path, arrivals="reconstructed", content_block_tokens=0)
    with pytest.raises(UserError, match="arrivals 'opened'; expected one of closed, open, reconstructed"):
        read(path, arrivals="opened")


def test_reconstructed_mooncake_sessions_are_those_of_the_study():
    path = shared_path("traces", "mooncake", "conversation_trace.jsonl")
    w = read(path, arrivals="reconstructed")
    turns = np.bincount(np.bincount(w.program))[1:7] / w.num_programs
    np.testing.assert_allclose(turns, [0.759, 0.153, 0.042, 0.022, 0.009, 0.006], atol=0.002)
    pause = w.pause_us[w.turn > 0] / 1e6
    assert pause.mean() == pytest.approx(194, abs=1) and np.median(pause) == pytest.approx(123, abs=1)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (
            [1, 2],
            r"m\.jsonl, line 2, field hash_ids: 2 block ids for a prompt of 2000 tokens; expected 3 or 4 ids.*cut",
        ),
        ([1, 2, 3, 4, 5], r"line 2, field hash_ids: 5 block ids.*Is the block size of this file not 512\?"),
        ([1, 2.5, 3], r"line 2, field hash_ids: \[1, 2\.5, 3\]; expected a list of integers in \[0, 2\*\*63\)"),
        ([1, -2, 3], r"line 2, field hash_ids: \[1, -2, 3\]"),
        ([2**64, 2, 3], r"line 2, field hash_ids"),
        ([[1], [2], [3]], r"line 2, field hash_ids"),
        ("1 2 3", r"line 2, field hash_ids: 1 2 3; expected a list"),
        (None, r"line 2, field hash_ids: no block ids, but the rows before have them; expected ids on all rows or on"),
    ],
)
def test_lists_that_do_not_fit_the_prompt_are_refused_by_line(tmp_path, ids, message):
    path = jsonl(tmp_path / "m.jsonl", [request(0, 600, 5, [1]), request(1, 2000, 5, ids)])
    with pytest.raises(UserError, match=message):
        read(path)
    assert read(path, content_block_tokens=0).num_programs == 2


def test_ids_that_appear_later_in_the_file_are_refused(tmp_path):
    path = jsonl(tmp_path / "m.jsonl", [request(0, 600, 5, None), request(1, 600, 5, [1])])
    with pytest.raises(UserError, match="line 2, field hash_ids: block ids, but the rows before have none"):
        read(path)
    with pytest.raises(UserError, match="content_block_tokens -1; expected tokens per block id"):
        read(path, content_block_tokens=-1)


def test_ids_of_blocks_alone_are_taken_together_with_what_precedes_them(tmp_path):
    rows = [request(0, 1536, 1, [1, 2, 3]), request(1, 1536, 1, [9, 2, 3]), request(2, 1536, 1, [1, 2, 5])]
    w = read(jsonl(tmp_path / "m.jsonl", rows))
    first, second, third = rows_of(w)
    assert first[:2] == third[:2] and first[2] != third[2]
    assert not set(first) & set(second)
    assert any("together with what precedes it" in note for note in w.notes)


# -- Bailian -----------------------------------------------------------------------------------------------------------


def test_bailian_blocks_have_sixteen_tokens(tmp_path):
    rows = [
        chat(1, -1, 0.0, 1) | {"input_length": 40, "output_length": 9, "hash_ids": [7, 8, 9]},
        chat(2, 1, 10.0, 2) | {"input_length": 64, "output_length": 1, "hash_ids": [7, 8, 3, 4]},
    ]
    w = read(jsonl(tmp_path / "q.jsonl", rows))
    first, second = rows_of(w)
    assert w.content_block_size == 16
    assert first[:2] == [7, 8] and len(first) == 3 and first[2] not in (3, 4, 7, 8)
    assert second == [7, 8, 3, 4]
    rows[1]["hash_ids"] = [7, 8]
    with pytest.raises(
        UserError, match="line 2, field hash_ids: 2 block ids for a prompt of 64 tokens; expected 4 ids"
    ):
        read(jsonl(tmp_path / "q.jsonl", rows))


# -- WEKA --------------------------------------------------------------------------------------------------------------


def session(tmp_path, number, **fields):
    requests = [
        {"t": 0.0, "type": "n", "in": 70, "out": 2, "hash_ids": [1], "api_time": 1.0, "input_types": ["text"]},
        {
            "t": 5.0,
            "type": "s",
            "in": 130,
            "out": 70,
            "hash_ids": [1, 2],
            "think_time": 4.0,
            "input_types": ["tool_result"],
        },
        {"t": 9.0, "type": "subagent", "requests": [{"t": 1.0, "type": "n", "in": 64, "out": 1, "hash_ids": [1]}]},
        {
            "t": 30.0,
            "type": "n",
            "in": 200,
            "out": 1,
            "hash_ids": [1, 2, 3],
            "think_time": 9.0,
            "input_types": ["text"],
        },
    ]
    data = {"id": str(number), "block_size": 64, "requests": requests, **fields}
    return write(tmp_path / f"trace_000{number}.json", json.dumps(data))


def test_weka_ids_are_local_to_a_session_and_shared_with_its_subagents(tmp_path):
    session(tmp_path, 1)
    session(tmp_path, 2)
    w = read(tmp_path, rate_per_s=1.0, subagents="independent")
    assert w.num_programs == 4 and w.content_block_size == 64 and w.tool_names == ("tool", "user")
    by_program = {p: [rows_of(w)[r] for r in np.flatnonzero(w.program == p)] for p in range(4)}
    for main, sub in ((0, 1), (2, 3)):
        one, two, three = by_program[main]
        assert one == two[:1] == three[:1] == by_program[sub][0] and two[:2] == three[:2]
        assert len(two) == 3 and two[2] != three[2]  # (130 + 70 - 1) // 64: the third is generated
    assert not set(by_program[0][1] + by_program[0][2]) & set(by_program[2][1] + by_program[2][2])
    assert w.tool[w.program == 0].tolist() == [0, 0, 1]


def test_weka_open_loop_takes_the_recorded_times(tmp_path):
    one = session(tmp_path, 1)
    w = read(one, arrivals="open", subagents="independent")
    assert (w.arrival_us / 1e6).tolist() == [0.0, 5.0, 10.0, 30.0]
    assert w.num_programs == 4 and not w.pause_us.any() and not w.tool.any()
    assert rows_of(w)[1][:2] == rows_of(w)[3][:2]


def test_weka_files_of_different_block_sizes_are_refused(tmp_path):
    session(tmp_path, 1)
    session(tmp_path, 2, block_size=32)
    with pytest.raises(UserError, match=r"trace_0002\.json, field block_size: 32, but 64 in the files before"):
        read(tmp_path, rate_per_s=1.0)
    assert read(tmp_path, rate_per_s=1.0, content_block_tokens=0).content is None


def test_weka_slice_has_an_id_for_every_full_block():
    w = read(shared_path("traces", "claude_code_weka"), rate_per_s=0.1, subagents="independent")
    assert w.content_block_size == 64 and len(w.content) == ((w.prompt_tokens + w.output_tokens - 1) // 64).sum()
    later = w.turn > 0
    assert np.mean(w.tool[later] == 0) == pytest.approx(0.82, abs=0.04)  # after a tool result, in the full set
