"""The semantic response cache in plain Python (docs/semantics.md, 18)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class SemanticConfig:
    """Knobs and laws by class, in the integers of the specification."""

    search_us: int
    answer_us: int
    threshold: tuple[int, ...]
    ttl: tuple[int, ...]
    quota: tuple[int, ...]
    topics: tuple[tuple[int, ...], ...]
    similarity: tuple[tuple[int, ...], ...]
    false_slope: tuple[int, ...]
    load_low: int = 0
    load_high: int = 0
    lower_by: tuple[int, ...] = (0, 0)
    stretch: int = 0


@dataclass
class SemanticCache:
    """Answers kept, by class: topic -> (tick of the answer), least recently used first."""

    config: SemanticConfig
    bits: Callable[[int, int], int]
    kept: dict[int, dict[int, int]] = field(default_factory=dict)
    noted: Counter[str] = field(default_factory=Counter)

    def _topic(self, klass: int, row: int) -> int:
        topic = self.config.topics[klass][self.bits(row, 2**17) % 1024]
        return topic if topic >= 0 else 2**16 + row

    def answers(self, klass: int, row: int, now_us: int, load: int) -> bool:
        """Whether a request is answered here; counts what was found."""
        config, word = self.config, self.bits(row, 2**17)
        pressure = 0
        if config.load_high > config.load_low:
            span = config.load_high - config.load_low
            pressure = min(max(load - config.load_low, 0), span) * 256 // span
        threshold = config.threshold[klass] - (config.lower_by[klass] * pressure >> 8)
        ttl = config.ttl[klass]
        ttl += ((ttl >> 8) * pressure >> 8) * config.stretch
        similarity = config.similarity[klass][(word >> 10) % 64]
        kept, topic = self.kept.setdefault(klass, {}), self._topic(klass, row)
        self.noted["lookups"] += 1
        if topic not in kept:
            return False
        if (now_us >> 10) - kept[topic] > ttl:
            self.noted["stale"] += 1
            return False
        if similarity < threshold:
            self.noted["unlike"] += 1
            return False
        self.noted["hits"] += 1
        self.noted["false_hits"] += (word >> 16) < (config.false_slope[klass] * (2**15 - similarity) >> 8)
        kept[topic] = kept.pop(topic)  # the last used
        return True

    def keep(self, klass: int, row: int, now_us: int) -> None:
        """The engine has answered a request."""
        kept, quota = self.kept.setdefault(klass, {}), self.config.quota[klass]
        if quota == 0:
            return
        topic = self._topic(klass, row)
        kept.pop(topic, None)
        if len(kept) >= quota:
            self.noted["evicted"] += 1
            del kept[next(iter(kept))]
        kept[topic] = now_us >> 10
