"""A scenario: everything a run needs, checked once on the host. Built from a configuration file or by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxsched.errors import UserError
from jaxsched.policies.base import Policy
from jaxsched.policies.limits import check_parameter
from jaxsched.resolve import tiers_of, timing_of, workload_of
from jaxsched.semantic_cache import Category, SemanticCacheModel
from jaxsched.sim.build import NO_LIMIT_US
from jaxsched.sim.machine import LONGEST_RUN_US
from jaxsched.speculation import DraftModel
from jaxsched.tiering import ClusterTiers, tier_params
from jaxsched.timing import StepTimeParams, check_range
from jaxsched.workloads import Preset, Workload
from jaxsched.workloads.rollouts import RolloutSpec

if TYPE_CHECKING:
    from jaxsched.config import ScenarioConfig


#: Turns of a graph that may be between their edges and their arrival at the same time, for the default of
#: `cluster.max_paused_programs`; a lane that needs more says so.
TURNS_AT_ONCE = 8


@dataclasses.dataclass(frozen=True)
class SloClass:
    """What one class of requests is promised. None = no such promise."""

    name: str = "all"
    ttft_us: int | None = None
    tpot_us: int | None = None
    e2e_us: int | None = None
    tbt_us: int | None = None  # every single gap between tokens
    timeout_us: int | None = None  # dropped when older than this


@dataclasses.dataclass(frozen=True)
class Tenant:
    """A class of requests whose service is measured, and promised in proportion to a weight."""

    name: str
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A workload, a cluster and its promises. The policy is given separately, so that policies can be compared."""

    name: str
    workload: Preset | Workload  # a generator, or a trace
    num_programs: int  # programs per lane
    rate_per_s: float  # at load 1
    num_instances: int
    usable_blocks: int
    timing: StepTimeParams
    num_slots: int | None = None  # None: what the policy needs at the load of a run (`lanes.with_first_slots`)
    queue_capacity: int = 1024
    max_run_steps: int = 32
    max_paused_programs: int = 0
    block_size: int = 16
    max_model_len: int = 32768
    prefix_cache: str = "auto"  # "auto", "off", "runs" or "blocks": see `caching.with_cache`
    tiers: ClusterTiers | None = None  # memory below HBM
    slo: tuple[SloClass, ...] = (SloClass(),)
    tenants: tuple[Tenant, ...] = ()  # by class; empty = what tenants are given is not measured
    router_delay_us: int = 0
    cache_delay_us: int = 0  # age of what cache-aware routers see of the prefix caches
    warmup_fraction: float = 0.1
    cooldown_fraction: float = 0.0
    horizon_us: int | None = None
    gpus_per_instance: int = 1
    prediction_error: float = 0.0
    seed: int = 0
    policy: Policy | None = None  # the configured one
    speculation: DraftModel | None = None  # who drafts tokens, for policies that speculate
    semantic_cache: SemanticCacheModel | None = None  # of answers, for policies that use one
    notes: tuple[str, ...] = ()  # e.g. how the KV capacity was derived
    config: Any = None  # the ScenarioConfig it came from

    @property
    def is_trace(self) -> bool:
        return isinstance(self.workload, Workload)

    @property
    def is_job_list(self) -> bool:
        """Whether all programs are there at one instant, so that arrival rates mean nothing."""
        return self.workload.is_job_list

    @property
    def rounds(self) -> tuple[int, int] | None:
        """Programs that end a round of rollouts, and us until the next begins; None = there are no rounds."""
        return self.workload.rounds if isinstance(self.workload, Preset) else None

    @property
    def num_classes(self) -> int:
        """SLO classes; classes of the workload beyond them share the last one's promises."""
        return max(len(self.slo), self.workload.num_classes)

    @property
    def max_turns(self) -> int:
        if isinstance(self.workload, Preset):
            return self.workload.max_turns
        return int(self.workload.turn.max()) + 1

    def limits(self, name: str) -> list[int]:
        """Per class, the limit `name` (``ttft_us``, ...) in microseconds; `NO_LIMIT_US` where there is none."""
        values = [getattr(slo, name) for slo in self.slo] or [None]
        values += [values[-1]] * (self.num_classes - len(values))
        return [NO_LIMIT_US if v is None else int(v) for v in values]

    def tenant_weights(self) -> list[float] | None:
        """By class (1 where there is no tenant of that number); None without tenants."""
        if not self.tenants:
            return None
        return [t.weight for t in self.tenants] + [1.0] * (self.num_classes - len(self.tenants))

    def timeouts(self) -> list[int]:
        """Per class, 0 = none."""
        return [0 if v == NO_LIMIT_US else v for v in self.limits("timeout_us")]

    def lane_seeds(self, seeds: int | Sequence[int]) -> list[int]:
        """Seeds of lanes: so many from the scenario's own on, or those given."""
        return list(range(self.seed, self.seed + seeds)) if isinstance(seeds, int) else list(seeds)

    def step_tokens(self, policy: Policy) -> int:
        """Tokens that a step of the policy's engine may have; engines that run whole prompts: what the pool holds."""
        if policy.scheduler.spec.family in ("orca", "static", "v0"):
            return self.usable_blocks * self.block_size
        settings = policy.settings()
        return int(max(settings["token_budget"], settings["max_num_seqs"]))

    def check(self, policy: Policy) -> None:
        """Refuse what can never run: a step too long for the clock, or a trace whose every prompt exceeds the pool."""
        settings = policy.settings()
        rule = policy.scheduler.spec.offload
        if rule is not None and rule.needs_tiers and self.tiers is None:
            raise UserError(
                f"policy {policy.name} copies contexts to host memory, and the cluster has none for them",
                where=f"scenario {self.name}, cluster.tiers",
                expected="a host tier",
                hint="Add cluster.tiers.host, e.g. {capacity_gib: 60, d2h_gbps: 25, h2d_gbps: 25}.",
            )
        if rule is not None and self.tiers is not None:
            tier_params(self.tiers, settings)
        self._check_rounds(policy)
        self._check_semantic(policy)
        policy.params(self.usable_blocks)  # (they check what `limits.LIMITS` does not know)
        policy.compress_params()
        if policy.scheduler.spec.speculates and self.speculation is None:
            raise UserError(
                f"policy {policy.name} drafts tokens, and the scenario has no draft model",
                where=f"scenario {self.name}, speculation",
                expected="a section `speculation`",
                hint="Add e.g. speculation: {acceptance: 0.7, draft_pass_us: 2000}.",
            )
        tokens, seqs = self.usable_blocks * self.block_size, int(settings["max_num_seqs"])
        budget = self.step_tokens(policy)
        # A run must fit into the clock's margin: any one step and, where a run may begin with one (`mixed_runs`),
        # others behind it (`LONGEST_REST_US`), or decode steps alone.
        first = 2 if policy.scheduler.spec.family in ("v1", "sarathi") else 1
        for step_tokens, steps in ((budget, first), (seqs, max(self.max_run_steps, first))):
            check_range(
                self.timing,
                max_step_tokens=step_tokens,
                max_rows=seqs,
                max_row_tokens=min(int(self.max_model_len), tokens),
                max_kv_tokens=tokens,
                limit_us=LONGEST_RUN_US // steps,
            )
        if isinstance(self.workload, Workload):
            peak = self.workload.prompt_tokens + self.workload.output_tokens - 1
            smallest = int(np.ceil(peak.min() / self.block_size))
            if smallest > self.usable_blocks:
                raise UserError(
                    f"the shortest of {len(peak)} requests needs {smallest} KV blocks, "
                    f"the pool has {self.usable_blocks}",
                    where=self.workload.source or self.workload.name,
                    expected="prompt + output tokens to fit into the KV pool of one instance",
                    hint="Raise cluster.kv_blocks, or use more GPUs per instance (timing.tp).",
                )

    def _check_semantic(self, policy: Policy) -> None:
        """Refuse a cache of answers where there is none, or where an answer does not stand alone."""
        if not policy.scheduler.semantic_params:
            return
        if self.semantic_cache is None:
            raise UserError(
                f"policy {policy.name} answers from a semantic cache, and the scenario has none",
                where=f"scenario {self.name}, semantic_cache",
                expected="a section `semantic_cache`",
                hint="Add semantic_cache: {search_us: 2000, categories: [{threshold: 0.8, ttl_s: 600, quota: 99}]}.",
            )
        if self.max_paused_programs or self.rounds is not None:
            raise UserError(
                f"policy {policy.name} answers single requests, workload {self.workload.name} has programs of turns",
                where=f"scenario {self.name}",
                expected="a workload of plain requests",
            )
        self.semantic_cache.params(self.num_classes, policy.settings())

    def _check_rounds(self, policy: Policy) -> None:
        """Refuse rounds that could never end, and what cannot stop for them."""
        where = f"scenario {self.name}"
        if self.rounds is None:
            if policy.scheduler.round_params:
                raise UserError(
                    f"policy {policy.name} begins rounds of rollouts, and workload {self.workload.name} has none",
                    where=where, expected="preset rollouts",
                )  # fmt: skip
            return
        if not policy.scheduler.spec.stops_for_rounds or policy.scheduler.semantic_params:
            raise UserError(
                f"policy {policy.name} cannot stop at the end of a round", where=where,
                expected="a synchronous V1 engine without contexts kept, accounts, speculation, semantic cache",
            )  # fmt: skip
        if any(self.timeouts()) or policy.scheduler.spec.rejects_late:
            raise UserError("rounds and timeouts: a rollout that is dropped is never done", where=where,
                            expected="no timeout_ms, no early rejection")  # fmt: skip
        spec = self.workload.spec if isinstance(self.workload, Preset) else None
        assert isinstance(spec, RolloutSpec)
        longest = spec.max_prompt_tokens + spec.max_output_tokens - 1
        pool = self.usable_blocks * self.block_size
        whole = policy.settings()["chunked_prefill"] == 0
        most = min(pool, int(policy.settings()["token_budget"])) if whole else pool
        if longest > most:
            raise UserError(
                f"a rollout may have {longest} tokens and be refused, and then its round never ends", where=where,
                expected=f"max_prompt_tokens + max_output_tokens - 1 <= {most}, what an instance can take",
            )  # fmt: skip


