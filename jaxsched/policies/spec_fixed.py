"""Speculative decoding with a fixed draft length: any synchronous scheduler of the V1 engine, with `+spec`.

Rule: every request that has all its KV but for its last token drafts `num_speculative_tokens` tokens at each step; the
target model verifies them in that step and keeps those before the first that it would not have taken, and one of its
own (Leviathan, Kalman and Matias, ICML 2023). Slots for `num_speculative_tokens` more are held ahead of the drafts.
Faithful: tokens scheduled, blocks held, budget and preemption as in vLLM V1 (num_tokens_with_spec,
num_lookahead_tokens, rejected tokens roll back num_computed_tokens, their blocks stay). Simplified: drafts are made in
the step that verifies them, not at the end of the one before (vLLM), so a first token does not wait for drafts; how
often the draft model is right is a property of the scenario (`speculation`), not of texts.
"""

from __future__ import annotations

import dataclasses

from jaxsched.errors import UserError
from jaxsched.policies.base import DRAFT_PARAMETERS, Scheduler


@dataclasses.dataclass(frozen=True)
class Speculation:
    """One named way to choose how many tokens are drafted."""

    name: str
    summary: str
    source: str
    params: dict[str, float] = dataclasses.field(default_factory=dict)  # over `DRAFT_PARAMETERS`


SPEC_FIXED = Speculation("spec", "drafts a fixed number of tokens per step", "Leviathan et al., ICML 2023; vLLM V1")


def with_speculation(scheduler: Scheduler, rule: Speculation) -> Scheduler:
    """`scheduler` that speculates.

    Raises:
        UserError: it is not a synchronous V1 engine, or tests memory with a rule of its own, or offloads contexts.
    """
    spec = scheduler.spec
    found = {
        f"the {spec.family} engine": spec.family != "v1",
        "asynchronous stepping": spec.asynchronous,
        "an admission test of its own": spec.admit is not None,
        "copies to host memory": spec.offload is not None,
        "KV compression": spec.compress is not None,
        "two rules of speculation": spec.speculates,
    }
    for what, is_there in found.items():
        if is_there:
            raise UserError(
                f"{spec.name}+{rule.name}: speculation does not go with {what}",
                expected="a synchronous scheduler of the V1 engine, e.g. vllm or srpt",
            )
    spec = dataclasses.replace(spec, name=f"{spec.name}+{rule.name}", speculates=True)
    return dataclasses.replace(scheduler, spec=spec, draft_params={**DRAFT_PARAMETERS, **rule.params})
