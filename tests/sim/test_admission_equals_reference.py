"""Past-Future and conservative admission: the machine, in runs of steps, takes every decision of the reference.

docs/semantics.md, section 11. The reference goes step by step.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsched import policies
from jaxsched.policies.headroom import leaves_headroom
from jaxsched.sim.admit import AdmitView
from jaxsched.sim.state import State
from tests.oracle.data import Record
from tests.sim.clusters import GAPS_US, MEDIUM, RETENTION, SLOS_US, Lane, Variant, lane_inputs, random_lane
from tests.sim.differential import assert_equal_records, reference
from tests.sim.expected_metrics import Expected
from tests.sim.harness import run_lanes

LANES = 60  # of each variant; five times as many with --full
PAST_FUTURE = Variant("past_future", "least_outstanding", turns=True, gaps=True)
CONSERVATIVE = Variant("conservative", "least_outstanding", turns=True)
HEADROOM = Variant("priority-headroom", "least_outstanding", turns=True)
WITH_PINS = Variant("past_future+static_ttl", "program_sticky", turns=True, cache="runs", size=RETENTION)


@pytest.mark.slow
@pytest.mark.parametrize("variant", [PAST_FUTURE, CONSERVATIVE, HEADROOM, WITH_PINS], ids=lambda v: v.name)
def test_every_record_equals_the_reference(variant: Variant, full_size: bool) -> None:
    lanes = [random_lane(variant, seed) for seed in range(5 * LANES if full_size else LANES)]
    state = run_lanes(variant.static(), *lane_inputs(variant, lanes))
    seen = assert_equal_records(variant, lanes, state)
    if variant.gaps:
        _assert_equal_goodput(variant, lanes, state)
    assert seen["compared"] >= 0.7 * LANES
    at_least = {"finished": 300, "kept_out_by_admission": 200}
    if variant is WITH_PINS:
        at_least |= {"pinned_block_taken": 5}
    if variant is PAST_FUTURE:
        at_least |= {"preemptions": 3}  # those that outgrew what was predicted
    if variant is HEADROOM:
        at_least["kept_out_by_admission"] = 50  # where priorities differ, and memory is short but for the headroom
    assert {name: seen[name] for name, least in at_least.items() if seen[name] < least} == {}


def _assert_equal_goodput(variant: Variant, lanes: list[Lane], state: State) -> None:
    """Turns that met every limit, that of every single gap among them."""
    with_gaps = without = 0
    for i, lane in enumerate(lanes[:30]):
        result = reference(variant, lane)
        expected = Expected(lane.workload, result, variant.measured, SLOS_US, GAPS_US)
        np.testing.assert_array_equal(state.metrics.class_good[i], expected.class_good)
        with_gaps += expected.class_good.sum()
        without += Expected(lane.workload, result, variant.measured, SLOS_US).class_good.sum()
    assert 200 <= with_gaps <= without - 15


def _records(lane: Lane, **engine) -> list[Record]:
    engine = {"max_num_seqs": MEDIUM.max_num_seqs, **engine}
    return reference(PAST_FUTURE, dataclasses.replace(lane, engine=dataclasses.replace(lane.engine, **engine))).records


def _preemptions(records: list[Record]) -> int:
    return sum(record.preemptions for record in records)


def test_conservative_admission_never_preempts_and_past_future_less_than_aggressive() -> None:
    aggressive = past_future = 0
    for seed in range(40):
        lane = random_lane(CONSERVATIVE, seed)
        whole = {"max_output": MEDIUM.max_output, "watermark_blocks": 0}
        assert _preemptions(_records(lane, **whole, overcommit=1.0)) == 0
        aggressive += _preemptions(_records(lane, **whole, admission=""))
        past_future += _preemptions(_records(lane, **whole, admission="past_future", reserved=0.05))
    assert aggressive >= 60 and past_future <= 0.2 * aggressive


def test_where_memory_is_plenty_all_three_are_fcfs() -> None:
    differ = 0
    for seed in range(20):
        lane = random_lane(PAST_FUTURE, seed)
        plenty = {"usable_blocks": 10**5}
        fcfs = _records(lane, admission="", **plenty)
        assert _records(lane, **plenty) == _records(lane, admission="conservative", **plenty) == fcfs
        differ += _records(lane) != _records(lane, admission="")
    assert differ >= 10


def test_headroom_is_kept_for_those_who_are_more_important_and_for_nobody_else() -> None:
    """By hand: a pool of 100 tokens; 40 are held by an important request; the candidate has 30."""
    view = AdmitView(
        mask=jnp.asarray([True, False, True]), candidate_mask=jnp.asarray([False, False, True]),
        known_tokens=jnp.asarray([40, 99, 30]), generated_tokens=jnp.zeros(3, jnp.int32),
        priority=jnp.asarray([0, -5, 2]), words=jnp.zeros((0, 3), jnp.int32), lengths=None,
        pool_tokens=jnp.int32(100), held_tokens=jnp.int32(0), block_size=16,
    )  # fmt: skip
    lets_in = lambda headroom, **changes: bool(leaves_headroom(jnp.float32([headroom]), view.replace(**changes)))
    assert lets_in(30.0) and not lets_in(31.0)
    assert lets_in(31.0, priority=jnp.asarray([2, -5, 2]))  # equals leave nobody room
    assert lets_in(31.0, priority=jnp.asarray([3, -5, 2]))  # nor do the less important
    assert not lets_in(30.0, held_tokens=jnp.int32(1))
    assert lets_in(0.0, pool_tokens=jnp.int32(50))  # without headroom it is the engine's own test that counts


def test_aggressive_is_the_engine_with_a_watermark() -> None:
    aggressive, vllm = policies.get("aggressive"), policies.get("vllm", watermark=0.05)
    assert dataclasses.replace(aggressive.scheduler.spec, name="vllm") == vllm.scheduler.spec
    assert aggressive.params(1000).watermark_blocks == vllm.params(1000).watermark_blocks == 50
