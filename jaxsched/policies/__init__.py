"""The catalogue: `get(name)` gives a policy, `compose(...)` mixes a scheduler with a router."""

from __future__ import annotations

import difflib

from jaxsched.errors import UserError
from jaxsched.policies.base import PARAMETERS, Policy, Router, Scheduler
from jaxsched.policies.ewsjf import EWSJF
from jaxsched.policies.mlfq import MLFQ
from jaxsched.policies.orca import ORCA
from jaxsched.policies.routers import ROUTERS
from jaxsched.policies.sarathi import SARATHI
from jaxsched.policies.sjf import SJF, SJF_ORACLE
from jaxsched.policies.srpt import SRPT, SRPT_ORACLE
from jaxsched.policies.static_batching import STATIC
from jaxsched.policies.vllm import VLLM, VLLM_ASYNC, VLLM_PRIORITY
from jaxsched.policies.vllm_v0 import VLLM_V0

SCHEDULERS: dict[str, Scheduler] = {
    entry.spec.name: entry
    for entry in (
        VLLM, VLLM_ASYNC, VLLM_PRIORITY, VLLM_V0, SARATHI, ORCA, STATIC,
        SJF, SJF_ORACLE, SRPT, SRPT_ORACLE, MLFQ, EWSJF,
    )
}  # fmt: skip
DEFAULT_ROUTER = "least_outstanding"


def _lookup(table: dict, name: str, kind: str):
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else ""
    raise UserError(f"unknown {kind} {name!r}", expected=f"one of {', '.join(table)}", hint=hint)


def get(name: str, **params: float) -> Policy:
    """The policy `scheduler` or `scheduler+router`: ``get("vllm")``, ``get("sarathi+least_kv", token_budget=1024)``."""
    scheduler, _, router = name.partition("+")
    return compose(scheduler, router or DEFAULT_ROUTER, name=name, **params)


def compose(scheduler: str, router: str = DEFAULT_ROUTER, *, name: str | None = None, **params: float) -> Policy:
    """A policy from a scheduler and a router of the catalogue, with parameters overridden."""
    policy = Policy(
        name or f"{scheduler}+{router}", _lookup(SCHEDULERS, scheduler, "policy"), _lookup(ROUTERS, router, "router")
    )
    return policy.with_params(**params) if params else policy


__all__ = ["PARAMETERS", "ROUTERS", "SCHEDULERS", "Policy", "Router", "Scheduler", "compose", "get"]
