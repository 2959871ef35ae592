"""Disaggregated: where a request is prefilled, and where decoded, when contexts can move between instances."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from jaxsched.envs.build import llama_on_a100, scenario_of
from jaxsched.envs.cache_routing import CacheRouting, make_cache_routing
from jaxsched.envs.cluster import ClusterParams
from jaxsched.errors import UserError
from jaxsched.scenario import Scenario
from jaxsched.tiering import ClusterTiers, Tier
from jaxsched.workloads import get_preset

#: KV of a block of 16 tokens of Llama-3-8B: keys and values, 32 layers, 8 heads of 128, two bytes.
_BLOCK_BYTES = 16 * 2 * 32 * 8 * 128 * 2


@dataclasses.dataclass(frozen=True)
class Disaggregated(CacheRouting):
    """Where a request is prefilled, then where it is decoded: together, or on instances of their own.

    Default scenario (as configs/scenarios/disaggregated.yaml): chats at 32 requests per second on four instances of
    Llama-3-8B on A100s; a request is two turns, the prompt with its first token and the rest, and its context moves
    between instances through a pool that all share, at 50 GB/s a hop; an episode is 400 requests.

    - Observation: as `CacheRouting`. "home" is the instance that prefilled; "turn" of the globals is 0 for a
      prefill, more for a decode; "matched" is what of the context is in the instance's own memory, "prompt" all of it.
    - Action: "route": the instance of the turn that arrives next. To the first turn's own instance the second one is at
      home; to another its context is copied, and waits for the link; the last block, if not full, is computed again.
    - Mask: all.
    - Reward: minus request-seconds in the system (``"latency"``), or turns finished within their limits (``"goodput"``:
      the first token in time, and the tokens after it in time).
    - Termination: all requests are done, or `horizon_s` is reached. Truncation: `max_steps`.
    - A step: from one arrival of a turn to the moment before the next, as in `CacheRouting`.
    - State: `benchmarks/environments.py` prints it.
    """

    name: ClassVar[str] = "Disaggregated-v0"


def default_scenario() -> Scenario:
    """Chats in two turns on four instances, with a fast way between them."""
    tiers = ClusterTiers(
        host=Tier(32_768, 50.0, 50.0, block_group=256),
        remote=Tier(131_072, 50.0, 50.0, block_group=256),
        block_bytes=_BLOCK_BYTES,
    )
    return llama_on_a100(
        "disaggregated", get_preset("sharegpt_split"), 400, 32.0, num_instances=4, tiers=tiers, max_paused_programs=64
    )


def make_disaggregated(
    *,
    scenario: Scenario | str | None = None,
    num_programs: int | None = None,
    policy: str = "vllm+offload",
    max_num_seqs: float = 64,
    **overrides: Any,
) -> tuple[Disaggregated, ClusterParams]:
    """`Disaggregated` and its parameters; arguments as those of `CacheRouting`.

    Raises:
        UserError: also for a scenario whose instances share no pool of contexts.
    """
    scenario = scenario_of(scenario, default_scenario(), num_programs)
    if scenario.tiers is None or scenario.tiers.remote is None:
        raise UserError(
            f"scenario {scenario.name} has no pool that its instances share",
            where=f"environment {Disaggregated.name}",
            expected="memory tiers with a remote one",
            hint="Add cluster.tiers.remote, e.g. {capacity_gib: 256, write_gbps: 50, read_gbps: 50}.",
        )
    return make_cache_routing(
        cls=Disaggregated, scenario=scenario, policy=policy, max_num_seqs=max_num_seqs, **overrides
    )
