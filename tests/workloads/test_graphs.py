"""Programs that are graphs: the host form, what is refused of it, and the reader of agentic_mooncake version 2."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

import jaxsched as js
from jaxsched.caching import with_cache, with_graphs
from jaxsched.cli import main
from jaxsched.errors import UserError
from jaxsched.lanes import static_of, trace_lanes
from jaxsched.sim.clock import join_us
from jaxsched.workloads import Workload, read, stack
from jaxsched.workloads.graph import MAX_WIDTH, Edges
from tests.shared_data import ROOT

CHAT = str(ROOT / "configs" / "scenarios" / "chat.yaml")


def graph(num_turns: int, edges: list[tuple], **columns) -> Workload:
    """One program of that many turns; edges are (row, before, pause, at arrival)."""
    tokens = {"prompt_tokens": np.full(num_turns, 40), "output_tokens": np.full(num_turns, 5)}
    return Workload.build(
        "w",
        arrival_us=np.zeros(num_turns),
        program=np.zeros(num_turns),
        turn=np.arange(num_turns),
        edges=Edges.of(*zip(*edges, strict=True)),
        **{**tokens, **columns},
    )


def random_graphs(seed: int) -> Workload:
    """A few programs of 1-6 turns, with edges of every kind."""
    draw = random.Random(seed)
    sizes = [draw.randint(1, 6) for _ in range(draw.randint(1, 6))]
    edges, row = [], 0
    for size in sizes:
        for turn in range(1, size):
            chosen = draw.sample(range(-1, turn), draw.randint(1, min(3, turn + 1)))
            for before in chosen:
                pause = draw.choice([0, draw.randint(1, 2**40)])
                edges.append(
                    (row + turn, before if before < 0 else row + before, pause, before < 0 or draw.random() < 0.3)
                )
        row += size
    turn = np.concatenate([np.arange(size) for size in sizes])
    return Workload.build(
        "random",
        arrival_us=np.repeat(np.arange(len(sizes)) * 2**29, sizes),
        program=np.repeat(np.arange(len(sizes)) + 7, sizes),
        turn=turn,
        prompt_tokens=np.array([draw.randint(1, 99) for _ in turn]),
        output_tokens=np.array([draw.randint(1, 9) for _ in turn]),
        edges=Edges.of(*zip(*edges, strict=True)) if edges else None,
    )


def shown(workload: Workload) -> set[tuple]:
    """The edges as a set; a pause of 0 from the program's arrival, beside others, says nothing."""
    e = workload.edges or Edges.of_chains(workload.turn, workload.pause_us)
    others = np.bincount(e.row[e.before >= 0], minlength=len(workload))
    rows = zip(e.row.tolist(), e.before.tolist(), e.pause_us.tolist(), e.on_arrival.tolist(), strict=True)
    first = np.maximum.accumulate(np.where(workload.turn == 0, np.arange(len(workload)), 0))
    edges = set()
    for row, before, pause, on_arrival in rows:
        if before < 0 and others[row]:
            edges |= {(row, -1, pause, True)} if pause > 0 else set()
        else:  # alone, it is an edge from the arrival of the first turn
            edges.add((row, int(first[row]) if before < 0 else before, pause, on_arrival or before < 0))
    return edges


def test_to_requests_and_back_and_slices_keep_the_edges() -> None:
    num_graphs = 0
    for seed in range(60):
        workload = random_graphs(seed)
        back = Workload.from_requests(workload.to_requests(pad_to=len(workload) + 3))
        assert shown(back) == shown(workload)
        num_graphs += workload.edges is not None
        part = workload._rows(workload.program != 7, "") if workload.num_programs > 1 else workload
        shift = len(workload) - len(part)
        kept = {(row, b, p, a) for row, b, p, a in shown(workload) if row >= shift}
        assert {(r + shift, b if b < 0 else b + shift, p, a) for r, b, p, a in shown(part)} == kept
    assert num_graphs > 30


def test_lanes_of_graphs_and_of_chains_become_one_table() -> None:
    chain = graph(3, [(1, 0, 5), (2, 1, 6)])
    assert chain.edges is None and chain.pause_us.tolist() == [0, 5, 6]  # said by turns and pauses as well
    fork = graph(3, [(1, 0, 5), (2, 0, 6)], chain=[0, 1, 2])
    assert fork.pause_us.tolist() == [0, 5, 6] and fork.to_requests().edges is not None
    table = stack([chain, fork])
    assert table.edges is not None and table.edges.shape == (2, 3, 2, 3) and table.spawns is None
    assert table.edges[0, :, :, 0].tolist() == [[1, -1], [2, -1], [-1, -1]]
    assert table.edges[1, :, :, 0].tolist() == [[1, 2], [-1, -1], [-1, -1]]
    assert table.needed.tolist() == [[3, 1, 1], [3, 1, 1]]
    assert chain.to_requests().edges is None


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([(1, 0, 0), (2, 2, 0)], "turn 2 waits for turn 2 of its program: a cycle"),
        ([(1, 2, 0), (2, 1, 0)], "turn 1 waits for turn 2 of its program: a cycle"),
        ([(1, 0, 0), (2, 5, 0)], "row 2 waits for row 5"),
        ([(1, 0, -1), (2, 0, 0)], "a pause of -1 us"),
        ([(1, 0, 0)], "turn 2 of program 0 waits for nothing"),
        ([(1, 0, 0), (2, 1, 0), (2, 1, 3)], "2 edges from turn 1 to turn 2"),
    ],
)
def test_edges_that_make_no_graph_are_refused(edges, message) -> None:
    with pytest.raises(UserError, match=message):
        graph(3, edges)


