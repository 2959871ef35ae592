"""Marker and one-bit predictions: truths by brute force, the competitive inequalities, and where they are tight."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsched.retention.paging import Replacement, faults
from jaxsched.retention.paging_online import Online, discard_bits, online_faults, phase_bits, phases

FRAMES, PAGES, LENGTH, DRAWS = 5, 12, 400, 64
HARMONIC = sum(1 / i for i in range(1, FRAMES + 1))
ERRORS = (0.0, 0.02, 0.1, 0.3, 1.0)  # share of the bits that are flipped


def _sequences() -> np.ndarray:
    """Zipf, uniform, a cycle of k + 1 pages, a cycle that drifts, and runs of one working set after another."""
    draw = np.random.default_rng(3)
    zipf = draw.choice(PAGES, LENGTH, p=(w := 1 / np.arange(1, PAGES + 1)) / w.sum())
    uniform = draw.integers(0, PAGES, LENGTH)
    cycle = np.arange(LENGTH) % (FRAMES + 1)
    drift = (np.arange(LENGTH) // 7 + draw.integers(0, FRAMES, LENGTH)) % PAGES
    sets = np.concatenate([draw.choice(PAGES, FRAMES, replace=False)[draw.integers(0, FRAMES, 40)] for _ in range(10)])
    return np.stack([zipf, uniform, cycle, drift, sets]).astype(np.int32)


SEQUENCES = _sequences()
OPTIMUM = np.asarray(
    jax.vmap(lambda s: faults(s, FRAMES, PAGES, Replacement.MIN)[0])(jnp.asarray(SEQUENCES)), np.float64
)


@functools.cache
def _mean_faults(rule: Online):
    """Compiled: sequences and bits ``[n, N]`` -> faults ``[n]``, mean over draws."""

    def one(pages, bits):
        keys = jax.random.split(jax.random.key(0), DRAWS)
        return jnp.mean(jax.vmap(lambda key: online_faults(pages, bits, FRAMES, rule, key))(keys).astype(jnp.float32))

    return jax.jit(jax.vmap(one))


def _flipped(truth: np.ndarray, share: float) -> np.ndarray:
    flips = np.random.default_rng(5).random(truth.shape) < share
    return np.where(flips, 1 - truth, truth).astype(np.int32)


def _wrong(truth: np.ndarray, bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return ((bits == 0) & (truth == 1)).sum(axis=1), ((bits == 1) & (truth == 0)).sum(axis=1)


def _discard() -> np.ndarray:
    return np.asarray(jax.vmap(lambda s: discard_bits(s, FRAMES, PAGES))(jnp.asarray(SEQUENCES)))


def _phase() -> np.ndarray:
    return np.asarray(jax.vmap(lambda s: phase_bits(s, FRAMES, PAGES))(jnp.asarray(SEQUENCES)))


def test_true_bits_are_those_of_their_definitions() -> None:
    for pages, bits in zip(SEQUENCES, _discard(), strict=True):
        # Dropping a page at once where the bit says so, and nothing else, costs what MIN costs.
        memory, count = set(), 0
        for page, bit in zip(pages, bits, strict=True):
            count += page not in memory
            memory = memory - {page} if bit else memory | {page}
            assert len(memory) <= FRAMES
        assert count == int(faults(jnp.asarray(pages), FRAMES, PAGES, Replacement.MIN)[0])
    for pages, bits in zip(SEQUENCES, _phase(), strict=True):
        groups: list[set[int]] = [set()]
        index = []
        for page in pages:
            if page not in groups[-1] and len(groups[-1]) == FRAMES:
                groups.append(set())
            groups[-1].add(page)
            index.append(len(groups) - 1)
        np.testing.assert_array_equal(phases(jnp.asarray(pages), FRAMES, PAGES), index)
        groups.append(set())
        np.testing.assert_array_equal(bits, [page not in groups[i + 1] for page, i in zip(pages, index, strict=True)])


@pytest.mark.parametrize("share", ERRORS)
def test_discard_bits_cost_at_most_what_the_theorems_say(share: float) -> None:
    truth = _discard()
    bits = _flipped(truth, share)
    wrong0, wrong1 = _wrong(truth, bits)
    flush = np.asarray(_mean_faults(Online.FLUSH)(SEQUENCES, bits))
    mark0 = np.asarray(_mean_faults(Online.MARK0)(SEQUENCES, bits))
    assert (flush <= OPTIMUM + (FRAMES - 1) * wrong0 + wrong1).all()
    assert (mark0 <= OPTIMUM + 2 * HARMONIC * wrong0 + wrong1 + 1e-3).all()
    if share == 0:
        np.testing.assert_array_equal(flush, OPTIMUM)
        np.testing.assert_array_equal(mark0, OPTIMUM)


@pytest.mark.parametrize("share", ERRORS)
def test_phase_bits_cost_at_most_what_the_theorem_says_and_never_much_more_than_marker(share: float) -> None:
    truth = _phase()
    bits = _flipped(truth, share)
    cost = np.asarray(_mean_faults(Online.MARK_PREDICT)(SEQUENCES, bits))
    wrong0, wrong1 = _wrong(truth, bits)
    assert (cost <= 2 * OPTIMUM + HARMONIC * wrong0 + wrong1).all()
    assert (cost <= 2 * (HARMONIC + 1) * OPTIMUM).all()  # robust, also with every bit wrong


def test_marker_is_within_twice_the_harmonic_number_and_lru_is_k_times_the_optimum_on_its_worst_cycle() -> None:
    marker = np.asarray(_mean_faults(Online.MARKER)(SEQUENCES, np.zeros_like(SEQUENCES)))
    assert (marker <= 2 * HARMONIC * OPTIMUM).all()
    lru = jax.vmap(lambda s: faults(s, FRAMES, PAGES, Replacement.LRU)[0])(jnp.asarray(SEQUENCES))
    lru = np.asarray(lru, np.float64)
    assert (lru <= FRAMES * OPTIMUM).all()
    cycle = 2
    assert lru[cycle] == LENGTH and lru[cycle] > 0.95 * FRAMES * OPTIMUM[cycle]
    assert marker[cycle] < 0.6 * lru[cycle]  # randomness is worth something exactly there


def test_right_predictions_are_worth_something_and_wrong_ones_cost() -> None:
    truth, none = _discard(), np.zeros_like(SEQUENCES)
    marker = np.asarray(_mean_faults(Online.MARKER)(SEQUENCES, none))
    for rule in (Online.FLUSH, Online.MARK0):
        right, wrong = (np.asarray(_mean_faults(rule)(SEQUENCES, bits)) for bits in (truth, 1 - truth))
        assert (right < marker).all() and (wrong > right).all()
    right = np.asarray(_mean_faults(Online.MARK_PREDICT)(SEQUENCES, _phase()))
    assert (right <= marker + 1e-3).all() and right.sum() < 0.95 * marker.sum()


def test_without_ones_mark0_is_marker_draw_by_draw() -> None:
    none = jnp.zeros((LENGTH,), jnp.int32)

    @functools.partial(jax.jit, static_argnums=1)
    def counts(key, rule):
        return jax.vmap(lambda pages: online_faults(pages, none, FRAMES, rule, key))(jnp.asarray(SEQUENCES))

    for draw in range(3):
        key = jax.random.key(draw)
        np.testing.assert_array_equal(counts(key, Online.MARK0), counts(key, Online.MARKER))
