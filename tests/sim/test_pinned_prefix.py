"""What a pin covers where a history begins with a shared prefix: by hand, for the reference and the machine.

Blocks of 4 tokens. Programs 0 and 1 have two blocks of one group's prefix and one and two of their own, and are pinned;
another one has left two blocks behind. All are idle.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp

from jaxsched.sim.kv.base import Hit
from jaxsched.sim.kv.runs import CHAIN, DUE_EPOCH, HIGH, LOW, NEXT, NUM_FIELDS, PROGRAM, STAMP, UNUSED, RunTable
from tests.oracle import blocks as reference
from tests.oracle.data import Record, Request
from tests.sim.clusters import Variant

GROUP, OTHER = -2, 9  # as chains
FOREVER = 2**30


def left_behind(row: int, own_blocks: int, shared: bool = True) -> Request:
    """A turn that has been computed: eight tokens of the group's prefix, then its own."""
    content: list[Any] = [("g", k) for k in range(8 if shared else 0)] + [(row, k) for k in range(4 * own_blocks)]
    return Request(
        row, len(content), 1, 1, 0, 0, 0, 0, Record(row, 0, 0), content, None,
        program=row, owner=row, shared_blocks=2 if shared else 0,
    )  # fmt: skip


def test_the_reference_keeps_the_prefix_until_the_last_context_on_it_is_gone() -> None:
    pool = reference.CachingPool(7, 4)
    for request in (left_behind(OTHER, 2, shared=False), left_behind(0, 1), left_behind(1, 2)):
        hit = pool.lookup(request)
        pool.admit(request, hit, request.num_tokens)
        pool.register(request, request.num_tokens)
        context = reference.Context(5 + request.row, request.row, float("inf"), 0)
        pool.release(request, context if request.shared_blocks else None)
    pool.refresh_pins(0, [])
    assert pool.free == 7 and pool.pinned_besides(reference.Hit()) == 5
    # A newcomer of the group has the prefix as its own hit: the pins of others are their three own blocks.
    assert pool.pinned_besides(pool.lookup(left_behind(2, 1))) == 3
    # The other's end and beginning; the later program's, the earlier one's; then the prefix, from its end.
    assert [pool._take().index for _ in range(7)] == [1, 0, 6, 5, 4, 3, 2]
    assert pool.noted["pinned_block_taken"] == 5 and pool.noted["pinned_prefix_taken"] == 2


def table(*rows: dict[int, int]) -> RunTable:
    static = Variant("continuum+static_ttl", "program_sticky", block_size=4, turns=True, cache="runs").static()
    runs = jnp.zeros((NUM_FIELDS, 6), jnp.int32).at[CHAIN].set(UNUSED).at[NEXT].set(-1)
    for place, row in enumerate(rows):
        for field, value in row.items():
            runs = runs.at[field, place].set(value)
    # Rows 5 and 6 are the next turns of programs 0 and 1.
    group = jnp.full(8, -1).at[5].set(0).at[6].set(0)
    requests: Any = SimpleNamespace(
        chain=jnp.arange(8) % 5, group=group, group_tokens=jnp.where(group >= 0, 8, 0), program=jnp.arange(8) % 5
    )
    slots = jnp.zeros((4, 2), jnp.int32).at[1].set(UNUSED)
    return RunTable(static, requests, jnp.int32(0), runs, slots, jnp.zeros(4, jnp.int32))


def test_the_machine_keeps_the_prefix_until_the_last_context_on_it_is_gone() -> None:
    pin = {DUE_EPOCH: FOREVER}
    kv = table(
        {CHAIN: OTHER, LOW: 0, HIGH: 2, STAMP: 0},
        {CHAIN: 0, LOW: 2, HIGH: 3, STAMP: 2, NEXT: 5, PROGRAM: 0, **pin},
        {CHAIN: GROUP, LOW: 1, HIGH: 2, STAMP: 3},  # let go when its first block was still held
        {CHAIN: 1, LOW: 2, HIGH: 4, STAMP: 4, NEXT: 6, PROGRAM: 1, **pin},
        {CHAIN: GROUP, LOW: 0, HIGH: 1, STAMP: 5},
    )
    nobody = jnp.zeros(2, bool)
    kv.refresh_pins(jnp.bool_(True), jnp.int32(0), jnp.int32(0), nobody, jnp.full(2, -2))
    assert int(kv.pinned_blocks()) == 5 == int(kv.kept_blocks())
    newcomer: Hit = kv.lookup(jnp.int32(5), jnp.int32(9))  # any turn of the group finds and takes the prefix
    assert (int(newcomer.blocks), int(newcomer.pinned)) == (2, 2)

    def left() -> list[int]:
        return [int(x) for x in jnp.where(kv.chain != UNUSED, kv.high - kv.low, 0)]

    for owed, expected in (
        (1, [1, 1, 1, 2, 1, 0]),  # what is not pinned goes first, from its end
        (2, [0, 1, 1, 1, 1, 0]),  # then the later program
        (2, [0, 0, 1, 0, 1, 0]),  # then the earlier one
        (1, [0, 0, 0, 0, 1, 0]),  # and the prefix behind it: what was let go first
        (1, [0, 0, 0, 0, 0, 0]),
    ):
        kv.debt = jnp.int32(owed)
        kv.settle()
        assert left() == expected
