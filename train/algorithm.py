"""What the training loop needs to know of an algorithm, whichever it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Array


@dataclass(frozen=True)
class Algorithm:
    """Pure functions and what they are called with.

    Attributes:
        name: for logs.
        init: ``init(key, hyper) -> state``: the whole learner as one pytree of arrays (anything needed to go on).
        update: ``update(state, hyper) -> (state, metrics)``: one iteration; metrics are scalars by name. Those named
            ``nonfinite/...`` are 1 where something holds a NaN or infinity, in the order in which data flow.
        act, learn: the two halves of `update`, for algorithms that have them: ``act(state, hyper) -> (state, data)``
            runs the environments, ``learn(state, hyper, data) -> (state, metrics)`` does the rest. On a CPU the machine
            wants other compiler options than matrix products do (docs/decisions/0002), so each can be its own program.
        hyper: pytree of traced settings: `vmap` over it (and over keys) trains many learners in one program.
        params: ``params(state)``: what is exported.
        network: plain data naming the network (``policy.json``).
        sizes: plain data, sizes trained at.
        decisions: environment decisions of one iteration.
        headline: metric that is shown while training.
    """

    name: str
    init: Callable[[Array, Any], Any]
    update: Callable[[Any, Any], tuple[Any, dict[str, Array]]]
    hyper: Any
    params: Callable[[Any], Any]
    network: dict[str, Any]
    decisions: int
    sizes: dict[str, Any] = field(default_factory=dict)
    headline: str = "reward_per_s"
    act: Callable[[Any, Any], tuple[Any, Any]] | None = None
    learn: Callable[[Any, Any, Any], tuple[Any, dict[str, Array]]] | None = None