def from_config(config: ScenarioConfig) -> Scenario:
    """Resolve a configuration: read or name the workload, build the step-time model, size the KV pool."""
    from jaxsched import policies

    timing, blocks, notes, gpus = timing_of(config)
    workload, num_programs, rate = workload_of(config)
    _check_policy_names(config)
    p = config.policy
    policy = policies.compose(p.scheduler, p.router, name=p.scheduler)
    policy = _with_model_len(policy.with_params(**_numbers(config, "policy.params", p.params)), config)

    def us(value: float | None) -> int | None:
        return None if value is None else round(value * 1000)

    slo = tuple(
        SloClass(s.name, us(s.ttft_ms), us(s.tpot_ms), us(s.e2e_ms), us(s.tbt_ms), us(s.timeout_ms)) for s in config.slo
    ) or (SloClass(),)
    c = config.cluster
    turns = workload.max_turns if isinstance(workload, Preset) else int(workload.turn.max()) + 1
    graphs = workload.graphs if isinstance(workload, Preset) else workload.edges is not None
    at_once = num_programs * (TURNS_AT_ONCE if graphs else 1)
    paused = c.max_paused_programs or (min(at_once, 1024) if turns > 1 else 0)
    capacity = 1 << max(c.queue_capacity - 1, 1).bit_length()
    return Scenario(
        name=config.name, workload=workload, num_programs=num_programs, rate_per_s=rate,
        num_instances=c.num_instances, usable_blocks=blocks, timing=timing, num_slots=c.num_slots,
        queue_capacity=capacity, max_run_steps=c.max_run_steps, max_paused_programs=paused, block_size=c.block_size,
        max_model_len=c.max_model_len, prefix_cache=c.prefix_cache, tiers=tiers_of(config), slo=slo,
        tenants=_tenants(config, max(len(slo), workload.num_classes)),
        router_delay_us=round(p.router_delay_ms * 1000), cache_delay_us=round(p.cache_delay_ms * 1000),
        warmup_fraction=config.metrics.warmup_fraction, cooldown_fraction=config.metrics.cooldown_fraction,
        horizon_us=None if config.horizon_s is None else round(config.horizon_s * 1e6),
        gpus_per_instance=gpus, prediction_error=config.workload.prediction_error, seed=config.seed, policy=policy,
        speculation=None if config.speculation is None else DraftModel(**config.speculation.model_dump()),
        semantic_cache=_semantic_cache(config),
        notes=tuple(notes), config=config,
    )  # fmt: skip


