"""What turns share: chains, groups and block ids in the host workload, in the machine's table and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsched.errors import UserError
from jaxsched.workloads import Workload, stack
from jaxsched.workloads.content import num_full_blocks

#: Two programs: three turns with a cut history before the third, and one turn.
TWO = {
    "arrival_us": [0, 0, 0, 5],
    "program": [3, 3, 3, 8],
    "turn": [0, 1, 2, 0],
    "prompt_tokens": [10, 25, 12, 40],
    "output_tokens": [5, 6, 2, 1],
}


def build(**columns) -> Workload:
    return Workload.build("w", **{k: np.asarray(v) if isinstance(v, list) else v for k, v in (TWO | columns).items()})


def blocks(prompt_tokens, output_tokens, block_size) -> int:
    return int(num_full_blocks(np.asarray(prompt_tokens), np.asarray(output_tokens), block_size).sum())


# -- chains and groups -------------------------------------------------------------------------------------------------


def test_without_chains_a_program_is_one_until_its_history_is_cut():
    w = build()
    assert w.chain[:2].tolist() == [3, 3] and w.chain[3] == 8
    assert w.chain[2] not in (3, 8)  # 12 tokens cannot hold 25 + 6


def test_the_device_names_a_chain_after_the_row_that_began_it():
    table = build(chain=[70, 70, 9, 4]).to_requests(pad_to=6)
    # rows: first turns of the two programs, then turns 1 and 2 of the first
    assert table.chain.tolist() == [0, 1, 0, 3, 4, 5]
    assert table.next_turn.tolist() == [2, -1, 3, -1, -1, -1]
    assert table.group.tolist() == [-1] * 6 and table.group_tokens.tolist() == [0] * 6
    assert table.content is None and table.content_start is None


def test_a_chain_can_rest_while_another_one_runs():
    """A sub-agent between two calls of the main agent."""
    w = build(chain=[1, 2, 1, 4], prompt_tokens=[10, 5, 16, 40])
    assert w.to_requests().chain.tolist() == [0, 1, 2, 0]


def test_plain_requests_leave_the_columns_out_and_groups_bring_them():
    plain = Workload.build("p", arrival_us=np.arange(3), prompt_tokens=np.full(3, 9), output_tokens=np.ones(3))
    table = plain.to_requests()
    assert [table.chain, table.group, table.group_tokens, table.tool, table.content] == [None] * 5
    grouped = plain._replace(group=np.array([1, -1, 1]), group_tokens=np.array([4, 0, 9])).to_requests()
    assert grouped.group.tolist() == [1, -1, 1] and grouped.group_tokens.tolist() == [4, 0, 9]
    assert grouped.chain.tolist() == [0, 1, 2]
    # a lane that shares brings the columns to all lanes
    assert stack([plain, build()]).chain[0].tolist() == [0, 1, 2, 3]


def test_columns_survive_slicing_thinning_and_scaling():
    w = build(group=[2, 2, 2, -1], group_tokens=[6, 6, 6, 0], tool=[0, 1, 2, 0], tool_names=("shell", "file", "user"))
    for part in (w.head(1), w.slice_time(0.0, 1e-6), w.scale_load(2.0).head(1), w.with_predictions(0.5).head(1)):
        assert part.chain[0] == part.chain[1] == 3 and part.chain[2] == w.chain[2]
        assert part.group.tolist() == [2, 2, 2] and part.tool.tolist() == [0, 1, 2]
        assert part.tool_names == ("shell", "file", "user")
    kept = w.thin(0.5, seed=4)
    assert kept.chain.tolist() == w.chain[np.isin(w.program, kept.program)].tolist()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"chain": [3, 3, 3, 8]},
            r"f\.jsonl, line 7: the history is shorter than the prefix that chain 3 claims: a prompt of 12 tokens "
            r"after a prompt of 25 and 6 outputs; expected at least 31 tokens\. Begin a new chain",
        ),
        ({"chain": [3, 3, 5, 3]}, "line 8: chain 3 has turns of the programs 3 and 8"),
        ({"group": [0] * 4, "group_tokens": [2, 2, 13, 0]}, "line 7: group_tokens is 13 of a prompt of 12"),
        ({"group_tokens": [0, 0, 0, 4]}, "line 8: group_tokens is 4 without a group"),
        ({"group": [0, 1, 0, 0]}, "line 6: group is 1, but 0 earlier in chain 3"),
        ({"group": [0] * 4, "group_tokens": [4, 5, 0, 0]}, "line 6: group_tokens is 5, but 4 earlier in chain 3"),
        ({"group": [-2] * 4}, "line 5: group is -2; expected -1 <= group"),
        ({"tool": [1, 0, 0, 0]}, "line 5: tool is 1 on a first turn"),
        ({"pause_us": [0, -3, 0, 0]}, "line 6: pause_us is -3; expected 0 <= pause_us"),
        ({"content": np.zeros(3, int), "content_block_size": 0}, "content_block_size 0; expected tokens per block id"),
    ],
)
def test_impossible_sharing_is_refused_by_line(columns, message):
    with pytest.raises(UserError, match=message):
        build(line=[5, 6, 7, 8], source="f.jsonl", **columns)


# -- block ids ---------------------------------------------------------------------------------------------------------

#: Ids of blocks of 8 tokens for TWO: (10 + 5 - 1) // 8 = 1, then 3, 1 and 5 full blocks.
IDS = [11, 11, 12, 90, 11, 11, 12, 50, 51, 52]


def test_block_ids_reach_the_device_dense_and_by_row():
    w = build(content=IDS, content_block_size=8)
    assert w.content_start.tolist() == [0, 1, 4, 5]
    table = w.to_requests(pad_to=6, block_size=8)
    assert table.content.tolist() == [0, 0, 1, 5, 0, 0, 1, 2, 3, 4]
    assert table.content_start.tolist() == [0, 5, 1, 4, 0, 0]  # device rows: both first turns come first
    assert table.chain is None and table.group is None and table.tool.tolist() == [0] * 6


def test_block_ids_follow_their_rows_through_slices():
    w = build(content=IDS, content_block_size=8)
    assert w.slice_time(5e-6, 1.0).content.tolist() == IDS[5:]
    assert w.head(1).content.tolist() == IDS[:5]
    assert w.head(1).to_requests().content.tolist() == [0, 0, 1, 2, 0]


def test_stacked_lanes_are_padded_to_the_longest_list():
    w = build(content=IDS, content_block_size=8)
    table = stack([w, w.head(1)], block_size=8)
    assert table.content.shape == (2, 10) and table.content[1, 5:].tolist() == [-1] * 5
    with pytest.raises(UserError, match="no block ids, but another lane has them"):
        stack([w, build()])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"content": IDS[:-1]}, "line 8: 4 block ids for a prompt of 40 and 1 output tokens; expected 5 ids"),
        ({"content": [*IDS, 4]}, "line 8: 6 block ids"),
        (
            {"content": IDS, "content_start": [0, 2, 4, 5]},
            "line 5: 2 block ids for a prompt of 10 and 5 output tokens; expected 1 ids: the full blocks of 8 tokens",
        ),
        ({"content": [*IDS[:3], -4, *IDS[4:]]}, "line 6: block id -4; expected block ids >= 0"),
        (
            {"content": [11, 11, 12, 90, 11, 12, 13, 50, 51, 52]},
            "line 8: block id 12 begins a prompt here and follows 11 elsewhere; expected ids that stand for a block "
            "together with everything before it",
        ),
    ],
)
def test_block_ids_that_do_not_fit_are_refused_by_line(columns, message):
    with pytest.raises(UserError, match=message):
        build(line=[5, 6, 7, 8], source="f.jsonl", content_block_size=8, **columns)


def test_another_block_size_is_refused_where_the_cache_is_known():
    w = build(content=IDS, content_block_size=8)
    with pytest.raises(
        UserError, match=r"block ids of 8 tokens in a cache with blocks of 16.*use Workload.split_content"
    ):
        w.to_requests(block_size=16)
    with pytest.raises(UserError, match=r"the table has block ids; expected content_block_size"):
        Workload.from_requests(w.to_requests())


def test_split_blocks_keep_what_is_shared_and_add_nothing():
    w = build(content=IDS, content_block_size=8).split_content(4)
    assert len(w.content) == blocks(w.prompt_tokens, w.output_tokens, 4) == 3 + 7 + 3 + 10
    rows = np.split(w.content, w.content_start[1:])
    assert rows[0][:2].tolist() == rows[1][:2].tolist() == rows[2][:2].tolist() == rows[3][:2].tolist() == [22, 23]
    own = [rows[0][2], rows[1][6], rows[2][2]]  # behind the last full block of 8
    assert len(set(own)) == 3 and np.isin(own, IDS).sum() == 0
    assert all(np.count_nonzero(w.content == i) == 1 for i in own)
    with pytest.raises(UserError, match="blocks of 3 tokens from blocks of 8; expected a divisor of 8"):
        build(content=IDS, content_block_size=8).split_content(3)


@st.composite
def tries(draw) -> Workload:
    """Random programs whose block ids come from one prefix tree."""
    num_turns = draw(st.lists(st.integers(1, 3), min_size=1, max_size=5))
    rows, block = sum(num_turns), draw(st.integers(1, 5))
    tokens = st.lists(st.integers(1, 30), min_size=rows, max_size=rows)
    prompt, output = np.array(draw(tokens)), np.array(draw(tokens))
    children: dict[tuple[int, int], int] = {}
    content = []
    for count in num_full_blocks(prompt, output, block):
        node = -1
        for _ in range(count):
            node = children.setdefault((node, draw(st.integers(0, 2))), len(children))
            content.append(node)
    return Workload.build(
        "trie",
        arrival_us=np.repeat(np.arange(len(num_turns)), num_turns),
        program=np.repeat(np.arange(len(num_turns)), num_turns),
        turn=np.concatenate([np.arange(t) for t in num_turns]),
        prompt_tokens=prompt,
        output_tokens=output,
        content=np.array(content, np.int64),
        content_block_size=block,
    )


@settings(max_examples=50, deadline=None)
@given(tries(), st.integers(0, 3))
def test_block_ids_go_to_the_device_and_back(workload, padding):
    table = workload.to_requests(pad_to=len(workload) + padding, block_size=workload.content_block_size)
    back = Workload.from_requests(table, content_block_size=workload.content_block_size)
    np.testing.assert_array_equal(back.content, np.unique(workload.content, return_inverse=True)[1])
    np.testing.assert_array_equal(back.content_start, workload.content_start)
    # What the machine reads: the ids of a device row begin at its content_start.
    counts = num_full_blocks(np.asarray(table.prompt_tokens), np.asarray(table.output_tokens), back.content_block_size)
    ids = lambda row: np.asarray(table.content)[table.content_start[row] :][: counts[row]].tolist()
    first = [ids(row) for row in range(workload.num_programs)]
    starts, ends = workload.content_start, np.append(workload.content_start[1:], len(workload.content))
    assert first == [back.content[starts[r] : ends[r]].tolist() for r in np.flatnonzero(workload.first_mask)]
