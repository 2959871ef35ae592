"""Every parameter of every policy and router has a range, and a value beyond it is refused in words."""

from __future__ import annotations

import math

import pytest

from jaxsched import policies
from jaxsched.cli import main
from jaxsched.errors import UserError
from jaxsched.policies.base import V1_DEFAULTS, Policy
from jaxsched.policies.limits import LIMITS
from jaxsched.policies.mlfq import MAX_LEVELS
from jaxsched.scenario import load
from jaxsched.sim.fair import UNIT
from tests.shared_data import ROOT

CHAT = str(ROOT / "configs" / "scenarios" / "chat.yaml")
PARTS = ("vllm+early_reject", "vllm+april", "vllm+semantic_cache", "gittins+gate", "srpt_program+clair+peak")
NAMES = [
    *policies.SCHEDULERS, *PARTS,
    *(f"pfcfs+{name}" for name in (*policies.RETENTIONS, *policies.OFFLOADS)),
    *(f"vllm+{name}" for name in (*policies.COMPRESSIONS, *policies.SPECULATIONS, *policies.ROUTERS)),
]  # fmt: skip


def _own(policy: Policy) -> set[str]:
    """Parameters that `LIMITS` is to cover: all but those which are checked where they become arrays."""
    s = policy.scheduler
    elsewhere = (s.work_params, s.compress_params, s.round_params, s.draft_params, s.semantic_params)
    return set(policy.settings()) - {name for params in elsewhere for name in params}


def test_every_parameter_has_a_range_that_holds_its_defaults_and_no_range_is_of_nothing() -> None:
    seen = set(V1_DEFAULTS)
    for name in NAMES:
        policy = policies.get(name)
        for parameter in _own(policy):
            low, high, whole = LIMITS[parameter]
            value = policy.settings()[parameter]
            assert low <= value <= high and (not whole or value == int(value)), (name, parameter)
        seen |= _own(policy)
    assert seen == set(LIMITS)


@pytest.mark.parametrize("name", NAMES)
def test_values_out_of_range_are_refused_with_parameter_policy_and_range(name: str) -> None:
    policy = policies.get(name)
    for parameter in _own(policy):
        low, high, whole = LIMITS[parameter]
        bad = [low - 1, high + 1 if high < 2**24 else 2 * high, math.nan, math.inf] + ([low + 0.5] if whole else [])
        for value in bad:
            with pytest.raises(UserError) as caught:
                policy.with_params(**{parameter: value})
            text = str(caught.value)
            assert f"{parameter} is " in text and f"policy {name}" in text and f"from {low:.15g} to {high:.15g}" in text
        assert policy.with_params(**{parameter: high}).settings()[parameter] == high
    for parameter in set(policy.settings()) - _own(policy):  # of the others: nothing that is no number
        with pytest.raises(UserError, match=f"{parameter} is nan"):
            policy.with_params(**{parameter: math.nan})


def test_the_largest_values_stay_inside_int32() -> None:
    """Quanta are doubled from level to level; a prompt of a million tokens is charged at the largest price."""
    assert int(LIMITS["quantum_tokens"][1]) << (MAX_LEVELS - 2) < 2**31
    assert LIMITS["input_price"][1] * UNIT * 2**20 < 2**31


@pytest.mark.parametrize(
    ("policy", "parameter", "values"),
    [
        ("edd", "prompt_us", (-1, 0.5)),
        ("vllm+h2o", "ratio", (0.0, 1.5)),
        ("vllm+lazy_eviction", "window", (-1, 0.5)),
        ("vllm+h2o", "min_tokens", (-1, 0.5)),
    ],
)
def test_what_is_checked_where_it_becomes_an_array_is_refused_before_anything_runs(policy, parameter, values) -> None:
    scenario = load(CHAT)
    for value in values:
        with pytest.raises(UserError, match=f"{parameter} is {value:g}".replace(".", r"\.")):
            scenario.check(policies.get(policy).with_params(**{parameter: value}))


def test_a_configuration_is_refused_by_file_line_and_field(capsys, tmp_path) -> None:
    text = "extends: {}\npolicy:\n  scheduler: mlfq\n  params:\n    quantum_tokens: {}\n"
    path = tmp_path / "bad.yaml"
    for value, says in (("0", "a whole number from 1 to"), (".nan", "finite number"), ("yes", "a number")):
        path.write_text(text.format(CHAT, value))
        assert main(["simulate", str(path)]) == 2
        error = capsys.readouterr().err
        assert "bad.yaml" in error and "line " in error and "quantum_tokens" in error and says in error, error
    assert "Traceback" not in error
