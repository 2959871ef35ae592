"""The semantic cache in front: the machine equals the reference; break-even; without hits it only costs the search.

docs/semantics.md, section 18.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jaxsched import policies
from jaxsched.errors import UserError
from jaxsched.scenario import load
from jaxsched.semantic_cache import Category, SemanticCacheModel, break_even_hit_rate, topic_places
from jaxsched.sim.clock import join_us
from jaxsched.sim.semantic import FALSE_HITS, HITS, LOOKUPS, STALE, UNLIKE
from jaxsched.sim.state import Fate, State
from tests.oracle.data import Workload
from tests.shared_data import ROOT
from tests.sim.clusters import MEDIUM, Variant, lane_inputs, random_lane
from tests.sim.differential import assert_equal_records
from tests.sim.harness import run_lanes_checked

LANES = 40  # five times as many with --full
VARIANT = Variant("vllm", "least_kv", timeouts=True, delay=True, semantic=True, size=MEDIUM)


@pytest.mark.slow
def test_every_record_equals_the_reference_whatever_is_kept(full_size: bool) -> None:
    lanes = [random_lane(VARIANT, seed) for seed in range(5 * LANES if full_size else LANES)]
    state, found = run_lanes_checked(VARIANT.static(), *lane_inputs(VARIANT, lanes))
    assert not np.asarray(found).any()
    counts = np.asarray(state.semantic.counts)
    names = {"lookups": LOOKUPS, "hits": HITS, "false_hits": FALSE_HITS, "stale": STALE, "unlike": UNLIKE}

    def also(i, lane, result) -> None:
        assert [result.noted[name] for name in names] == counts[i, list(names.values())].tolist()

    seen = assert_equal_records(VARIANT, lanes, state, also)
    assert seen["answered"] == seen["hits"] >= 2 * LANES and seen["false_hits"] >= LANES // 4
    assert min(seen["stale"], seen["unlike"], seen["evicted"]) >= LANES // 2


#: Requests that come one after the other, far apart: the engine takes the same time for each.
FAR_US, NUM = 2_000_000, 32


def _one_by_one(model: SemanticCacheModel | None) -> State:
    """The same requests behind a cache, or (None) behind one that keeps nothing and costs nothing."""
    none = SemanticCacheModel(0.0, (Category(0.5, 1.0, 0),))
    table = Workload.simple([FAR_US * i for i in range(NUM)], [10] * NUM, [20] * NUM)
    base = random_lane(VARIANT, 0)
    engine = dataclasses.replace(base.engine, usable_blocks=400, max_queue=0, timeouts_us=(0, 0), token_budget=2048,
                                 chunked_prefill=True, watermark_blocks=0)  # fmt: skip
    lane = [dataclasses.replace(base, workload=table, engine=engine, timing=1)] * LANES  # (the program above)
    params, requests = lane_inputs(VARIANT, lane)
    settings = policies.get("vllm+semantic_cache").settings()
    known = (model or none).params(2, settings)
    stacked = {f.name: np.repeat(np.asarray(getattr(known, f.name))[None], LANES, 0) for f in dataclasses.fields(known)}
    params = params.replace(semantic=params.semantic.replace(**stacked), seed=np.arange(LANES, dtype=np.int32))
    return run_lanes_checked(VARIANT.static(), params, requests)[0]


def _latency_us(state: State) -> np.ndarray:
    """``[lanes, requests]``."""
    finish, arrival = (np.asarray(x)[:, :NUM] for x in (state.record.finish, state.record.arrival))
    return join_us(finish[..., 0], finish[..., 1]) - join_us(arrival[..., 0], arrival[..., 1])


@pytest.mark.slow
def test_break_even_is_where_the_sheet_has_it_and_no_hits_cost_the_search() -> None:
    # The sheet's figures: 30 ms of remote search against an engine of 200 ms, 2 ms in memory.
    assert break_even_hit_rate(0.030, 0.0, 0.200) == pytest.approx(0.15)
    assert break_even_hit_rate(0.002, 0.0, 0.200) == pytest.approx(0.01)
    assert break_even_hit_rate(0.01, 0.2, 0.2) == float("inf")
    off = _latency_us(_one_by_one(None))
    engine = off[0, 0]
    assert (off == engine).all()
    # Nothing is ever asked twice: the cache is the search and nothing else.
    search = 30_000
    never = _one_by_one(SemanticCacheModel(search, (Category(0.5, 1e5, 8, unique=1.0),)))
    assert never.semantic is not None and np.asarray(never.semantic.counts)[:, HITS].sum() == 0
    np.testing.assert_array_equal(_latency_us(never), engine + search)
    # Shares of hits on both sides of the break-even: means are the formula's, and change sign there.
    rates, gains = [], []
    for unique in (0.97, 0.9, 0.8, 0.6, 0.2):
        law = Category(0.0, 1e5, 8, topics=1, unique=unique)
        state = _one_by_one(SemanticCacheModel(search, (law,), answer_us=500.0))
        hits = np.asarray(state.record.fate)[:, :NUM] == Fate.ANSWERED
        latency = _latency_us(state)
        np.testing.assert_array_equal(latency, np.where(hits, search + 500, engine + search))
        rates.append(hits.mean())
        gains.append(engine - latency.mean())
    even = break_even_hit_rate(search, 500.0, engine)
    assert rates == sorted(rates) and rates[0] < even < rates[-1]
    assert [gain > 0 for gain in gains] == [rate > even for rate in rates]


def test_what_requests_ask_follows_the_law() -> None:
    places = topic_places(Category(0.5, 1.0, 1, topics=4, zipf=1.0, unique=0.25))
    assert (places == -1).mean() == pytest.approx(0.25, abs=2e-3)
    shares = [(places == topic).mean() for topic in range(4)]
    assert shares[0] == pytest.approx(2 * shares[1], rel=0.02) and shares[0] == pytest.approx(4 * shares[3], rel=0.03)


def test_scenarios_without_such_a_cache_and_knobs_out_of_range_are_refused_in_words() -> None:
    chat = load(str(ROOT / "configs" / "scenarios" / "chat.yaml"))
    with pytest.raises(UserError, match="answers from a semantic cache, and the scenario has none"):
        chat.check(policies.get("vllm+semantic_cache"))
    cached = load(str(ROOT / "configs" / "scenarios" / "semantic_cache.yaml"))
    for knob, value, words in (
        ("semantic_threshold", 1.5, "a number from -1 to 1"),
        ("semantic_ttl_s", 300_000, "a number from -1 to 259200"),
        ("semantic_adaptive", 3, "a number from 0 to 1"),
    ):
        with pytest.raises(UserError, match=f"{knob} is {value:g}.*expected {words}"):
            cached.check(policies.get("vllm+semantic_cache", **{knob: value}))
    assert cached.semantic_cache is not None
    no_range = dataclasses.replace(cached.semantic_cache, load_high=0)
    with pytest.raises(UserError, match="load_low < load_high"):
        dataclasses.replace(cached, semantic_cache=no_range).check(
            policies.get("vllm+semantic_cache", semantic_adaptive=1)
        )
    with pytest.raises(UserError, match="answers single requests"):
        dataclasses.replace(cached, max_paused_programs=8).check(policies.get("vllm+semantic_cache"))