def _semantic_cache(config: ScenarioConfig) -> SemanticCacheModel | None:
    section = config.semantic_cache
    if section is None:
        return None
    values = section.model_dump()
    categories = tuple(Category(**category) for category in values.pop("categories"))
    return SemanticCacheModel(categories=categories, **values)


def _tenants(config: ScenarioConfig, num_classes: int) -> tuple[Tenant, ...]:
    """Those that the workload names, or a tenant for each class if they are to be measured."""
    named = config.workload.tenants
    if config.metrics.tenants is False:
        return ()
    if named:
        return tuple(Tenant(tenant.name, tenant.weight) for tenant in named)
    return tuple(Tenant(f"class{k}") for k in range(num_classes)) if config.metrics.tenants else ()


def policy_from_config(config: ScenarioConfig, name: str, section) -> Policy:
    """A competitor of a comparison."""
    from jaxsched import policies

    policy = policies.compose(section.scheduler, section.router, name=name)
    return _with_model_len(policy.with_params(**_numbers(config, f"policy {name}", section.params)), config)


def _with_model_len(policy: Policy, config: ScenarioConfig) -> Policy:
    given = dict(policy.overrides)
    return policy if "max_model_len" in given else policy.with_params(max_model_len=config.cluster.max_model_len)


def _numbers(config: ScenarioConfig, field: str, params: Mapping[str, Any]) -> dict[str, float]:
    for key, value in params.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{key} is {value!r}", where=config.where(field), expected="a number")
        check_parameter(key, value, config.where(field))
    return dict(params)


def _check_policy_names(config: ScenarioConfig) -> None:
    from jaxsched.config import check_name
    from jaxsched.policies import PARTS, ROUTERS, SCHEDULERS
    from jaxsched.policies.learned import is_path

    scheduler, *parts = config.policy.scheduler.split("+")
    if not is_path(scheduler):
        check_name(config, "policy.scheduler", scheduler, list(SCHEDULERS), "scheduler")
    for part in parts:
        check_name(config, "policy.scheduler", part, list(PARTS), "part")
    check_name(config, "policy.router", config.policy.router, list(ROUTERS), "router")


def load(path: str, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Scenario:
    """Read a scenario file (YAML) and resolve it. `overrides`: ``["workload.load=0.8"]`` or a mapping."""
    from jaxsched.config import load as load_config

    return from_config(load_config(path, overrides))
