"""Rounds of rollouts: the machine, in runs of steps, takes every decision of the reference (docs/semantics.md, 15)."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np
import pytest

import jaxsched as js
from jaxsched import policies
from jaxsched.cli import main
from jaxsched.errors import UserError
from jaxsched.policies.april import in_flight
from jaxsched.sim.rounds import RoundParams
from tests.oracle.data import Workload
from tests.shared_data import ROOT
from tests.sim.clusters import LATTICE_US, Lane, Size, Variant, lane_inputs, random_lane
from tests.sim.differential import assert_equal_records
from tests.sim.harness import run_lanes_checked

LANES = 48  # of each variant; five times as many with --full
SIZE = Size(2, 8, 40, 90, 80, (176, 240, 400, 2000))
FCFS = Variant("vllm", "least_outstanding", turns=True, graphs=True, cache="runs", size=SIZE)
ORDERED = Variant("sjf", "round_robin", turns=True, graphs=True, cache="blocks", size=SIZE)
SCENARIO = str(ROOT / "configs" / "scenarios" / "rollouts.yaml")


def _rollouts(draw: random.Random, unit_us: int) -> Workload:
    """Prompts with one to five answers each, which share the prompt but for its last token."""
    programs, samples = draw.randint(5, 8), draw.choice([1, 2, 3, 5])
    answers = range(programs * samples)
    rows = [(i % programs, i // programs) for i in answers]  # first turns first
    prompt_of = [draw.randint(2, SIZE.max_prompt) for _ in range(programs)]
    prompt = [prompt_of[p] for p, _ in rows]
    output = [min(SIZE.max_output, max(1, int(draw.lognormvariate(2.2, 1.2)))) for _ in rows]
    target = draw.randint(1, 3)
    none = [0] * len(rows)
    return Workload(
        num_programs=programs, arrival_us=none, prompt_tokens=prompt, output_tokens=output,
        predicted_tokens=[max(1, int(o * draw.lognormvariate(0, 0.3))) for o in output],
        klass=none, priority=none, pause_us=none, not_before=none,
        next_turn=[i + programs if i + programs < len(rows) else -1 for i in answers],
        waits=[[] if t == 0 else [(p, "arrival", 0)] for p, t in rows],
        chain=list(answers), group=[p for p, _ in rows], group_tokens=[n - 1 for n in prompt],
        prompt_content=[
            [(("g", p), k) for k in range(n - 1)] + [(("u", i), 0)]
            for i, ((p, _), n) in enumerate(zip(rows, prompt, strict=True))
        ],
        output_stream=[("o", i) for i in answers],
        rounds=(target, target + draw.choice([0, 0, 1, 2, 4]), unit_us * draw.choice([1, 7, 400])),
    )  # fmt: skip


def _lane(variant: Variant, seed: int) -> Lane:
    lane, draw = random_lane(variant, seed), random.Random(seed)
    engine = dataclasses.replace(lane.engine, chunked_prefill=True, max_queue=0)
    unit_us = LATTICE_US if lane.timing == 0 else 911
    return Lane(_rollouts(draw, unit_us), engine, dataclasses.replace(lane.router, delay_us=0, seed=seed), lane.timing)


def _inputs(variant: Variant, lanes: list[Lane]) -> tuple[Any, Any]:
    params, requests = lane_inputs(variant, lanes)
    columns = np.array([lane.workload.rounds for lane in lanes], np.int32).T
    return params.replace(rounds=RoundParams(*columns)), requests


@pytest.mark.slow
@pytest.mark.parametrize("variant", [FCFS, ORDERED], ids=lambda v: v.name)
def test_every_record_equals_the_reference(variant: Variant, full_size: bool) -> None:
    lanes = [_lane(variant, seed) for seed in range(5 * LANES if full_size else LANES)]
    static = dataclasses.replace(variant.static(), rounds=True)
    state, violations = run_lanes_checked(static, *_inputs(variant, lanes))
    assert not np.any(violations)

    def same_rounds(i: int, lane: Lane, result) -> None:
        assert state.rounds.number[i] == result.noted["rounds"], lane.workload.rounds
        assert state.rounds.stopped[i] == result.noted["stopped"]

    seen = assert_equal_records(variant, lanes, state, also=same_rounds)
    assert seen["compared"] >= 0.85 * LANES and seen["unfinished"] == seen["never_arrived"] == 0
    assert seen["rounds"] >= LANES and seen["stopped"] >= LANES and seen["cached"] >= 1000


def test_rounds_follow_one_another_and_partial_rollouts_lose_nothing_and_are_done_sooner() -> None:
    options = {"workload.num_requests": 18, "workload.options.samples": 4, "workload.options.round_programs": 3}
    scenario = js.load(SCENARIO, options)
    plain = js.rollout(scenario, policies.get("vllm"), 3, record=True)
    same = js.rollout(scenario, policies.get("vllm+april", over_provision=1.0), 3, record=True)
    april = js.rollout(scenario, policies.get("vllm+april"), 3, record=True)
    for name, values in plain.metrics.items():
        np.testing.assert_array_equal(values, same.metrics[name], name)
    assert (plain.metrics["carried_on"] == 0).all() and (april.metrics["carried_on"] > 0).all()
    for result in (plain, april):
        assert result.warnings() == [] and (result.metrics["fate_finished"] == 18 * 4).all()
        assert (result.metrics["rounds"] == 5).all()  # the last has no update behind it
    assert (april.metrics["makespan_s"] < plain.metrics["makespan_s"]).all()
    lives = plain.records(0)
    by_round = lives["program"] // 3
    for r in range(5):
        ends, begins = lives["finish_s"][by_round == r].max(), lives["arrival_s"][by_round == r + 1]
        np.testing.assert_allclose(begins, ends + 30.0, atol=2e-6)
    assert not (april.records(0)["arrival_s"] == lives["arrival_s"]).all()


def test_factors_and_combinations_that_cannot_be_are_refused(capsys) -> None:
    for factor, most in ((0.5, None), (65.0, None), (1.0, 8), (1.5, 12), (1.49, 11)):
        policy = policies.get("vllm+april", over_provision=factor)
        if most is None:
            with pytest.raises(UserError, match=r"expected 1 <= over_provision <= 64"):
                in_flight(policy, 8)
        else:
            assert in_flight(policy, 8) == most
    assert in_flight(policies.get("vllm"), 8) == 8
    rollouts, chat = js.load(SCENARIO), js.load(str(ROOT / "configs" / "scenarios" / "chat.yaml"))
    for scenario, name, says in (
        (chat, "vllm+april", "has none"),
        (rollouts, "vllm-async", "cannot stop at the end of a round"),
        (rollouts, "pfcfs+ttl", "cannot stop at the end of a round"),
        (dataclasses.replace(rollouts, usable_blocks=600), "vllm", "its round never ends"),
    ):
        with pytest.raises(UserError, match=says):
            js.rollout(scenario, policies.get(name), 1)
    for option, value, says in (("samples", "66", "at most 65"), ("update_s", "300", "0 to 250 seconds")):
        assert main(["simulate", SCENARIO, f"--workload.options.{option}", value]) == 2
        assert says in capsys.readouterr().err
