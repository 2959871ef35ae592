"""From a scenario and a choice of heads to an environment on the machine and its parameters."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np

from jaxsched import policies
from jaxsched.caching import with_cache
from jaxsched.envs.cluster import ClusterEnv, ClusterParams
from jaxsched.envs.controls import (
    CHOSEN_RETENTION,
    DRAFTS,
    NO_RETENTION,
    TOKEN_BUDGETS,
    chosen_eviction,
    chosen_route,
    chosen_victim,
    route_among_open,
    scored_order,
)
from jaxsched.envs.pool import Ranges, make_pool
from jaxsched.errors import UserError
from jaxsched.lanes import params_of, static_of
from jaxsched.policies.base import Policy, Router
from jaxsched.policies.compression import FIXED
from jaxsched.policies.program_fcfs import arrival_order
from jaxsched.scenario import Scenario, SloClass, load
from jaxsched.sim.static import SchedulerSpec, SimStatic
from jaxsched.timing import describe
from jaxsched.workloads import Preset, get_preset
from jaxsched.workloads.tenants import TenantMix, TenantPart

E = TypeVar("E", bound=ClusterEnv)

REWARDS = ("latency", "goodput", "fairness")
#: Workloads of an environment by default; other seeds than those that comparisons begin with (0, 1, ...).
SEEDS = range(10_000, 10_064)
_CHOSEN_ROUTER = Router(
    "chosen", chosen_route, "the instance that was chosen", "", reads_blocks=True, reads_cache="cache",
    params={"chosen_instance": 0.0},
)  # fmt: skip
_OPEN_ROUTER = Router(
    "open", route_among_open, "fewest outstanding requests among instances that are on", "", params={"open": 1.0}
)  # fmt: skip


def llama_on_a100(
    name: str, workload: Preset, num_programs: int, rate_per_s: float, *, num_instances: int = 1,
    ttft_us: int = 1_000_000, **others: Any,
) -> Scenario:  # fmt: skip
    """A default scenario: Llama-3-8B on A100s, interactive limits (`ttft_us`, 50 ms per token)."""
    return Scenario(
        name=name,
        workload=workload,
        num_programs=num_programs,
        rate_per_s=rate_per_s,
        num_instances=num_instances,
        usable_blocks=28_182,
        timing=describe("llama-3-8b", "a100").params,
        max_model_len=8_192,
        slo=(SloClass("interactive", ttft_us=ttft_us, tpot_us=50_000),),
        **others,
    )


def mixture(name: str, summary: str, *parts: tuple[str, str, float, float, float]) -> Preset:
    """A workload of several kinds of requests: (name, preset, per second, from and to which share of the episode)."""
    kinds = [TenantPart(kind, get_preset(preset).spec, *rest) for kind, preset, *rest in parts]  # type: ignore[arg-type]
    mix = TenantMix(tuple(kinds))
    return Preset(name, summary, "configuration", mix, mix.rate_per_s)


def build(
    cls: type[E],
    available: Sequence[str],
    scenario: Scenario,
    *,
    heads: Iterable[str],
    policy: str,
    settings: dict[str, float],
    seeds: int | Iterable[int],
    ranges: Ranges | None,
    reward: str,
    burst: int,
    tick_ms: float | None,
    num_items: int,
    num_slots: int,
    cache_runs: int,
    horizon_s: float | None,
    residual_s: float,
    length_error: float | None,
    work_error: float | None,
    max_steps: int,
    to_arrival: bool = False,
    loss_cost: float = 1.0,
) -> tuple[E, ClusterParams]:
    """See the environments for what each argument means.

    Raises:
        UserError: an argument that no environment of this kind can be built from.
    """
    where = f"environment {cls.name}"
    learned = _heads(heads, available, where)
    if reward not in REWARDS:
        raise UserError(f"unknown reward {reward!r}", where=where, expected=f"one of {', '.join(REWARDS)}")
    if reward == "fairness" and not scenario.tenants:
        raise UserError("reward 'fairness' without tenants", where=where, expected="a scenario with tenants")
    for name, value, least in (("burst", burst, 1), ("num_items", num_items, 1), ("max_steps", max_steps, 1)):
        if int(value) < least:
            raise UserError(f"{name} {value}", where=where, expected=f"at least {least}")
    if tick_ms is not None and not 0 < tick_ms * 1000 < 2**29:
        raise UserError(f"tick_ms {tick_ms}", where=where, expected="milliseconds above 0, at most 500,000")
    if horizon_s is not None and not horizon_s > 0:
        raise UserError(f"horizon_s {horizon_s}", where=where, expected="seconds above 0, or None: until all is done")
    for name, value in (("residual_s", residual_s), ("loss_cost", loss_cost)):
        if not 0 <= value < np.inf:
            raise UserError(f"{name} {value}", where=where, expected="a finite number of at least 0")
    seeds = list(range(SEEDS.start, SEEDS.start + seeds)) if isinstance(seeds, int) else [int(s) for s in seeds]

    chosen = inline_policy(policy, settings, learned, where)
    scenario = dataclasses.replace(
        scenario,
        num_slots=max(num_slots, int(chosen.settings()["max_num_seqs"])),
        horizon_us=None if horizon_s is None else round(horizon_s * 1e6),
    )
    pool = make_pool(scenario, seeds, ranges)
    scenario.check(chosen)
    static = with_cache(static_of(scenario, chosen), scenario, pool.requests)
    static = _sized(static, scenario, cache_runs)
    if static.num_classes > 1 and scenario.max_turns > 1:
        raise UserError(
            f"scenario {scenario.name} has {static.num_classes} classes of programs with several turns",
            where=where,
            expected="one class, or programs of one turn: costs are kept by class only for those",
        )
    if static.route_by_cache == "record":
        raise UserError(f"policy {policy} remembers what it sent", where=where, expected="a router without a record")
    if (spec := static.scheduler) and (spec.retain or spec.gate) and static.prefix_cache != "runs":
        raise UserError(
            f"heads {', '.join(learned)} with policy {policy}: nothing is retained",
            where=where,
            expected="a workload of several turns per program, and a prefix cache of runs",
            hint="Leave out retain, evict and gate, and take a policy without them.",
        )
    env = cls(
        static=static,
        learned=learned,
        num_programs=scenario.num_programs,
        burst=int(burst),
        num_items=int(num_items),
        ticks=tick_ms is not None,
        to_arrival=to_arrival,
        reward=reward,
    )
    hidden = lambda sigma: jnp.float32(-1.0 if sigma is None else sigma)
    params = ClusterParams(
        sim=params_of(scenario, chosen),
        pool=pool,
        class_weight=jnp.ones(static.num_classes, jnp.float32),
        residual_s=jnp.float32(residual_s),
        tick_us=jnp.int32(0 if tick_ms is None else round(tick_ms * 1000)),
        length_error=hidden(length_error),
        work_error=hidden(work_error),
        max_steps_in_episode=jnp.int32(max_steps),
        loss_cost=jnp.float32(loss_cost) if "ratio" in learned else None,
    )
    return env, params


def scenario_of(given: Scenario | str | None, default: Scenario, num_programs: int | None) -> Scenario:
    """The scenario of an environment: the default, one by hand, or a file."""
    scenario = default if given is None else load(given) if isinstance(given, str) else given
    if num_programs is not None:
        if num_programs < 1:
            raise UserError(f"num_programs {num_programs}", where="environment", expected="at least 1")
        scenario = dataclasses.replace(scenario, num_programs=num_programs)
    return scenario


def _heads(heads: Iterable[str], available: Sequence[str], where: str) -> tuple[str, ...]:
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    if not heads:
        raise UserError("no heads", where=where, expected=f"some of {', '.join(available)}")
    for head in heads:
        if head not in available:
            near = difflib.get_close_matches(head, available, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else ""
            raise UserError(
                f"unknown head {head!r}", where=where, expected=f"some of {', '.join(available)}", hint=hint
            )
    return tuple(head for head in available if head in heads)


def inline_policy(name: str, settings: dict[str, float], learned: tuple[str, ...], where: str) -> Policy:
    """The policy whose heads run inline, with those that are learned in place of its own."""
    base = policies.get(name).with_params(**settings)
    scheduler, spec, overrides = base.scheduler, base.scheduler.spec, dict(base.overrides)
    copies = spec.offload is not None and learned != ("route",)  # heads that price contexts know of one place for them
    if spec.family != "v1" or spec.asynchronous or copies or scheduler.sees_true_length:
        raise UserError(
            f"policy {name} cannot run inline",
            where=where,
            expected="a synchronous V1 scheduler that is no bound and copies nothing, e.g. gittins+gate",
        )
    _check_features(name, spec, learned, where)
    changes: dict[str, Any] = {"order": spec.order or arrival_order}
    if "order" in learned:
        changes |= {"order": scored_order, "static_keys": True, "preemptive": False, "service": None}
        changes |= {"priority_victims": False}
        scheduler = dataclasses.replace(scheduler, order_params={})
    if "retain" in learned:
        changes["retain"] = CHOSEN_RETENTION
        scheduler = dataclasses.replace(scheduler, retain_params={})
    if "evict" in learned:
        changes["retain"] = dataclasses.replace(
            changes.get("retain", spec.retain or NO_RETENTION), value=chosen_eviction
        )
    if "gate" in learned:
        changes["gate"] = True
    if "preempt" in learned:
        changes |= {"victim": chosen_victim, "priority_victims": False}
    if "ratio" in learned:
        changes["compress"] = FIXED
    scheduler = dataclasses.replace(scheduler, spec=dataclasses.replace(spec, **changes))
    router = _CHOSEN_ROUTER if "route" in learned else _OPEN_ROUTER if "scale" in learned else base.router
    if "draft" in learned and "num_speculative_tokens" in settings:
        raise UserError(
            "num_speculative_tokens with head 'draft'", where=where, expected="one of them: the head chooses the number"
        )
    if "draft" in learned:  # room in the budget, and in what is compiled, for the longest drafts
        base = base.with_params(num_speculative_tokens=max(DRAFTS))
        overrides = dict(base.overrides)
    if "batch" in learned:
        least, each = int(base.settings()["max_num_seqs"]), 1 + int(base.settings().get("num_speculative_tokens", 0))
        if least * each > min(TOKEN_BUDGETS):
            raise UserError(
                f"max_num_seqs {least}" + (f" of {each} tokens, drafts included" if each > 1 else ""), where=where,
                expected=f"at most the smallest budget, {min(TOKEN_BUDGETS)}",
                hint=f"Set max_num_seqs={min(TOKEN_BUDGETS) // each}, or leave the batch as it is." if each > 1 else "",
            )  # fmt: skip
    policy = dataclasses.replace(base, name=f"{name} with learned {', '.join(learned)}", scheduler=scheduler)
    policy = dataclasses.replace(policy, router=router)
    known = policy.settings()
    return dataclasses.replace(policy, overrides=tuple((k, v) for k, v in overrides.items() if k in known))


def _check_features(name: str, spec: SchedulerSpec, learned: tuple[str, ...], where: str) -> None:
    """Refuse heads of something that the inline policy does not do."""
    for head, there, what, example in (
        ("draft", spec.speculates, "drafts no tokens", "vllm+spec"),
        ("ratio", spec.compress is not None, "compresses no KV", "vllm+h2o"),
    ):
        if head in learned and not there:
            raise UserError(
                f"head {head!r} with policy {name}, which {what}", where=where,
                expected=f"an inline policy that does, e.g. policy={example!r}",
            )  # fmt: skip


def _sized(static: SimStatic, scenario: Scenario, cache_runs: int) -> SimStatic:
    """Tables no longer than an episode needs: a step copies what it may replace by a new episode."""
    capacity = 1 << int(np.ceil(np.log2(static.num_slots + scenario.num_programs + 1)))
    # (A burst is a number of micro-steps: what they take in is part of what a decision is.)
    static = dataclasses.replace(static, queue_capacity=capacity, dense=False, histograms=False)
    if static.prefix_cache == "runs":
        static = dataclasses.replace(static, cache_entries=cache_runs)
    return static
