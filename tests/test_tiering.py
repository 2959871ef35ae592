"""Memory tiers as the user gives them: validation, units, and the policies that use them."""

from __future__ import annotations

import dataclasses
import re

import jax.numpy as jnp
import pytest

from jaxsched import policies
from jaxsched.config import load as load_config
from jaxsched.errors import UserError
from jaxsched.policies.minwaste import MINWASTE
from jaxsched.policies.offload import TIER_DEFAULTS
from jaxsched.retention.ttl import empty_history, record
from jaxsched.scenario import from_config
from jaxsched.sim.retain import PauseView
from jaxsched.sim.static import SimStatic
from jaxsched.sim.tiers import LONGEST_TRANSFER_US, transfer_us
from jaxsched.tiering import ClusterTiers, Tier, tier_params
from tests.oracle.tiers import LinkConfig

CLUSTER = ClusterTiers(host=Tier(1000, 25.0, 20.0, launch_us=10, block_group=4), block_bytes=2 * 2**20)
SCENARIO = """
name: tiny
workload: {preset: chat_sessions, num_requests: 20}
cluster:
  num_instances: 1
  tiers:
    host: {%s}
    %s
timing: {kind: description, model: llama-3-8b, device: a10}
policy: {scheduler: vllm+offload}
"""


def _load(tmp_path, host: str, more: str = ""):
    path = tmp_path / "tiny.yaml"
    path.write_text(SCENARIO % (host, more))
    return from_config(load_config(str(path)))


def test_bytes_and_bandwidth_become_blocks_and_microseconds(tmp_path) -> None:
    scenario = _load(tmp_path, "capacity_gib: 60, d2h_gbps: 25, h2d_gbps: 12.5", "remote: {blocks: 7, read_gbps: 1}")
    assert scenario.tiers is not None and scenario.tiers.remote is not None
    # Llama-3-8B: 2 x 32 layers x 8 heads x 128 x 2 bytes = 131,072 bytes a token, 2 MiB a block of 16.
    assert scenario.tiers.block_bytes == 2 * 2**20
    assert (scenario.tiers.host.blocks, scenario.tiers.remote.blocks) == (30 * 1024, 7)
    params = tier_params(scenario.tiers, TIER_DEFAULTS)
    # 2,097,152 bytes / 25,000 bytes per us = 83.886 us; twice as long back.
    assert (int(params.host_out.block_us), int(params.host_out.block_fraction)) == (83, round(0.88608 * 1024))
    assert int(transfer_us(params.host_in, jnp.int32(1000))[0]) == pytest.approx(1000 * (10 + 167.772), abs=1)


