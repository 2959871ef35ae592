"""A semantic response cache as the user gives it, the machine's parameters, and when such a cache pays.

Categories are the classes of the workload, in their order. What requests ask follows a Zipf law over the topics of
their category (a share of them asks what nobody else asks); how similar a request is to the answer of its topic a Beta
law; such an answer is wrong with a probability that grows as the similarity falls. (Category-aware thresholds, times to
live and quotas, and their adaptation to load: systems sheet, section 15; the laws and their numbers are placeholders.)
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from jaxsched.errors import UserError
from jaxsched.sim.semantic import FIRST_UNIQUE, LEVELS, ONE, PLACES, TICK_BITS, SemanticParams
from jaxsched.speculation.process import beta_levels

#: Longest time to live: three days (ticks below 2^28).
MOST_TTL_S = 259_200.0


@dataclasses.dataclass(frozen=True)
class Category:
    """One category of requests. Probabilities and similarities in [0, 1]."""

    threshold: float  # similarity that a hit needs
    ttl_s: float  # age up to which an answer is given
    quota: int  # answers kept; 0 = never cached
    topics: int = 64  # things that are asked again and again
    zipf: float = 1.0  # exponent of their popularity
    unique: float = 0.3  # share of requests that ask what nobody else asks
    similarity: float = 0.9  # mean similarity of a request to an answer of its topic
    similarity_spread: float = 0.1  # as in speculation/process.py: variance over the largest possible one
    false_slope: float = 0.5  # probability of a wrong answer at similarity 0; it falls linearly to 0 at 1


@dataclasses.dataclass(frozen=True)
class SemanticCacheModel:
    """The cache in front of the cluster."""

    search_us: float  # paid by every request
    categories: tuple[Category, ...]
    answer_us: float = 0.0  # paid by those that are answered besides
    load_low: int = 0  # adaptive mode: requests in the cluster at which it begins, and at which it is full
    load_high: int = 0
    lower_by: float = 0.0  # by how much thresholds are lower then
    stretch: float = 0.0  # by how many times the time to live is longer

    @property
    def entries(self) -> int:
        """Answers of a category that the table has room for."""
        return max(1, *(category.quota for category in self.categories))

    def params(self, num_classes: int, settings: dict[str, float]) -> SemanticParams:
        """What the machine reads; classes beyond the categories are those of the last one.

        `settings`: `semantic_adaptive`, and `semantic_threshold` and `semantic_ttl_s` for all categories (below 0: each
        has its own).

        Raises:
            UserError: a setting is out of range.
        """
        adaptive, threshold, ttl_s = (settings[f"semantic_{name}"] for name in ("adaptive", "threshold", "ttl_s"))
        limits: dict[str, tuple[float, float, float]] = {
            "semantic_adaptive": (adaptive, 0, 1),
            "semantic_threshold": (threshold, -1, 1),
        }
        limits["semantic_ttl_s"] = (ttl_s, -1, MOST_TTL_S)
        for name, (value, low, high) in limits.items():
            if not low <= value <= high:
                raise UserError(
                    f"{name} is {value:g}", where="policy.params", expected=f"a number from {low} to {high:g}"
                )
        if adaptive > 0 and self.load_high <= self.load_low:
            raise UserError(
                f"load_low {self.load_low} and load_high {self.load_high}",
                where="semantic_cache",
                expected="load_low < load_high, for a cache that adapts to load",
            )
        every = [self.categories[min(c, len(self.categories) - 1)] for c in range(num_classes)]

        def column(values: list[float]) -> jnp.ndarray:
            return jnp.asarray(np.rint(np.asarray(values)).astype(np.int32))

        ticks = 1e6 / (1 << TICK_BITS)
        levels = [beta_levels(np.asarray(c.similarity), c.similarity_spread, LEVELS) * ONE for c in every]
        return SemanticParams(
            search_us=jnp.int32(round(self.search_us)),
            answer_us=jnp.int32(round(self.answer_us)),
            threshold=column([(c.threshold if threshold < 0 else threshold) * ONE for c in every]),
            ttl=column([(c.ttl_s if ttl_s < 0 else ttl_s) * ticks for c in every]),
            quota=column([c.quota for c in every]),
            topics=jnp.asarray(np.stack([topic_places(c) for c in every])),
            similarity=jnp.asarray(np.rint(np.stack(levels)).astype(np.int32)),
            false_slope=column([c.false_slope * 256 for c in every]),
            load_low=jnp.int32(self.load_low if adaptive > 0 else 0),
            load_high=jnp.int32(self.load_high if adaptive > 0 else 0),
            lower_by=column([self.lower_by * ONE for _ in every]),
            stretch=jnp.int32(round(self.stretch)),
        )


def topic_places(category: Category) -> np.ndarray:
    """Topic of each of `PLACES` equally likely places, -1 = like no other (int32)."""
    assert category.topics < FIRST_UNIQUE
    weight = 1.0 / np.arange(1, category.topics + 1) ** category.zipf
    share = np.cumsum(weight / weight.sum()) * (1 - category.unique)
    middle = (np.arange(PLACES) + 0.5) / PLACES
    place = np.searchsorted(share, middle)
    return np.where(place < category.topics, place, -1).astype(np.int32)


def break_even_hit_rate(search_s: float, answer_s: float, latency_s: float) -> float:
    """Share of hits above which a cache shortens the mean latency: h > s / (L - f).

    Every request pays the search s, a hit f besides, a miss the engine's latency L: s + h f + (1 - h) L < L. Never
    (infinity) where an answer from the cache takes as long as the engine's.
    """
    return search_s / (latency_s - answer_s) if latency_s > answer_s else float("inf")
