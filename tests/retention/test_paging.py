"""MIN, LRU and FIFO against textbook counts and plain lists; Belady's rule on trees against exhaustive search."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsched.retention.paging import NEVER, Replacement, belady_leaf, faults, next_use

TEXTBOOK = [7, 0, 1, 2, 0, 3, 0, 4, 2, 3, 0, 3, 2, 1, 2, 0, 1, 7, 0, 1]
PAGES = 6
counted = jax.jit(faults, static_argnums=(1, 2, 3))


@pytest.mark.parametrize(("rule", "expected"), [(Replacement.MIN, 9), (Replacement.LRU, 12), (Replacement.FIFO, 15)])
def test_textbook_sequence_with_three_frames(rule, expected):
    count, missed = faults(jnp.array(TEXTBOOK, jnp.int32), 3, 8, rule)
    assert int(count) == expected == int(missed.sum())


def test_fifo_has_beladys_anomaly():
    sequence = jnp.array([1, 2, 3, 4, 1, 2, 5, 1, 2, 3, 4, 5], jnp.int32)
    assert [int(faults(sequence, frames, 6, Replacement.FIFO)[0]) for frames in (3, 4)] == [9, 10]


def test_next_use_by_hand():
    np.testing.assert_array_equal(next_use(jnp.array([2, 0, 2, 1, 0], jnp.int32), 3), [2, 4, NEVER, NEVER, NEVER])


def by_list(sequence, frames: int, rule: Replacement) -> int:
    """A memory as a list: LRU and FIFO by their definitions."""
    memory, count = [], 0
    for page in sequence:
        if page in memory:
            if rule is Replacement.LRU:
                memory.remove(page)
                memory.append(page)
            continue
        count += 1
        if len(memory) == frames:
            memory.pop(0)
        memory.append(page)
    return count


def fewest_faults(sequence, frames: int) -> int:
    """The true minimum over all eviction choices, by dynamic programming over memory contents."""
    costs = {frozenset(): 0}
    for page in sequence:
        following: dict[frozenset, int] = {}
        for memory, cost in costs.items():
            if page in memory:
                options = [(memory, cost)]
            elif len(memory) < frames:
                options = [(memory | {page}, cost + 1)]
            else:
                options = [((memory - {out}) | {page}, cost + 1) for out in memory]
            for content, total in options:
                following[content] = min(total, following.get(content, total))
        costs = following
    return min(costs.values())


sequences = st.lists(st.integers(0, PAGES - 1), min_size=24, max_size=24)


@settings(max_examples=200, deadline=None)
@given(sequences, st.integers(1, 5))
def test_min_is_optimal_and_never_beaten(sequence, frames):
    pages = jnp.array(sequence, jnp.int32)
    least = int(counted(pages, frames, PAGES, Replacement.MIN)[0])
    assert least == fewest_faults(sequence, frames)
    for rule in (Replacement.LRU, Replacement.FIFO):
        count = int(counted(pages, frames, PAGES, rule)[0])
        assert count == by_list(sequence, frames, rule)
        assert count >= least


def test_many_sequences_at_once():
    sequences = jnp.asarray(np.random.default_rng(0).integers(0, 8, (5, 30)), jnp.int32)
    together = jax.vmap(lambda pages: faults(pages, 3, 8, Replacement.MIN)[0])(sequences)
    alone = [int(faults(pages, 3, 8, Replacement.MIN)[0]) for pages in sequences]
    np.testing.assert_array_equal(together, alone)


# --- prefix trees -------------------------------------------------------------------------------------------------

#: A tree of eight blocks: 0 - 1 - 2, 1 - 3, 0 - 4 - 5, and a second root 6 - 7. Chains from the root to each block.
PARENT = {0: None, 1: 0, 2: 1, 3: 1, 4: 0, 5: 4, 6: None, 7: 6}
LENGTH = 3


def chain_of(block: int | None) -> list[int]:
    return [] if block is None else [*chain_of(PARENT[block]), block]


def chains_of(ends) -> jnp.ndarray:
    return jnp.array([chain_of(end) + [-1] * (LENGTH - len(chain_of(end))) for end in ends], jnp.int32)


@functools.cache
def leaf_evictions(content: frozenset, pinned: frozenset, capacity: int) -> frozenset:
    """All contents that evicting leaves, one by one and no more than needed, can lead to."""
    if len(content) <= capacity:
        return frozenset([content])
    parents = {PARENT[block] for block in content}
    leaves = [block for block in content if block not in parents and block not in pinned]
    return frozenset().union(*(leaf_evictions(content - {leaf}, pinned, capacity) for leaf in leaves))


def fewest_misses(ends, capacity: int) -> int:
    """The minimum over all leaf-first eviction schedules that load each request's chain as far as it fits."""
    costs = {frozenset(): 0}
    for end in ends:
        chain = chain_of(end)
        wanted = frozenset(chain[:capacity])
        following: dict[frozenset, int] = {}
        for content, cost in costs.items():
            total = cost + len(set(chain) - content)
            for after in leaf_evictions(content | wanted, wanted, capacity):
                following[after] = min(total, following.get(after, total))
        costs = following
    return min(costs.values())


def lru_misses(ends, capacity: int) -> int:
    """Least recently used leaf first, of one request the deepest first."""
    stamp: dict[int, tuple[int, int]] = {}
    missed = 0
    for now, end in enumerate(ends):
        chain = chain_of(end)
        missed += sum(block not in stamp for block in chain)
        for depth, block in enumerate(chain[:capacity]):
            stamp[block] = (now, -depth)
        while len(stamp) > capacity:
            del stamp[min((b for b in stamp if b not in chain), key=lambda b: stamp[b])]
    return missed


leaf_counted = jax.jit(belady_leaf, static_argnums=(1,))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 7), min_size=14, max_size=14), st.integers(1, 7))
def test_belady_leaf_is_never_beaten_by_any_leaf_first_schedule(ends, capacity):
    total, missed = leaf_counted(chains_of(ends), len(PARENT), jnp.int32(capacity))
    assert int(total) == int(missed.sum()) == fewest_misses(ends, capacity)
    assert int(total) <= lru_misses(ends, capacity)


def test_belady_leaf_with_room_for_all_misses_each_block_once():
    ends = [2, 3, 5, 7, 2, 3, 5, 7]
    total, missed = belady_leaf(chains_of(ends), len(PARENT), 8)
    assert int(total) == 8
    np.testing.assert_array_equal(missed, [3, 1, 2, 2, 0, 0, 0, 0])


def test_a_chain_longer_than_the_cache_keeps_its_head():
    # Capacity 2: of 0 - 1 - 2 only 0 and 1 stay, so every repetition misses one block.
    _, missed = belady_leaf(chains_of([2, 2, 2]), len(PARENT), 2)
    np.testing.assert_array_equal(missed, [3, 1, 1])


def test_chains_of_one_block_are_plain_paging():
    pages = jnp.array(TEXTBOOK, jnp.int32)
    assert int(belady_leaf(pages[:, None], 8, 3)[0]) == 9