def test_graphs_are_of_bounded_width() -> None:
    most = MAX_WIDTH
    star = [(row, 0, 0) for row in range(1, most + 1)]
    graph(most + 2, [*star, *((most + 1, row, 0) for row in range(1, most + 1))])  # as wide as allowed, both ways
    with pytest.raises(UserError, match=f"{most + 1} turns wait for the finish of turn 0 .*at most {most}"):
        graph(most + 2, [*star, (most + 1, 0, 0)])
    with pytest.raises(UserError, match=f"{most + 1} turns are waited for by turn {most + 2}"):
        graph(most + 3, [*star, (most + 1, 1, 0), *((most + 2, row, 0) for row in range(1, most + 2))])


def test_a_chain_may_pass_through_a_join_but_not_fork() -> None:
    columns = {"prompt_tokens": np.array([10, 20, 20, 40]), "output_tokens": np.full(4, 5)}
    diamond = [(1, 0, 0), (2, 0, 0), (3, 1, 0), (3, 2, 0)]
    through = graph(4, diamond, chain=[0, 1, 2, 0], **columns)
    assert through.to_requests().heir.tolist() == [3, -1, -1, -1]
    with pytest.raises(UserError, match=r"turns 1 and 2 of program 0 go on with chain 0 side by side.*block ids"):
        graph(4, diamond, chain=[0, 0, 0, 3], **{**columns, "prompt_tokens": np.array([10, 20, 30, 40])})
    derived = graph(4, [(1, 0, 0), (2, 1, 0), (3, 1, 0)], **columns)
    assert derived.chain.tolist() == [0, 0, 2, 3]  # where two wait for one, each begins a chain


# -- agentic_mooncake version 2 ----------------------------------------------------------------------------------------

LONG = dict(input_length=130, hash_ids=[1, 2, 3])
HEADER = {"schema": "agentic_mooncake", "version": 2, "block_size": 64, "hash_id_scope": "local", "source": {}}


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def node(name, *dependencies, **fields):
    row = {"request_id": name, "play_id": "p", "session_id": "s", "model": "m", "input_length": 8, "output_length": 3}
    return {**row, "hash_ids": [], "not_before_ms": 0.0, "dependencies": list(dependencies), **fields}


def after(name, delay_ms=0.0, trigger="completion", relation="sequence"):
    return {"request_id": name, "trigger": trigger, "delay_ms": delay_ms, "relation": relation}


def test_agentic_chains_become_programs(tmp_path) -> None:
    rows = [
        HEADER,
        node("a", not_before_ms=100.0),
        node("x", play_id="q"),
        node("b", after("a", 2500.0)),
        node("c", after("b", 0.5)),
    ]
    workload = read(jsonl(tmp_path / "g.jsonl", rows))
    assert workload.format == "agentic_v2" and workload.num_programs == 2 and workload.edges is None
    assert workload.turn.tolist() == [0, 0, 1, 2]
    assert workload.pause_us.tolist() == [0, 0, 2_500_000, 500]
    assert workload.arrival_us.tolist() == [0, 100_000, 100_000, 100_000]
    assert workload.line.tolist() == [3, 2, 4, 5]
    for row in rows[1:]:
        del row["play_id"]  # what depends on each other is a program
    same = read(jsonl(tmp_path / "h.jsonl", rows))
    assert same.turn.tolist() == [0, 0, 1, 2] and same.line.tolist() == [3, 2, 4, 5]


def test_agentic_graphs_become_edges(tmp_path) -> None:
    rows = [
        {**HEADER, "schema": "dynamo.agentic_mooncake"},
        node("join", after("left", 1.0, relation="join"), after("right", 3.0, relation="join"), not_before_ms=250.0),
        node("other root", not_before_ms=140.0),
        node("root", not_before_ms=100.0),
        node("left", after("root", 7.0, relation="spawn", trigger="dispatch")),
        node("right", after("root", 2.0), after("root", 5.0), not_before_ms=90.0),
    ]
    workload = read(jsonl(tmp_path / "g.jsonl", rows))
    assert workload.num_programs == 1 and workload.line.tolist() == [4, 3, 5, 6, 2]
    assert set(workload.arrival_us) == {100_000}
    assert shown(workload) == {
        (1, 0, 40_000, True),  # the other root: 40 ms after the program
        (2, 0, 7_000, True),
        (3, 0, 5_000, False),  # not_before is over when the program begins; the longer of two delays
        (4, 2, 1_000, False),
        (4, 3, 3_000, False),
        (4, -1, 150_000, True),
    }
    table = workload.to_requests()
    assert join_us(*np.asarray(table.not_before).T).tolist() == [0, 0, 0, 0, 150_000]


