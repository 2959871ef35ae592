"""Fairness metrics: shares and indices on numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from jaxsched.metrics.tenants import jain, max_min


def test_max_min_shares_fill_small_demands_first_and_split_the_rest_by_weight():
    ones = np.ones(3)
    np.testing.assert_allclose(max_min(np.array([2.0, 8.0, 10.0]), ones, 12.0), [2, 5, 5])
    np.testing.assert_allclose(max_min(np.array([2.0, 8.0, 10.0]), np.array([1.0, 1.0, 3.0]), 10.0), [2, 2, 6])
    np.testing.assert_allclose(max_min(np.array([2.0, 8.0, 10.0]), ones, 100.0), [2, 8, 10])  # all can be served
    np.testing.assert_allclose(max_min(np.array([0.0, 8.0, 10.0]), ones, 6.0), [0, 3, 3])


def test_jains_index_is_one_for_equals_and_one_over_n_for_a_monopoly():
    rows = np.array([[3.0, 3.0, 3.0, 3.0], [5.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0]])
    assert jain(rows) == pytest.approx([1.0, 0.25, 100 / 120])
