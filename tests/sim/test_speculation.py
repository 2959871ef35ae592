"""Speculative decoding: the machine equals the reference; without drafts it is the machine without speculation.

docs/semantics.md, section 16.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from jaxsched import policies
from jaxsched.errors import UserError
from jaxsched.scenario import load
from jaxsched.sim.clock import join_us
from jaxsched.sim.params import SimParams
from jaxsched.sim.speculate import ACCEPTED, DRAFTED, OUTPUTS, ROUNDS
from jaxsched.sim.state import Count, State
from tests.shared_data import ROOT
from tests.sim.clusters import RETENTION, Lane, Variant, lane_inputs, random_lane
from tests.sim.differential import assert_equal_records
from tests.sim.harness import assert_same_trees, run_lanes, run_lanes_checked

LANES = 40  # of each variant; five times as many with --full
FCFS = Variant("vllm+spec", "least_kv", turns=True, timeouts=True, size=RETENTION)
VARIANTS = {
    "fcfs": FCFS,
    "srpt-blocks": Variant("srpt+spec", turns=True, thresholds=True, cache="blocks", size=RETENTION),
    "retention": Variant("pfcfs+spec+static_ttl+gate", turns=True, cache="runs", size=RETENTION),
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_every_record_equals_the_reference_whatever_is_drafted(variant: Variant, full_size: bool) -> None:
    """By a fixed length, a threshold, the batch, or two of these at once; the machine's books hold at every event."""
    lanes = [random_lane(variant, seed) for seed in range(5 * LANES if full_size else LANES)]
    state, found = run_lanes_checked(variant.static(), *lane_inputs(variant, lanes))
    assert not np.asarray(found).any()
    counts = np.asarray(state.speculation.counts)

    def also(i, lane, result) -> None:
        assert (result.noted["drafted"], result.noted["accepted"]) == tuple(counts[i, [DRAFTED, ACCEPTED]])

    seen = assert_equal_records(variant, lanes, state, also)
    assert seen["compared"] >= 0.85 * LANES and seen["finished"] >= 4 * LANES
    assert seen["preemptions"] >= LANES // 4 and seen["drafted"] > 1.2 * seen["accepted"] > 12 * LANES
    assert all(seen[f"cap_{k}"] for k in (0, 1, 2, 4, 8))
    assert seen["cut_by_batch"] >= LANES


def _with(params: SimParams, lanes: list[Lane], **changes: int) -> SimParams:
    """Every lane with the same fixed rule."""
    draft = params.scheduler.draft
    draft = draft.replace(stop_below=0 * draft.most, least=0 * draft.most, by_batch=0 * draft.by_batch)
    draft = draft.replace(**{name: np.full(len(lanes), value, np.int32) for name, value in changes.items()})
    model = params.speculation
    always = np.full_like(model.accept, 2**15), np.full_like(model.mean, 2**15)
    model = model.replace(accept=always[0], mean=always[1], draft_pass_us=0 * model.head + 50)
    return params.replace(scheduler=params.scheduler.replace(draft=draft), speculation=model)


def _ends(state: State) -> np.ndarray:
    finish = np.asarray(state.record.finish)
    return join_us(finish[..., 0], finish[..., 1])


@pytest.mark.slow
def test_no_drafts_are_off_bit_for_bit_and_drafts_that_are_always_right_are_not(full_size: bool) -> None:
    lanes = [random_lane(FCFS, seed) for seed in range(LANES)]  # (the program of the test above)
    params, requests = lane_inputs(FCFS, lanes)
    # No draft is made, though a pass would take time and every guess would be right.
    none = run_lanes_checked(FCFS.static(), _with(params, lanes, most=0), requests)[0]
    off = dataclasses.replace(FCFS, scheduler="vllm")
    off_params = params.replace(speculation=None, scheduler=params.scheduler.replace(draft=None))
    without = run_lanes(off.static(max_run_steps=1), off_params, requests)
    assert not np.asarray(none.speculation.counts).any()
    index = 7  # `aux`: blocks held, which no engine without speculation keeps
    assert_same_trees(
        none.replace(speculation=None, slots=none.slots[:, :, :index]),
        without.replace(slots=without.slots[:, :, :index]),
    )
    # Four drafts that are always right: five tokens a step, and not a token more or less than without.
    four = run_lanes_checked(FCFS.static(), _with(params, lanes, most=4), requests)[0]
    counts = np.asarray(four.speculation.counts)
    assert (counts[:, DRAFTED] == counts[:, ACCEPTED]).all() and (counts[:, DRAFTED] == 4 * counts[:, ROUNDS]).all()
    assert (counts[:, OUTPUTS] <= 5 * counts[:, ROUNDS]).all() and counts[:, OUTPUTS].sum() > 4 * counts[
        :, ROUNDS
    ].sum()
    both = (_ends(four) > 0) & (_ends(without) > 0)
    assert both.sum() > 6 * LANES and (_ends(four) < _ends(without))[both].mean() > 0.8
    steps = np.asarray(four.metrics.counts)[:, Count.ENGINE_STEPS].sum()
    assert steps < 0.6 * np.asarray(without.metrics.counts)[:, Count.ENGINE_STEPS].sum()


def test_unfit_combinations_and_knobs_are_refused_in_words() -> None:
    for name in ("sarathi+spec", "vllm-async+specdec", "conservative+spec", "vllm+spec+specdec", "pfcfs+offload+spec"):
        with pytest.raises(UserError, match="speculation does not go with"):
            policies.get(name)
    with pytest.raises(UserError, match="memory tiers do not go with speculation"):
        policies.get("pfcfs+spec+offload")
    for knob, value, words in (
        ("num_speculative_tokens", 17, "a whole number from 0 to 16"),
        ("num_speculative_tokens", 2.5, "a whole number from 0 to 16"),
        ("min_speculative_tokens", 5, "a whole number from 0 to 4"),
        ("reject_threshold", 1.5, "a number from 0 to 1"),
        ("by_batch", 2, "a whole number from 0 to 1"),
        ("expected_acceptance", -0.1, "a number from 0 to 1"),
    ):
        with pytest.raises(UserError, match=f"{knob} is {value}; expected {words}"):
            policies.get("vllm+spec", **{knob: value}).params(64)
    assert jax.tree.leaves(policies.get("vllm").params(64).draft) == []
    with pytest.raises(UserError, match=r"drafts tokens, and the scenario has no draft model.*speculation"):
        scenario = load(str(ROOT / "configs" / "scenarios" / "chat.yaml"))
        scenario.check(policies.get("vllm+specdec"))
