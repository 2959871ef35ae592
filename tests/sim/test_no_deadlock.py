"""Pins that never end, in pools that hold a few contexts, never lock an instance up: every turn is served.

The traps of the regime study (docs/retention.md): pins or prices that leave nothing schedulable, a gate that waits for
memory which only the gated could free, an order whose head is not among those that admission considers, requests that
preempt each other for ever. `preserve` pins every context until its program returns.
"""

from __future__ import annotations

import numpy as np
import pytest

from jaxsched.sim.state import Count, Fate, Flag
from tests.sim.clusters import Size, Variant, lane_inputs, random_lane
from tests.sim.harness import run_lanes

LANES = 200  # of each variant; ten times as many with --full
#: A pool that holds one of the larger contexts, or a few.
TIGHT = Size(2, 8, 48, 100, 60, (176, 208, 260, 320))
#: All contexts pinned until the return: under program order with the gate; with turns that displace one another; with
#: contexts that come back from host memory and are pinned on arrival. And a learned price with an order of eviction.
VARIANTS = [
    Variant("continuum+preserve+gate", "program_sticky", turns=True, cache="runs", prefixes=True, size=TIGHT),
    Variant("pfcfs+gittins_index", "program_sticky", turns=True, cache="runs", size=TIGHT),
    Variant("plas+preserve+gate", "program_sticky", turns=True, cache="runs", size=TIGHT),
    Variant(
        "srpt_program+preserve+prefetch", "program_sticky", turns=True, cache="runs", tiers="host", prefixes=True,
        size=TIGHT,
    ),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_nobody_is_locked_out_when_pins_fill_the_memory(variant: Variant, full_size: bool, record_property) -> None:
    lanes = [random_lane(variant, seed) for seed in range(10 * LANES if full_size else LANES)]
    state = run_lanes(variant.static(), *lane_inputs(variant, lanes))
    flags = np.asarray(state.flags)
    assert not (flags & (Flag.LIVELOCK | Flag.STUCK)).any(), f"lane {np.argmax(flags & (Flag.LIVELOCK | Flag.STUCK))}"
    fate = np.asarray(state.record.fate)
    assert not (fate == Fate.UNFINISHED).any()
    counts = np.asarray(state.metrics.counts)
    gone = counts[:, Count.REJECTED_SIZE] + counts[:, Count.REJECTED_QUEUE]
    np.testing.assert_array_equal(counts[:, Count.ARRIVED], counts[:, Count.FINISHED] + gone)
    # What was tried: memory ran out, and programs of several turns got through.
    seen = {"finished": int((fate == Fate.FINISHED).sum()), "preemptions": int(counts[:, Count.PREEMPTIONS].sum())}
    record_property("seen", seen)
    assert seen["finished"] > 10 * LANES and seen["preemptions"] > LANES // 5, seen
