"""The index network of tenants: weights 0 are VTC, exports are read back, and what does not fit is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import jaxsched as js
from jaxsched.checkpoint import save_policy
from jaxsched.errors import UserError
from jaxsched.networks.fair import FEATURES, FairShape
from jaxsched.policies.learned import FAIR_KIND, describe, learned
from jaxsched.sim.state import Count
from train.es_config import load
from train.index_policy import max_service_gap

SETTINGS = {"max_num_seqs": 8, "token_budget": 512}


@pytest.mark.slow
def test_weights_0_are_vtc_decision_by_decision_and_others_are_not() -> None:
    scenario = js.load("configs/scenarios/tenants.yaml", {"workload.num_requests": 80, "cluster.num_slots": 96})
    vtc = js.rollout(scenario, js.policies.get("vtc", **SETTINGS), 2, record=True)
    policy = js.policies.get("vtc", **SETTINGS)
    zero = dataclasses.replace(policy, scheduler=learned(kind=FAIR_KIND))
    same = js.rollout(scenario, zero, 2, record=True)
    for lane in range(2):
        ours, theirs = same.records(lane), vtc.records(lane)
        for name in ("first_scheduled_s", "finish_s"):
            np.testing.assert_array_equal(ours[name], theirs[name])
    weights = np.eye(len(FEATURES))[FEATURES.index("output")] * 5.0  # short answers first
    other = js.rollout(scenario, dataclasses.replace(policy, scheduler=learned(weights, kind=FAIR_KIND)), 2)
    assert np.all(other.metrics["service_gap_tokens"] != vtc.metrics["service_gap_tokens"])


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


def test_an_episode_that_is_not_over_costs_more_than_its_gap() -> None:
    @dataclasses.dataclass
    class Books:
        pairs: np.ndarray

    @dataclasses.dataclass
    class Metrics:
        counts: np.ndarray

    @dataclasses.dataclass
    class Lane:
        ledger: Books
        metrics: Metrics

    pairs = np.zeros((2, 5, 2, 2), np.int32)
    pairs[:, 3] = 120 * 500
    counts = np.zeros((2, 32), np.int32)
    counts[:, Count.PROGRAMS_DONE] = [10, 8]
    assert max_service_gap(Lane(Books(pairs), Metrics(counts)), 10).tolist() == [500.0, 20_500.0]  # type: ignore
