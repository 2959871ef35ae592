"""Semi-Markov returns: discounts are rates (sheet 9b)."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from train import returns

advantages, cost_to_go, present_value = (
    jax.jit(f) for f in (returns.advantages, returns.cost_to_go, returns.present_value)
)
NEVER = np.zeros
BETA = 0.1


@pytest.mark.parametrize("events_per_s", [1.0, 50.0])
def test_a_reward_rate_of_one_is_worth_one_over_beta_whatever_the_events(events_per_s):
    num = int(140 * events_per_s)  # 140 s: exp(-14) is left out
    dt = np.random.default_rng(0).exponential(1.0 / events_per_s, (num, 1)).astype(np.float32)
    value = cost_to_go(dt, dt, NEVER((num, 1), bool), BETA)
    assert float(value[0, 0]) == pytest.approx(1.0 / BETA, rel=1e-4)


def test_the_short_job_is_chosen_and_a_discount_per_decision_would_choose_the_long_one():
    """One second for 1, or ten seconds for 8, paid at the end, again and again; beta = 0.01."""

    def worth(duration, pay, beta):
        """A payment at an instant is a step of no length."""
        pairs = int(1500 / duration)
        dt = np.tile(np.float32([duration, 0.0]), pairs)[:, None]
        reward = np.tile(np.float32([0.0, pay]), pairs)[:, None]
        return float(cost_to_go(reward, dt, NEVER(dt.shape, bool), beta)[0, 0])

    assert worth(1.0, 1.0, 0.01) == pytest.approx(99.5, abs=0.05)
    assert worth(10.0, 8.0, 0.01) == pytest.approx(76.1, abs=0.05)
    gamma = 0.99
    assert gamma * 1.0 / (1 - gamma) < gamma * 8.0 / (1 - gamma)


def test_splitting_an_interval_in_which_nothing_is_decided_changes_nothing():
    rng = np.random.default_rng(1)
    dt = rng.exponential(1.0, (30, 1)).astype(np.float32)
    rate, value = rng.normal(size=(30, 1)).astype(np.float32), rng.normal(size=(31, 1, 1)).astype(np.float32)
    done = NEVER((30, 1), bool)
    done[17] = True
    following = np.where(done[..., None], 0.0, value[1:])

    def halves(x, at, first, second):
        return np.concatenate([x[:at], first, second, x[at + 1 :]])

    at = 9
    split_dt = halves(dt, at, 0.3 * dt[at : at + 1], 0.7 * dt[at : at + 1])
    split_rate = halves(rate, at, rate[at : at + 1], rate[at : at + 1])
    split_done = halves(done, at, done[at : at + 1], done[at : at + 1])
    np.testing.assert_allclose(
        cost_to_go(split_rate * split_dt, split_dt, split_done, BETA)[0],
        cost_to_go(rate * dt, dt, done, BETA)[0],
        rtol=1e-5,
    )
    # The value in the middle is what the rest of the interval is worth plus the discounted value at its end.
    rest = 0.7 * dt[at]
    middle = np.asarray(present_value(rate[at] * rest, rest, BETA)) + np.exp(-BETA * rest) * following[at, :, 0]
    split_following = halves(following, at, middle[None, :, None], following[at : at + 1])
    split_value = halves(value[:-1], at, value[at : at + 1], middle[None, :, None])
    split = advantages(
        (split_rate * split_dt)[..., None], split_dt, split_value, split_following, split_done, BETA, 0.05
    )
    whole = advantages((rate * dt)[..., None], dt, value[:-1], following, done, BETA, 0.05)
    np.testing.assert_allclose(split[: at + 1], whole[: at + 1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(split[at + 2 :], whole[at + 1 :], rtol=1e-5, atol=1e-5)


def test_advantages_are_the_sum_of_discounted_errors_and_stop_at_the_end_of_an_episode():
    dt = np.asarray([1.0, 2.0, 0.5, 1.5])[:, None]
    reward = np.asarray([1.0, -1.0, 2.0, 0.5])[:, None, None]
    value = np.asarray([0.3, 0.1, -0.2, 0.4])[:, None, None]
    following = np.asarray([0.1, 5.0, 0.4, 0.7])[:, None, None]  # 5: the last observation of the truncated episode
    done = np.asarray([False, True, False, False])[:, None]
    beta, kappa = 0.2, 0.3
    delta = [
        float(r * (1 - np.exp(-beta * t)) / (beta * t) + np.exp(-beta * t) * f - v)
        for r, t, f, v in zip(reward.ravel(), dt.ravel(), following.ravel(), value.ravel(), strict=True)
    ]
    w = [float(np.exp(-(beta + kappa) * t)) for t in dt.ravel()]
    expected = [delta[0] + w[0] * delta[1], delta[1], delta[2] + w[2] * delta[3], delta[3]]
    np.testing.assert_allclose(advantages(reward, dt, value, following, done, beta, kappa).ravel(), expected, rtol=1e-5)


def test_without_a_discount_a_reward_is_worth_itself():
    np.testing.assert_allclose(present_value(np.float32(3.0), np.float32([0.0, 1e-6, 5.0]), 0.0), 3.0)
    np.testing.assert_allclose(
        present_value(np.float32([1.0]), np.float32([0.99e-2]), 0.01), 1 - 0.99e-4 / 2, rtol=1e-6
    )
