"""How often a draft model is right: tables of probabilities by level of the request and of the token.

A request's mean and, around it, the probability of each of its tokens follow Beta laws. The spread s in [0, 1) of a law
with mean m is its variance over m (1 - m), the largest possible: s = 0 is one value, s -> 1 only 0 and 1. In terms of
Beta(a, b): a + b = 1 / s - 1. The machine draws equally likely levels of both laws by the hash of the request and of
the position of the token (sim/speculate.py), so the tables hold the quantiles at the middles of the levels, shifted so
that means are exact to a table step. (Heterogeneous acceptance: systems sheet, section 12; laws and defaults are ours.)
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from scipy.special import betaincinv

from jaxsched.sim.speculate import COST_BITS, HEAD_BITS, ONE, REQUEST_LEVELS, TOKEN_LEVELS, SpecParams


def beta_levels(mean: np.ndarray, spread: float, levels: int) -> np.ndarray:
    """Quantiles ``[..., levels]`` of Beta laws with these means in [0, 1] and one spread."""
    mean = np.asarray(mean, np.float64)[..., None]
    if spread == 0:
        return np.broadcast_to(mean, (*mean.shape[:-1], levels)).copy()
    size = 1 / spread - 1
    inside = np.clip(mean, 1e-6, 1 - 1e-6)
    middle = (np.arange(levels) + 0.5) / levels
    found = betaincinv(inside * size, (1 - inside) * size, middle)
    # The mean of the quantiles is not quite that of the law: put it right in the scale of odds.
    for _ in range(60):
        error = mean - found.mean(axis=-1, keepdims=True)
        found = np.clip(found + error * 4 * found * (1 - found), 0, 1)
    return np.where((mean <= 0) | (mean >= 1), mean, found)


@dataclasses.dataclass(frozen=True)
class DraftModel:
    """Who drafts tokens for the target model. Probabilities in [0, 1], times in microseconds."""

    acceptance: float  # mean probability that a drafted token is right, given all before it
    draft_pass_us: float  # one pass of the draft model: a token more for all who draft
    draft_token_us: float = 0.0  # ... and each token of it
    request_spread: float = 0.05
    token_spread: float = 0.4
    head_accuracy: float = 0.8

    def chances(self) -> np.ndarray:
        """Probability that a token is right ``[request levels, token levels]``."""
        means = beta_levels(np.asarray(self.acceptance), self.request_spread, REQUEST_LEVELS)
        return beta_levels(means, self.token_spread, TOKEN_LEVELS)

    def params(self) -> SpecParams:
        """What the machine reads."""
        chances = np.rint(self.chances() * ONE).astype(np.int32)
        return SpecParams(
            accept=jnp.asarray(chances),
            mean=jnp.asarray(np.rint(chances.mean(axis=1)).astype(np.int32)),
            head=jnp.int32(round(self.head_accuracy * (1 << HEAD_BITS))),
            draft_pass_us=jnp.int32(round(self.draft_pass_us)),
            draft_token=jnp.int32(round(self.draft_token_us * (1 << COST_BITS))),
        )
