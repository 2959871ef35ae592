"""A semantic response cache in front: any scheduler, with `+semantic_cache`.

Rule: every request is first searched for among the kept answers of its category (its class). It is answered at once if
one of its topic is there, not older than the category's time to live, and at least as similar as the category's
threshold; else it goes on to the router. The engine's answers are kept, the least recently used of a category leaving
beyond its quota. With `semantic_adaptive` thresholds fall and times to live grow with the requests in the cluster.
Faithful: category-aware thresholds, times to live, quotas and adaptation to load, search cost on hit and miss
("Category-aware semantic caching", 2025). Simplified: topics and similarities are laws of the scenario
(`semantic_cache`), not embeddings; an answer is kept when the engine has finished it; wrong answers count as finished
but keep no promise of their class.
"""

from __future__ import annotations

import dataclasses

from jaxsched.policies.base import Scheduler

SEMANTIC_CACHE = "semantic_cache"
#: Knobs: adapt to load; one threshold and one time to live for all categories (below 0: each has its own).
SEMANTIC_PARAMETERS: dict[str, float] = {"semantic_adaptive": 0, "semantic_threshold": -1.0, "semantic_ttl_s": -1.0}


def with_semantic_cache(scheduler: Scheduler) -> Scheduler:
    """`scheduler` behind such a cache."""
    return dataclasses.replace(scheduler, semantic_params=SEMANTIC_PARAMETERS)
