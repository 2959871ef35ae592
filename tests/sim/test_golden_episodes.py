"""Tiny episodes on the machine: those worked out by hand for the reference, and some made to tell schedulers apart.

The numbers of the former are the reference's, from the same tests.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from tests.oracle import test_reference_hand_worked as v1_family
from tests.oracle import test_reference_hand_worked_others as others
from tests.oracle.cluster import simulate
from tests.oracle.data import EngineConfig, Workload
from tests.sim import traced
from tests.sim.clusters import ENGINES
from tests.sim.harness import first_difference

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
@pytest.mark.newest
@pytest.mark.parametrize(("module", "name", "arguments"), EPISODES)
def test_the_machine_gives_the_hand_worked_numbers(
    module: Any, name: str, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def on_the_machine(*args, **kwargs):
        calls.append(args)
        return traced.simulate(*args, **kwargs)

    monkeypatch.setattr(module, "simulate", on_the_machine)
    function = getattr(module, name)
    if "monkeypatch" in inspect.signature(function).parameters:
        arguments = arguments | {"monkeypatch": monkeypatch}
    function(**arguments)
    assert calls  # it was the machine that ran


#: Eight requests that all schedulers serve completely, and each in its own way.
CONTENDED = Workload.simple(
    [0, 4, 26, 54, 59, 61, 73, 73],
    [14, 8, 14, 5, 11, 13, 3, 1],
    [8, 6, 2, 4, 6, 1, 7, 3],
    predicted_tokens=[10, 6, 3, 5, 6, 1, 8, 2],
    priority=[2, 1, 2, 1, 0, 1, 0, 1],
)


@pytest.mark.slow
@pytest.mark.newest
def test_eleven_schedulers_serve_one_workload_in_eleven_ways_each_like_the_reference() -> None:
    lives = {}
    names = [
        "vllm",
        "vllm-async",
        "vllm-priority",
        "vllm-v0",
        "sarathi",
        "orca",
        "static",
        "sjf",
        "srpt",
        "mlfq",
        "ewsjf",
    ]
    engines = {name: ENGINES[name] for name in names}
    for name, (kind, order, asynchronous) in engines.items():
        config = EngineConfig(
            usable_blocks=13, kind=kind, order=order, asynchronous=asynchronous, token_budget=24, max_num_seqs=5,
            block_size=4, max_model_len=24, mlfq_quantum=8, mlfq_levels=4, ewsjf_step=6, ewsjf_num_queues=3,
        )  # fmt: skip
        records = traced.simulate(CONTENDED, config, v1_family.ten_plus_total).records
        assert first_difference(simulate(CONTENDED, config, v1_family.ten_plus_total).records, records) == ""
        assert {r.fate for r in records} == {"finished"}
        lives[name] = tuple((r.first_token_us, r.finish_us) for r in records)
    same = [(a, b) for a, b in itertools.combinations(lives, 2) if lives[a] == lives[b]]
    assert same == []


def test_the_order_of_the_rows_of_simultaneous_arrivals_does_not_matter_where_the_queue_has_an_order_of_its_own() -> (
    None
):
    prompts, outputs, predicted = [9, 4, 12, 1, 7, 5], [3, 8, 2, 6, 1, 4], [4, 9, 2, 7, 1, 3]
    config = v1_family.engine(order="sjf", usable_blocks=9, max_num_seqs=3, token_budget=16)

    def run(permutation: tuple[int, ...]) -> dict[int, tuple]:
        columns = [[column[i] for i in permutation] for column in (prompts, outputs, predicted)]
        workload = Workload.simple([0] * 6, columns[0], columns[1], predicted_tokens=columns[2])
        records = traced.simulate(workload, config, v1_family.ten_plus_total).records
        return {
            who: (r.first_scheduled_us, r.first_token_us, r.finish_us, r.preemptions)
            for who, r in zip(permutation, records, strict=True)
        }

    straight = run((0, 1, 2, 3, 4, 5))
    assert len(set(straight.values())) == 6
    for permutation in [(5, 4, 3, 2, 1, 0), (2, 0, 5, 1, 4, 3), (1, 3, 5, 0, 2, 4)]:
        assert run(permutation) == straight
