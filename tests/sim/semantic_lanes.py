"""Semantic caches of random lanes, as the reference and as the machine take them."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxsched.sim.semantic import SemanticParams
from tests.oracle.semantic import SemanticConfig

#: Most answers of a class that a lane keeps.
ENTRIES = 8


def random_semantic(draw: random.Random, lattice_us: int) -> SemanticConfig:
    """Any laws of two classes; `lattice_us` > 0: times are multiples of it."""
    span = draw.choice([0, 0, 1, 6])

    def topics() -> tuple[int, ...]:
        number, unique = draw.choice([1, 3, 12]), draw.choice([0, 0, 300, 1024])
        return tuple(-1 if place < unique else place % number for place in range(1024))

    return SemanticConfig(
        search_us=lattice_us * draw.randrange(3) if lattice_us else draw.choice([0, 37, 30_000]),
        answer_us=lattice_us * draw.randrange(2) if lattice_us else draw.choice([0, 11]),
        threshold=tuple(draw.choice([0, 0, 16_000, 30_000]) for _ in range(2)),
        ttl=tuple(draw.choice([0, 40, 400, 2**27, 2**27]) for _ in range(2)),
        quota=tuple(draw.choice([0, 1, 2, 8, 8]) for _ in range(2)),
        topics=(topics(), topics()),
        similarity=tuple(tuple(sorted(draw.randrange(2**15 + 1) for _ in range(64))) for _ in range(2)),
        false_slope=tuple(draw.choice([0, 128, 256]) for _ in range(2)),
        load_low=draw.choice([0, 2]),
        load_high=span + 2 if span else 0,
        lower_by=tuple(draw.choice([0, 8_000, 32_768]) for _ in range(2)),
        stretch=draw.choice([0, 1, 4]),
    )


def to_machine(lanes: Sequence[SemanticConfig]) -> SemanticParams:
    """Parameters of lanes, stacked."""
    columns: dict[str, Any] = {
        field.name: np.asarray([getattr(lane, field.name) for lane in lanes], np.int32)
        for field in dataclasses.fields(SemanticConfig)
    }
    return SemanticParams(**columns)
