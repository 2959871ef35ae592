"""The catalogue: `get(name)` gives a policy, `compose(...)` mixes a scheduler with a router."""

from __future__ import annotations

import dataclasses
import difflib
from typing import NoReturn

from jaxsched.errors import UserError
from jaxsched.policies.aggressive import AGGRESSIVE
from jaxsched.policies.aios import AIOS_FIFO, AIOS_RR
from jaxsched.policies.april import APRIL, with_partial_rollouts
from jaxsched.policies.atc import ATC
from jaxsched.policies.atlas import ATLAS
from jaxsched.policies.base import PARAMETERS, Policy, Retention, Router, Scheduler
from jaxsched.policies.batchllm import BATCHLLM, PREFIX_GROUPS
from jaxsched.policies.clairvoyant import BELADY, CLAIR_TTL, PEAK_FRACTION, SRPT_PROGRAM
from jaxsched.policies.compression import COMPRESSIONS
from jaxsched.policies.conservative import CONSERVATIVE
from jaxsched.policies.continuum import CONTINUUM
from jaxsched.policies.continuum import RETENTIONS as CONTINUUM_RETENTIONS
from jaxsched.policies.drr import DRR
from jaxsched.policies.early_reject import EARLY_REJECT, with_early_rejection
from jaxsched.policies.edd import EDD, EDF
from jaxsched.policies.ewsjf import EWSJF
from jaxsched.policies.fastswitch import FASTSWITCH, VLLM_SWAP
from jaxsched.policies.gittins import GITTINS, GITTINS_INDEX, GITTINS_RETENTION
from jaxsched.policies.headroom import PRIORITY_HEADROOM
from jaxsched.policies.learned import from_export, is_path, network_export
from jaxsched.policies.mdd import MDD
from jaxsched.policies.minwaste import MINWASTE
from jaxsched.policies.mlfq import MLFQ
from jaxsched.policies.offload import LEARN_PAUSES, OFFLOAD, PREFETCH, TIER_DEFAULTS, Offload
from jaxsched.policies.orca import ORCA
from jaxsched.policies.past_future import PAST_FUTURE
from jaxsched.policies.plas import PLAS
from jaxsched.policies.program_fcfs import PROGRAM_FCFS, arrival_order
from jaxsched.policies.routers import ROUTERS
from jaxsched.policies.sarathi import SARATHI
from jaxsched.policies.semantic_cache import SEMANTIC_CACHE, with_semantic_cache
from jaxsched.policies.sjf import SJF, SJF_ORACLE
from jaxsched.policies.slack import SLACK
from jaxsched.policies.spec_fixed import SPEC_FIXED, Speculation, with_speculation
from jaxsched.policies.spec_goodput import SPEC_GOODPUT
from jaxsched.policies.specdec import SPECDEC
from jaxsched.policies.srpt import SRPT, SRPT_ORACLE
from jaxsched.policies.static_batching import STATIC
from jaxsched.policies.vllm import VLLM, VLLM_ASYNC, VLLM_PRIORITY
from jaxsched.policies.vllm_v0 import VLLM_V0
from jaxsched.policies.vtc import VTC, VTC_ORACLE, VTC_PREDICT
from jaxsched.policies.wfq import WFQ
from jaxsched.sim.retain import OffloadRule

SCHEDULERS: dict[str, Scheduler] = {
    entry.spec.name: entry
    for entry in (
        VLLM, VLLM_ASYNC, VLLM_PRIORITY, VLLM_V0, SARATHI, ORCA, STATIC,
        SJF, SJF_ORACLE, SRPT, SRPT_ORACLE, MLFQ, EWSJF, PROGRAM_FCFS, CONTINUUM, GITTINS, PLAS, ATLAS,
        PAST_FUTURE, AGGRESSIVE, CONSERVATIVE, PRIORITY_HEADROOM, FASTSWITCH, VLLM_SWAP, CLAIR_TTL, SRPT_PROGRAM,
        VTC, VTC_PREDICT, VTC_ORACLE, WFQ, DRR, AIOS_FIFO, AIOS_RR,
        EDD, EDF, MDD, SLACK, ATC, BATCHLLM,
    )
}  # fmt: skip
DEFAULT_ROUTER = "least_outstanding"
#: Retention rules that go with any scheduler of the V1 engine: ``get("pfcfs+ttl")``.
RETENTIONS: dict[str, Retention] = {
    **CONTINUUM_RETENTIONS,
    GITTINS_RETENTION.name: GITTINS_RETENTION,
    GITTINS_INDEX.name: GITTINS_INDEX,
    BELADY.name: BELADY,
    MINWASTE.name: MINWASTE,
}
GATE, PEAK = "gate", "peak"
#: Rules that copy contexts to host memory, for the same schedulers: ``get("continuum+offload")``.
OFFLOADS: dict[str, Offload] = {entry.name: entry for entry in (OFFLOAD, PREFETCH)}
#: How many tokens are drafted, for synchronous schedulers of the V1 engine: ``get("vllm+spec")``.
SPECULATIONS: dict[str, Speculation] = {entry.name: entry for entry in (SPEC_FIXED, SPECDEC, SPEC_GOODPUT)}
#: Names that may follow a scheduler's, besides a router's.
PARTS = (
    *RETENTIONS, GATE, PEAK, EARLY_REJECT, *OFFLOADS, PREFIX_GROUPS, APRIL, *SPECULATIONS, *COMPRESSIONS, SEMANTIC_CACHE
)  # fmt: skip


