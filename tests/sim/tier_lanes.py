"""Memory tiers of random lanes (tests/sim/clusters.py)."""

from __future__ import annotations

import dataclasses
import random

import numpy as np

from jaxsched.sim.tiers import LinkParams, TierParams
from tests.oracle.tiers import LinkConfig, TierConfig


def random_tiers(pool_blocks: int, remote: bool, draw: random.Random, lattice_us: int) -> TierConfig:
    """Links from much faster to much slower than recomputation; hosts from nothing to more than all contexts."""

    def link() -> LinkConfig:
        grid = max(lattice_us, 1)
        block_us, launch_us = (draw.choice([0, 20, 700, 9_000]) // grid * grid for _ in range(2))
        fraction = 0 if lattice_us else draw.randrange(1024)
        return LinkConfig(block_us, fraction, launch_us, draw.choice([1, 4, 64]))

    overlap = draw.random() < 0.6
    return TierConfig(
        host_blocks=draw.choice([0, pool_blocks // 8, pool_blocks // 3, pool_blocks, 4 * pool_blocks]),
        remote_blocks=draw.choice([0, 0, pool_blocks // 2, 8 * pool_blocks]) if remote else 0,
        host_out=link(),
        host_in=link(),
        remote_out=link(),
        remote_in=link(),
        overlap=overlap,
        keep_copy=draw.random() < 0.7,
        on_pause=draw.random() < 0.8,
        on_preempt=draw.random() < 0.7,
    )


def tier_params(tiers: TierConfig) -> TierParams:
    """As the machine takes them (NumPy)."""

    def link(config: LinkConfig | None) -> LinkParams:
        assert config is not None
        return LinkParams(**{name: np.int32(value) for name, value in dataclasses.asdict(config).items()})

    links = ("host_out", "host_in", "remote_out", "remote_in")
    numbers = ("host_blocks", "remote_blocks", "overlap", "keep_copy", "on_pause", "on_preempt")
    return TierParams(
        **{name: link(getattr(tiers, name)) for name in links},
        **{name: np.int32(getattr(tiers, name)) for name in numbers},
    )
