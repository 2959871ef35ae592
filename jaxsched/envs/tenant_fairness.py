"""TenantFairness: several tenants, one of which floods, on one instance; whose request goes next?"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

from jaxsched.envs.build import SEEDS, build, llama_on_a100, mixture, scenario_of
from jaxsched.envs.cluster import ClusterEnv, ClusterParams
from jaxsched.envs.pool import Ranges
from jaxsched.scenario import Scenario, Tenant

HEADS = ("order", "preempt")
DEFAULT_HEADS = ("order",)


@dataclasses.dataclass(frozen=True)
class TenantFairness(ClusterEnv):
    """Which tenant's request goes next, so that nobody is served much more than another who waits as well.

    Default scenario (configs/scenarios/tenants.yaml): three tenants with chats, small requests and long answers, and a
    fourth that sends 15 requests per second from 30 % to 70 % of the episode, twice what the instance can serve;
    Llama-3-8B on an A100, at most 64 requests at a time; an episode is 300 requests, run until all are done.

    - Observation: items are requests that run or wait (`features.ITEM_FEATURES`, one column per tenant, then its lead:
      how far its tenant is ahead in service of the others that wait; "predicted_output" is off by a lognormal factor
      of log-sd `length_error`); one instance; globals as in `features.GLOBAL_FEATURES`, then lead and number of waiting
      requests of every tenant.
    - Action: "order": a score per item, the highest of those that wait is admitted first; requests that arrive during
      the step come behind all scored ones. "preempt" (not by default): per item, a level; where the KV blocks of those
      who run do not fit, the lowest level is preempted first, of equal ones the last admitted. Who is admitted during
      the step has level `controls.DEFAULT_LEVEL` until the next decision. Nobody is preempted without need: none makes
      room for one that waits. (The default scenario's pool is never short: give one with less memory.)
    - Mask: order: items that wait; preempt: items that run take a decision.
    - Reward: ``"fairness"``: minus the growth of the largest service gap between two tenants (docs/metrics.md), in
      1,000 weighted tokens: the return of an episode is minus its gap. ``"latency"``, ``"goodput"`` as elsewhere.
    - Termination: all requests are done, or `horizon_s` is reached; then every request that has arrived and is not done
      costs `residual_s`. Truncation: `max_steps`.
    - A step: `burst` micro-steps of the machine, ``info["dt_s"]`` seconds.
    - State: about 40 KB (`benchmarks/environments.py` prints it).
    """

    name: ClassVar[str] = "TenantFairness-v0"


def default_scenario() -> Scenario:
    """Three tenants and a flood, on one A100."""
    parts = (
        ("chat", "sharegpt", 1.5, 0.0, 1.0),
        ("small", "lmsys", 2.0, 0.0, 1.0),
        ("writer", "creation", 0.5, 0.0, 1.0),
        ("flood", "sharegpt", 15.0, 0.3, 0.7),
    )
    workload = mixture("tenants", "three tenants and a flood", *parts)
    tenants = tuple(Tenant(name) for name, *_ in parts)
    return llama_on_a100("tenants", workload, 300, workload.rate_per_s, ttft_us=2_000_000, tenants=tenants)


def make_tenant_fairness(
    *,
    heads: Iterable[str] = DEFAULT_HEADS,
    scenario: Scenario | str | None = None,
    policy: str = "vllm",
    num_programs: int | None = None,
    seeds: int | Iterable[int] = SEEDS,
    randomise: Ranges | None = None,
    reward: str = "fairness",
    burst: int = 8,
    tick_ms: float | None = None,
    num_items: int = 128,
    num_slots: int = 192,
    horizon_s: float | None = None,
    residual_s: float = 0.0,
    length_error: float | None = 0.5,
    max_steps: int = 20_000,
    **settings: float,
) -> tuple[TenantFairness, ClusterParams]:
    """`TenantFairness` and its parameters; arguments as those of `AgentSessions`."""
    return build(
        TenantFairness, HEADS, scenario_of(scenario, default_scenario(), num_programs),
        heads=heads, policy=policy, settings={"max_num_seqs": 64, "token_budget": 2048, **settings}, seeds=seeds,
        ranges=randomise, reward=reward, burst=burst, tick_ms=tick_ms, num_items=num_items, num_slots=num_slots,
        cache_runs=96, horizon_s=horizon_s, residual_s=residual_s, length_error=length_error, work_error=None,
        max_steps=max_steps,
    )  # fmt: skip
