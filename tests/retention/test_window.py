"""The two orders of a sample window against lists."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsched.retention.window import LARGEST, empty_window, held, push

SIZE, ROWS = 7, 3
jitted = jax.jit(push)

#: (rows to push to, value, which of the two rows are masked in); the value range makes ties and saturation likely.
pushes = st.lists(
    st.tuples(
        st.tuples(st.integers(0, ROWS - 1), st.integers(0, ROWS - 1)).filter(lambda pair: pair[0] != pair[1]),
        st.one_of(st.integers(0, 5), st.just(LARGEST), st.integers(0, LARGEST)),
        st.tuples(st.booleans(), st.booleans()),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(pushes)
def test_a_window_holds_the_last_samples_by_arrival_and_by_size(sequence):
    window = empty_window(ROWS, SIZE)
    expected: list[list[int]] = [[] for _ in range(ROWS)]
    for rows, value, mask in sequence:
        window = jitted(window, jnp.array(rows, jnp.int32), jnp.int32(value), jnp.array(mask))
        for row, kept in zip(rows, mask, strict=True):
            if kept:
                expected[row].append(value)
    for row, values in enumerate(expected):
        last = values[-SIZE:]
        assert int(window.count[row]) == len(values)
        assert int(held(window)[row]) == len(last)
        padded = sorted(last) + [LARGEST] * (SIZE - len(last))
        np.testing.assert_array_equal(window.ordered[row], padded)
        for age, value in enumerate(reversed(last)):
            assert int(window.ring[row, (len(values) - 1 - age) % SIZE]) == value


def test_rows_outside_the_table_are_left_alone():
    before = push(empty_window(ROWS, SIZE), jnp.array([0], jnp.int32), jnp.int32(3), jnp.array([True]))
    for row in (-1, ROWS, ROWS + 5):
        after = push(before, jnp.array([row], jnp.int32), jnp.int32(9), jnp.array([True]))
        jax.tree.map(np.testing.assert_array_equal, before, after)
