"""Running averages, and the controller of the entropy bonus (sheet 2f)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.running import Running, clip_by_norm, spread, steer_entropy


def test_the_controller_holds_each_target_at_the_temperature_of_the_softmax_law():
    """8 arms paying 0 to 1 in equal steps, raw advantages: h = .2, .5, .8 at a = .067, .142, .309."""
    reward = jnp.linspace(0.0, 1.0, 8)

    def step(state, _):
        logits, log_a, target = state
        p = jax.nn.softmax(logits)
        log_p = jax.nn.log_softmax(logits)
        entropy = -jnp.sum(p * log_p)
        # Gradient of expected reward plus a times the entropy, times a learning rate.
        gain = reward - jnp.exp(log_a["arm"]) * log_p
        logits = logits + 1.0 * p * (gain - jnp.sum(p * gain))
        log_a = steer_entropy(log_a, {"arm": entropy / jnp.log(8.0)}, target, 0.02)
        return (logits, log_a, target), (entropy / jnp.log(8.0), jnp.exp(log_a["arm"]))

    def hold(target):
        start = (jnp.zeros(8), {"arm": jnp.log(jnp.float32(1.0))}, target)
        return jax.lax.scan(step, start, None, 6000)[1]

    entropy, temperature = jax.jit(jax.vmap(hold))(jnp.asarray([0.2, 0.5, 0.8]))
    np.testing.assert_allclose(entropy[:, -1000:].mean(1), [0.2, 0.5, 0.8], atol=0.01)
    np.testing.assert_allclose(temperature[:, -1000:].mean(1), [0.067, 0.142, 0.309], atol=0.003)


def test_the_controller_stays_within_its_bounds_and_where_nothing_was_chosen():
    log_a = {"a": jnp.float32(0.0), "b": jnp.float32(0.0), "c": jnp.float32(0.3)}
    steered = steer_entropy(log_a, {"a": jnp.float32(0.0), "b": jnp.float32(1.0), "c": jnp.float32(np.nan)}, 0.5, 100.0)
    assert float(jnp.exp(steered["a"])) == pytest.approx(10.0)
    assert float(jnp.exp(steered["b"])) == pytest.approx(1e-5)
    assert float(steered["c"]) == pytest.approx(0.3)


def test_running_averages_are_exact_from_the_first_value():
    running = Running.zeros()
    assert float(running.mean(7.0)) == 7.0
    running = running.push(3.0, 0.9)
    assert float(running.mean(7.0)) == pytest.approx(3.0)
    for _ in range(50):
        running = running.push(3.0, 0.9)
    assert float(running.mean(7.0)) == pytest.approx(3.0)
    assert float(running.push(13.0, 0.9).mean(0.0)) == pytest.approx(4.0, abs=0.01)
    assert float(spread(jnp.float32(3.0), jnp.float32(13.0))) == 2.0


def test_gradients_are_scaled_to_the_norm_and_small_ones_left_alone():
    grads = {"a": jnp.asarray([3.0]), "b": jnp.asarray([4.0])}
    clipped, norm = clip_by_norm(grads, 0.5)
    assert float(norm) == 5.0
    np.testing.assert_allclose([clipped["a"][0], clipped["b"][0]], [0.3, 0.4], rtol=1e-6)
    assert float(clip_by_norm(grads, 6.0)[0]["a"][0]) == 3.0
