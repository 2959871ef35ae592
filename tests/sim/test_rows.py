"""Reductions in forms that compile well are what they stand for; evictions entry by entry are those by bisection."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxsched.metrics.histogram import NUM_BINS, bin_end_us, bin_of
from jaxsched.sim.clock import NEVER_US
from jaxsched.sim.oldest import take_oldest, take_oldest_runs
from jaxsched.sim.rows import LOWEST, earliest, latest, matches, read_row, write_row


def test_the_earliest_and_the_latest_of_some_and_of_none() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(-(2**31) + 2, 2**31 - 2, (200, 9), dtype=np.int64).astype(np.int32)
    values[:, 3] = NEVER_US
    masks = rng.random((200, 9)) < 0.4
    low, high = jax.jit(jax.vmap(lambda m, v: (earliest(m, v), latest(m, v))))(masks, values)
    for mask, value, least, most in zip(masks, values, low, high, strict=True):
        chosen = value[mask]
        assert least == (chosen.min() if mask.any() else NEVER_US)
        assert most == (chosen.max() if mask.any() else LOWEST)


def test_a_row_is_read_and_written_and_no_other() -> None:
    table = jnp.arange(3 * 2 * 4, dtype=jnp.int32).reshape(3, 2, 4)
    first, second = read_row(table, jnp.int32(1))
    np.testing.assert_array_equal(jnp.stack([first, second]), table[1])
    after = write_row(table, jnp.int32(1), [first + 100, second])
    np.testing.assert_array_equal(after - table, np.array([[[0] * 4] * 2, [[100] * 4, [0] * 4], [[0] * 4] * 2]))


def test_which_ids_are_among_others() -> None:
    found = matches(jnp.asarray([3, -1, 7, 3]), jnp.asarray([3, -2, 9]))
    np.testing.assert_array_equal(found, [True, False, False, True])


def test_evicting_entry_by_entry_takes_the_same_blocks() -> None:
    rng = np.random.default_rng(1)
    lengths = rng.integers(0, 6, (300, 12)).astype(np.int32)
    keys = np.argsort(rng.random((300, 12)), axis=1).astype(np.int32) + rng.integers(0, 2, (300, 1), np.int32) * 2**30
    owed = (rng.random(300) * (lengths.sum(1) + 1)).astype(np.int32)
    by_runs, by_bisection = (jax.jit(jax.vmap(f))(keys, lengths, owed) for f in (take_oldest_runs, take_oldest))
    np.testing.assert_array_equal(by_runs.sum(axis=1), owed)
    np.testing.assert_array_equal(by_runs, by_bisection)
    ties, alike = keys, keys // 3
    by_runs, by_bisection = (jax.jit(jax.vmap(f))(alike, lengths, owed, ties) for f in (take_oldest_runs, take_oldest))
    np.testing.assert_array_equal(by_runs, by_bisection)
    assert (take_oldest_runs(keys[0], lengths[0], jnp.int32(10_000)) == lengths[0]).all()


def test_a_value_is_below_the_end_of_a_bin_if_it_is_in_it_or_an_earlier_one() -> None:
    values = jnp.asarray([0, 1, 127, 128, 131, 132, 40_000, 40_500, 2**24 + 1, 2**30 - 1, 2**31 - 1], jnp.float32)
    bins = jnp.arange(NUM_BINS + 3, dtype=jnp.int32)
    below = values[:, None] < bin_end_us(bins)[None, :]
    np.testing.assert_array_equal(below, bin_of(values)[:, None] <= bins[None, :])
