"""Heads: probabilities that sum to one, masks that are exact, prefixes that are really executed (sheet 1, check B)."""

from __future__ import annotations

import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsched.errors import UserError
from jaxsched.networks import HeadSpec, evaluate, greedy, sample
from jaxsched.networks.plackett_luce import executed_picks as picks
from jaxsched.networks.plackett_luce import ranks

executed_picks = jax.jit(picks)

SCORES = np.asarray([0.3, -1.2, 2.0, 0.7], np.float32)
ALL = np.ones(4, bool)


def by_hand(scores, available, order):
    """Log-probabilities and entropies of picks, one after another, in float64."""
    left = [i for i in range(len(scores)) if available[i]]
    log_probs, entropies = [], []
    for item in order:
        weights = np.exp(np.asarray([scores[i] for i in left], np.float64))
        p = weights / weights.sum()
        log_probs.append(np.log(p[left.index(item)]))
        entropies.append(-(p * np.log(p)).sum())
        left.remove(item)
    return log_probs, entropies


def rank_of(order, num_slots):
    return np.asarray([order.index(i) if i in order else -1 for i in range(num_slots)], np.int32)


def test_the_24_orders_of_four_items_have_probabilities_that_sum_to_one():
    orders = np.stack([rank_of(list(order), 4) for order in itertools.permutations(range(4))])
    log_probs = jax.jit(jax.vmap(lambda rank: picks(SCORES, ALL, rank)[0]))(orders)
    assert float(np.exp(np.asarray(log_probs).sum(1)).sum()) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("order", [[2], [1, 0], [3, 2, 4, 0], [4, 3, 2, 0, 5], []])
def test_only_the_executed_prefix_counts_and_each_pick_is_a_choice_among_those_left(order):
    scores = jnp.asarray([0.5, 30.0, -40.0, 1.0, 9.0, -2.0], jnp.float32)
    available = np.asarray([True, True, True, True, True, 5 in order])
    log_prob, is_pick, entropy, log_left = executed_picks(scores, available, rank_of(order, 6))
    expected, entropies = by_hand(scores, available, order)
    k = len(order)
    np.testing.assert_allclose(log_prob[:k], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(entropy[:k], entropies, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.exp(log_left[:k]), int(available.sum()) - np.arange(k), rtol=1e-6)
    assert list(is_pick) == [True] * k + [False] * (6 - k)
    assert not np.any(log_prob[k:]) and not np.any(entropy[k:])
    two = picks(scores, available, rank_of(order, 6), 2)  # the first two alone
    for every, first in zip((log_prob, is_pick, entropy, log_left), two, strict=True):
        np.testing.assert_allclose(first, every[:2], rtol=1e-5, atol=1e-6)


def test_gumbel_noise_on_the_scores_draws_orders_with_their_probabilities():
    head = (HeadSpec("order", "order"),)
    obs = types.SimpleNamespace(masks={"order": jnp.asarray([True, True, False, True])})
    keys = jax.random.split(jax.random.key(0), 20_000)
    draw = jax.jit(jax.vmap(lambda k: ranks(sample(k, head, {"order": SCORES}, obs)["order"], obs.masks["order"])))
    drawn = np.asarray(draw(keys))
    for order in itertools.permutations([0, 1, 3]):
        rank = rank_of(list(order), 4)
        share = float(np.mean(np.all(drawn == np.asarray(rank), axis=1)))
        p = float(np.exp(np.sum(executed_picks(SCORES, obs.masks["order"], rank)[0])))
        assert share == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / 20_000))


