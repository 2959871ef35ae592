"""The index network of tenants: VTC is one of its rules, exports are read back, and what does not fit is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import jaxsched as js
from jaxsched.checkpoint import save_policy
from jaxsched.errors import UserError
from jaxsched.groups import GroupRunner, LaneSpec
from jaxsched.networks.fair import FairShape
from jaxsched.policies.learned import FAIR_KIND, describe, learned
from jaxsched.sim.state import Count
from train.es_config import load
from train.index_policy import max_service_gap

SETTINGS = {"max_num_seqs": 8, "token_budget": 512}


def weights(**named: float) -> np.ndarray:
    values = {name.replace("__", "."): value for name, value in named.items()}
    assert values.keys() <= set(FairShape().names())
    return np.array([values.get(name, 0.0) for name in FairShape().names()])


@pytest.mark.slow
def test_who_never_takes_anybody_out_is_vtc_decision_by_decision_and_others_are_not() -> None:
    scenario = js.load("configs/scenarios/tenants.yaml", {"workload.num_requests": 80, "cluster.num_slots": 96})
    vtc = js.rollout(scenario, js.policies.get("vtc", **SETTINGS), 2, record=True)
    policy = js.policies.get("vtc", **SETTINGS)
    held = dataclasses.replace(policy, scheduler=learned(weights(order__prompt=-0.5, hold__one=9.0), kind=FAIR_KIND))
    same = js.rollout(scenario, held, 2, record=True)
    for lane in range(2):
        ours, theirs = same.records(lane), vtc.records(lane)
        for name in ("first_scheduled_s", "finish_s"):
            np.testing.assert_array_equal(ours[name], theirs[name])
    short = weights(order__prompt=5.0, hold__one=9.0)  # short prompts first
    other = js.rollout(scenario, dataclasses.replace(policy, scheduler=learned(short, kind=FAIR_KIND)), 2)
    assert np.all(other.metrics["service_gap_tokens"] != vtc.metrics["service_gap_tokens"])
    assert not vtc.metrics["preemptions"].any() and not same.metrics["preemptions"].any()


def test_any_weights_end_an_instant_and_finish_every_request() -> None:
    """Weights of either sign and up to 3, holds of 240 tokens and more: exchanges never go round in circles."""
    scenario = js.load("configs/scenarios/tenants.yaml", {"workload.num_requests": 60, "cluster.num_slots": 96})
    policy = js.policies.get("vtc", **SETTINGS)
    policy = dataclasses.replace(policy, scheduler=learned(kind=FAIR_KIND))
    members = np.random.default_rng(0).normal(size=(12, FairShape().num_weights)).astype(np.float32)
    members[:, FairShape().names().index("hold.one")] -= 2.0
    found = GroupRunner(scenario, policy).rollout(LaneSpec(np.arange(12) % 3, weights=members))
    assert found.flags.max() == 0 and found.metrics["preemptions"].max() > 20
    np.testing.assert_array_equal(found.metrics["fate_finished"], 60)


def test_an_export_is_a_policy_and_one_of_another_network_is_refused(tmp_path) -> None:
    weights = np.linspace(-1.0, 1.0, FairShape(1).num_weights).astype(np.float32)
    save_policy(tmp_path / "a", {"weights": weights}, network=describe(1, FAIR_KIND), scenario={}, training={})
    policy = js.policies.get(f"{tmp_path}/a")
    assert policy.scheduler.weights == tuple(weights.astype(float))
    assert policy.scheduler.spec.fair is not None and policy.scheduler.spec.retain is None
    changed = {**describe(1, FAIR_KIND), "features": ["age"]}
    save_policy(tmp_path / "b", {"weights": weights}, network=changed, scenario={}, training={})
    with pytest.raises(UserError, match="other features than this version"):
        js.policies.get(f"{tmp_path}/b")


def test_the_network_of_tenants_needs_tenants() -> None:
    with pytest.raises(UserError, match=r"`workload\.tenants` is needed"):
        load("configs/train/quickstart.yaml", {"algo.network": "fair_index"})
    assert load("configs/train/tenants.yaml").plan().network == FAIR_KIND


def test_an_episode_costs_its_gap_what_is_left_of_it_and_what_was_computed_twice() -> None:
    @dataclasses.dataclass
    class Books:
        pairs: np.ndarray

    @dataclasses.dataclass
    class Metrics:
        counts: np.ndarray
        counts_high: np.ndarray

    @dataclasses.dataclass
    class Lane:
        ledger: Books
        metrics: Metrics

    pairs = np.zeros((3, 5, 2, 2), np.int32)
    pairs[:, 3] = 120 * 500
    counts = np.zeros((3, 32), np.int32)
    counts[:, Count.PROGRAMS_DONE] = [10, 8, 10]
    counts[:, Count.SCHEDULED_TOKENS] = 1100
    counts[2, Count.RECOMPUTED_TOKENS] = 100
    found = max_service_gap(Lane(Books(pairs), Metrics(counts, 0 * counts)), 10)  # type: ignore
    np.testing.assert_allclose(found, [700.0, 20_700.0, 700.0 * 1.1**10])
