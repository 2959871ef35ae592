"""Cache-aware routers: the machine sends every turn where the plain-Python reference does, step by step and in runs.

docs/semantics.md, section 7. Programs share system prompts and return with their context; routers see the caches live,
or as of the last tick, or remember what they sent. One compiled program holds all routers that read the caches: which
one decides is a parameter of the lane.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsched import policies
from jaxsched.policies.base import Policy, Router
from jaxsched.sim.invariants import Violation
from jaxsched.sim.params import SimParams
from jaxsched.sim.requests import Requests
from jaxsched.sim.state import Count, Flag
from jaxsched.sim.static import SimStatic
from tests.oracle.data import RouterConfig
from tests.sim.clusters import (
    LATTICE_US,
    SMALL,
    Lane,
    Size,
    Variant,
    lane_inputs,
    random_lane,
)
from tests.sim.differential import assert_equal_lane, reference
from tests.sim.harness import run_lanes, run_lanes_checked

NUM_QUICK = 3  # variants that always run
LANES = 120  # of each variant; five times as many with --full
READERS = [router for router in policies.ROUTERS.values() if router.reads_cache == "cache"]
#: Values whose products with token counts are exact in float32, so that ties are ties on both sides.
VALUES: dict[str, list[float]] = {
    "max_tree_tokens": [100, 333, 2**20], "cache_threshold": [0, 0.25, 0.5], "balance_abs_threshold": [0, 2, 64],
    "balance_rel_threshold": [1, 1.5, 2], "decode_cost": [0, 0.5, 4], "balance_ratio": [0, 1, 1.5, 4],
    "running_cost": [0, 16, 64],
    "fetch_ratio": [0, 1, 2], "fetch_cost": [0, 0.25, 1], "overlap_weight": [0, 0.5, 1, 4], "prefix_weight": [0, 1, 3],
    "queue_weight": [0, 2], "kv_weight": [0, 2], "active_weight": [0, 1],
}  # fmt: skip
MOST_PARAMS = max(len(router.params) for router in READERS)
ROUTED = Size(3, 8, 32, 120, 30, (200, 300, 500, 2000))


def _any_reader(view) -> jax.Array:
    """The router that the lane's first parameter says."""
    choices = [r.route(view.replace(params=view.params[1 : 1 + len(r.params)])) for r in READERS]
    return jnp.stack(choices)[view.params[0].astype(jnp.int32)]


