"""Past-Future: the future peak token by token, the conditional draw as its authors' code makes it, the baselines."""

from __future__ import annotations

import bisect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsched.retention import peak
from jaxsched.retention.window import LARGEST, empty_window

SLOTS = 40  # more than a block of `future_peak`
MOST = 14  # requests of a random batch
peak_of = jax.jit(peak.future_peak)
draw = jax.jit(peak.remaining_output)
whole_peak = jax.jit(peak.past_future_peak)
record = jax.jit(peak.record_output)


def padded(values, fill=0):
    return jnp.asarray(list(values) + [fill] * (SLOTS - len(values)), jnp.int32)


def mask_of(num):
    return jnp.arange(SLOTS) < num


def token_by_token(requests: list[tuple[int, int]]) -> int:
    """Most tokens ever held when every unfinished request gets a token per step and frees all after its last."""
    most, step = 0, 0
    while any(remaining >= step for _, remaining in requests):
        most = max(most, sum(current + step for current, remaining in requests if remaining >= step))
        step += 1
    return most


requests = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 25)), max_size=MOST)


@settings(max_examples=300, deadline=None)
@given(requests, st.randoms(use_true_random=False))
def test_future_peak_equals_the_token_by_token_future(batch, random):
    slots = list(range(SLOTS))
    random.shuffle(slots)
    current, remaining, mask = np.full(SLOTS, 99), np.full(SLOTS, 99), np.zeros(SLOTS, bool)  # garbage where masked
    for slot, (tokens, left) in zip(slots, batch, strict=False):
        current[slot], remaining[slot], mask[slot] = tokens, left, True
    got = peak_of(jnp.asarray(current, jnp.int32), jnp.asarray(remaining, jnp.int32), jnp.asarray(mask))
    assert int(got) == token_by_token(batch)


@settings(max_examples=100, deadline=None)
@given(requests.filter(len))
def test_future_peak_equals_the_formula_of_the_paper(batch):
    by_remaining = sorted(batch, key=lambda request: -request[1])
    held = np.cumsum([current for current, _ in by_remaining])
    expected = max((i + 1) * left + held[i] for i, (_, left) in enumerate(by_remaining))
    current, remaining = zip(*batch, strict=True)
    assert int(peak_of(padded(current), padded(remaining), mask_of(len(batch)))) == expected


def test_future_peak_by_hand():
    # (current, remaining): (10, 5), (20, 2), (4, 8). In order 8, 5, 2: 4+8=12, 14+10=24, 34+6=40.
    assert int(peak_of(padded([10, 20, 4]), padded([5, 2, 8]), mask_of(3))) == 40
    # (3, 10) outlives (20, 1): 13 at the end of the long one, 23+2=25 at the end of the short one.
    assert int(peak_of(padded([3, 20]), padded([10, 1]), mask_of(2))) == 25
    assert int(peak_of(padded([]), padded([]), mask_of(0))) == 0


def lengths_of(values, window=16):
    lengths = empty_window(1, window)
    for value in values:
        lengths = record(lengths, jnp.int32(value))
    return lengths


def word_of(uniform):
    """The word of a number in [0, 1)."""
    return (np.asarray(uniform) * 2**peak.WORD_BITS).astype(np.int32)


def words_like(uniform):
    """The same word in every slot."""
    return jnp.full(SLOTS, word_of(uniform), jnp.int32)


def as_the_authors_draw(history: list[int], generated: int, limit: int, uniform: float) -> int:
    """The conditional draw of LightLLM's PastFutureQueue: linear between generated, the longer ones, the limit."""
    ordered = sorted(history)
    points = [generated, *ordered[bisect.bisect(ordered, generated) :], limit]
    position = uniform * (len(points) - 1)
    left = int(position)
    return round(points[left] + (points[left + 1] - points[left]) * (position - left))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=30),
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 255)), min_size=1, max_size=MOST),
)
def test_conditional_draws_equal_those_of_the_authors(history, slots):
    lengths = lengths_of(history)
    generated, word = zip(*slots, strict=True)
    words = padded(word) << (peak.WORD_BITS - 8)
    got = draw(lengths, padded(generated), padded([50] * SLOTS), jnp.zeros(SLOTS, bool), words)
    for slot, done in enumerate(generated):
        expected = as_the_authors_draw(history[-16:], done, 50, word[slot] / 256.0)
        # A draw exactly between two whole tokens may round either way.
        assert abs(int(got[slot]) - (expected - done)) <= 1
        if word[slot] == 0:
            assert int(got[slot]) == 0


def test_conditional_quantile_by_hand():
    # History 10, 20, 30, 40; generated 15, limit 60: points 15, 20, 30, 40, 60. Half way: 30; three quarters: 40.
    lengths = lengths_of([40, 10, 30, 20])
    for uniform, expected in ((0.0, 15), (0.25, 20), (0.5, 30), (0.75, 40), (0.875, 50)):
        got = draw(lengths, padded([15]), padded([60]), jnp.zeros(SLOTS, bool), words_like(uniform))
        assert int(got[0]) == expected - 15


def test_candidates_draw_from_the_whole_history():
    lengths = lengths_of([40, 10, 30, 20])
    for uniform, expected in ((0.0, 10), (0.3, 20), (0.6, 30), (0.99, 40)):
        got = draw(lengths, padded([0]), padded([60]), jnp.ones(SLOTS, bool), words_like(uniform))
        assert int(got[0]) == expected
    capped = draw(lengths, padded([0]), padded([25]), jnp.ones(SLOTS, bool), words_like(0.99))
    assert int(capped[0]) == 25


