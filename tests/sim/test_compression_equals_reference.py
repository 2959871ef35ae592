"""KV compression: the machine, in runs of steps, takes every decision of the reference (docs/semantics.md, 17)."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import jaxsched as js
from jaxsched import policies
from jaxsched.errors import UserError
from jaxsched.sim.arrivals import hash_bits
from jaxsched.sim.compress import FIRST_DRAW, CompressParams, quality_loss
from tests.shared_data import ROOT
from tests.sim.clusters import MEDIUM, Lane, Variant, lane_inputs, random_lane
from tests.sim.differential import assert_equal_records
from tests.sim.harness import run_lanes_checked

LANES = 48  # of each variant; five times as many with --full
FCFS = Variant("vllm+squeeze", turns=True, timeouts=True, size=MEDIUM)
BUDGETED = Variant("sjf+h2o", "least_kv", turns=True, thresholds=True, size=MEDIUM)
SCENARIO = str(ROOT / "configs" / "scenarios" / "long_prompts.yaml")


def _lane(variant: Variant, seed: int) -> Lane:
    lane, draw = random_lane(dataclasses.replace(variant, scheduler=variant.base), seed), random.Random(seed)
    engine = dataclasses.replace(
        lane.engine,
        compress="pressure" if "squeeze" in variant.parts else "fixed",
        keep_ratio=draw.choice([1024, 512, 205, 33]),
        pressure=draw.choice([(0, 0), (300, 900), (717, 973)]),
        min_kept=draw.choice([1, 40]),
        evict_window=draw.choice([0, 1, 16, 50]),
    )
    return dataclasses.replace(lane, engine=engine)


def _inputs(variant: Variant, lanes: list[Lane]) -> tuple[Any, Any]:
    params, requests = lane_inputs(variant, lanes)
    engines = [lane.engine for lane in lanes]
    column = lambda name: jnp.asarray([getattr(engine, name) for engine in engines], jnp.int32)
    compress = CompressParams(
        head=jnp.asarray([(e.keep_ratio, *e.pressure) for e in engines], jnp.int32),
        min_tokens=column("min_kept"),
        window=column("evict_window"),
        quality=jnp.tile(jnp.asarray([0.25, 2.0, 0.5], jnp.float32), (len(lanes), 1)),
    )
    return params.replace(compress=compress), requests


@pytest.mark.slow
@pytest.mark.parametrize("variant", [FCFS, BUDGETED], ids=lambda v: v.name)
def test_every_record_equals_the_reference(variant: Variant, full_size: bool) -> None:
    lanes = [_lane(variant, seed) for seed in range(5 * LANES if full_size else LANES)]
    state, violations = run_lanes_checked(variant.static(), *_inputs(variant, lanes))
    assert not np.any(violations)
    seen = assert_equal_records(variant, lanes, state)
    at_least = {"compared": LANES, "finished": 500, "preemptions": 20}
    at_least |= {"evicted_after_prefill": 300, "evicted_in_decode": 100}
    assert {name: seen[name] for name, least in at_least.items() if seen[name] < least} == {}


def test_ratio_one_is_the_engine_without_and_smaller_caches_hold_more_requests_and_lose_quality() -> None:
    scenario = js.load(SCENARIO, {"workload.num_requests": 40, "cluster.kv_blocks": 1200})
    scenario = dataclasses.replace(scenario, workload=scenario.workload.as_job_list())
    run = lambda name, **params: js.rollout(scenario, policies.get(name, **params), 3, record=True)
    plain, whole = run("vllm"), run("vllm+h2o", ratio=1.0)
    # The two take different micro-steps (docs/metrics.md): the batch is a float32 sum of other parts, used blocks are
    # those at the end of what was one run, the throughput is read between snapshots. All else is the same to the bit.
    close = {"batch_mean": 1e-6, "kv_used_fraction": 1e-3, "throughput_per_s": 0.05}
    for name in plain.metrics.keys() - {"micro_steps"}:
        np.testing.assert_allclose(plain.metrics[name], whole.metrics[name], rtol=close.get(name, 0.0), err_msg=name)
    for name in ("finish", "first_token", "preemptions"):
        np.testing.assert_array_equal(getattr(plain.record, name), getattr(whole.record, name))
    assert (whole.metrics["quality_loss"] == 0).all() and (whole.metrics["kept_ratio"] == 1).all()
    small, half = run("vllm+h2o"), run("vllm+h2o", ratio=0.5)
    for less, more in ((small, half), (half, plain)):
        assert (less.metrics["simulated_s"] < more.metrics["simulated_s"]).all()
        assert (less.metrics["batch_mean"] > more.metrics["batch_mean"]).all()
    assert (small.metrics["quality_loss"] > 2 * half.metrics["quality_loss"]).all()
    # The losses are those of the requests' own draws, whatever the order in which they finish.
    words = jnp.stack([hash_bits(jnp.int32(0), jnp.arange(40), FIRST_DRAW + i) for i in range(2)])
    params = policies.get("vllm+h2o").compress_params()
    assert params is not None
    own = [quality_loss(params, jnp.int32(205), words[:, i]) for i in range(40)]
    assert small.metrics["quality_loss"][0] == pytest.approx(float(np.mean(own)), rel=1e-5)
    assert small.metrics["quality_bad_fraction"][0] == np.mean(np.asarray(own) > 0.1)
    # Without pressure the pressure head keeps all; the prefill is never cheaper.
    roomy = dataclasses.replace(scenario, usable_blocks=200_000)
    squeeze = js.rollout(roomy, policies.get("vllm+squeeze"), 3)
    assert (squeeze.metrics["kept_ratio"] == 1).all() and (squeeze.metrics["quality_loss"] == 0).all()


def test_numbers_out_of_range_and_unfit_engines_are_refused() -> None:
    for name, value, says in (
        ("ratio", 0.0, r"0.000977 <= ratio <= 1"),
        ("ratio", 1.5, r"0.000977 <= ratio <= 1"),
        ("loss_at_20", 2.0, r"0 <= loss_at_20 <= 1"),
        ("pressure_low", 0.99, r"pressure_low <= pressure_high"),
        ("window", 2.0**21, r"0 <= window <="),
    ):
        with pytest.raises(UserError, match=says):
            policies.get("vllm+h2o", **{name: value}).compress_params()
    for name in ("vllm-async+h2o", "sarathi+cake", "pfcfs+ttl+h2o", "vllm+h2o+cake"):
        with pytest.raises(UserError, match="KV compression goes with"):
            policies.get(name)
    for name, says in (("vllm+h2o+spec", "does not go with KV compression"), ("vllm+h2o+gate", "no prefix cache")):
        with pytest.raises(UserError, match=says):
            policies.get(name)
    scenario = js.load(str(ROOT / "configs" / "scenarios" / "shared_prompts.yaml"), {"workload.num_requests": 8})
    with pytest.raises(UserError, match="nobody else's prefix"):
        js.rollout(dataclasses.replace(scenario, prefix_cache="runs"), policies.get("vllm+h2o"), 1)
