"""OpenES finds what is known: a bowl's bottom, and the c-mu rule among linear indices (sheet 4 of the methods)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsched.envs.toys import TwoClassQueue
from jaxsched.errors import UserError
from jaxsched.xla import quick_compiler_options
from train.es import EsConfig, ask, centred_ranks, init, minimise, tell

NUM_FEATURES = 12


def test_centred_ranks_are_symmetric_and_share_ties() -> None:
    np.testing.assert_allclose(centred_ranks(jnp.asarray([3.0, 1.0, 2.0, 7.0, 5.0])), [0.0, -0.5, -0.25, 0.5, 0.25])
    np.testing.assert_allclose(centred_ranks(jnp.asarray([2.0, 2.0, 1.0])), [0.25, 0.25, -0.5])


def test_members_are_antithetic_and_equal_costs_move_nothing() -> None:
    config = EsConfig(population=6, generations=3)
    state = init(config, jnp.arange(4.0), jax.random.key(1))
    members, noise = ask(config, state)
    np.testing.assert_allclose(members[:3] + members[3:], 2.0 * np.tile(np.arange(4.0), (3, 1)), atol=1e-5)
    np.testing.assert_array_equal(tell(config, state, noise, jnp.ones(6)).mean, state.mean)
    np.testing.assert_array_equal(ask(config, state)[0], members)  # the same key, the same members
    assert not np.allclose(ask(config, tell(config, state, noise, jnp.arange(6.0)))[1], noise)


def test_sphere_of_20_dimensions_below_a_millionth() -> None:
    config = EsConfig(population=64, generations=600, sigma=0.02, learning_rate=0.2, final_rate=1e-4)
    found = minimise(
        config, lambda members, _: np.sum(members**2, 1), init(config, np.full(20, 1.0), jax.random.key(0))
    )
    assert float(np.sum(np.asarray(found.mean) ** 2)) < 1e-6


def test_what_is_kept_is_an_average_that_leans_to_the_last_means() -> None:
    """Decay 0.8: each generation's mean weighs a fifth, older ones less; decay 0 keeps the mean itself."""
    for decay in (0.8, 0.0):
        config = EsConfig(population=4, generations=5, average=decay)
        state, average = init(config, jnp.ones(3), jax.random.key(0)), np.ones(3)
        for _ in range(5):
            members, noise = ask(config, state)
            state = tell(config, state, noise, jnp.sum(members**2, axis=1))
            average = decay * average + (1 - decay) * np.asarray(state.mean)
            np.testing.assert_allclose(state.average, average, rtol=1e-5)
    with pytest.raises(UserError, match=r"average 1\.0; expected a number in"):
        EsConfig(average=1.0)


def test_weights_without_a_signal_decay_and_those_with_one_stay() -> None:
    """Of 16 weights the cost knows the first, which wants to be 2; steps of fixed length 0.2, 120 generations."""
    found = []
    for decay in (0.0, 0.15):
        config = EsConfig(population=16, generations=120, learning_rate=0.2, final_rate=0.999, decay=decay)
        cost = lambda members, generation: (members[:, 0] - 2) ** 2 + np.sin(1e4 * members[:, 1])  # and noise
        found.append(np.asarray(minimise(config, cost, init(config, np.zeros(16), jax.random.key(1))).average))
    free, decayed = (np.abs(values[1:]).mean() for values in found)
    assert decayed < 0.5 * free and found[1][0] > 0.5
    state = init(EsConfig(decay=0.25), np.full(4, 2.0), jax.random.key(0))
    np.testing.assert_allclose(tell(EsConfig(decay=0.25), state, jnp.zeros((16, 4)), jnp.zeros(16)).mean, 1.5)


def test_costs_that_are_no_numbers_stop_the_search() -> None:
    with pytest.raises(UserError, match="2 of 4 costs are not numbers"):
        config, costs = EsConfig(population=4), np.array([1.0, np.nan, np.inf, 2.0])
        minimise(config, lambda members, _: costs, init(config, np.zeros(2), jax.random.key(0)))
    with pytest.raises(UserError, match="an even number"):
        EsConfig(population=5)


