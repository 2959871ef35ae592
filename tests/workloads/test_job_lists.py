"""Lists of jobs: where they come from, and the order in which BatchLLM runs them."""

from __future__ import annotations

import itertools
import json
import random

import jax
import numpy as np
import pytest

import jaxsched as js
from jaxsched import policies
from jaxsched.cli import main
from jaxsched.comparison import compare
from jaxsched.errors import UserError
from jaxsched.policies.batchllm import in_group_order
from jaxsched.workloads import Workload, get_preset, read
from jaxsched.workloads.prefix_groups import flat_groups, saved_share
from tests.shared_data import ROOT

SCENARIO = str(ROOT / "configs" / "scenarios" / "batch_jobs.yaml")


def _random_tree(draw: random.Random) -> list[tuple[int, ...]]:
    """Prompts as tuples of words that repeat a lot."""
    return [tuple(draw.choice((0, 0, 0, 1)) for _ in range(draw.randint(0, 5))) for _ in range(draw.randint(1, 9))]


def _ids(prompts: list[tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    names: dict[tuple[int, ...], int] = {}
    content = [names.setdefault(p[: k + 1], len(names)) for p in prompts for k in range(len(p))]
    lengths = np.array([len(p) for p in prompts])
    return lengths, np.concatenate([[0], np.cumsum(lengths)[:-1]]), np.array(content, np.int64)


def _most_saved(prompts: list[tuple[int, ...]]) -> int:
    """Over all cuts of the tree: sets of nodes none of which is below another; all rows below one are its group."""
    nodes = sorted({p[:k] for p in prompts for k in range(1, len(p) + 1)})
    best = 0
    for size in range(1, 5):
        for cut in itertools.combinations(nodes, size):
            if all(a == b or a[: len(b)] != b for a in cut for b in cut):
                below = [sum(p[: len(node)] == node for p in prompts) for node in cut]
                best = max(best, sum(len(node) * (n - 1) for node, n in zip(cut, below, strict=True)))
    return best


def test_the_groups_of_a_tree_save_as_much_as_any_single_level_cut() -> None:
    draw, some_nested = random.Random(5), 0
    for _ in range(60):
        prompts = _random_tree(draw)
        group, blocks = flat_groups(*_ids(prompts))
        chosen = [p[:b] for p, b in zip(prompts, blocks, strict=True)]
        for name in np.unique(group[group >= 0]):  # what a group shares is one prefix, of at least two rows
            assert len({chosen[i] for i in np.flatnonzero(group == name)}) == 1
        saved = round(saved_share(group, blocks, np.array([len(p) for p in prompts])) * sum(map(len, prompts)))
        assert saved == _most_saved(prompts)
        some_nested += len(set(chosen) - {()}) > 1
    assert some_nested >= 5


def _plain_order(jobs: list[tuple[int, int, int, int, int]]) -> list[int]:
    """BatchLLM's order of (instant, group, shared, prompt, predicted), with dictionaries."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, (instant, group, *_) in enumerate(jobs):
        groups.setdefault((instant, group if group >= 0 else -1 - i), []).append(i)

    def key(members: list[int]) -> tuple[int, float, int]:
        prefix = max(jobs[i][2] for i in members)
        distinct = sum(jobs[i][3] - jobs[i][2] for i in members)
        return jobs[members[0]][0], -sum(jobs[i][4] for i in members) / max(prefix + distinct, 1), members[0]

    return [i for members in sorted(groups.values(), key=key) for i in members]


def test_jobs_go_in_groups_by_their_ratio_and_never_before_others_that_came_earlier() -> None:
    draw = random.Random(2)
    for _ in range(20):
        num = 40
        instants = sorted(draw.choice((0, 0, 5_000)) for _ in range(num))
        group = [draw.randrange(-1, 6) for _ in range(num)]
        shared = [100 * (g + 1) for g in group]
        prompt = [s + draw.randint(1, 300) for s in shared]
        predicted = [draw.randint(1, 200) for _ in range(num)]
        jobs = Workload.build(
            "jobs", arrival_us=np.array(instants), prompt_tokens=np.array(prompt), output_tokens=np.array(predicted),
            group=np.array(group), group_tokens=np.array(shared),
        ).to_requests()  # fmt: skip
        ordered = in_group_order(jobs, 16)
        expected = _plain_order(list(zip(instants, group, shared, prompt, predicted, strict=True)))
        for name in ("arrival_us", "prompt_tokens", "predicted_tokens", "group"):
            np.testing.assert_array_equal(getattr(ordered, name), np.asarray(getattr(jobs, name))[expected], name)
        for name in ("program", "chain"):
            np.testing.assert_array_equal(getattr(ordered, name), np.arange(num), name)
        halves = in_group_order(jobs, 16, cuts=np.array([0, num // 2, num]))
        assert sorted(np.asarray(halves.prompt_tokens)[: num // 2]) == sorted(prompt[: num // 2])


def test_one_group_and_jobs_one_by_one_stay_as_they_are() -> None:
    jobs = get_preset("batch_jobs").generate(jax.random.key(0), 30)
    assert jobs.group is not None and jobs.group_tokens is not None
    one = jobs.replace(group=jobs.group * 0, group_tokens=jobs.group_tokens * 0 + 100)
    apart = jobs.replace(arrival_us=np.arange(30, dtype=np.int32))
    for table in (one, apart):
        for ours, theirs in zip(jax.tree.leaves(in_group_order(table, 16)), jax.tree.leaves(table), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_groups_in_order_save_what_the_list_allows_and_are_done_sooner() -> None:
    scenario = js.load(SCENARIO, {"workload.num_requests": 96, "cluster.kv_blocks": 1400})
    seeds = range(4)
    vllm = js.rollout(scenario, policies.get("vllm"), seeds, record=True)
    ordered = js.rollout(scenario, policies.get("vllm+prefix_groups"), seeds, record=True)
    assert vllm.warnings() == ordered.warnings() == []
    assert (ordered.metrics["makespan_s"] < vllm.metrics["makespan_s"]).all()
    assert (ordered.metrics["prefix_saving"] > vllm.metrics["prefix_saving"] + 0.05).all()
    for lane in range(len(seeds)):
        table = jax.tree.map(lambda x, lane=lane: np.asarray(x[lane]), ordered.requests)
        most = saved_share(table.group, table.group_tokens // 16 * 16, table.prompt_tokens)
        records = ordered.records(lane)
        once = records["cached_tokens_first"].sum() / records["prompt_tokens"].sum()
        assert most - 0.03 <= once <= most + 1e-9
        assert records["finish_s"].max() == pytest.approx(ordered.metrics["makespan_s"][lane], abs=1e-6)


def test_a_list_of_jobs_as_json_lines_is_read(tmp_path) -> None:
    path = tmp_path / "jobs.jsonl"
    rows = [
        {"prompt_tokens": 120, "output_tokens": 7, "group": "a", "group_tokens": 100},
        {"prompt_tokens": 50, "output_tokens": 3, "predicted_tokens": 5, "klass": 1},
        {"prompt_tokens": 130, "output_tokens": 9, "group": "a", "group_tokens": 100},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    jobs = read(path)
    assert jobs.is_job_list and jobs.format == "jobs" and jobs.group.tolist() == [0, -1, 0]
    assert jobs.predicted_tokens.tolist() == [7, 5, 9] and jobs.klass.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt_tokens": 5, "output_tokens": 0}, "field output_tokens: 0; expected an integer >= 1"),
        ({"prompt_tokens": 5, "output_tokens": 1, "group": "a"}, "group without group_tokens"),
        ({"prompt_tokens": 5, "output_tokens": 1, "group": "a", "group_tokens": 6}, "group_tokens 6 of a prompt of 5"),
        ({"prompt_tokens": 5, "output_tokens": 1, "arrival_s": 3}, "unknown field 'arrival_s'"),
    ],
)
def test_a_wrong_job_is_refused_by_line(tmp_path, row: dict, says: str) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_text(json.dumps({"prompt_tokens": 1, "output_tokens": 1}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(UserError, match="line 2") as found:
        read(path)
    assert says in str(found.value)


def test_rates_of_a_list_of_jobs_and_sessions_in_groups_are_refused(capsys) -> None:
    chat = str(ROOT / "configs" / "scenarios" / "chat.yaml")
    assert main(["simulate", chat, "--workload.offline", "true"]) == 2  # the file sets a rate
    assert "no `rate_per_s`" in capsys.readouterr().err
    jobs = js.load(SCENARIO, {"workload.num_requests": 10})
    with pytest.raises(UserError, match="one load"):
        compare(jobs, {"vllm": policies.get("vllm")}, [0.5, 1.0], 2, baseline="vllm")
    sessions = js.load(str(ROOT / "configs" / "scenarios" / "chat_sessions.yaml"), {"workload.num_requests": 10})
    with pytest.raises(UserError, match="programs of several turns"):
        js.rollout(sessions, policies.get("batchllm"), 1)
