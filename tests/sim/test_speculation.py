"""Speculative decoding: the machine equals the reference; without drafts it is the machine without speculation.

docs/semantics.md, section 15.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from jaxsched import policies
from jaxsched.errors import UserError
from jaxsched.sim.speculate import ACCEPTED, DRAFTED
from tests.sim.clusters import RETENTION, Variant, lane_inputs, random_lane
from tests.sim.differential import assert_equal_records
from tests.sim.harness import run_lanes

LANES = 60  # of each variant; five times as many with --full
VARIANTS = {
    "fcfs": Variant("vllm+spec", "least_kv", turns=True, timeouts=True, size=RETENTION),
    "budget": Variant("vllm+spec", turns=True, thresholds=True, size=RETENTION),
    "srpt-blocks": Variant("srpt+spec", turns=True, cache="blocks", size=RETENTION),
    "retention": Variant("pfcfs+spec+static_ttl+gate", turns=True, cache="runs", size=RETENTION),
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_every_record_equals_the_reference(variant: Variant, full_size: bool) -> None:
    lanes = [random_lane(variant, seed) for seed in range(5 * LANES if full_size else LANES)]
    state = run_lanes(variant.static(), *lane_inputs(variant, lanes))
    counts = np.asarray(state.speculation.counts)

    def also(i, lane, result) -> None:
        assert (result.noted["drafted"], result.noted["accepted"]) == tuple(counts[i, [DRAFTED, ACCEPTED]])

    seen = assert_equal_records(variant, lanes, state, also)
    assert seen["compared"] >= 0.85 * LANES and seen["finished"] >= 4 * LANES
    assert seen["preemptions"] >= LANES // 2 and seen["drafted"] > 1.2 * seen["accepted"] > 10 * LANES
