"""A policy: a scheduler (its compiled rules), a router, and default parameters. Everything here is host-side data."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from jaxsched.errors import UserError
from jaxsched.policies.limits import check_parameter
from jaxsched.sim.compress import MOST_TOKENS, WHOLE, CompressHead, CompressParams
from jaxsched.sim.due import MOST_US
from jaxsched.sim.params import SchedulerParams
from jaxsched.sim.retain import OffloadRule, RetainHead
from jaxsched.sim.speculate import MOST_DRAFTS, ONE, TOKEN_BITS, DraftParams
from jaxsched.sim.static import RouteHead, SchedulerSpec

#: Names a scheduler's parameters may have, and what each means. `FRACTIONS` are fractions of the pool.
PARAMETERS = {
    "token_budget": "tokens per engine step (max_num_batched_tokens; the chunk size of sarathi)",
    "max_num_seqs": "requests admitted at a time",
    "long_prefill_threshold": "longest chunk of one request per step, 0 = off",
    "adaptive_threshold": "1: raise the threshold to token_budget / (running + waiting)",
    "chunked_prefill": "0: a prompt is scheduled whole or waits",
    "reserve_full_isl": "1: admit only if the whole known sequence fits",
    "watermark": "fraction of the KV pool kept free at admission",
    "max_model_len": "longest prompt + output; what orca and static batching reserve",
    "gate_fraction": "share of the KV pool that contexts of begun programs may fill before new ones wait (+gate)",
}
FRACTIONS = ("watermark", "gate_fraction")
#: Knobs of a scheduler that speculates, with those of a fixed draft length: tokens drafted at most and at least;
#: drafting ends after a token with which a draft is rejected with more than this probability; 1: the length is chosen
#: at each step for tokens per time of the batch, expecting each draft to be right with this probability.
DRAFT_PARAMETERS = {
    "num_speculative_tokens": 4,
    "min_speculative_tokens": 0,
    "reject_threshold": 1.0,
    "by_batch": 0,
    "expected_acceptance": 0.7,
}


@dataclasses.dataclass(frozen=True)
class Scheduler:
    """One named scheduler of the catalogue."""

    spec: SchedulerSpec
    summary: str  # one line for `jaxsched list policies`
    source: str  # paper or code that the rules follow
    defaults: dict[str, float] = dataclasses.field(default_factory=dict)  # over those of the V1 engine
    order_params: dict[str, int] = dataclasses.field(default_factory=dict)  # of the order head, in its order
    retain_params: dict[str, float] = dataclasses.field(default_factory=dict)  # of the retention head, in its order
    admit_params: dict[str, float] = dataclasses.field(default_factory=dict)  # of the admission head, in its order
    tier_params: dict[str, float] = dataclasses.field(default_factory=dict)  # `TIER_SETTINGS`, if it offloads
    work_params: dict[str, int] = dataclasses.field(default_factory=dict)  # `due.PARAMETERS`, if it reads due dates
    compress_params: dict[str, float] = dataclasses.field(
        default_factory=dict
    )  # `COMPRESS_PARAMETERS`, if it compresses
    round_params: dict[str, float] = dataclasses.field(default_factory=dict)  # how rounds of rollouts begin (april.py)
    draft_params: dict[str, float] = dataclasses.field(default_factory=dict)  # `DRAFT_PARAMETERS`, if it speculates
    semantic_params: dict[str, float] = dataclasses.field(default_factory=dict)  # of a cache of answers in front
    weights: tuple[float, ...] | None = None  # of a learned policy, for all its heads
    sees_true_length: bool = False  # a bound, not a policy: predictions are replaced by the truth
    orders_jobs: bool = False  # jobs handed over at one instant are put in order before the run (batchllm.py)

    @property
    def is_bound(self) -> bool:
        """Whether it knows what no engine can know."""
        retain = self.spec.retain
        return self.sees_true_length or self.spec.foresees or (retain is not None and retain.sees_pause)


@dataclasses.dataclass(frozen=True)
class Retention:
    """One named retention rule of the catalogue."""

    name: str
    head: RetainHead
    summary: str
    source: str
    params: dict[str, float] = dataclasses.field(default_factory=dict)  # of the head, in its order
    offload: OffloadRule | None = None  # it also decides what is copied to host memory


@dataclasses.dataclass(frozen=True)
class Compression:
    """One named way to compress KV."""

    name: str
    head: CompressHead
    summary: str
    source: str
    params: dict[str, float] = dataclasses.field(default_factory=dict)  # all of `COMPRESS_PARAMETERS`


#: Parameters of a compression: shares of the context or of the pool, tokens, and the curve of quality.
COMPRESS_PARAMETERS = (
    "ratio", "pressure_low", "pressure_high", "min_tokens", "window", "loss_at_20", "loss_exponent", "loss_sigma",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Router:
    """One named router of the catalogue."""

    name: str
    route: RouteHead
    summary: str
    source: str
    reads_blocks: bool = False  # reads KV use, which is then kept exactly inside runs
    reads_work: bool = False  # reads predicted work
    #: What it knows of the prefix caches: "none"; "cache": what they hold, live or `cache_delay_ms` late; "record": the
    #: prompts that it sent, in a record whose limit (tokens per instance) is its first parameter.
    reads_cache: str = "none"
    reads_window: bool = False  # reads what was sent in the last minutes (only with "cache")
    params: dict[str, float] = dataclasses.field(default_factory=dict)  # of the head, in its order


V1_DEFAULTS = {
    "token_budget": 2048,
    "max_num_seqs": 256,
    "long_prefill_threshold": 0,
    "adaptive_threshold": 0,
    "chunked_prefill": 1,
    "reserve_full_isl": 1,
    "watermark": 0.0,
    "max_model_len": 32768,
    "gate_fraction": 0.8,
}


@dataclasses.dataclass(frozen=True)
class Policy:
    """A scheduler with its parameters, and a router."""

    name: str
    scheduler: Scheduler
    router: Router
    overrides: tuple[tuple[str, float], ...] = ()  # parameters the user set
    network: Any = None  # `PolicyExport` of a network that decides between bursts (envs/deploy.py), for learned heads

    def settings(self) -> dict[str, float]:
        """Every scheduler parameter with its value in force."""
        return {**V1_DEFAULTS, **self.scheduler.defaults, **self._head_params(), **dict(self.overrides)}

    def _head_params(self) -> dict[str, float]:
        s = self.scheduler
        own = {
            **s.order_params,
            **s.retain_params,
            **s.admit_params,
            **s.tier_params,
            **s.work_params,
            **s.compress_params,
            **s.round_params,
            **s.draft_params,
            **s.semantic_params,
        }
        return {**own, **self.router.params}

    def route_params(self) -> jnp.ndarray | None:
        """Traced parameters of the router; None if it has none."""
        values = self.settings()
        names = self.router.params
        return jnp.asarray([float(values[name]) for name in names], jnp.float32) if names else None

    def with_params(self, **overrides: float) -> Policy:
        """The same policy with some parameters set; unknown names and values out of range are refused."""
        allowed = set(PARAMETERS) | set(self._head_params())
        for name in overrides:
            if name not in allowed:
                raise UserError(
                    f"unknown parameter {name!r}",
                    where=f"policy {self.name}",
                    expected=f"one of {', '.join(sorted(allowed))}",
                )
            check_parameter(name, overrides[name], f"policy {self.name}")
        return dataclasses.replace(self, overrides=tuple(sorted({**dict(self.overrides), **overrides}.items())))

    def params(self, usable_blocks: int) -> SchedulerParams:
        """Traced parameters for a pool of `usable_blocks`."""
        values = self.settings()
        # vLLM counts the watermark on the pool with its null block.
        watermark = int(values["watermark"] * (usable_blocks + 1))
        order = [int(values[name]) for name in self.scheduler.order_params]
        retain = [float(values[name]) for name in self.scheduler.retain_params]
        admit = [float(values[name]) for name in self.scheduler.admit_params]
        integers = {name: jnp.int32(int(values[name])) for name in PARAMETERS if name not in FRACTIONS}
        return SchedulerParams(
            **integers,
            watermark_blocks=jnp.int32(watermark),
            order=jnp.asarray(order, jnp.int32).reshape(-1),
            retain=jnp.asarray(retain, jnp.float32).reshape(-1),
            admit=jnp.asarray(admit, jnp.float32).reshape(-1),
            gate_fraction=jnp.float32(values["gate_fraction"]),
            work=self._work(values),
            weights=None if self.scheduler.weights is None else jnp.asarray(self.scheduler.weights, jnp.float32),
            draft=self._draft(values) if self.scheduler.spec.speculates else None,
        )

    def _draft(self, values: dict[str, float]) -> DraftParams:
        most, least = values["num_speculative_tokens"], values["min_speculative_tokens"]
        limits = {
            "num_speculative_tokens": (MOST_DRAFTS, True),
            "min_speculative_tokens": (most, True),
            "reject_threshold": (1, False),
            "by_batch": (1, True),
            "expected_acceptance": (1, False),
        }
        for name, (largest, whole) in limits.items():
            value = values[name]
            if not 0 <= value <= largest or (whole and value != int(value)):
                kind = "a whole number" if whole else "a number"
                raise UserError(
                    f"{name} is {value:g}", where=f"policy {self.name}", expected=f"{kind} from 0 to {largest:g}"
                )
        outputs = [sum(values["expected_acceptance"] ** i for i in range(k + 1)) for k in range(MOST_DRAFTS + 1)]
        return DraftParams(
            most=jnp.int32(most),
            least=jnp.int32(least),
            stop_below=jnp.int32(round((1 - values["reject_threshold"]) * ONE)),
            by_batch=jnp.int32(values["by_batch"]),
            outputs=jnp.asarray([round(n * (1 << TOKEN_BITS)) for n in outputs], jnp.int32),
        )

    def compress_params(self) -> CompressParams | None:
        """Traced parameters of the KV compression; None if there is none. Raises UserError for one out of range."""
        if self.scheduler.spec.compress is None:
            return None
        values = self.settings()
        limits = {"ratio": (1 / WHOLE, 1.0), "pressure_low": (0.0, 1.0), "pressure_high": (0.0, 1.0),
                  "min_tokens": (0, MOST_TOKENS), "window": (0, MOST_TOKENS), "loss_at_20": (0.0, 1.0),
                  "loss_exponent": (0.0, 10.0), "loss_sigma": (0.0, 3.0)}  # fmt: skip
        for name, (low, high) in limits.items():
            whole = name in ("min_tokens", "window")
            if not low <= values[name] <= high or (whole and values[name] != int(values[name])):
                raise UserError(
                    f"{name} is {values[name]:g}", where=f"policy {self.name}",
                    expected=f"{low:.3g} <= {name} <= {high:g}" + (", a whole number" if whole else ""),
                )  # fmt: skip
        if values["pressure_low"] > values["pressure_high"]:
            raise UserError(
                f"pressure_low {values['pressure_low']:g} is above pressure_high {values['pressure_high']:g}",
                where=f"policy {self.name}", expected="pressure_low <= pressure_high",
            )  # fmt: skip
        share = lambda name: round(values[name] * WHOLE)
        return CompressParams(
            head=jnp.asarray([share(name) for name in COMPRESS_PARAMETERS[:3]], jnp.int32),
            min_tokens=jnp.int32(int(values["min_tokens"])),
            window=jnp.int32(int(values["window"])),
            quality=jnp.asarray([values[name] for name in COMPRESS_PARAMETERS[5:]], jnp.float32),
        )

    def _work(self, values: dict[str, float]) -> jnp.ndarray | None:
        if not self.scheduler.spec.due:
            return None
        costs = {name: values[name] for name in self.scheduler.work_params}
        for name, cost in costs.items():
            if not (0 <= cost < MOST_US[name] and cost == int(cost)):
                raise UserError(
                    f"{name} is {values[name]:g}",
                    where=f"policy {self.name}",
                    expected=f"0 <= {name} < {MOST_US[name]} us per token, a whole number",
                )
        return jnp.asarray(list(costs.values()), jnp.int32)

    def needs_ordered_budget(self) -> bool:
        """Whether the token budget can run out inside the running list, so that list order matters there."""
        values = self.settings()
        spec = self.scheduler.spec
        return spec.family == "v1" and (
            spec.priority_victims
            or spec.victim is not None
            or spec.preemptive
            or values["long_prefill_threshold"] > 0
            or values["token_budget"] < values["max_num_seqs"] * (1 + values.get("num_speculative_tokens", 0))
        )
