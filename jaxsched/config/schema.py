"""What a scenario and a comparison may say: the fields, their units, their defaults and their ranges.

Every model refuses unknown keys and does not convert types silently (the text ``"64"`` is not the number 64).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    model_validator,
)


class Section(BaseModel):
    """Base of every section: unknown keys refused, types strict, values finite, instances immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class RootConfig(Section):
    """A whole file: it has a name, knows where each of its values was written, and can be written out again."""

    name: str
    description: str = ""

    _origins: Mapping[tuple[str | int, ...], str] = PrivateAttr(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        """Equal settings are equal, wherever they were written."""
        return type(other) is type(self) and self.to_dict() == other.to_dict()  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash(self.config_hash())

    def where(self, field: str) -> str:
        """Where a field (a dotted path) was set, for messages: ``"chat.yaml, line 12, field policy.scheduler"``."""
        path: tuple[str | int, ...] = tuple(int(p) if p.isdigit() else p for p in field.split("."))
        for end in range(len(path), 0, -1):
            if path[:end] in self._origins:
                return f"{self._origins[path[:end]]}, field {field}"
        return f"field {field}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, JSON-ready, every default filled in."""
        return self.model_dump(mode="json")

    def to_json(self) -> str:
        """The resolved configuration as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def to_yaml(self) -> str:
        """The resolved configuration as YAML; loading it again gives an equal configuration."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=100)

    def config_hash(self) -> str:
        """16 hex digits naming what is done: equal for equal settings, whatever `name` and `description` are."""
        data = {k: v for k, v in self.to_dict().items() if k not in ("name", "description")}
        canonical = json.dumps(data, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


class TenantConfig(Section):
    """One of several tenants of a synthetic workload: what it sends, how much, when, and its weight."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
    rate_per_s: PositiveFloat  # programs per second while it is there, before `load`
    preset: str | None = None  # None: the workload's
    options: dict[str, JsonValue] = Field(default_factory=dict)  # handed to its preset
    weight: Annotated[float, Field(ge=0.05, le=20)] = 1.0  # its share of the service, relative to the others
    begin: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of the episode at which it comes
    end: Annotated[float, Field(gt=0, le=1)] = 1.0  # ... and goes
    priority: Annotated[int, Field(ge=-(2**30), le=2**30)] = 0  # of its requests; lower = more important

    @model_validator(mode="after")
    def _check(self) -> TenantConfig:
        if self.begin >= self.end:
            raise ValueError(f"tenant {self.name!r}: `begin` {self.begin} must be below `end` {self.end}")
        return self


class WorkloadConfig(Section):
    """Which requests arrive: a calibrated synthetic preset, several tenants with one each, or a trace file."""

    preset: str | None = None  # name of a synthetic preset (`jaxsched list workloads`)
    path: str | None = None  # a trace file or folder
    format: str = "auto"  # reader of `path`; "auto" looks at the file
    tenants: list[TenantConfig] = Field(default_factory=list)  # several sources; `preset` is then their default
    num_requests: PositiveInt | None = None  # programs to generate, or head of the trace (None: all of the trace)
    options: dict[str, JsonValue] = Field(default_factory=dict)  # handed to the preset or the reader
    load: PositiveFloat = 1.0  # multiplies the arrival rate; a comparison sets it per column as a multiple of capacity
    rate_per_s: PositiveFloat | None = None  # arrivals per second before `load`; None: the source's own rate
    slice_s: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None  # keep arrivals in [a, b) seconds
    thin: Annotated[float, Field(gt=0, le=1)] = 1.0  # share of programs kept, chosen by identity
    prediction_error: NonNegativeFloat = 0.0  # sigma of the lognormal error of predicted output lengths
    offline: bool = False  # a list of jobs: all programs are there at time 0, whatever the source says

    @model_validator(mode="after")
    def _check(self) -> WorkloadConfig:
        synthetic = self.preset is not None or bool(self.tenants)
        if synthetic == (self.path is not None):
            found = "both" if synthetic else "neither"
            raise ValueError(f"exactly one of `preset` and `path` must be given, found {found} (tenants are presets)")
        if synthetic and self.num_requests is None:
            raise ValueError("a preset needs `num_requests` (how many programs to generate)")
        names = [tenant.name for tenant in self.tenants]
        if len(set(names)) < len(names):
            raise ValueError(f"`tenants` has two of the same name: {names}")
        for tenant in self.tenants:
            if tenant.preset is None and self.preset is None:
                raise ValueError(f"tenant {tenant.name!r} needs a `preset`: the workload has none for all")
        if self.tenants and self.options:
            raise ValueError("`options` of a workload with `tenants` belong to each tenant")
        if self.offline and (self.rate_per_s is not None or self.load != 1.0):
            raise ValueError("`offline` is a list of jobs, all there at time 0: it has no `rate_per_s` and no `load`")
        if self.slice_s is not None and not 0 <= self.slice_s[0] < self.slice_s[1]:
            raise ValueError(f"`slice_s` must be [start, end] with 0 <= start < end, found {self.slice_s}")
        return self


class TierConfig(Section):
    """A tier of memory below HBM and its link to each instance; capacity as GiB or as KV blocks. GB = 10^9 bytes."""

    capacity_gib: NonNegativeFloat | None = None
    blocks: NonNegativeInt | None = None
    launch_us: NonNegativeFloat = 10.0  # fixed time of a transfer operation
    block_group: PositiveInt = 1  # blocks that one operation moves

    @model_validator(mode="after")
    def _check(self) -> TierConfig:
        if (self.capacity_gib is None) == (self.blocks is None):
            found = "neither" if self.blocks is None else "both"
            raise ValueError(f"exactly one of `capacity_gib` and `blocks` must be given, found {found}")
        return self


class HostTierConfig(TierConfig):
    """Host memory of each instance."""

    d2h_gbps: PositiveFloat = 25.0  # GB/s from HBM to host memory
    h2d_gbps: PositiveFloat = 25.0  # GB/s back
    overlap: bool = True  # copies overlap with compute; false: the engine waits for them


class RemoteTierConfig(TierConfig):
    """A pool behind host memory that all instances share (each over its own link)."""

    write_gbps: PositiveFloat = 10.0  # GB/s from host memory to the pool
    read_gbps: PositiveFloat = 10.0  # GB/s back


class TiersConfig(Section):
    """Memory below HBM, for policies that offload (docs/semantics.md, section 10)."""

    host: HostTierConfig
    remote: RemoteTierConfig | None = None
    kv_bytes_per_token: PositiveInt | None = None  # None: of the model in the timing description


class ClusterConfig(Section):
    """Size of the cluster and of the simulator's bounded tables."""

    num_instances: PositiveInt
    num_slots: PositiveInt | None = None  # requests an instance holds besides its FIFO; None: what the run needs
    queue_capacity: NonNegativeInt = 1024  # waiting requests per instance beyond which arrivals are rejected
    max_run_steps: PositiveInt = 32  # engine steps one event may cover
    max_paused_programs: NonNegativeInt = 0  # programs that may wait between turns at once
    block_size: PositiveInt = 16  # tokens per KV block
    kv_blocks: PositiveInt | None = None  # per instance; None: derived from the timing description
    max_model_len: PositiveInt = 32768  # tokens, prompt and output
    #: Prefix cache (V1 engines): auto = as the workload's content needs; runs = chains of runs; blocks = block table.
    prefix_cache: Literal["auto", "off", "runs", "blocks"] = "auto"
    tiers: TiersConfig | None = None  # memory below HBM; used by policies that offload


class DescriptionTiming(Section):
    """Step times and KV capacity from a model and a device (`jaxsched list models|devices`)."""

    kind: Literal["description"]
    model: str
    device: str
    tp: PositiveInt = 1  # tensor-parallel ranks
    pp: PositiveInt = 1  # pipeline stages
    host_overhead_us: NonNegativeFloat | None = None  # per engine step; None: the device's default
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9


class AffineTiming(Section):
    """``a_us + b_us_per_token * T + floor(c_ns_per_ctx * ctx / 1000)``: the step time of the recorded engine."""

    kind: Literal["affine"]
    a_us: NonNegativeInt
    b_us_per_token: NonNegativeInt
    c_ns_per_ctx: NonNegativeInt = 0


class CoefficientsTiming(Section):
    """A fitted step-time model as written by `jaxsched calibrate`."""

    kind: Literal["coefficients"]
    path: str


TimingConfig = Annotated[DescriptionTiming | AffineTiming | CoefficientsTiming, Field(discriminator="kind")]


class PolicyConfig(Section):
    """Scheduler, router and their parameters."""

    scheduler: str = "vllm"
    router: str = "least_outstanding"
    params: dict[str, JsonValue] = Field(default_factory=dict)  # token_budget, max_num_seqs, watermark, ...
    router_delay_ms: NonNegativeFloat = 0.0  # age of the routers' view; 0: live
    cache_delay_ms: NonNegativeFloat = 0.0  # age of what cache-aware routers see of the prefix caches; 0: live


class SloConfig(Section):
    """One class of requests and what it is promised; limits that are None do not apply."""

    name: str
    ttft_ms: PositiveFloat | None = None
    tpot_ms: PositiveFloat | None = None
    e2e_ms: PositiveFloat | None = None
    tbt_ms: PositiveFloat | None = None  # every single gap between two tokens
    timeout_ms: PositiveFloat | None = None  # a request older than this is dropped

    @model_validator(mode="after")
    def _check(self) -> SloConfig:
        if self.ttft_ms is self.tpot_ms is self.e2e_ms is self.tbt_ms is self.timeout_ms is None:
            limits = "ttft_ms, tpot_ms, e2e_ms, tbt_ms, timeout_ms"
            raise ValueError(f"class {self.name!r} has no limit: give at least one of {limits}")
        return self


class SpeculationConfig(Section):
    """The draft model, for policies that speculate (docs/semantics.md, section 16)."""

    acceptance: Annotated[float, Field(ge=0, le=1)]  # mean probability that a drafted token is right
    #: How far requests differ in it: variance of their means over the largest possible one; 0 = all alike.
    request_spread: Annotated[float, Field(ge=0, lt=1)] = 0.05
    #: How far the tokens of a request differ, in the same measure.
    token_spread: Annotated[float, Field(ge=0, lt=1)] = 0.4
    #: Share of the tokens whose probability the draft model's head knows; for the others it takes the request's mean.
    head_accuracy: Annotated[float, Field(ge=0, le=1)] = 0.8
    draft_pass_us: Annotated[float, Field(ge=0, le=1e6)]  # a pass of the draft model: one token more for all who draft
    draft_token_us: Annotated[float, Field(ge=0, le=1e3)] = 0.0  # ... and each token of it


Share = Annotated[float, Field(ge=0, le=1)]


class CategoryConfig(Section):
    """One category of requests (a class of the workload) as a semantic cache sees it."""

    threshold: Share  # similarity that a hit needs
    ttl_s: Annotated[float, Field(ge=0, le=259_200)]  # age up to which an answer is given
    quota: Annotated[int, Field(ge=0, le=4096)]  # answers kept; 0 = never cached
    topics: Annotated[int, Field(ge=1, le=1024)] = 64  # things that are asked again and again
    zipf: Annotated[float, Field(ge=0, le=4)] = 1.0  # exponent of their popularity
    unique: Share = 0.3  # share of requests that ask what nobody else asks
    similarity: Share = 0.9  # mean similarity of a request to an answer of its topic
    similarity_spread: Annotated[float, Field(ge=0, lt=1)] = 0.1  # variance over the largest possible one
    false_slope: Share = 0.5  # probability of a wrong answer at similarity 0; it falls linearly to 0 at 1


class SemanticCacheConfig(Section):
    """A cache of answers in front of the cluster, for `+semantic_cache` (docs/semantics.md, section 18)."""

    search_us: Annotated[float, Field(ge=0, le=1e7)]  # paid by every request
    answer_us: Annotated[float, Field(ge=0, le=1e7)] = 0.0  # ... and by those that are answered besides
    categories: Annotated[list[CategoryConfig], Field(min_length=1)]  # by class; the last one for all others
    load_low: NonNegativeInt = 0  # adaptive mode: requests in the cluster at which it begins
    load_high: NonNegativeInt = 0  # ... and at which it is full
    lower_by: Share = 0.0  # by how much thresholds are lower then
    stretch: Annotated[int, Field(ge=0, le=4)] = 0  # by how many times the time to live is longer


class MetricsConfig(Section):
    """Which part of a run is measured: shares of the arrival period cut at both ends."""

    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    cooldown_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    #: Measure the service of each class as of a tenant. None: if the workload names tenants.
    tenants: bool | None = None

    @model_validator(mode="after")
    def _check(self) -> MetricsConfig:
        if self.warmup_fraction + self.cooldown_fraction >= 1:
            raise ValueError("warmup_fraction + cooldown_fraction must be below 1: nothing would be measured")
        return self


class ScenarioConfig(RootConfig):
    """Everything one simulation needs."""

    workload: WorkloadConfig
    cluster: ClusterConfig
    timing: TimingConfig
    policy: PolicyConfig = Field(default_factory=PolicyConfig)
    slo: list[SloConfig] = Field(default_factory=list)
    speculation: SpeculationConfig | None = None  # who drafts tokens; used by policies that speculate
    semantic_cache: SemanticCacheConfig | None = None  # used by policies with `+semantic_cache`
    metrics: MetricsConfig = Field(default_factory=MetricsConfig)
    horizon_s: PositiveFloat | None = None  # simulated seconds; None: until every request has met its fate
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @model_validator(mode="after")
    def _check_scenario(self) -> ScenarioConfig:
        names = [slo.name for slo in self.slo]
        if len(set(names)) < len(names):
            raise ValueError(f"`slo` has two classes of the same name: {names}")
        if self.timing.kind == "affine" and self.cluster.kv_blocks is None:
            raise ValueError("`cluster.kv_blocks` is needed with timing kind affine: nothing to derive it from")
        tiers = self.cluster.tiers
        if tiers is not None and tiers.kv_bytes_per_token is None and self.timing.kind != "description":
            raise ValueError(
                f"`cluster.tiers.kv_bytes_per_token` is needed with timing kind {self.timing.kind}: "
                "nothing to derive it from"
            )
        return self


class PolicyChoice(Section):
    """One competitor. What it does not say is taken from the scenario's `policy` section.

    The short form is a text: ``sarathi`` (a scheduler), ``vllm+least_kv`` (scheduler and router), or with a retention
    rule and the gate: ``gittins+gate``.
    """

    name: str
    scheduler: str | None = None
    router: str | None = None
    params: dict[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        if isinstance(value, str):
            from jaxsched.policies import split_name

            scheduler, router = split_name(value)
            return {"name": value, "scheduler": scheduler, "router": router or None}
        return value


class CompareSection(Section):
    """Policies x loads x seeds, and how they are judged."""

    policies: Annotated[list[PolicyChoice], Field(min_length=1)]
    loads: Annotated[list[PositiveFloat], Field(min_length=1)]  # multiples of capacity
    seeds: PositiveInt  # how many; the same ones for every policy (common random numbers)
    baseline: str  # name of the policy the others are compared with
    metric: str = "e2e_mean_s"  # the metric that decides
    capacity: Literal["auto"] | PositiveFloat = "auto"  # requests per second that load 1.0 means; auto: measured
    capacity_of: str | None = None  # auto: the policy whose highest stable rate it is; None: the baseline
    capacity_seeds: PositiveInt | None = None  # ... measured on so many of the seeds; None: all
    capacity_programs: PositiveInt = 2400  # ... and with at least so many programs per lane
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    num_bootstrap: PositiveInt = 2000

    @model_validator(mode="after")
    def _check(self) -> CompareSection:
        names = [policy.name for policy in self.policies]
        if len(set(names)) < len(names):
            raise ValueError(f"`policies` has two entries of the same name: {names}")
        if self.baseline not in names:
            raise ValueError(f"`baseline` must be one of the policies {names}, found {self.baseline!r}")
        if self.capacity_of is not None and self.capacity_of not in names:
            raise ValueError(f"`capacity_of` must be one of the policies {names}, found {self.capacity_of!r}")
        if len(set(self.loads)) < len(self.loads):
            raise ValueError(f"`loads` has the same value twice: {self.loads}")
        return self


class CompareConfig(ScenarioConfig):
    """A scenario and the comparison to make on it."""

    compare: CompareSection

    def policies(self) -> dict[str, PolicyConfig]:
        """Each competitor's name and full policy: the scenario's `policy` with the entry's own values on top."""
        base = self.policy
        return {
            choice.name: PolicyConfig(
                scheduler=choice.scheduler or base.scheduler,
                router=choice.router or base.router,
                params={**base.params, **choice.params},
                router_delay_ms=base.router_delay_ms,
                cache_delay_ms=base.cache_delay_ms,
            )
            for choice in self.compare.policies
        }