def test_draws_follow_the_conditional_law():
    # Lengths uniform on 1..100, 40 generated: uniform on 41..100 and one part in 62 up to the limit 200.
    lengths = lengths_of(np.random.default_rng(0).permutation(np.arange(1, 101)), window=100)
    words = jnp.asarray(word_of((np.arange(6000) + 0.5) / 6000))
    shape = (6000,)
    got = draw(lengths, jnp.full(shape, 40, jnp.int32), jnp.full(shape, 200, jnp.int32), jnp.zeros(shape, bool), words)
    total = np.asarray(got) + 40
    assert (total > 100).mean() == pytest.approx(1 / 61, abs=0.002)
    assert np.median(total) == pytest.approx(40 + 61 / 2, abs=1.0)


def test_the_largest_peak_of_the_draws_that_count_is_taken():
    lengths = lengths_of([10, 20, 30, 40])
    rng = np.random.default_rng(1)
    current, generated = padded(rng.integers(1, 50, SLOTS)), padded(rng.integers(0, 35, SLOTS))
    limit, words = padded([60] * SLOTS), jnp.asarray(word_of(rng.random((5, SLOTS))))
    for running in (0, 1, 6, 11):
        mask, fresh = mask_of(running + 1), jnp.arange(SLOTS) == running
        peaks = [int(peak_of(current, draw(lengths, generated, limit, fresh, w), mask)) for w in words]
        used = min(5, 200 // running + 1) if running else 1
        got = whole_peak(lengths, current, generated, limit, mask, fresh, words)
        assert int(got) == max(peaks[:used])


def test_many_running_requests_need_fewer_draws():
    # 150 running: floor(200 / 150) + 1 = 2 draws, so rows 2.. of the words are not looked at.
    slots = 151
    lengths = lengths_of([10, 20, 30, 40])
    rng = np.random.default_rng(2)
    whole = lambda low, high: jnp.asarray(rng.integers(low, high, slots), jnp.int32)
    args = (lengths, whole(1, 50), whole(0, 35), jnp.full(slots, 60, jnp.int32), jnp.ones(slots, bool))
    fresh = jnp.arange(slots) == 150
    words = word_of(rng.random((5, slots)))
    other = words.copy()
    other[2:] = word_of(0.999)
    first, second = (whole_peak(*args, fresh, jnp.asarray(w)) for w in (words, other))
    assert int(first) == int(second)


def test_a_history_starts_half_full_of_the_longest_output():
    lengths = peak.empty_lengths(500, 8)
    assert int(lengths.count[0]) == 4
    np.testing.assert_array_equal(lengths.ordered[0], [500] * 4 + [LARGEST] * 4)
    for value in range(1, 6):  # four places are free, the fifth push drops one of the starters
        lengths = record(lengths, jnp.int32(value))
    np.testing.assert_array_equal(lengths.ordered[0], [1, 2, 3, 4, 5, 500, 500, 500])


def test_admission_rules_by_hand():
    assert bool(peak.fits(jnp.int32(949), jnp.int32(1000)))
    assert not bool(peak.fits(jnp.int32(951), jnp.int32(1000)))
    assert not bool(peak.fits(jnp.int32(949), jnp.int32(1000), held_elsewhere=10))
    current, mask = padded([300, 400, 200]), mask_of(3)
    assert bool(peak.aggressive_fits(current, mask, jnp.int32(1000)))  # 900 <= 950, whatever is to come
    assert not bool(peak.aggressive_fits(current, mask, jnp.int32(1000), watermark=0.89))
    generated, limit = padded([10, 20, 0]), padded([110, 120, 100])
    # Grown: 400 + 500 + 300 = 1,200.
    assert not bool(peak.conservative_fits(current, generated, limit, mask, jnp.int32(1000)))
    assert bool(peak.conservative_fits(current, generated, limit, mask, jnp.int32(1000), overcommit=1.25))


def test_aggressive_admits_what_past_future_refuses_and_conservative_what_it_never_needs():
    # Five requests of 100 tokens with outputs of about 100 against a limit of 1,000, pool 1,100.
    lengths = lengths_of([90, 100, 110] * 5)
    current, generated, limit = padded([100] * 5), padded([1] * 5), padded([1000] * 5)
    words = words_like(0.5)[None]
    fresh = jnp.arange(SLOTS) == 4
    for capacity, expected in ((600, False), (1100, True)):
        m = whole_peak(lengths, current, generated, limit, mask_of(5), fresh, words)
        assert bool(peak.fits(m, jnp.int32(capacity))) is expected
        assert bool(peak.aggressive_fits(current, mask_of(5), jnp.int32(capacity)))
        assert not bool(peak.conservative_fits(current, generated, limit, mask_of(5), jnp.int32(capacity)))


def test_heuristic_lengths():
    generated, limit = padded([0, 1000, 1100, 50]), padded([2048, 2048, 1150, 100])
    free = peak.heuristic_output(generated, limit, jnp.array(False))
    np.testing.assert_array_equal(free[:4], [1024, 1100, 1150, 100])
    np.testing.assert_array_equal(peak.heuristic_output(generated, limit, jnp.array(True)), limit)
