"""Keyed randomness on device."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsched.workloads import keyed
from jaxsched.workloads.hashing import keyed_normal, keyed_uniform


def test_the_draw_of_turn_zero_is_the_key_data_of_fold_in():
    folded = jax.random.fold_in(jax.random.key(5), 3)
    index = jnp.array([0, 1, 2, 1000, 2**31 - 1], jnp.int32)
    expected = jax.vmap(lambda i: jax.random.key_data(jax.random.fold_in(folded, i)))(index)
    words = keyed.draw(keyed.stream_key(jax.random.key(5), 3), index)
    np.testing.assert_array_equal(np.stack(words, axis=1), expected)


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [  # known answers of the Random123 distribution for threefry2x32-20
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (-1, -1), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3 - 2**32), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_the_block_function_gives_the_published_answers(key, counter, expected):
    x, y = keyed.draw(jnp.array(key, jnp.uint32), jnp.int32(counter[1]), jnp.int32(counter[0]))
    assert (int(x), int(y)) == expected


def test_uniform_never_reaches_its_ends():
    ends = keyed.uniform(jnp.array([0, 2**32 - 1], jnp.uint32))
    assert float(ends[0]) > 0.0 and float(ends[1]) < 1.0
    assert float(ends[0]) == pytest.approx(1.0 - float(ends[1]))
    assert np.isfinite(keyed.normal(jnp.array([0, 2**32 - 1], jnp.uint32))).all()
    assert np.isfinite(keyed.exponential(jnp.array([0, 2**32 - 1], jnp.uint32))).all()


def test_streams_and_turns_are_independent():
    index = jnp.arange(20_000, dtype=jnp.int32)
    key = jax.random.key(0)
    a = keyed.normal(keyed.draw(keyed.stream_key(key, 1), index)[0])
    for other in (
        keyed.draw(keyed.stream_key(key, 2), index)[0],
        keyed.draw(keyed.stream_key(key, 1), index, 1)[0],
        keyed.draw(keyed.stream_key(key, 1), index)[1],
        keyed.draw(keyed.stream_key(jax.random.key(1), 1), index)[0],
    ):
        assert abs(np.corrcoef(a, keyed.normal(other))[0, 1]) < 4 / np.sqrt(20_000)
    assert abs(float(a.mean())) < 4 / np.sqrt(20_000)
    assert float(a.std()) == pytest.approx(1.0, abs=4 / np.sqrt(40_000))


def test_host_hashes_are_uniform_and_normal():
    u = keyed_uniform(7, np.arange(50_000))
    assert np.abs(np.sort(u) - (np.arange(50_000) + 0.5) / 50_000).max() < 1.63 / np.sqrt(50_000)  # KS at 1 %
    z = keyed_normal(7, np.arange(50_000), np.zeros(50_000))
    assert abs(z.mean()) < 4 / np.sqrt(50_000)
    assert z.std() == pytest.approx(1.0, abs=4 / np.sqrt(100_000))
