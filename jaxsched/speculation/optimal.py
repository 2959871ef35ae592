"""When to stop drafting: the small Markov decision process of SpecDec++, solved by value iteration.

A round drafts tokens one by one, `draft_us` each, and ends with a verification of `verify_us` that yields the right
tokens and one more. After each draft its acceptance probability is seen: one of `levels`, equally likely. State: the
probability p that all tokens so far are right. Another draft costs `draft_us` and adds a token with probability p a;
with a token worth `price_us` the value of going on in p is

    W(p) = max(0, -draft_us + mean over a of (price_us p a + W(p a)))

and the least time per token is the price at which a round is worth nothing: price + W(1) = verify_us (renewal reward).
Nothing here assumes a threshold: that going on is optimal exactly above some p* (stopping once the probability of a
rejection exceeds 1 - p*) is what Huang, Guo and Wang prove (SpecDec++, 2024, theorem 3.1) and what the values show.
"""

from __future__ import annotations

import dataclasses

import numpy as np

#: Points of the grid in p. W is convex, so interpolating is never below it.
GRID = 401


@dataclasses.dataclass(frozen=True)
class Optimum:
    """The optimal way to draft."""

    us_per_token: float
    chance: np.ndarray  # grid of p, increasing from 0 to 1
    goes_on: np.ndarray  # whether another token is drafted there

    @property
    def reject_threshold(self) -> float:
        """Probability of a rejection up to which drafting goes on (1 - p*); 0 if it never begins."""
        return float(1 - self.chance[self.goes_on].min()) if self.goes_on.any() else 0.0


def going_on(levels: np.ndarray, draft_us: float, price_us: float, tol_us: float = 1e-6) -> np.ndarray:
    """Value of being allowed another draft, by p on the grid ``[GRID]``, where a token is worth `price_us`."""
    chance = np.linspace(0, 1, GRID)
    after = chance[:, None] * np.asarray(levels, np.float64)[None, :]
    value = np.zeros(GRID)
    while True:
        new = np.maximum(0.0, -draft_us + (price_us * after + np.interp(after, chance, value)).mean(axis=1))
        if np.abs(new - value).max() < tol_us:
            return new
        value = new


def optimal_drafting(levels: np.ndarray, draft_us: float, verify_us: float) -> Optimum:
    """The rule with the least time per token.

    Args:
        levels: acceptance probabilities of a token, equally likely, all below 1.
        draft_us, verify_us: cost of a draft (above 0) and of a verification.
    """
    low, high = 0.0, float(verify_us)  # without drafts a token costs one verification
    for _ in range(40):
        price = (low + high) / 2
        worth = price + going_on(levels, draft_us, price)[-1] - verify_us
        low, high = (price, high) if worth < 0 else (low, price)
    chance = np.linspace(0, 1, GRID)
    return Optimum(high, chance, going_on(levels, draft_us, high) > 0)


def fixed_us_per_token(mean: float, drafts: int, draft_us: float, verify_us: float) -> float:
    """Time per token where each round drafts the same number, of acceptance `mean` each."""
    return (drafts * draft_us + verify_us) / sum(mean**i for i in range(drafts + 1))


def threshold_us_per_token(levels: np.ndarray, threshold: float, draft_us: float, verify_us: float) -> float:
    """Time per token where drafting ends after the first token with which a rejection is likelier than `threshold`."""
    chance = np.linspace(0, 1, GRID)
    after = chance[:, None] * np.asarray(levels, np.float64)[None, :]
    goes_on = chance >= 1 - threshold - 1e-12
    drafts, tokens = np.zeros(GRID), np.zeros(GRID)
    for _ in range(10_000):
        more = np.where(goes_on, 1 + np.interp(after, chance, drafts).mean(axis=1), 0)
        tokens = np.where(goes_on, (after + np.interp(after, chance, tokens)).mean(axis=1), 0)
        if np.abs(more - drafts).max() < 1e-9:
            break
        drafts = more
    return float((drafts[-1] * draft_us + verify_us) / (1 + tokens[-1]))