def _lookup(table: dict, name: str, kind: str):
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else ""
    raise UserError(f"unknown {kind} {name!r}", expected=f"one of {', '.join(table)}", hint=hint)


def get(name: str, **params: float) -> Policy:
    """The policy `name`: a scheduler, then in any order a retention rule, a gate and a router, joined by "+".

    ``get("vllm")``, ``get("sarathi+least_kv", token_budget=1024)``, ``get("gittins+gate+program_sticky")``. A path
    with a slash is a learned policy, exported by a training run: ``get("runs/a")``, ``get("runs/a+program_sticky")``.
    """
    scheduler, router = split_name(name)
    return compose(scheduler, router or DEFAULT_ROUTER, name=name, **params)


def split_name(name: str) -> tuple[str, str]:
    """``"gittins+gate+program_sticky"`` into the scheduler with its parts and the router ("" if none is named)."""
    scheduler, *parts = name.split("+")
    routers = [part for part in parts if part in ROUTERS]
    if len(routers) > 1:
        raise UserError(f"policy {name!r} has two routers: {', '.join(routers)}", expected="one")
    rest = [part for part in parts if part not in ROUTERS]
    return "+".join([scheduler, *rest]), routers[0] if routers else ""


def compose(scheduler: str, router: str = DEFAULT_ROUTER, *, name: str | None = None, **params: float) -> Policy:
    """A policy from a scheduler and a router of the catalogue, with parameters overridden.

    `scheduler` may carry a retention rule, the gate and an offload rule: ``"pfcfs+ttl"``, ``"gittins+gate+offload"``.
    """
    first, *parts = scheduler.split("+")
    if is_path(first) and (export := network_export(first)) is not None:
        return _with_network(export, name or scheduler, parts, router, params)
    chosen = from_export(first) if is_path(first) else _lookup(SCHEDULERS, first, "policy")
    for part in parts:
        if part not in PARTS:
            _lookup(dict.fromkeys((*PARTS, *ROUTERS)), part, "part of a policy")
        chosen = _with_part(chosen, part)
    chosen = _that_learns(chosen)
    policy = Policy(name or f"{scheduler}+{router}", chosen, _lookup(ROUTERS, router, "router"))
    return policy.with_params(**params) if params else policy


def _with_network(export, name: str, parts: list[str], router: str, params: dict[str, float]) -> Policy:
    """A trained set network with the policy that runs inline beside it."""
    from jaxsched.envs.deploy import deployed

    if parts:
        raise UserError(f"{name}: a learned policy has its parts from its training", expected="the path alone")
    policy = dataclasses.replace(deployed(export, name), router=_lookup(ROUTERS, router, "router"))
    return policy.with_params(**params) if params else policy


def _that_learns(scheduler: Scheduler) -> Scheduler:
    """Prefetching needs the pauses seen: where the retention rule does not keep them, it does so now."""
    rule, head = scheduler.spec.offload, scheduler.spec.retain
    if rule is None or rule.returns_in is None or (head is not None and head.start is not None):
        return scheduler
    learns = LEARN_PAUSES
    if head is not None:
        learns = dataclasses.replace(head, start=LEARN_PAUSES.start, returned=LEARN_PAUSES.returned)
    return dataclasses.replace(scheduler, spec=dataclasses.replace(scheduler.spec, retain=learns))


