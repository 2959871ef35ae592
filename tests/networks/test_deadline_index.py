"""The deadline index: weights 0 are apparent tardiness cost with early rejection; what else the weights can say."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import jaxsched as js
from jaxsched.checkpoint import save_policy
from jaxsched.errors import UserError
from jaxsched.networks.deadline import WORK, DeadlineOrder, DeadlineRefusal, DeadlineShape
from jaxsched.policies.learned import DEADLINE_KIND, describe, learned
from jaxsched.sim.due import DueView, too_late
from jaxsched.sim.static import SchedulerSpec
from tests.networks.views import queue_view
from train.es_config import load
from train.index_policy import programs_per_good

NAMES = DeadlineShape().names()


def _view():
    """Four that wait; the second can just make its first token, the third can make it and not its finish."""
    ints = lambda *values: jnp.asarray(values, jnp.int32)
    due = DueView(
        now=ints(5000)[0], first_token=ints(5500, 5400, 6900, 5900), finish=ints(9000, 8000, 6000, 5950),
        prefill=ints(100, 400, 900, 50), work=ints(1200, 700, 1500, 60),
    )  # fmt: skip
    return queue_view().replace(due=due, preempted_mask=jnp.zeros(4, bool))


def _weights(**values: float) -> jnp.ndarray:
    found = np.zeros(len(NAMES), np.float32)
    for name, value in values.items():
        found[NAMES.index(name.replace("__", "."))] = value
    return jnp.asarray(found)


def test_weights_say_who_is_first_and_who_is_refused() -> None:
    order = lambda weights: list(np.argsort(np.asarray(DeadlineOrder()(weights, _view()))))
    refused = lambda weights: np.asarray(DeadlineRefusal()(weights, _view())).tolist()
    assert order(_weights()) == [3, 1, 0, 2]  # shortest predicted work first
    assert order(_weights(order__prompt=-9.0)) == [2, 1, 0, 3]  # also where costs are negative: longest prompt first
    assert order(_weights(order__slack=9.0))[:2] == [1, 0]
    due = _view().due
    assert due is not None
    late = np.asarray(too_late(due, jnp.zeros(4, bool))).tolist()
    assert refused(_weights()) == late == [False, False, True, False]
    assert refused(_weights(prefill__one=0.01)) == [False, True, True, False]  # 400 ticks take 404
    assert refused(_weights(work__one=-9.0)) == [False] * 4  # ... at most 2.8 off: 1,500 ticks take 91
    assert refused(_weights(prefill__crowd=9.0)) == [True, True, True, False]  # ... 50 ticks take 822
    assert refused(_weights(work__one=9.0)) == [True] * 4
    assert refused(_weights(prefill__running=9.0)) == late  # nothing runs


@pytest.mark.slow
def test_weights_0_are_atc_with_early_rejection_decision_by_decision() -> None:
    scenario = js.load("configs/scenarios/mixed_chat.yaml", {"workload.num_requests": 100, "workload.load": 3.0})
    rule = js.policies.get("atc+early_reject", max_num_seqs=128, token_budget=512, lookahead_tenths=1280, **WORK)
    zero = dataclasses.replace(js.policies.get("vllm", max_num_seqs=128), scheduler=learned(kind=DEADLINE_KIND))
    theirs, ours = (js.rollout(scenario, policy, 2, record=True) for policy in (rule, zero))
    assert theirs.metrics["fate_rejected_late"].min() > 0
    for lane in range(2):
        for name in ("first_scheduled_s", "finish_s", "fate"):
            np.testing.assert_array_equal(ours.records(lane)[name], theirs.records(lane)[name])
    strict = learned(np.asarray(_weights(prefill__one=2.0)), kind=DEADLINE_KIND)
    other = js.rollout(scenario, dataclasses.replace(zero, scheduler=strict), 2)
    assert np.all(other.metrics["fate_rejected_late"] > ours.metrics["fate_rejected_late"])


def test_an_export_is_a_policy_and_limits_are_needed(tmp_path) -> None:
    weights = np.linspace(-1.0, 1.0, DeadlineShape(1).num_weights).astype(np.float32)
    save_policy(tmp_path / "a", {"weights": weights}, network=describe(1, DEADLINE_KIND), scenario={}, training={})
    policy = js.policies.get(f"{tmp_path}/a")
    assert policy.scheduler.weights == tuple(weights.astype(float))
    assert policy.settings()["token_budget"] == 512 and policy.settings()["prompt_us"] == WORK["prompt_us"]
    assert load("configs/train/mixed_chat.yaml").plan().network == DEADLINE_KIND
    with pytest.raises(UserError, match="`slo` is needed"):
        load("configs/train/quickstart.yaml", {"algo.network": "deadline_index", "slo": []})
    with pytest.raises(ValueError, match="needs rejects_late"):
        SchedulerSpec("a", order=DeadlineOrder(), due=True, refuse=DeadlineRefusal())


def test_more_good_requests_cost_less_and_none_is_finite() -> None:
    @dataclasses.dataclass
    class Metrics:
        class_good: np.ndarray

    @dataclasses.dataclass
    class Lane:
        metrics: Metrics

    cost = programs_per_good(Lane(Metrics(np.array([[40, 9], [0, 0]]))), 99)  # type: ignore[arg-type]
    assert cost.tolist() == [2.0, 100.0]
