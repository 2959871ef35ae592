"""Memory tiers of a cluster as the user gives them (bytes, GB/s), and the machine's parameters from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp

from jaxsched.errors import UserError
from jaxsched.sim.tiers import FRACTION, LinkParams, TierParams

#: Most blocks a tier may have, longest time of a block and of a launch: products stay in int32.
MOST_BLOCKS, MOST_BLOCK_US, MOST_LAUNCH_US = 2**20, 2**27, 2**20


@dataclasses.dataclass(frozen=True)
class Tier:
    """One tier and its link to each instance. GB = 10^9 bytes."""

    blocks: int  # capacity
    write_gbps: float  # GB/s towards the tier
    read_gbps: float  # GB/s from it
    launch_us: float = 10.0  # fixed time of a transfer operation; about 10 (FastSwitch)
    block_group: int = 1  # blocks that one operation moves


@dataclasses.dataclass(frozen=True)
class ClusterTiers:
    """What lies below HBM: host memory of each instance, and perhaps a pool that all share."""

    host: Tier
    block_bytes: int  # KV of one block, all GPUs of an instance together
    remote: Tier | None = None
    overlap: bool = True  # copies between HBM and host memory overlap with compute; else the engine waits for them


def tier_params(tiers: ClusterTiers, settings: Mapping[str, float]) -> TierParams:
    """The machine's parameters. `settings`: those of the policy (`policies.offload.TIER_SETTINGS`).

    Raises:
        UserError: a capacity, a bandwidth or a launch time is out of range.
    """
    group, overlap = int(settings["copy_group"]), int(settings["overlap_copies"])
    host = tiers.host if group < 0 else dataclasses.replace(tiers.host, block_group=group)
    remote = tiers.remote or Tier(0, 1.0, 1.0)
    blocks = {"host": host.blocks, "remote": remote.blocks}
    for name, number in blocks.items():
        if not 0 <= number <= MOST_BLOCKS:
            raise UserError(
                f"{number} blocks", where=f"cluster.tiers.{name}", expected=f"a capacity of 0 to {MOST_BLOCKS} blocks",
                hint="A larger cluster.block_size makes fewer blocks of the same memory.",
            )  # fmt: skip
    link = lambda tier, gbps, name: _link(tier, gbps, tiers.block_bytes, f"cluster.tiers.{name}")
    return TierParams(
        host_blocks=jnp.int32(host.blocks),
        remote_blocks=jnp.int32(remote.blocks),
        host_out=link(host, host.write_gbps, "host"),
        host_in=link(host, host.read_gbps, "host"),
        remote_out=link(remote, remote.write_gbps, "remote"),
        remote_in=link(remote, remote.read_gbps, "remote"),
        overlap=jnp.int32(tiers.overlap if overlap < 0 else overlap > 0),
        keep_copy=jnp.int32(settings["keep_copy"] > 0),
        on_pause=jnp.int32(settings["offload_on_pause"] > 0),
        on_preempt=jnp.int32(settings["swap_on_preempt"] > 0),
    )


def _link(tier: Tier, gbps: float, block_bytes: int, where: str) -> LinkParams:
    if not gbps > 0:
        raise UserError(f"bandwidth {gbps} GB/s", where=where, expected="a number above 0")
    if tier.block_group < 1 or not 0 <= tier.launch_us < MOST_LAUNCH_US:
        found = f"block_group {tier.block_group}, launch_us {tier.launch_us}"
        raise UserError(found, where=where, expected=f"block_group >= 1, launch_us in [0, {MOST_LAUNCH_US})")
    units = round(block_bytes / (gbps * 1e3) * FRACTION)
    if units >= MOST_BLOCK_US * FRACTION:
        raise UserError(
            f"a block of {block_bytes} bytes takes {units / FRACTION / 1e6:.0f} s at {gbps} GB/s",
            where=where,
            expected=f"less than {MOST_BLOCK_US / 1e6:.0f} s",
        )
    return LinkParams(
        block_us=jnp.int32(units // FRACTION),
        block_fraction=jnp.int32(units % FRACTION),
        launch_us=jnp.int32(round(tier.launch_us)),
        block_group=jnp.int32(min(tier.block_group, MOST_BLOCKS)),
    )
