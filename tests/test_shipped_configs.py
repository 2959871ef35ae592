"""Every shipped configuration runs as it stands (at reduced size), for every policy it names."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest

import jaxsched as js
from jaxsched.comparison import compare
from jaxsched.config import load_compare
from jaxsched.scenario import from_config, policy_from_config
from tests.shared_data import ROOT

SCENARIOS = sorted((ROOT / "configs" / "scenarios").glob("*.yaml"))
COMPARISONS = sorted((ROOT / "configs" / "compare").glob("*.yaml"))
#: Of a comparison; all with --full. (A machine with tiers takes ten seconds to trace, compile and run.)
MOST_POLICIES = 4


@functools.cache
def _new_policies() -> dict[str, list[str]]:
    """Comparison -> its baseline and the policies whose rules or router no comparison before it has."""
    seen: set = set()
    found = {}
    for path in COMPARISONS:
        config = load_compare(str(path))
        names = found[path.stem] = []
        for name, section in config.policies().items():
            policy = policy_from_config(config, name, section)
            rules = {policy.scheduler.spec, policy.router.name}
            if name == config.compare.baseline or not rules <= seen:
                names.append(name)
            seen |= rules
    return found


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda p: p.stem)
def test_every_scenario_runs_and_loses_no_request(path):
    scenario = js.load(str(path), {"workload.num_requests": 16})
    result = js.rollout(scenario, seeds=2)
    fates = {k: v for k, v in result.metrics.items() if k.startswith("fate_")}
    assert result.warnings() == []
    assert np.all(fates["fate_finished"] >= 16) and np.all(fates["fate_unfinished"] == 0)
    assert np.all(result.metrics["ttft_p50_s"] > 0)


@pytest.mark.slow
@pytest.mark.parametrize("path", COMPARISONS, ids=lambda p: p.stem)
def test_every_comparison_runs_with_its_baseline_and_what_no_other_has(path, full_size):
    config = load_compare(str(path), {"workload.num_requests": 24})
    scenario = dataclasses.replace(from_config(config), num_instances=2)
    policies = {name: policy_from_config(config, name, section) for name, section in config.policies().items()}
    policies = {name: policies[name] for name in _new_policies()[path.stem][: None if full_size else MOST_POLICIES]}
    done = compare(
        scenario, policies, [0.5], 2, baseline=next(iter(policies)), metric=config.compare.metric,
        capacity_per_s=scenario.rate_per_s, num_bootstrap=200,
    )  # fmt: skip
    for name in policies:
        metrics = done.data.per_seed[name, 0.5]
        arrived_or_not = sum(values for name_, values in metrics.items() if name_.startswith("fate_"))
        if not scenario.is_trace and scenario.max_turns == 1:
            np.testing.assert_array_equal(arrived_or_not, 24)
        assert np.all(metrics["fate_finished"] > 0) and np.all(metrics["fate_unfinished"] == 0)
