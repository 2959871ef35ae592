"""The index network in the machine: rules it can express are those rules, lanes are members, exports come back."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

import jaxsched as js
from jaxsched import policies, simulation
from jaxsched.checkpoint import save_policy
from jaxsched.errors import UserError
from jaxsched.groups import GroupRunner, LaneSpec
from jaxsched.networks.features import GATE_FEATURES, gate_features
from jaxsched.networks.index import IndexShape
from jaxsched.policies.learned import describe, learned
from tests.networks.views import queue_view
from tests.shared_data import ROOT

NAMES = IndexShape().names()


def weights(**named: float) -> np.ndarray:
    values = np.zeros(len(NAMES), np.float32)
    for name, value in named.items():
        values[NAMES.index(name.replace("__", "."))] = value
    return values


#: Kept contexts first, then by arrival of the program: the order of `gittins`.
LIKE_GITTINS = weights(order__kept=100.0, order__program_number=-1.0)


def small() -> js.Scenario:
    changes = {"workload.num_requests": 14, "cluster.kv_blocks": 2500}
    changes |= {"cluster.num_slots": 24, "cluster.max_paused_programs": 20}
    return js.load(str(ROOT / "configs/scenarios/agents_mixed.yaml"), changes)


def with_weights(values=None, hidden: int = 0) -> policies.Policy:
    policy = policies.get("gittins+gate", max_num_seqs=16)
    return dataclasses.replace(policy, scheduler=learned(values, hidden))


def test_weights_that_are_a_rule_decide_as_the_rule_and_lanes_are_members() -> None:
    """Lanes: the rule's weights, the youngest program first, and a closed gate; two groups, pools of two sizes."""
    scenario = small()
    youngest = weights(order__program_number=100.0)
    members = np.stack([LIKE_GITTINS, youngest, LIKE_GITTINS + weights(gate__one=-3.0), LIKE_GITTINS])
    lanes = LaneSpec(np.full(4, 3), weights=members, usable_blocks=np.array([2500, 2500, 2500, 2000]))
    found = GroupRunner(scenario, with_weights(), group=1).rollout(lanes)
    rule = simulation.rollout(scenario, policies.get("gittins+gate", max_num_seqs=16), seeds=[3])
    for name in ("jct_mean_s", "ttft_p99_s", "recomputed_tokens", "engine_steps"):
        np.testing.assert_array_equal(found.metrics[name][:1], rule.metrics[name])
    assert found.flags.max() == 0
    assert len(set(found.metrics["jct_mean_s"])) == 4


def test_parts_of_the_vector_have_names_and_shapes() -> None:
    for hidden in (0, 3):
        shape = IndexShape(hidden)
        assert len(shape.names()) == shape.num_weights == sum(int(np.prod(s)) for s in shape.parts.values())
        split = shape.split(np.arange(shape.num_weights, dtype=np.float32))
        np.testing.assert_array_equal(
            np.concatenate([part.reshape(-1) for part in split.values()]), np.arange(shape.num_weights)
        )
    assert IndexShape().num_weights == 15
    with pytest.raises(ValueError, match="15 weights"):
        learned(np.zeros(14))


def exported(folder, values=LIKE_GITTINS, **network):
    save_policy(folder, {"weights": np.asarray(values, np.float32)}, network={**describe(0), **network})
    return str(folder)


def test_an_export_is_a_policy_by_its_path(tmp_path) -> None:
    path = exported(tmp_path / "mine")
    policy = policies.get(f"{path}+program_sticky", max_num_seqs=7)
    np.testing.assert_array_equal(policy.params(100).weights, LIKE_GITTINS)
    assert policy.scheduler.spec == learned().spec and policy.router.name == "program_sticky"
    with pytest.raises(UserError, match="decides that itself"):
        policies.get(f"{path}+gate")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "policy.msgpack").write_bytes((f / "policy.msgpack").read_bytes()[:-9]), "is truncated"),
        (lambda f: exported(f, kind="tree"), "kind 'tree'"),
        (lambda f: exported(f, kind="set"), "was trained on environment None"),
        (lambda f: exported(f, turn_features=["size"]), "other turn_features"),
        (lambda f: exported(f, values=np.zeros(9)), "shape"),
        (lambda f: (f / "policy.json").unlink(), "no policy.json"),
        (lambda f: (f / "policy.json").write_text(json.dumps({"format": "else"})), "is not an exported policy"),
    ],
)
def test_a_foreign_or_damaged_export_is_refused(tmp_path, damage, message) -> None:
    exported(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        policies.get(str(tmp_path))


def test_a_weight_that_no_head_reads_does_not_exist() -> None:
    """Every weight moves one of the heads' outputs."""
    from jaxsched.networks.index import GateIndex, OrderIndex, PriceIndex
    from tests.networks.views import pause_view, queue_view

    shape, view, pause = IndexShape(2), queue_view(), pause_view()

    def outputs(vector):
        price = PriceIndex(shape).price(vector, pause)
        return np.concatenate(
            [np.ravel(x) for x in (OrderIndex(shape)(vector, view), GateIndex(shape)(vector, view), price)]
        )

    base = np.asarray(jax.random.normal(jax.random.key(0), (shape.num_weights,)))
    for i, name in enumerate(shape.names()):
        moved = base.copy()
        moved[i] += 0.5
        assert np.any(outputs(moved) != outputs(base)), name


def test_the_gate_sees_how_small_a_program_is_among_those_that_have_begun() -> None:
    """Begun: programs of 8,000 and 5,000; new: 900 and 2,500. The mean logarithm is that of sqrt(8,000 x 5,000)."""
    view = queue_view()
    relative = np.asarray(gate_features(view))[:, GATE_FEATURES.index("relative")]
    middle = np.sqrt(8000 * 5000)
    np.testing.assert_allclose(relative[[0, 3]], np.log([900 / middle, 2500 / middle]), atol=0.005)
    none = view.replace(waiting_mask=view.waiting_mask & view.first_turn_mask)
    np.testing.assert_array_equal(np.asarray(gate_features(none))[:, GATE_FEATURES.index("relative")], 0.0)


def test_a_run_of_steps_decides_as_its_steps_one_by_one() -> None:
    """Four members with random weights and a gate that lets small or large programs in, in runs and step by step."""
    random = 0.3 * np.asarray(jax.random.normal(jax.random.key(3), (4, len(NAMES))), np.float32)
    for member, weight in enumerate((2.0, -2.0, 1.0, -1.0)):
        random[member] += weights(gate__relative=weight)
    lanes = LaneSpec(np.arange(4), weights=random)
    runs, steps = (
        GroupRunner(dataclasses.replace(small(), max_run_steps=k), with_weights()).rollout(lanes) for k in (32, 1)
    )
    assert runs.metrics["micro_steps"].sum() < 0.8 * steps.metrics["micro_steps"].sum()
    for name in ("jct_mean_s", "jct_p99_s", "ttft_p99_s", "tbt_p999_s", "recomputed_tokens", "engine_steps"):
        np.testing.assert_array_equal(runs.metrics[name], steps.metrics[name], err_msg=name)
    still = GroupRunner(small(), with_weights()).rollout(LaneSpec(np.arange(4), weights=0 * random))
    assert np.sum(still.metrics["jct_mean_s"] != runs.metrics["jct_mean_s"]) >= 2
