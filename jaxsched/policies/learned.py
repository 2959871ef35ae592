"""Learned policies: the index network inside the machine, with weights from an exported training run.

``get("runs/<name>")``, ``get("path/to/policy.json")``: the policy that a run of `train/es.py` wrote
(jaxsched/checkpoint.py has the format). Rule: jaxsched/networks/index.py. Nothing is sampled: the same weights make the
same decisions.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxsched.errors import UserError
from jaxsched.networks import fair
from jaxsched.networks.features import GATE_FEATURES, PAUSE_FEATURES, TURN_FEATURES
from jaxsched.policies.base import Scheduler
from jaxsched.sim.static import SchedulerSpec

if TYPE_CHECKING:
    from jaxsched.checkpoint import PolicyExport

KIND = "index"
#: The index network of tenants (jaxsched/networks/fair.py): an order, and who gives way to it.
FAIR_KIND = "fair_index"
#: The deadline index (jaxsched/networks/deadline.py): an order and who is refused.
DEADLINE_KIND = "deadline_index"
KINDS = (KIND, FAIR_KIND, DEADLINE_KIND)


def num_weights(hidden: int = 0, kind: str = KIND) -> int:
    """Length of the vector of weights."""
    from jaxsched.networks.deadline import DeadlineShape  # which import policies
    from jaxsched.networks.index import IndexShape

    shapes = {KIND: IndexShape, FAIR_KIND: fair.FairShape, DEADLINE_KIND: DeadlineShape}
    return shapes[kind](hidden).num_weights


def learned(
    weights: Sequence[float] | np.ndarray | None = None, hidden: int = 0, name: str = "learned", kind: str = KIND
) -> Scheduler:
    """The index network of that kind with these weights; None: all 0, the network's own rule."""
    from jaxsched.networks.deadline import DEFAULTS, WORK, DeadlineOrder, DeadlineRefusal, DeadlineShape
    from jaxsched.networks.index import GateIndex, IndexShape, OrderIndex, retain_head

    values = np.zeros(num_weights(hidden, kind)) if weights is None else np.asarray(weights, np.float64)
    if values.shape != (num_weights(hidden, kind),):
        wanted = num_weights(hidden, kind)
        raise ValueError(f"an index network with {hidden} hidden units has {wanted} weights: {values.shape}")
    vector = tuple(float(v) for v in values)
    if kind == FAIR_KIND:
        spec = SchedulerSpec(
            name, order=fair.order_head(hidden), static_keys=False, preemptive=True, fair=fair.COUNTERS
        )
        summary = "learned choice of who of several tenants runs (index network)"
        return Scheduler(spec, summary, "train/es.py", weights=vector)
    if kind == DEADLINE_KIND:
        spec = SchedulerSpec(
            name,
            order=DeadlineOrder(DeadlineShape(hidden)),
            static_keys=False,
            due=True,
            rejects_late=True,
            refuse=DeadlineRefusal(),
        )
        summary = "learned order and refusal by deadlines (index network)"
        return Scheduler(spec, summary, "train/es.py", DEFAULTS, work_params=WORK, weights=vector)
    shape = IndexShape(hidden)
    spec = SchedulerSpec(
        name,
        order=OrderIndex(shape),
        retain=retain_head(shape),
        gate=True,
        gate_share=GateIndex(shape),
    )
    summary = "learned order, price of kept contexts and gate (index network)"
    return Scheduler(spec, summary, "train/es.py", weights=vector)


def describe(hidden: int, kind: str = KIND) -> dict[str, object]:
    """The network as `checkpoint.save_policy` keeps it."""
    if kind == FAIR_KIND:
        features = {"features": list(fair.FEATURES), "hold_features": list(fair.HOLD_FEATURES)}
        return {"kind": FAIR_KIND, "hidden": hidden, **features}
    if kind == DEADLINE_KIND:
        from jaxsched.networks.deadline import ORDER_FEATURES, REFUSE_FEATURES

        features = {"order_features": list(ORDER_FEATURES), "refuse_features": list(REFUSE_FEATURES)}
        return {"kind": DEADLINE_KIND, "hidden": hidden, **features}
    return {
        "kind": KIND,
        "hidden": hidden,
        "turn_features": list(TURN_FEATURES),
        "pause_features": list(PAUSE_FEATURES),
        "gate_features": list(GATE_FEATURES),
    }


def is_path(name: str) -> bool:
    """Whether a scheduler's name means a file or folder and not an entry of the catalogue."""
    return "/" in name or os.sep in name or name.endswith((".json", ".msgpack"))


def network_export(path: str) -> PolicyExport | None:
    """The export if it is of a set network, which decides between bursts of the machine; else None."""
    from jaxsched.checkpoint import load_policy

    export = load_policy(path)
    return export if export.network.get("kind") == "set" else None


def from_export(path: str) -> Scheduler:
    """The scheduler of an exported policy.

    Raises:
        UserError: the files are missing, damaged, or hold another network than this version's index network.
    """
    from jaxsched.checkpoint import load_policy

    export = load_policy(path)
    hidden = export.network.get("hidden")
    where = str(export.path / "policy.json")
    kind = str(export.network.get("kind"))
    if kind not in KINDS or not isinstance(hidden, int) or isinstance(hidden, bool) or hidden < 0:
        raise UserError(
            f"holds a network of kind {export.network.get('kind')!r}, which has no place in the scheduler",
            where=where,
            expected=f"kind {' or '.join(map(repr, KINDS))}, as `python -m train` writes it for algorithm es",
        )
    if export.network != (wanted := describe(hidden, kind)):
        other = next(name for name in wanted if export.network.get(name) != wanted[name])
        raise UserError(
            f"has other {other} than this version: {export.network.get(other)}",
            where=where,
            expected=f"{wanted[other]}",
            hint="Train it again, or use the version of jaxsched that wrote it.",
        )
    weights = export.params_like({"weights": np.zeros(num_weights(hidden, kind), np.float32)})["weights"]
    if not np.all(np.isfinite(weights)):
        raise UserError("holds weights that are not finite", where=where, expected="finite numbers")
    return learned(weights, hidden, name=path, kind=kind)
