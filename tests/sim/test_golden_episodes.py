"""The episodes worked out by hand for the reference, run on the machine: the same numbers, from the same tests."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from tests.oracle import test_reference_hand_worked as v1_family
from tests.oracle import test_reference_hand_worked_others as others
from tests.sim import traced

#: Tests that are not about an episode, with the reason.
NOT_EPISODES = {
    "test_step_features_tell_decodes_from_prefills": "its step-time function looks at the features; the machine's "
    "takes coefficients (TIMINGS in clusters.py has one for every feature)",
    "test_engines_outside_the_v1_family_refuse_its_options": "about the reference's own configuration",
}


def _cases(function: Any) -> Iterator[dict[str, Any]]:
    """The arguments of a test's parametrisation."""
    marks = [mark for mark in getattr(function, "pytestmark", []) if mark.name == "parametrize"]
    axes = []
    for mark in marks:
        names, values = mark.args
        names = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
        axes.append([dict(zip(names, v if len(names) > 1 else (v,), strict=True)) for v in values])
    for combination in itertools.product(*axes):
        yield {name: value for part in combination for name, value in part.items()}


EPISODES = [
    pytest.param(module, name, arguments, id=f"{name.removeprefix('test_')}-{number}")
    for module in (v1_family, others)
    for name, function in vars(module).items()
    if name.startswith("test_") and inspect.getmodule(function) is module and name not in NOT_EPISODES
    for number, arguments in enumerate(_cases(function))
]


def test_the_hand_worked_episodes_are_found() -> None:
    assert len(EPISODES) >= 40
    names = {*vars(v1_family), *vars(others)}
    assert set(NOT_EPISODES) <= names


@pytest.mark.slow
@pytest.mark.parametrize(("module", "name", "arguments"), EPISODES)
def test_the_machine_gives_the_hand_worked_numbers(
    module: Any, name: str, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def simulate(*args, **kwargs):
        calls.append(args)
        return traced.simulate(*args, **kwargs)

    monkeypatch.setattr(module, "simulate", simulate)
    function = getattr(module, name)
    if "monkeypatch" in inspect.signature(function).parameters:
        arguments = arguments | {"monkeypatch": monkeypatch}
    function(**arguments)
    assert calls  # it was the machine that ran
