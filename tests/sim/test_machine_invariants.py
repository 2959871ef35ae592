"""`violations` finds every kind of damage. (That there is none: test_runs_equal_single_steps.py.)"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsched.sim.clock import NEVER_US
from jaxsched.sim.event import apply_pending
from jaxsched.sim.invariants import Violation, violations
from jaxsched.sim.state import WAITING, Count, Instance, Slots, State
from tests.sim.clusters import SMALL, Lane, Variant, lane_inputs, random_lane
from tests.sim.harness import advance_lanes, start_lanes

VARIANT = Variant("vllm", "least_kv", turns=True, size=SMALL)
LANES = 16
INSTANCE, SLOT = list(Instance.__dataclass_fields__), list(Slots.__dataclass_fields__)


def busy_lane(variant: Variant = VARIANT):
    """A lane in the middle of an episode, between two events; its instance `m` runs some requests while others wait."""
    static = variant.static()
    seeds = iter(range(10_000))
    while True:
        lanes: list[Lane] = [random_lane(variant, next(seeds)) for _ in range(LANES)]
        params, requests = lane_inputs(variant, lanes)
        state, _ = advance_lanes(static, params, requests, start_lanes(static, params, requests))
        for i in np.nonzero(np.asarray(state.locked) < 0)[0]:
            p, r, s = jax.tree.map(lambda x, i=i: jnp.asarray(x[i]), (params, requests, state))
            s = apply_pending(s)
            scalars = Instance(*np.asarray(s.instance))
            for m in np.nonzero((scalars.running >= 2) & (scalars.waiting >= 1))[0]:
                return static, p, r, s, int(m)


@pytest.fixture(scope="module")
def busy():
    return busy_lane()


def add_to(name: str, amount: int) -> Callable[[State, int], State]:
    return lambda s, m: s.replace(instance=s.instance.at[INSTANCE.index(name), m].add(amount))


def set_running(name: str, value: Callable[[State, int, int], int]) -> Callable[[State, int], State]:
    """Change a field of the first running request."""

    def damage(s: State, m: int) -> State:
        slot = int(np.nonzero(np.asarray(s.slots[m, SLOT.index("order")]) >= 0)[0][0])
        return s.replace(slots=s.slots.at[m, SLOT.index(name), slot].set(value(s, m, slot)))

    return damage


def of(s: State, m: int, name: str) -> np.ndarray:
    return np.asarray(s.slots[m, SLOT.index(name)])


def counting(which: Count) -> Callable[[State, int], State]:
    return lambda s, m: s.replace(metrics=s.metrics.replace(counts=s.metrics.counts.at[which].add(1)))


DAMAGES = {
    "a block freed twice": (add_to("free", 1), Violation.MEMORY),
    "more blocks taken than there are": (add_to("free", -1000), Violation.MEMORY),
    "a waiting request not counted": (add_to("waiting", -1), Violation.COUNTERS),
    "a running request not counted": (add_to("running", -1), Violation.COUNTERS),
    "a FIFO entry lost": (add_to("length", -1), Violation.COUNTERS),
    "a finish counted twice": (counting(Count.FINISHED), Violation.LOST),
    "an arrival counted twice": (counting(Count.ARRIVED), Violation.LOST),
    "a program counted twice": (counting(Count.PROGRAMS_DONE), Violation.PROGRAMS),
    "a program forgotten": (lambda s, m: s.replace(arrivals=s.arrivals + 1), Violation.PROGRAMS),
    "a step end in the past": (lambda s, m: s.replace(next_event=s.next_event.at[m].set(s.now - 1)), Violation.CLOCK),
    "more outputs than asked for": (set_running("known", lambda s, m, i: of(s, m, "goal")[i] + 1), Violation.TOKENS),
    "more computed than known": (set_running("computed", lambda s, m, i: of(s, m, "known")[i] + 1), Violation.TOKENS),
    "a busy instance without an event": (
        lambda s, m: s.replace(next_event=s.next_event.at[m].set(NEVER_US)),
        Violation.WAKE,
    ),
    "blocks of waiting prompts off by one": (add_to("waiting_blocks", 1), Violation.LOAD),
    "one admission number twice": (
        set_running("order", lambda s, m, i: np.delete(of(s, m, "order"), i).max()),
        Violation.ORDER,
    ),
    "an admission number of the future": (set_running("order", lambda s, m, i: 10**6), Violation.ORDER),
    "a running request set waiting": (set_running("order", lambda s, m, i: WAITING), Violation.COUNTERS),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found(busy, name: str) -> None:
    static, params, requests, state, m = busy
    damage, violation = DAMAGES[name]
    assert int(violations(static, params, requests, state)) == 0
    assert int(violations(static, params, requests, damage(state, m))) & violation


@pytest.fixture(scope="module", params=["blocks", "runs"])
def busy_with_cache(request: pytest.FixtureRequest):
    return busy_lane(dataclasses.replace(VARIANT, cache=request.param))


def add_to_cache(field: str, column: int) -> Callable[[State, int], State]:
    """One more in the first entries of a field of the cache's row."""

    def damage(s: State, m: int) -> State:
        values = getattr(s.kv, field)
        place = (m, column) if field == "scalars" else (m, column, 0)
        return s.replace(kv=s.kv.replace(**{field: values.at[place].add(1000)}))

    return damage


#: The first two scalars are, in both forms, the free blocks without content and the debt; the first row of `slots` is
#: what each slot has registered.
CACHE_DAMAGES = {
    "a block freed twice": add_to("free", 1),
    "free blocks without content made up": add_to_cache("scalars", 0),
    "blocks owed that are not there": add_to_cache("scalars", 1),
    "blocks registered that were never filled": add_to_cache("slots", 0),
}


@pytest.mark.parametrize("name", CACHE_DAMAGES)
def test_damage_to_the_prefix_cache_is_found(busy_with_cache, name: str) -> None:
    static, params, requests, state, m = busy_with_cache
    assert int(violations(static, params, requests, state)) == 0
    assert int(violations(static, params, requests, CACHE_DAMAGES[name](state, m))) & Violation.CACHE


def test_every_kind_of_violation_is_provoked() -> None:
    assert {violation for _, violation in DAMAGES.values()} | {Violation.CACHE, Violation.TIERS} == set(Violation)
    # (TIERS: test_tiers_equal_reference.py)


def test_nothing_is_checked_while_an_event_is_under_way(busy) -> None:
    static, params, requests, state, m = busy
    damaged = DAMAGES["a block freed twice"][0](state, m).replace(locked=jnp.int32(m))
    assert int(violations(static, params, requests, damaged)) == 0