ANY_READER = Router(
    "any_reader", _any_reader, "", "", reads_blocks=True, reads_cache="cache", reads_window=True,
    params={"which": 0.0, **{f"p{i}": 0.0 for i in range(MOST_PARAMS)}},
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Routed(Variant):
    """A variant with a cache-aware router."""

    cache_delay: bool = False

    @property
    def policy(self) -> Policy:
        if self.router != ANY_READER.name:
            return super().policy
        base = dataclasses.replace(self, router="least_kv")
        return dataclasses.replace(Variant.policy.fget(base), router=ANY_READER)  # type: ignore[attr-defined]

    def static(self, max_run_steps: int = 32) -> SimStatic:
        static = super().static(max_run_steps)
        entries = 0
        if static.route_by_cache == "record":
            entries = self.size.num_rows * self.max_blocks if self.cache == "blocks" else self.size.num_rows + 3
        return dataclasses.replace(static, delayed_cache=self.cache_delay, record_entries=entries)


VARIANTS = [
    Routed("vllm", "any_reader", block_size=8, turns=True, cache="blocks", size=ROUTED),
    Routed("vllm", "any_reader", block_size=8, turns=True, cache="runs", size=ROUTED, cache_delay=True),
    Routed("vllm", "sglang", block_size=8, turns=True, cache="runs", size=ROUTED),
    # Only with --full: each is a program that takes half a minute to compile.
    Routed("vllm", "any_reader", turns=True, delay=True, cache="runs", size=ROUTED),
    Routed("vllm-async", "any_reader", turns=True, delay=True, cache="blocks", size=SMALL, cache_delay=True),
]


def _lane(variant: Routed, seed: int) -> Lane:
    """A random lane with a router of its own."""
    lane = random_lane(variant, seed)
    draw = random.Random(f"{variant.seed_name}/{seed}/router")
    router = draw.choice(READERS) if variant.router == ANY_READER.name else policies.ROUTERS[variant.router]
    config = RouterConfig(
        router.name,  # type: ignore[arg-type]
        lane.router.delay_us,
        seed,
        draw.choice([2, 11, 40]) * LATTICE_US if variant.cache_delay else 0,
        {name: draw.choice(VALUES[name]) for name in router.params},
    )
    return dataclasses.replace(lane, router=config)


def _inputs(variant: Routed, lanes: list[Lane]) -> tuple[SimParams, Requests]:
    params, requests = lane_inputs(variant, lanes)
    route = np.zeros((len(lanes), len(variant.policy.router.params)), np.float32)
    names = [router.name for router in READERS]
    for i, lane in enumerate(lanes):
        values = list(lane.router.params.values())
        values = [names.index(lane.router.kind), *values] if variant.router == ANY_READER.name else values
        route[i, : len(values)] = values
    late = np.asarray([lane.router.cache_delay_us for lane in lanes], np.int32) if variant.cache_delay else None
    return params.replace(route=route, cache_delay_us=late), requests


def lane_and_inputs(variant: Routed, num_lanes: int) -> tuple[list[Lane], tuple[SimParams, Requests]]:
    """The first lanes of a variant, and what the machine takes."""
    lanes = [_lane(variant, seed) for seed in range(num_lanes)]
    return lanes, _inputs(variant, lanes)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_every_turn_goes_where_the_reference_sends_it(variant: Routed, full_size: bool) -> None:
    if variant not in VARIANTS[:NUM_QUICK] and not full_size:
        pytest.skip("only with --full")
    lanes = [_lane(variant, seed) for seed in range(5 * LANES if full_size else LANES)]
    inputs = _inputs(variant, lanes)
    state = run_lanes(variant.static(), *inputs)
    seen: Counter[str] = Counter()
    for i, lane in enumerate(lanes):
        if int(state.flags[i]) & (Flag.CACHE_COPIES | Flag.CACHE_ENTRIES):
            seen["flagged"] += 1
            continue
        result = reference(variant, lane)
        if result.smallest_gap < 1e-5:
            seen["close"] += 1
            continue
        assert_equal_lane(state, i, lane, result)
        seen[lane.router.kind] += 1
        seen["hits"] += sum(record.cached_tokens_total > 0 for record in result.records)
        seen["preemptions"] += sum(record.preemptions for record in result.records)
        if i < 20:
            load = dataclasses.replace(lane, router=dataclasses.replace(lane.router, kind="least_outstanding"))
            other = reference(variant, load).records
            seen["decided"] += any(a.instance != b.instance for a, b in zip(result.records, other, strict=True))
    print(f"{variant.name}: {dict(seen)}")
    assert seen["flagged"] + seen["close"] <= len(lanes) // 5, seen
    assert seen["hits"] > 200 and seen["decided"] >= 7 and seen["preemptions"] >= 5, seen
    if variant.router == ANY_READER.name:
        assert all(seen[router.name] >= 5 for router in READERS), seen


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS[:2], ids=lambda v: v.name)
def test_runs_of_decode_steps_equal_single_steps_and_no_state_violates_an_invariant(
    variant: Routed, full_size: bool
) -> None:
    if variant is VARIANTS[0] and not full_size:  # the reference takes single steps: the test above says the same
        pytest.skip("only with --full")
    lanes = [_lane(variant, seed) for seed in range(10 * LANES if full_size else LANES)]
    inputs = _inputs(variant, lanes)
    single, found = run_lanes_checked(variant.static(max_run_steps=1), *inputs)
    found = np.asarray(found)
    assert not found.any(), f"lane {found.argmax()}: {Violation(int(found.max()))!r}"
    runs = run_lanes(variant.static(), *inputs)
    for one, many in zip(jax.tree.leaves(single.record), jax.tree.leaves(runs.record), strict=True):
        np.testing.assert_array_equal(one, many)
    saved = np.asarray(single.metrics.counts - runs.metrics.counts)[:, Count.MICRO_STEPS]
    assert (saved > 0).mean() > 0.3
