"""Cache analysis without a clock: against a plain LRU, hand-worked sessions, and the figures of the public traces."""

from __future__ import annotations

import csv
import gzip
from collections import OrderedDict

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsched.errors import UserError
from jaxsched.workloads import Workload, get_preset, read
from jaxsched.workloads.reuse import lru_hit_curve, session_hit_rate
from tests.shared_data import shared_path
from tests.workloads.test_sharing import tries


def plain_lru(workload: Workload, capacity: int) -> tuple[float, float]:
    """Token and block hit rate, one dictionary operation at a time."""
    size, cache, found, blocks = workload.content_block_size, OrderedDict(), 0, 0
    for row in range(len(workload)):
        prompt, output = int(workload.prompt_tokens[row]), int(workload.output_tokens[row])
        count = min(-(-prompt // size), (prompt + output - 1) // size)
        ids = workload.content[workload.content_start[row] :][:count].tolist()
        hits = next((k for k, block in enumerate(ids) if block not in cache), count)
        found, blocks = found + min(hits * size, prompt), blocks + hits
        for block in ids:
            cache[block] = True
            cache.move_to_end(block)
            if len(cache) > capacity:
                cache.popitem(last=False)
    total = int((-(-workload.prompt_tokens // size)).sum())
    return found / int(workload.prompt_tokens.sum()), blocks / total


@settings(max_examples=80, deadline=None)
@given(tries(), st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_the_curve_equals_a_plain_lru_at_every_capacity(workload, capacities):
    curve = lru_hit_curve(workload, [*capacities, None])
    expected = [plain_lru(workload, c) for c in [*capacities, 10**9]]
    np.testing.assert_allclose(np.stack([curve.token_hit_rate, curve.block_hit_rate], 1), expected, rtol=1e-12)
    full = lru_hit_curve(workload, [max(curve.unique_blocks, 1)])
    assert full.token_hit_rate[0] == curve.token_hit_rate[-1]  # it never evicts


def test_mooncake_hits_are_those_listed_with_the_trace():
    """Within 0.5 points; listed: the README of the slice. Its partial last blocks can be hits, ours cannot."""
    listed = {1_000: 0.045, 3_000: 0.066, 10_000: 0.210, 30_000: 0.324, 50_000: 0.352, 100_000: 0.358, None: 0.358}
    workload = read(shared_path("traces", "mooncake", "conversation_trace.jsonl"))
    curve = lru_hit_curve(workload, list(listed))
    np.testing.assert_allclose(curve.token_hit_rate, list(listed.values()), atol=0.005)
    assert curve.block_hit_rate[-1] == pytest.approx(0.351, abs=0.005)


def test_smaller_blocks_of_the_same_content_give_the_same_curve():
    workload = read(shared_path("traces", "mooncake", "conversation_trace.jsonl")).head(600)
    large = lru_hit_curve(workload, [500, 2_000, None]).token_hit_rate
    small = lru_hit_curve(workload.split_content(128), [2_000, 8_000, None]).token_hit_rate
    np.testing.assert_allclose(small, large, atol=0.002)


# -- sessions ----------------------------------------------------------------------------------------------------------


def test_session_hits_by_hand():
    columns = {
        "arrival_us": np.array([0, 0, 0, 5]),
        "program": np.array([0, 0, 0, 1]),
        "turn": np.array([0, 1, 2, 0]),
        "prompt_tokens": np.array([10, 25, 12, 40]),
        "output_tokens": np.array([5, 6, 2, 1]),
    }
    # Turn 1 finds 14 of 25 tokens; turn 2 begins a chain and finds the 6 of the group; program 1 finds nothing.
    group = {"group": np.zeros(4, int), "group_tokens": np.full(4, 6)}
    w = Workload.build("w", **columns, **group)
    assert session_hit_rate(w) == pytest.approx((14 + 6) / 87)
    assert session_hit_rate(Workload.build("w", **columns)) == pytest.approx(14 / 87)
    # The same as blocks of 4: 3 full blocks of 14 tokens, 1 of 6.
    assert session_hit_rate(w.with_block_ids(4)) == pytest.approx((12 + 4) / 87)
    assert session_hit_rate(w.with_block_ids(1)) == pytest.approx((14 + 6) / 87)
    # Prompts only, one program a row: what the LRU sees.
    assert lru_hit_curve(w.with_block_ids(1), [None]).token_hit_rate[0] == pytest.approx((10 + 6 + 6) / 87)


def test_recorded_agent_sessions_find_what_the_readme_says():
    """95.9 % over all 450 sessions (the column of the derived file)."""
    with gzip.open(shared_path("traces", "claude_code_weka", "requests_nohash.csv.gz"), "rt") as file:
        rows = list(csv.DictReader(file))
    hit, prompt = sum(int(r["prefix_hit_tokens"]) for r in rows), sum(int(r["in"]) for r in rows)
    assert hit / prompt == pytest.approx(0.959, abs=0.001)


def test_raw_agent_sessions_find_the_same_tokens_as_in_the_derived_file():
    """The 48 raw files, session by session; together 95.3 %: long sessions, which find most, are left out of them."""
    folder = shared_path("traces", "claude_code_weka")
    with gzip.open(folder / "requests_nohash.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))
    compared = 0
    for file in sorted((folder / "traces").glob("trace_*.json")):
        alone = read(file)
        listed = [r for r in rows if r["trace"] == file.stem]
        if alone.counts["requests_without_output"] or len(listed) != len(alone):
            continue  # left out by the reader, or not in the derived file
        expected = sum(int(r["prefix_hit_tokens"]) for r in listed) / sum(int(r["in"]) for r in listed)
        assert session_hit_rate(alone) == pytest.approx(expected, abs=1e-12), file.stem
        compared += 1
    assert compared >= 40
    together = read(folder, rate_per_s=0.1)
    assert together.num_programs == 48 and together.content_block_size == 64
    assert session_hit_rate(together) == pytest.approx(0.953, abs=0.001)


# -- chains and groups as blocks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("preset", "low", "high"), [("swe_agents", 0.9, 0.97), ("chat_sessions", 0.55, 0.85)])
def test_block_ids_say_the_same_as_chains_and_groups(preset, low, high):
    w = Workload.from_requests(get_preset(preset).generate(jax.random.key(0), 150), preset).head(12)
    rate = session_hit_rate(w)
    assert low < rate < high
    assert session_hit_rate(w.with_block_ids(1)) == pytest.approx(rate, abs=1e-12)
    assert rate - 0.06 < session_hit_rate(w.with_block_ids(16)) < rate


def test_tenants_find_their_system_prompt_again():
    w = Workload.from_requests(get_preset("shared_prompts").generate(jax.random.key(0), 4_000))
    found = lru_hit_curve(w.with_block_ids(16), [None]).token_hit_rate[0]
    first = np.unique(w.group, return_index=True)[1]
    expected = (w.group_tokens.sum() - w.group_tokens[first].sum()) / w.prompt_tokens.sum()
    assert found == pytest.approx(expected, abs=0.01)
    assert lru_hit_curve(w.with_block_ids(16), [400]).token_hit_rate[0] < 0.8 * found


def test_mistakes_are_user_errors():
    w = Workload.build("w", arrival_us=np.zeros(1), prompt_tokens=np.ones(1), output_tokens=np.ones(1))
    with pytest.raises(UserError, match=r"w: no block ids; expected a trace with hash_ids\. Workload\.with_block_ids"):
        lru_hit_curve(w, [1])
    with pytest.raises(UserError, match="capacity of 0 blocks"):
        lru_hit_curve(w.with_block_ids(1), [0])