@functools.cache
def _queue():
    """(weights [w], holding costs, key) -> cost rate of an episode under the linear index, compiled for many lanes."""
    env = TwoClassQueue()

    def episode(weights, holding, key):
        params = env.default_params.replace(holding_cost=holding)
        obs, state = env.reset_env(key, params)

        def step(carry, _):
            obs, state = carry
            jobs = obs.items[:, 2:3]
            features = jnp.concatenate([obs.items, obs.items[:, :2] * jobs, jobs * obs.globals, obs.items[:, 3:4] ** 2,
                                        obs.items[:, 4:5] ** 2, jnp.ones((2, 1))], axis=1)  # fmt: skip
            assert features.shape[1] == NUM_FEATURES
            obs, state, reward, _, _, info = env.step_env(key, state, {"order": features @ weights}, params)
            return (obs, state), (reward, info["dt_s"])

        _, (rewards, times) = jax.lax.scan(step, (obs, state), None, length=1500)
        return -jnp.sum(rewards) / jnp.sum(times)

    over_seeds = jax.vmap(episode, in_axes=(None, None, 0))
    run = jax.jit(jax.vmap(over_seeds, in_axes=(0, None, None)), compiler_options=quick_compiler_options())
    return lambda weights, holding, seeds: np.asarray(
        run(jnp.asarray(weights, jnp.float32), jnp.asarray(holding, jnp.float32), jax.vmap(jax.random.key)(seeds))
    )


@pytest.mark.parametrize(("holding", "first"), [((1.0, 4.0), 1), ((1.0, 2.0), 0)])
def test_es_on_the_index_finds_the_c_mu_rule(holding, first) -> None:
    """Which class goes first flips with the holding cost; the learned cost is within 1.5 % of the better order's."""
    seeds_of = lambda generation: jnp.arange(16) + 1000 + 16 * generation
    config = EsConfig(population=16, generations=25, sigma=0.3, learning_rate=0.1)
    start = np.zeros(NUM_FEATURES)
    start[1 - first] = 0.5  # from the worse order
    cost = lambda members, generation: _queue()(members, holding, seeds_of(generation)).mean(1)
    learned = np.asarray(minimise(config, cost, init(config, start, jax.random.key(3))).mean)
    orders = np.zeros((2, NUM_FEATURES))
    orders[0, 0] = orders[1, 1] = 1.0
    policies = np.concatenate([orders, learned[None], np.zeros((13, NUM_FEATURES))])  # 16: the program compiled above
    costs = _queue()(policies, holding, jnp.arange(16))[:3].mean(1)
    assert costs[first] < 0.97 * costs[1 - first]
    assert costs[2] <= 1.015 * costs[first]


def test_common_seeds_raise_the_rank_correlation_of_repeated_evaluations() -> None:
    """16 members on 4 workloads each, twice: the same 4 for all, or each member its own."""
    members = 0.3 * np.asarray(jax.random.normal(jax.random.key(5), (16, NUM_FEATURES)))
    costs = np.concatenate([_queue()(members, (1.0, 4.0), jnp.arange(16) + 16 * i) for i in range(8)], axis=1)
    blocks = costs.reshape(16, 32, 4).mean(2)  # [members, blocks of 4 workloads]

    def rank_correlation(first, second) -> float:
        return float(np.corrcoef(*(np.argsort(np.argsort(x)) for x in (first, second)))[0, 1])

    shared = [rank_correlation(blocks[:, i], blocks[:, 16 + i]) for i in range(16)]
    each = np.arange(16)
    unshared = [rank_correlation(blocks[each, (each + i) % 16], blocks[each, 16 + (each + i) % 16]) for i in range(16)]
    assert np.mean(shared) > 0.2 + np.mean(unshared)
