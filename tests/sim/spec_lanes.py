"""Draft models and rules of random lanes, as the reference and as the machine take them."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxsched.policies.base import DRAFT_PARAMETERS
from jaxsched.policies.vllm import VLLM
from jaxsched.sim.speculate import DraftParams, SpecParams
from jaxsched.speculation import DraftModel
from tests.oracle.speculation import Speculation


def random_speculation(draw: random.Random, lattice_us: int) -> Speculation:
    """Any rule: fixed, by threshold, by batch, or two of them at once; `lattice_us` > 0: times are multiples of it."""
    model = DraftModel(
        acceptance=draw.choice([0.0, 0.4, 0.7, 0.9, 1.0]),
        request_spread=draw.choice([0.0, 0.1, 0.5]),
        token_spread=draw.choice([0.0, 0.4, 0.8]),
        head_accuracy=draw.choice([0.0, 0.8, 1.0]),
        draft_pass_us=lattice_us * draw.randrange(3) if lattice_us else draw.choice([0, 300, 1500, 4000]),
        draft_token_us=0.0 if lattice_us else draw.choice([0.0, 7.3, 100.0]),
    )
    most = draw.choice([0, 1, 2, 4, 8])
    rule = {
        "num_speculative_tokens": most,
        "min_speculative_tokens": draw.choice([0, min(2, most)]),
        "reject_threshold": draw.choice([0.0, 0.3, 0.7, 1.0]),
        "by_batch": draw.choice([0, 1]),
        "expected_acceptance": draw.choice([0.3, 0.5, 0.8]),
    }
    return from_machine(model.params(), draft_params(rule))


def draft_params(rule: dict[str, float]) -> DraftParams:
    """The machine's parameters of a rule, by the names of a policy."""
    spec = dataclasses.replace(VLLM.spec, speculates=True)
    scheduler = dataclasses.replace(VLLM, spec=spec, draft_params=dict(DRAFT_PARAMETERS))
    from jaxsched import policies

    policy = dataclasses.replace(policies.get("vllm"), scheduler=scheduler).with_params(**rule)
    found = policy.params(64).draft
    assert found is not None
    return found


def from_machine(model: SpecParams, rule: DraftParams) -> Speculation:
    """The reference's form of both."""
    return Speculation(
        most=int(rule.most),
        least=int(rule.least),
        stop_below=int(rule.stop_below),
        by_batch=bool(rule.by_batch),
        outputs=tuple(np.asarray(rule.outputs).tolist()),
        chances=tuple(tuple(row) for row in np.asarray(model.accept).tolist()),
        means=tuple(np.asarray(model.mean).tolist()),
        head=int(model.head),
        pass_us=int(model.draft_pass_us),
        token=int(model.draft_token),
    )


def to_machine(lanes: Sequence[Speculation]) -> tuple[SpecParams, DraftParams]:
    """Draft models and rules of lanes, stacked."""

    def column(name: str) -> np.ndarray:
        return np.asarray([getattr(lane, name) for lane in lanes], np.int32)

    model: dict[str, Any] = dict(
        accept=column("chances"), mean=column("means"), head=column("head"), draft_pass_us=column("pass_us"),
        draft_token=column("token"),
    )  # fmt: skip
    names = ("most", "least", "stop_below", "by_batch", "outputs")
    rule: dict[str, Any] = {name: column(name) for name in names}
    return SpecParams(**model), DraftParams(**rule)