def test_agentic_hash_ids_say_what_forks_share(tmp_path) -> None:
    rows = [
        HEADER,
        node("root", input_length=130, hash_ids=[1, 2, 3]),
        node("left", after("root"), input_length=192, hash_ids=[1, 2, 8]),
        node("right", after("root"), input_length=200, hash_ids=[1, 2, 9, 4]),
    ]
    path = jsonl(tmp_path / "g.jsonl", rows)
    workload = read(path)
    ids = [workload.content[s : s + n].tolist() for s, n in zip(workload.content_start, [2, 3, 3], strict=True)]
    assert workload.content_block_size == 64 and ids[0] == ids[1][:2] == ids[2][:2]
    assert ids[1][2] != ids[2][2]
    assert read(path, content_block_tokens=0).content is None


def test_forks_take_the_block_table_and_graphs_their_program(tmp_path) -> None:
    rows = [HEADER, node("root", **LONG), *(node(name, after("root"), **LONG) for name in ("left", "right"))]
    path = jsonl(tmp_path / "g.jsonl", rows)
    options = {"workload.path": str(path), "workload.preset": None, "workload.num_requests": None}
    for ids, form in ((None, "blocks"), (0, "runs")):
        scenario = js.load(
            CHAT, {**options, "workload.rate_per_s": None, "workload.options": {"content_block_tokens": ids}}
        )
        assert scenario.max_paused_programs == 8
        lanes = trace_lanes(scenario, scenario.policy, scenario.workload, 1, [0])
        static = with_graphs(with_cache(static_of(scenario, scenario.policy), scenario, lanes.requests), lanes.requests)
        assert static.graphs and static.prefix_cache == form


CYCLE = [node("a"), node("b", after("a"), after("d")), node("c", after("b")), node("d", after("c"))]
WRONG = {
    "cycle": (CYCLE, "line 3, field dependencies", "'b' -> 'd' -> 'c' -> 'b'"),
    "no beginning": ([node("a", after("a"))], "line 2, field dependencies", "form a cycle: 'a' -> 'a'"),
    "dangling": ([node("a", after("z"))], "line 2, field dependencies", "'a' depends on 'z', which is not in the file"),
    "twice": ([node("a"), node("b"), node("a")], "line 4, field request_id", "'a' occurs twice, first on line 2"),
    "negative delay": ([node("a"), node("b", after("a", -5.0))], "line 3, field delay_ms", "-5.0"),
    "trigger": ([node("a"), node("b", after("a", trigger="start"))], "line 3, field dependencies", "trigger 'start'"),
    "relation": ([node("a"), node("b", after("a", relation="x"))], "line 3, field dependencies", "relation 'x'"),
    "other play": (
        [node("a"), node("b", after("a"), play_id="q")],
        "line 3",
        "'b' of play 'q' depends on 'a' of play 'p'",
    ),
    "short ids": (
        [node("a", **{**LONG, "hash_ids": [1]})],
        "line 2, field hash_ids",
        "1 block ids for a prompt of 130",
    ),
    "long ids": (
        [node("a", **{**LONG, "hash_ids": [1] * 4})],
        "line 2, field hash_ids",
        "4 block ids for a prompt of 130",
    ),
    "wide": ([node("a"), *(node(f"b{i}", after("a")) for i in range(MAX_WIDTH + 1))], "line 2", "wait for the finish"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_graph_is_named_with_exit_code_2_and_no_traceback(mistake, tmp_path, capsys) -> None:
    rows, where, what = WRONG[mistake]
    path = jsonl(tmp_path / "g.jsonl", [HEADER, *rows])
    workload = ["--set", f"workload.path={path}", "--set", "workload.preset=null"]
    code = main(
        ["simulate", CHAT, *workload, "--set", "workload.num_requests=null", "--set", "workload.rate_per_s=null"]
    )
    error = capsys.readouterr().err
    assert code == 2 and "Traceback" not in error
    assert str(path) in error and where in error and what in error, error
    assert "expected" in error


def test_agentic_header_is_checked(tmp_path) -> None:
    with pytest.raises(UserError, match=r"version 1; expected schema 'agentic_mooncake' version 2"):
        read(jsonl(tmp_path / "g.jsonl", [{**HEADER, "version": 1}, node("a")]))
    with pytest.raises(UserError, match="no requests"):
        read(jsonl(tmp_path / "g.jsonl", [HEADER]))
