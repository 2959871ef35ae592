"""Schedules: their values, and that they end with the last update (sheet 10)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.ppo import PpoStatic
from train.schedules import NAMES, factor, schedule


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rex", [1.0, 0.857, 0.667, 0.4, 0.0]),
        ("linear", [1.0, 0.75, 0.5, 0.25, 0.0]),
        ("cosine", [1.0, 0.854, 0.5, 0.146, 0.0]),
        ("uba", [1.0, 0.921, 0.667, 0.255, 0.0]),
        ("constant", [1.0] * 5),
    ],
)
def test_values_at_quarters(name, expected):
    z = jnp.asarray([0.0, 0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(factor(name, z), expected, atol=5e-4)


def test_uba_with_phi_two_is_the_cosine():
    z = jnp.linspace(0, 1, 11)
    np.testing.assert_allclose(factor("uba", z, 2.0), factor("cosine", z), atol=1e-6)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "constant"])
def test_the_last_update_is_made_at_nearly_zero_and_the_last_iteration_counted_alone_is_not(name):
    static = PpoStatic(num_iterations=50, num_epochs=3, num_minibatches=4)
    assert static.num_updates == 600
    rate = schedule(name, 1.0, static.num_updates)
    assert float(rate(static.num_updates)) == pytest.approx(0.0, abs=1e-6)
    assert float(rate(static.num_updates - 1)) < 0.01
    assert float(rate(static.num_iterations - 1)) > 0.85  # the usual error: counting iterations


def test_the_rate_rises_over_the_warm_up_and_the_peak_may_be_traced():
    rates = jax.vmap(lambda peak: jax.vmap(schedule("linear", peak, 100, warmup=0.1))(jnp.arange(100)))(
        jnp.asarray([1.0, 2.0])
    )
    np.testing.assert_allclose(rates[0, :10], np.arange(1, 11) / 10, rtol=1e-6)
    np.testing.assert_allclose(rates[1], 2 * rates[0], rtol=1e-6)
    assert np.all(np.diff(rates[0, 10:]) < 0)
    assert float(schedule("linear", 1.0, 100, warmup=0.0)(0)) == 1.0


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="no schedule 'step'"):
        schedule("step", 1.0, 10)