def _with_part(scheduler: Scheduler, part: str) -> Scheduler:
    """A scheduler with a retention rule or the gate added; its queue becomes one that they can look into."""
    if part == SEMANTIC_CACHE:
        return with_semantic_cache(scheduler)
    if part in SPECULATIONS:
        return with_speculation(scheduler, SPECULATIONS[part])
    spec = scheduler.spec
    if part == PREFIX_GROUPS:  # an order of the job list, not of the queue: it goes with every engine
        return dataclasses.replace(scheduler, orders_jobs=True)
    if part in COMPRESSIONS:
        return _compressing(scheduler, part)
    if part == APRIL:
        return with_partial_rollouts(scheduler)
    if spec.family != "v1":
        raise UserError(
            f"{spec.name}+{part}: the {spec.family} engine has no prefix cache and no ordered queue",
            expected="a scheduler of the V1 engine, e.g. vllm or pfcfs",
        )
    if spec.compress is not None and part != EARLY_REJECT:
        raise UserError(
            f"{spec.name}+{part}: an engine that compresses KV has no prefix cache to keep contexts in",
            expected="the compression alone, with a router, +prefix_groups, +april or +early_reject",
        )
    spec = dataclasses.replace(spec, name=f"{spec.name}+{part}", order=spec.order or arrival_order)
    if scheduler.weights is not None and part not in OFFLOADS:
        raise UserError(
            f"{scheduler.spec.name}+{part}: a learned policy decides that itself",
            expected="the learned policy alone, or with a router",
        )
    if part == EARLY_REJECT:
        return with_early_rejection(dataclasses.replace(scheduler, spec=spec))
    if part == GATE:
        return dataclasses.replace(scheduler, spec=dataclasses.replace(spec, gate=True))
    if part == PEAK:
        spec = dataclasses.replace(spec, gate=True, gate_final=True, foresees=True)
        defaults = {**scheduler.defaults, "gate_fraction": PEAK_FRACTION}
        return dataclasses.replace(scheduler, spec=spec, defaults=defaults)
    if part in OFFLOADS:
        spill = OFFLOADS[part]
        return _offloading(dataclasses.replace(scheduler, spec=spec), spill.rule, spill.params)
    rule = RETENTIONS[part]
    if rule.head.value is not None and spec.offload is not None:
        _refuse_order_with_tiers(spec.name)
    spec = dataclasses.replace(spec, retain=rule.head)
    scheduler = dataclasses.replace(scheduler, spec=spec, retain_params=dict(rule.params))
    return scheduler if rule.offload is None else _offloading(scheduler, rule.offload, TIER_DEFAULTS)


def _compressing(scheduler: Scheduler, part: str) -> Scheduler:
    """A scheduler whose engine compresses KV."""
    spec, method = scheduler.spec, COMPRESSIONS[part]
    if not spec.stops_for_rounds or spec.compress is not None:  # the same engines: nobody keeps KV or accounts of it
        raise UserError(
            f"{spec.name}+{part}: KV compression goes with synchronous V1 engines that keep no contexts, once",
            expected="a scheduler of the V1 engine without retention, gate, offload or another compression, e.g. vllm",
        )
    spec = dataclasses.replace(spec, name=f"{spec.name}+{part}", compress=method.head)
    return dataclasses.replace(scheduler, spec=spec, compress_params=dict(method.params))


def _refuse_order_with_tiers(name: str) -> NoReturn:
    raise UserError(
        f"{name}: an eviction order of contexts goes without memory tiers",
        expected="another retention rule, e.g. gittins or ttl",
    )


def _offloading(scheduler: Scheduler, rule: OffloadRule, params: dict[str, float]) -> Scheduler:
    """A scheduler that copies contexts to host memory."""
    if scheduler.spec.speculates:
        raise UserError(f"{scheduler.spec.name}: memory tiers do not go with speculation", expected="one of the two")
    if scheduler.spec.asynchronous:
        raise UserError(
            f"{scheduler.spec.name}: memory tiers go with synchronous stepping only",
            expected="a synchronous scheduler of the V1 engine, e.g. vllm or continuum",
        )
    if scheduler.spec.retain is not None and scheduler.spec.retain.value is not None:
        _refuse_order_with_tiers(scheduler.spec.name)
    spec = dataclasses.replace(scheduler.spec, offload=rule)
    return dataclasses.replace(scheduler, spec=spec, tier_params={**params, **scheduler.tier_params})


__all__ = [
    "COMPRESSIONS",
    "OFFLOADS",
    "PARAMETERS",
    "RETENTIONS",
    "ROUTERS",
    "SCHEDULERS",
    "SEMANTIC_CACHE",
    "SPECULATIONS",
    "Policy",
    "Router",
    "Scheduler",
    "compose",
    "get",
    "split_name",
]
