"""Orders by due date and early rejection: the machine equals the reference; one machine meets the classical theorems.

docs/semantics.md, section 14. The reference goes step by step, the machine in runs of steps.
"""

from __future__ import annotations

import itertools
import random

import jax
import numpy as np
import pytest

from jaxsched import policies
from jaxsched.errors import UserError
from jaxsched.sim.build import make_params, make_static
from jaxsched.sim.clock import join_us
from jaxsched.timing.step_time import affine
from tests.oracle.data import Workload
from tests.sim.clusters import RETENTION, SMALL, Variant, lane_inputs, random_lane
from tests.sim.differential import assert_equal_records
from tests.sim.harness import run_lanes, to_requests

LANES = 60  # of each variant; five times as many with --full
VARIANTS = {
    "edd": Variant("edd", "least_kv", turns=True, timeouts=True, size=SMALL),
    "edf": Variant("edf+early_reject", turns=True, size=RETENTION),
    "mdd": Variant("mdd", turns=True, thresholds=True, size=SMALL),
    "slack": Variant("slack", turns=True, cache="runs", size=SMALL),
    "atc": Variant("atc", turns=True, size=SMALL),
    "fcfs": Variant("vllm+early_reject", turns=True, timeouts=True, size=SMALL),
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_every_record_equals_the_reference(variant: Variant, full_size: bool) -> None:
    lanes = [random_lane(variant, seed) for seed in range(5 * LANES if full_size else LANES)]
    state = run_lanes(variant.static(), *lane_inputs(variant, lanes))
    seen = assert_equal_records(variant, lanes, state, closest=1e-4 if variant.base == "atc" else 0.0)
    assert seen["compared"] >= 0.85 * LANES and seen["finished"] >= 4 * LANES
    if "early_reject" in variant.parts:
        assert seen["rejected_late"] >= LANES
    if variant.base == "edf":
        assert seen["displaced"] >= LANES // 2


# --- One machine: one request at a time, a tick a token ---------------------------------------------------------------

#: Of the jobs below, all there at 0: outputs (a token takes a tick) and due dates in ticks.
JOBS = 7


def _single_machine(name: str, jobs: list[list[tuple[int, int]]]) -> np.ndarray:
    """Finish ticks ``[instances, jobs]`` of sets of (length, due date) under a policy of the catalogue."""
    policy = policies.compose(name, max_num_seqs=1, prompt_us=0, output_us=1024)
    static = make_static(
        policy, num_instances=1, num_slots=JOBS, queue_capacity=16, num_classes=JOBS, usable_blocks=64, record=True
    )

    def lane(job_set: list[tuple[int, int]]):
        lengths, dates = zip(*job_set, strict=True)
        same = [0] * JOBS
        table = Workload(
            num_programs=JOBS, arrival_us=same, prompt_tokens=[1] * JOBS, output_tokens=list(lengths),
            predicted_tokens=list(lengths), klass=list(range(JOBS)), priority=same, next_turn=[-1] * JOBS,
            pause_us=same,
        )  # fmt: skip
        limits = make_params(
            policy, affine(1024, 0, 0), 64, num_instances=1, timeout_us=same, slo_e2e_us=[1024 * d for d in dates]
        )
        return limits, to_requests(table, JOBS)

    lanes = [lane(job_set) for job_set in jobs]
    stacked = jax.tree.map(lambda *leaves: np.stack([np.asarray(x) for x in leaves]), *lanes)
    state = run_lanes(static, *stacked)
    finish = state.record.finish
    return np.asarray(join_us(finish[..., 0], finish[..., 1])) // 1024


def _job_sets(num: int, tightness: float) -> list[list[tuple[int, int]]]:
    draw = random.Random(7)
    sets = []
    for _ in range(num):
        lengths = [draw.randint(1, 20) for _ in range(JOBS)]
        total = sum(lengths)
        sets.append([(p, max(1, int(draw.uniform(0.2, 1.4) * tightness * total))) for p in lengths])
    return sets


def _tardiness(finish: np.ndarray, job_set: list[tuple[int, int]]) -> int:
    return int(sum(max(int(f) - d, 0) for f, (_, d) in zip(finish, job_set, strict=True)))


def _sequence(order, job_set) -> np.ndarray:
    clock, finish = 0, np.zeros(len(job_set), int)
    for job in order:
        clock += job_set[job][0]
        finish[job] = clock
    return finish


def _least_total_tardiness(job_set: list[tuple[int, int]]) -> int:
    """Exact, by dynamic programming over sets of jobs done (Held & Karp 1962)."""
    num = len(job_set)
    best = {0: 0}
    for done in range(1, 1 << num):
        clock = sum(job_set[j][0] for j in range(num) if done >> j & 1)
        best[done] = min(best[done & ~(1 << j)] + max(clock - job_set[j][1], 0) for j in range(num) if done >> j & 1)
    return best[(1 << num) - 1]


def test_earliest_due_date_has_the_least_maximum_lateness_and_tardiness_rules_are_near_the_optimum() -> None:
    sets = _job_sets(60, 0.8)
    dates = np.array([[d for _, d in s] for s in sets])
    best_lateness = [
        min(max(_sequence(order, s) - date) for order in itertools.permutations(range(JOBS)))
        for s, date in zip(sets[:6], dates, strict=False)
    ]
    finish = {name: _single_machine(name, sets) for name in ("edd", "mdd", "atc", "slack")}
    lateness = (finish["edd"] - dates).max(axis=1)
    # Jackson 1955: nothing is better.
    np.testing.assert_array_equal(lateness[:6], best_lateness)
    for other in ("mdd", "atc", "slack"):
        assert ((finish[other] - dates).max(axis=1) >= lateness).all()
    optimum = np.array([_least_total_tardiness(s) for s in sets])
    total = {
        name: np.array([_tardiness(f, s) for f, s in zip(found, sets, strict=True)]) for name, found in finish.items()
    }
    for found in total.values():
        assert (found >= optimum).all()
    # At most one late job by due date: that order is optimal (Emmons 1969, corollary); there are such sets.
    few = ((finish["edd"] - dates) > 0).sum(axis=1) <= 1
    assert few.sum() >= 5 and (total["edd"][few] == optimum[few]).all()
    print({name: found.sum() / optimum.sum() for name, found in total.items()})
    assert total["mdd"].sum() <= 1.10 * optimum.sum() < total["edd"].sum()
    assert total["atc"].sum() < total["edd"].sum()


def test_with_one_due_date_for_all_long_past_the_modified_rule_is_shortest_first() -> None:
    sets = [[(p, 1) for p, _ in s] for s in _job_sets(8, 0.8)]
    found = _single_machine("mdd", sets)
    for finish, job_set in zip(found, sets, strict=True):
        shortest = sorted(range(JOBS), key=lambda j: (job_set[j][0], j))
        np.testing.assert_array_equal(finish, _sequence(shortest, job_set))
        assert _tardiness(finish, job_set) == _least_total_tardiness(job_set)


def test_early_rejection_refuses_who_would_be_late_alone_and_nobody_without_limits() -> None:
    sets = _job_sets(8, 0.8)
    found = _single_machine("edd+early_reject", sets)
    dates = np.array([[d for _, d in s] for s in sets])
    all_served = _single_machine("edd", sets)
    in_time = (all_served <= dates).all(axis=1)
    assert (found <= dates).all() and (found < 0).any(axis=1).tolist() == (~in_time).tolist()
    np.testing.assert_array_equal(found[in_time], all_served[in_time])
    lax = [[(p, 2**20) for p, _ in s] for s in sets]
    np.testing.assert_array_equal(_single_machine("edd+early_reject", lax), _single_machine("edd", lax))


def test_unfit_combinations_and_costs_are_refused_in_words() -> None:
    for name in ("sarathi+early_reject", "vllm-async+early_reject"):
        with pytest.raises(UserError, match=r"early_reject|early rejection"):
            policies.get(name)
    with pytest.raises(UserError, match=r"output_us is 40000; expected 0 <= output_us < 32768 us per token"):
        policies.get("edd", output_us=40_000).params(64)
