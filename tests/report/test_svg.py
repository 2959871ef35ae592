"""Ticks are round and few, scales map ends to ends, thinning and resampling keep the shape."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsched.report.charts import resample
from jaxsched.report.svg import Plot, Scale, linear_range, linear_ticks, log_range, log_ticks, thin_curve


def test_linear_ticks_are_round():
    assert linear_ticks(0, 100) == [0, 20, 40, 60, 80, 100]
    assert linear_ticks(0.13, 0.98) == pytest.approx([0.2, 0.4, 0.6, 0.8])


def test_log_ticks_thin_out_with_range():
    assert log_ticks(0.9, 30) == pytest.approx([1, 2, 5, 10, 20])
    assert log_ticks(0.9, 1200) == pytest.approx([1, 10, 100, 1000])
    assert log_ticks(6, 9) == pytest.approx([6, 7, 8, 9])


@settings(max_examples=200, deadline=None)
@given(low=st.floats(1e-6, 1e6), factor=st.floats(1.05, 1e9))
def test_ticks_lie_inside_the_axis_and_are_never_too_many(low, factor):
    high = low * factor
    for ticks in (linear_ticks(low, high), log_ticks(low, high)):
        assert 1 <= len(ticks) <= 7
        assert all(low * (1 - 1e-6) <= t <= high * (1 + 1e-6) for t in ticks)
        assert ticks == sorted(set(ticks))


def test_scales_map_ends_to_ends_and_hold_outside():
    linear, log = Scale(0, 10, 100, 0), Scale(1, 100, 0, 50, log=True)
    assert (linear(0), linear(10), linear(5), linear(99)) == (100, 0, 50, 0)
    assert (log(1), log(10), log(100), log(0)) == (0, 25, 50, 0)
    assert Scale(3, 3, 0, 10)(3) == 5


def test_ranges_cover_the_values_and_never_collapse():
    assert linear_range([math.nan]) == (0.0, pytest.approx(1.06))
    low, high = log_range([5.0, 5.0, 0.0, math.inf])
    assert low < 5 < high and high / low >= 2


def test_a_path_breaks_at_missing_values():
    plot = Plot(Scale(0, 3, 0, 30), Scale(0, 1, 10, 0))
    assert plot.path([0, 1, 2, 3], [0, 1, math.nan, 1]) == "M0 10L10 0M30 0"
    assert plot.band([0, 1], [0, 0], [1, math.inf]) == ""


def test_labels_that_would_touch_are_left_out_but_their_ticks_stay():
    plot = Plot(Scale(0, 1, 0, 100), Scale(0, 1, 10, 0))
    parts = "".join(plot.axes([0.0, 0.05, 1.0], [], lambda v: f"{v:.2f}", str))
    assert parts.count("<text") == 2 and "0.05" not in parts and parts.count('class="axis"') == 4


def test_thinning_keeps_the_ends_and_loses_at_most_the_resolution():
    xs = np.linspace(0, 1, 1001)
    kept_x, kept_y = thin_curve(xs, xs**2, 0.01)
    assert len(kept_x) < 110 and (kept_x[0], kept_x[-1]) == (0, 1)
    assert np.abs(np.interp(xs, kept_x, kept_y) - xs**2).max() < 0.01


def test_resampling_keeps_the_mean_of_an_even_series():
    t_s = np.arange(1000.0)
    values = np.stack([np.sin(t_s / 50), t_s], 1)
    new_t, new = resample(t_s, values, 100)
    assert new.shape == (100, 2) and new_t[0] == 0
    np.testing.assert_allclose(new.mean(0), values.mean(0), atol=0.6)
    assert np.all(np.diff(new[:, 1]) > 0)


def test_resampling_repeats_the_last_sample_through_a_gap():
    t_s = np.concatenate([np.linspace(0, 1, 50), np.linspace(9, 10, 50)])
    values = np.concatenate([np.full((50, 1), 3.0), np.full((50, 1), 7.0)])
    new_t, new = resample(t_s, values, 20)
    assert new[(new_t > 1.5) & (new_t < 8.5), 0].tolist() == [3.0] * np.sum((new_t > 1.5) & (new_t < 8.5))