@pytest.mark.parametrize(
    ("host", "more", "message"),
    [
        ("blocks: 10, d2h_gbps: 0", "", "cluster.tiers.host.d2h_gbps.* a number above 0"),
        ("blocks: 10, h2d_gbps: -1", "", "cluster.tiers.host.h2d_gbps.* a number above 0"),
        ("blocks: -1", "", "cluster.tiers.host.blocks.* a number of at least 0"),
        ("capacity_gib: -0.5", "", "cluster.tiers.host.capacity_gib.* a number of at least 0"),
        ("capacity_gib: 1, blocks: 10", "", "exactly one of `capacity_gib` and `blocks`"),
        ("d2h_gbps: 1", "", "exactly one of `capacity_gib` and `blocks`"),
        ("blocks: 10, block_group: 0", "", "cluster.tiers.host.block_group.* a number above 0"),
        ("blocks: 10", "remote: {blocks: 5, write_gbps: 0}", "cluster.tiers.remote.write_gbps.* a number above 0"),
    ],
)
def test_tiers_that_cannot_be_are_refused_when_they_are_loaded(tmp_path, host: str, more: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        _load(tmp_path, host, more)
    assert re.search(message, str(error.value), re.DOTALL)


@pytest.mark.parametrize(
    "tiers",
    [
        dataclasses.replace(CLUSTER, host=Tier(2**21, 25.0, 25.0)),
        dataclasses.replace(CLUSTER, host=Tier(10, 0.0, 25.0)),
        dataclasses.replace(CLUSTER, host=Tier(10, 1e-9, 25.0)),
        dataclasses.replace(CLUSTER, host=Tier(10, 25.0, 25.0, launch_us=1e9)),
        dataclasses.replace(CLUSTER, remote=Tier(-1, 25.0, 25.0)),
    ],
)
def test_numbers_that_int32_cannot_hold_are_refused(tiers: ClusterTiers) -> None:
    with pytest.raises(UserError, match=r"cluster\.tiers"):
        tier_params(tiers, TIER_DEFAULTS)


def test_transfer_times_are_exact_and_those_beyond_the_limit_stay_beyond_it() -> None:
    link = tier_params(CLUSTER, TIER_DEFAULTS).host_out
    config = LinkConfig(*(int(x) for x in (link.block_us, link.block_fraction, link.launch_us, link.block_group)))
    for blocks in (0, 1, 4, 5, 1000, 123_457, 2**20):
        us, operations = transfer_us(link, jnp.int32(blocks))
        assert (int(us), int(operations)) == (config.time_us(blocks), config.operations(blocks))
    slow = link.replace(block_us=jnp.int32(2**27 - 1), launch_us=jnp.int32(2**20 - 1), block_group=jnp.int32(1))
    for blocks in (3, 500, 2**20):
        assert int(transfer_us(slow, jnp.int32(blocks))[0]) > LONGEST_TRANSFER_US


def test_offloading_composes_by_name_and_says_what_it_needs(tmp_path) -> None:
    policy = policies.get("continuum+gate+offload+program_sticky", keep_copy=0)
    spec = policy.scheduler.spec
    assert spec.offload is not None and spec.retain is not None and spec.gate and policy.settings()["keep_copy"] == 0
    assert policies.get("vllm+offload").scheduler.spec.order is not None  # a queue that tiers can look into
    with pytest.raises(UserError, match="synchronous"):
        policies.get("vllm-async+offload")
    with pytest.raises(UserError, match="no prefix cache"):
        policies.get("orca+offload")
    scenario = dataclasses.replace(_load(tmp_path, "blocks: 10"), tiers=None)
    with pytest.raises(UserError, match="copies contexts to host memory"):
        scenario.check(policy)
    scenario.check(policies.get("pfcfs+minwaste"))  # preserves or discards without a host tier


def test_without_a_host_tier_or_an_offloading_policy_the_program_is_the_one_without_tiers() -> None:
    sizes = dict(route=policies.ROUTERS["program_sticky"].route, num_instances=1, num_slots=4, prefix_cache="runs")
    offloads, plain = (policies.get(name).scheduler.spec for name in ("vllm+offload", "continuum"))
    assert SimStatic(scheduler=offloads, host_tier=True, **sizes).tiered
    assert not SimStatic(scheduler=offloads, **sizes).tiered
    assert not SimStatic(scheduler=plain, host_tier=True, **sizes).tiered


def _view(context: int, load_us: int, running: int = 4, running_tokens: int = 4000) -> PauseView:
    number = jnp.int32
    return PauseView(
        turn=jnp.int32(1),
        first_prompt_tokens=jnp.int32(1),
        tool=number(0), context_tokens=number(context), recompute_us=number(0), reload_us=number(0),
        load_us=number(load_us), pool_tokens=number(100_000), pause_epoch=number(0), pause_us=number(0),
        running=number(running), running_tokens=number(running_tokens),
    )  # fmt: skip


def test_minwaste_takes_the_least_of_the_three_wastes() -> None:
    """InferCept's constants: c = 384 - 4 = 380 tokens a chunk; 4,000 tokens are n = 10 whole chunks and 200 tokens.

    Discarding, in token us: 26,113.6 x 380 x 10 x 11 / 2 + 10 x 27.9 x 380 x 4,000 + 27.9 x 200 x 4,200 = 9.93e8.
    Swapping with 20 ms one way: 2 x 20,000 x 8,000 = 3.2e8. Keeping for a pause of t: 4,000 t.
    """
    assert MINWASTE.offload is not None and MINWASTE.offload.copies is not None
    params = jnp.asarray(list(MINWASTE.params.values()), jnp.float32)
    known = empty_history(1)
    ttl = lambda known, view: int(MINWASTE.head.ttl(params, known, view))
    swaps = lambda known, view: bool(MINWASTE.offload.copies(params, known, view))
    swap, no_host = _view(4000, 20_000), _view(4000, 0)
    for pause_us, keeps in ((60_000, True), (100_000, False)):  # break-even with swapping: 3.2e8 / 4,000 = 80 ms
        after = record(known, jnp.int32(0), jnp.int32(pause_us))
        assert ttl(after, swap) == (80_000 if keeps else 0)
        assert swaps(after, swap) == (not keeps)
    break_even_us = (26_113.6 * 380 * 55 + 10 * 27.9 * 380 * 4000 + 27.9 * 200 * 4200) / 4000
    for pause_us, keeps in ((100_000, True), (1_000_000, False)):  # without a host: discard from 248 ms on
        after = record(known, jnp.int32(0), jnp.int32(pause_us))
        assert ttl(after, no_host) == (pytest.approx(break_even_us, rel=1e-5) if keeps else 0)
        assert not swaps(after, no_host)
    assert ttl(known, swap) == 80_000  # nothing known of pauses: kept until that has cost as much
    assert round(break_even_us) == 248_323
