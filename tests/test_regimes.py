"""The regime map of agent policies (docs/reproductions.md), its signs and orders of magnitude, on a few seeds.

Programs and seeds are fewer than in configs/compare/regimes_*.yaml, so the limits are wide; the loads are those of the
capacities that the saturation finder gave there.
"""

from __future__ import annotations

import numpy as np
import pytest

import jaxsched as js
from jaxsched.config import load_compare
from jaxsched.scenario import from_config, policy_from_config
from tests.shared_data import ROOT

#: Highest stable rates of Continuum, programs per second: see docs/reproductions.md.
MIXED_CAPACITY, SWE_CAPACITY = 0.100, 0.101


def _jct(name: str, load_per_s: float, policies: list[str], num_programs: int, seeds: int) -> dict[str, np.ndarray]:
    """Mean completion times ``[seeds]`` of policies of a comparison at an arrival rate."""
    config = load_compare(str(ROOT / f"configs/compare/{name}.yaml"), {"workload.num_requests": num_programs})
    scenario, sections = from_config(config), config.policies()
    results = {
        policy: js.rollout(scenario, policy_from_config(config, policy, sections[policy]), seeds, rate_per_s=load_per_s)
        for policy in policies
    }
    for result in results.values():
        assert np.all(result.metrics["programs_done"] == num_programs)  # drained: no survivor bias
    return {policy: result.metrics["jct_mean_s"] for policy, result in results.items()}


def _ratio(jct: dict[str, np.ndarray], policy: str, other: str) -> float:
    return float(np.exp(np.mean(np.log(jct[policy] / jct[other]))))


@pytest.mark.slow
def test_half_the_memory_beyond_capacity_retention_and_foresight_are_worth_what_the_map_says(full_size: bool) -> None:
    if not full_size:  # overload has hardly begun after 120 programs (one seed of two is not in it yet: 0.27, 0.92)
        jct = _jct("regimes_mixed", 1.1 * MIXED_CAPACITY, ["vllm", "continuum"], 120, 2)
        assert _ratio(jct, "continuum", "vllm") < 0.7
        return
    policies = ["vllm", "continuum", "gittins+gate", "srpt_program+clair+peak"]
    jct = _jct("regimes_mixed", 1.1 * MIXED_CAPACITY, policies, 300, 5)
    assert 0.1 < _ratio(jct, "continuum", "vllm") < 0.5  # study .24 [.17, .34], here .22 with 10 seeds
    assert _ratio(jct, "gittins+gate", "continuum") < 1.0  # study .69, here .87
    assert 0.2 < _ratio(jct, "srpt_program+clair+peak", "continuum") < 0.85  # study .45 [.33, .60], here .54


@pytest.mark.slow
def test_where_the_working_set_fits_all_tie(full_size: bool) -> None:
    if not full_size:
        pytest.skip("only with --full")
    policies = ["vllm", "continuum", "gittins+gate", "srpt_program+clair+gate"]
    jct = _jct("regimes_swe", 0.6 * SWE_CAPACITY, policies, 150, 2)
    for policy in policies[1:]:
        assert 0.97 < _ratio(jct, policy, "vllm") < 1.03