@pytest.mark.parametrize("num", [1, 2, 8, 45])
def test_choices_are_drawn_with_the_probabilities_of_their_softmax(num):
    """Half of the options are illegal, those at the end among them; odds differ by e^6."""
    numbers = np.random.default_rng(num)
    logits = jnp.asarray(numbers.normal(scale=1.5, size=num), jnp.float32)
    mask = np.ones(num, bool)
    mask[-(num // 3) :] = num < 3
    mask[: num // 5] = False
    obs = types.SimpleNamespace(masks={"gate": jnp.asarray(mask)})
    head, keys = (HeadSpec("gate", "choice", num),), jax.random.split(jax.random.key(num), 40_000)
    drawn = np.asarray(jax.jit(jax.vmap(lambda k: sample(k, head, {"gate": logits}, obs)["gate"]))(keys))
    odds = np.where(mask, np.exp(np.asarray(logits, np.float64)), 0.0)
    expected = odds / odds.sum()
    share = np.bincount(drawn, minlength=num) / drawn.size
    assert share.shape == (num,) and not share[~mask].any()
    assert np.all(np.abs(share - expected) <= 4.5 * np.sqrt(expected * (1 - expected) / drawn.size) + 1e-12)


def test_masked_choices_have_probability_zero_and_gradient_zero():
    heads = (HeadSpec("order", "order"), HeadSpec("retain", "item", 3), HeadSpec("gate", "choice", 4))
    retain_mask = jnp.asarray([[True, True, False], [True, False, False], [False, True, True], [True, True, True]])
    masks = {
        "order": jnp.asarray([True, False, True, True]),
        "retain": retain_mask,
        "gate": jnp.asarray([False, True, True, False]),
    }
    obs = types.SimpleNamespace(masks=masks)
    key, logits = jax.random.key(1), np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    outputs = {
        "order": SCORES,
        "retain": logits,
        "gate": jnp.asarray([50.0, 0.0, 1.0, 60.0]),
    }
    draws = jax.jit(jax.vmap(lambda key: sample(key, heads, outputs, obs)))(jax.random.split(key, 2000))
    taken = jax.nn.one_hot(draws["retain"], 3, dtype=bool).any(0)
    assert not np.any(taken & ~retain_mask) and np.array_equal(taken, retain_mask)
    assert set(np.unique(draws["gate"])) == {1, 2}
    assert np.all(ranks(draws["order"], masks["order"])[:, 1] == -1)
    assert int(greedy(heads, outputs, obs)["gate"]) == 2

    action = {"order": SCORES, "retain": jnp.asarray([1, 0, 2, 0]), "gate": jnp.int32(2)}
    executed = jnp.asarray([1, -1, 0, -1], jnp.int32)

    def total(outputs):
        tokens = evaluate(heads, outputs, obs, action, executed)
        return sum(jnp.sum(t.log_prob) + jnp.sum(t.entropy) for t in tokens.values())

    slopes = jax.jit(jax.grad(total))(outputs)
    for name, slope in slopes.items():
        assert not np.any(np.asarray(slope)[~np.asarray(masks[name])]), name
        assert np.all(np.isfinite(slope)) and np.any(np.asarray(slope) != 0)
    tokens = jax.jit(lambda x: evaluate(heads, x, obs, action, executed))(outputs)
    assert list(tokens["retain"].mask) == [True, False, True, True]  # one legal bucket is no choice
    assert tokens["gate"].mask.shape == (1,) and float(jnp.exp(tokens["gate"].log_choices[0])) == pytest.approx(2)
    assert list(tokens["order"].mask) == [True, True, False, False]


def test_a_step_in_which_nothing_is_legal_stays_finite():
    heads = (HeadSpec("order", "order"), HeadSpec("retain", "item", 3))
    obs = types.SimpleNamespace(masks={"order": jnp.zeros(4, bool), "retain": jnp.zeros((4, 3), bool)})
    outputs = {"order": SCORES, "retain": jnp.ones((4, 3))}
    action = {"order": SCORES, "retain": jnp.zeros(4, jnp.int32)}

    def total(outputs):
        tokens = evaluate(heads, outputs, obs, action, jnp.full(4, -1, jnp.int32))
        return sum(jnp.sum(t.log_prob + t.entropy) for t in tokens.values())

    value, slopes = jax.jit(jax.value_and_grad(total))(outputs)
    assert float(value) == 0 and all(not np.any(slope) for slope in slopes.values())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("order", "sort"), "unknown kind 'sort'"),
        (("retain", "item"), "num_choices is 0"),
        (("order", "order", 3), "takes no"),
    ],
)
def test_a_head_that_makes_no_sense_is_refused(arguments, said):
    with pytest.raises(UserError, match=said):
        HeadSpec(*arguments)
