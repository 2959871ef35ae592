"""Cache-aware routers without the machine: their rules against those of the load alone, and what they remember."""

from __future__ import annotations

import dataclasses
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsched import policies
from jaxsched.sim import sent
from jaxsched.sim.routing import NUM_BUCKETS, Window, add_recent, recent_tokens
from jaxsched.sim.views import RouterView
from tests.oracle.routing import Tree
from tests.sim.clusters import SMALL, Variant, random_lane
from tests.sim.harness import to_requests

NUM_VIEWS = 300
BLOCK = 16


def _views(num_instances: int, shares: bool = True) -> RouterView:
    """Random views ``[NUM_VIEWS, ...]``; the load is small numbers, so that ties are common."""
    draw = np.random.default_rng(num_instances)

    def ints(most: int, *shape: int) -> jax.Array:
        return jnp.asarray(draw.integers(0, most, (NUM_VIEWS, *shape)), jnp.int32)

    prompt = ints(400) + BLOCK
    cached = ints(25, num_instances) * BLOCK * int(shares)
    return RouterView(
        num_waiting=ints(3, num_instances), num_running=ints(4, num_instances), used_blocks=ints(9, num_instances),
        waiting_blocks=ints(4, num_instances), work_tokens=ints(9, num_instances), arrival_count=ints(99),
        home=ints(1) - 1,
        hash0=ints(99), hash1=ints(99), prompt_tokens=prompt, predicted_tokens=ints(99),
        usable_blocks=jnp.full((NUM_VIEWS, num_instances), 20, jnp.int32),
        matched_tokens=jnp.minimum(cached, (prompt[:, None] - 1) // BLOCK * BLOCK),
        prefill_tokens=ints(200, num_instances), recent_prefill=ints(5, num_instances) * 100,
        recent_output=ints(5, num_instances) * 10, record_tokens=ints(4, num_instances) * BLOCK, block_size=BLOCK,
    )  # fmt: skip


def _routed(name: str, views: RouterView, **params: float) -> np.ndarray:
    router = policies.ROUTERS[name]
    assert params.keys() <= router.params.keys()
    values = jnp.asarray([{**router.params, **params}[p] for p in router.params], jnp.float32)
    head = lambda view: router.route(view.replace(params=values) if router.params else view)
    return np.asarray(jax.jit(jax.vmap(head))(views))


CACHE_AWARE = [router.name for router in policies.ROUTERS.values() if router.reads_cache != "none"]
#: Weights with which a cache-aware router is one that looks at the load only.
LOAD_ONLY = {
    "llmd_score": ("least_outstanding", {"prefix_weight": 0, "queue_weight": 0, "kv_weight": 0, "active_weight": 1}),
    "dynamo_kv": ("least_kv", {"overlap_weight": 0}),
    "sglang": ("least_outstanding", {"balance_abs_threshold": 0, "balance_rel_threshold": 0}),
}


def test_there_are_five_cache_aware_routers() -> None:
    assert sorted(CACHE_AWARE) == ["conductor", "dynamo_kv", "llmd_score", "preble_e2", "sglang"]


@pytest.mark.parametrize("name", CACHE_AWARE)
def test_one_instance_is_always_chosen(name: str) -> None:
    assert (_routed(name, _views(1)) == 0).all()


@pytest.mark.parametrize("name", list(LOAD_ONLY))
def test_without_weight_on_the_cache_the_load_decides(name: str) -> None:
    other, params = LOAD_ONLY[name]
    views = _views(4)
    if name == "sglang":  # equal loads are balanced, and then the record decides
        keep = np.ptp(np.asarray(views.num_waiting + views.num_running), axis=1) > 0
        views = jax.tree.map(lambda x: x[keep], views)
    expected = _routed(other, views)
    np.testing.assert_array_equal(_routed(name, views, **params), expected)
    assert (_routed(name, views) != expected).any()


def test_without_a_match_the_weight_of_the_cache_decides_nothing() -> None:
    views = _views(4, shares=False)
    for name, params in {"llmd_score": {"prefix_weight": 0}, "preble_e2": {"balance_ratio": 0}}.items():
        np.testing.assert_array_equal(_routed(name, views), _routed(name, views, **params))
    assert views.prefill_tokens is not None
    cost = views.prefill_tokens + 64 * views.num_running
    np.testing.assert_array_equal(_routed("conductor", views), np.argmin(np.asarray(cost), axis=1))


def test_where_the_load_is_equal_the_longest_match_wins() -> None:
    views = _views(4)
    equal = {f: jnp.zeros_like(getattr(views, f)) for f in (
        "num_waiting", "num_running", "used_blocks", "waiting_blocks", "prefill_tokens", "recent_prefill",
        "recent_output", "record_tokens",
    )}  # fmt: skip
    views = views.replace(**equal)
    longest = np.argmax(np.asarray(views.matched_tokens), axis=1)
    for name in CACHE_AWARE:
        params = {"cache_threshold": 0} if name == "sglang" else {}
        np.testing.assert_array_equal(_routed(name, views, **params), longest, name)


def test_disaggregated_routes_the_first_turn_to_one_pool_and_the_second_to_the_other() -> None:
    """Inside a pool by load, as `least_kv` does on a cluster of that pool alone; a single instance takes all."""
    assert (_routed("disaggregated", _views(1)) == 0).all()
    views = _views(4)
    apart = lambda at: jax.tree.map(lambda x: x[:, at] if x.shape == (NUM_VIEWS, 4) else x, views)
    first, second = views.replace(home=0 * views.home - 1), views.replace(home=0 * views.home)
    for asked, num in ((1, 1), (2, 2), (3, 3), (0, 1), (9, 3)):
        here = _routed("disaggregated", first, prefill_instances=asked)
        np.testing.assert_array_equal(here, _routed("least_kv", apart(slice(None, num))))
        there = _routed("disaggregated", second, prefill_instances=asked)
        np.testing.assert_array_equal(there, num + _routed("least_kv", apart(slice(num, None))))


@pytest.mark.parametrize("cache", ["runs", "blocks"])
def test_the_record_is_a_tree_that_forgets_the_least_recently_sent_leaves(cache: str) -> None:
    variant = Variant("vllm", "round_robin", block_size=BLOCK, turns=True, cache=cache, size=SMALL)
    entries = SMALL.num_rows * variant.max_blocks if cache == "blocks" else SMALL.num_rows + 3
    static = dataclasses.replace(variant.static(), record_entries=entries)

    @jax.jit
    def step(requests, state, row, m, limit):
        found = sent.match(static, requests, state, row)
        return found.blocks, sent.add(static, state, found, m, limit, jnp.bool_(True))

    cut = hits = 0
    for seed in range(12):
        lane = random_lane(variant, seed)
        workload, draw = lane.workload, random.Random(seed)
        requests = to_requests(workload, SMALL.num_rows, (BLOCK, variant.max_blocks))
        limit = draw.choice([3.0, 8.5, 1000.0])
        trees = [Tree(limit) for _ in range(2)]
        state = sent.init_sent(static)
        assert workload.prompt_content is not None
        for when in range(40):
            row, m = draw.randrange(len(workload.prompt_tokens)), draw.randrange(2)
            content = workload.prompt_content[row]
            prefixes = [tuple(content[: (i + 1) * BLOCK]) for i in range(len(content) // BLOCK)]
            before = [tree.leading(prefixes) for tree in trees]
            hits += sum(before)
            if any(_continues(workload, row, prefixes, tree) for tree in trees):
                continue  # an earlier turn after a later one: no program does that
            blocks, state = step(requests, state, row, m, limit)
            assert np.asarray(blocks).tolist() == before
            size = len(trees[m].last_sent)
            trees[m].insert(prefixes, when + 1)
            cut += size + len(prefixes) - before[m] > len(trees[m].last_sent)
            assert np.asarray(state.size).tolist() == [len(tree.last_sent) for tree in trees]
    assert cut > 30 and hits > 200


def _continues(workload, row: int, prefixes: list, tree: Tree) -> bool:
    """Whether the tree holds a longer prompt of the same chain."""
    own = len(prefixes) * BLOCK
    rows = [r for r, chain in enumerate(workload.chain) if chain == workload.chain[row]]
    return any(
        tuple(workload.prompt_content[r][: (i + 1) * BLOCK]) in tree.last_sent
        for r in rows
        for i in range(own // BLOCK, len(workload.prompt_content[r]) // BLOCK)
    )


def test_the_window_forgets_what_is_older_than_eleven_buckets() -> None:
    window = Window(jnp.zeros((2, 3, NUM_BUCKETS), jnp.int32), jnp.full(NUM_BUCKETS, -1, jnp.int32))
    draw, log, bucket = random.Random(0), [], 0
    step = jax.jit(add_recent)
    for _ in range(120):
        bucket += draw.choice([0, 0, 1, 2, 15])
        m, tokens = draw.randrange(3), (draw.randrange(100), draw.randrange(100))
        window = step(window, bucket, m, jnp.asarray(tokens, jnp.int32), jnp.bool_(True))
        log.append((bucket, m, tokens))
        recent = [(m, t) for b, m, t in log if b > bucket - NUM_BUCKETS]
        expected = [[sum(t[i] for m, t in recent if m == j) for j in range(3)] for i in range(2)]
        assert np.asarray(recent_tokens(window, jnp.int32(bucket))).tolist() == expected
