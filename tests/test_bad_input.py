"""Mistakes in sessions, graphs and memory tiers: exit code 2, and a message with file, line and field.

And what is no mistake: contexts pinned beyond what memory holds. Nobody is lost then.
"""

from __future__ import annotations

import json

import pytest

from jaxsched.cli import main
from tests.shared_data import ROOT

CHAT = str(ROOT / "configs" / "scenarios" / "chat.yaml")
HEADER = {"schema": "agentic_mooncake", "version": 2, "block_size": 64, "hash_id_scope": "local", "source": {}}


def node(name: str, *after: tuple[str, float]) -> dict:
    waits = [{"request_id": n, "trigger": "completion", "delay_ms": ms, "relation": "sequence"} for n, ms in after]
    row = {"request_id": name, "play_id": "p", "session_id": "s", "model": "m", "input_length": 8, "output_length": 3}
    return {**row, "hash_ids": [], "not_before_ms": 0.0, "dependencies": waits}


def turn(session: str, **fields) -> dict:
    return {"session_id": session, "input_length": 1200, "output_length": 5, **fields}


#: Rows of a trace, and what the message has to say.
TRACES = {
    "graph with a cycle": (
        [HEADER, node("a"), node("b", ("c", 0.0)), node("c", ("b", 0.0))],
        ["line 3, field dependencies", "cycle", "'b' -> 'c' -> 'b'"],
    ),
    "negative pause of a graph": ([HEADER, node("a"), node("b", ("a", -5.0))], ["line 3, field delay_ms", "-5.0"]),
    "negative pause of a session": (
        [turn("x", timestamp=0), turn("x", delay=-3)],
        ["line 2, field delay", "-3", "expected"],
    ),
    "prompt shorter than the prefix that it claims": (
        [turn("x", timestamp=0, hash_ids=[1, 2, 3]), turn("x", delay=5, input_length=700, hash_ids=[1, 2, 3])],
        ["line 2, field hash_ids", "3 block ids for a prompt of 700 tokens"],
    ),
    "too few block ids": (
        [turn("x", timestamp=0, hash_ids=[1])],
        ["line 1, field hash_ids", "1 block ids for a prompt of 1200 tokens"],
    ),
}


@pytest.mark.parametrize("mistake", TRACES)
def test_a_trace_that_cannot_be_is_refused_by_file_line_and_field(capsys, tmp_path, mistake: str) -> None:
    rows, words = TRACES[mistake]
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code = main(["simulate", CHAT, "--workload.path", str(path)])
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and err.startswith("error: ") and "Traceback" not in err
    for word in ["trace.jsonl", *words]:
        assert word in err


TIERED = """
name: tiered
workload: {preset: mixed_agents, num_requests: 24, rate_per_s: 2.0}
cluster:
  num_instances: 1
  kv_blocks: 2500
  max_paused_programs: 32
  max_model_len: 131072
  tiers:
    host: {blocks: %d, d2h_gbps: %s, h2d_gbps: 25}
timing: {kind: description, model: llama-3-8b, device: a100}
policy: {scheduler: pfcfs+preserve+offload, router: program_sticky, params: {max_num_seqs: 32}}
"""


def test_a_tier_without_bandwidth_is_refused_by_file_line_and_field(capsys, tmp_path) -> None:
    path = tmp_path / "tiered.yaml"
    path.write_text(TIERED % (4000, 0))
    assert main(["simulate", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    for word in ("tiered.yaml", "line 10", "cluster.tiers.host.d2h_gbps", "0", "a number above 0"):
        assert word in err, err


@pytest.mark.slow
def test_contexts_pinned_beyond_what_memory_holds_lose_no_request(capsys, tmp_path) -> None:
    """`preserve` pins every context until its program returns: some 100,000 tokens at once, in a pool of 40,000.

    Prompts that can never fit are rejected and counted, and so is what would have followed them; all others finish.
    """
    path = tmp_path / "tiered.yaml"
    path.write_text(TIERED % (4000, 25))
    assert main(["simulate", str(path), "--json"]) == 0
    fates = {k: v for k, v in json.loads(capsys.readouterr().out)["metrics"].items() if k.startswith("fate_")}
    total = {name.removeprefix("fate_"): sum(values) for name, values in fates.items()}
    assert total["finished"] > 100 and total["rejected_size"] <= 8
    assert total["unfinished"] == total["timed_out"] == total["rejected_queue"] == 0
    assert (total["never_arrived"] > 0) == (total["rejected_size"] > 0)
