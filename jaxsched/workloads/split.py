"""Requests whose prefill and decode may run on different instances: two turns, with the context handed over between.

The first turn is the prompt and the first token, the second the other tokens, on the context so far. It begins when the
first ends: the instance that gets it finds the context if it is the same one, loads it from the pool that all share
(`+offload` with a remote tier), or computes it again.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsched.sim.requests import Requests
from jaxsched.workloads.generate import Knobs, RequestSpec, generate_requests
from jaxsched.workloads.sessions import Turns, table_of


@dataclass(frozen=True)
class SplitSpec(RequestSpec):
    """The requests of a `RequestSpec`, token for token, each a program of two turns (of one, if it has one token)."""

    def __post_init__(self) -> None:
        if self.groups is not None or self.tenants is not None:
            raise ValueError("requests with shared prefixes or tenants are not split")

    @property
    def max_turns(self) -> int:
        """Prefill and decode."""
        return 2

    @property
    def tool_names(self) -> tuple[str, ...]:
        """The pause between the two turns has no length."""
        return ("hand-over",)


def generate_split(
    spec: SplitSpec, key: Array, num_programs: int, rate_per_s: Float[Array, ""], knobs: Knobs
) -> Requests:
    """A table of ``num_programs * 2`` rows, laid out as by `generate_sessions`.

    The predicted output of a second turn is that of the request less one, with the request's own error.
    """
    whole = generate_requests(spec, key, num_programs, rate_per_s, knobs)
    zero = jnp.zeros((2, num_programs), jnp.int32)
    rest = jnp.maximum(whole.output_tokens - 1, 1)
    turns = Turns(
        count=jnp.where(whole.output_tokens > 1, 2, 1).astype(jnp.int32),
        prompt=jnp.stack([whole.prompt_tokens, whole.prompt_tokens + 1]),
        output=jnp.stack([jnp.ones_like(rest), rest]),
        begins=zero,
        group=zero - 1,
        group_tokens=zero,
        tool=zero,
        pause_epoch=zero,
        pause_us=zero,
    )
    table = table_of(turns, spec.arrivals, key, rate_per_s, knobs)
    guess = jnp.maximum(whole.predicted_tokens - 1, 1)
    return table.replace(predicted_tokens=jnp.concatenate([jnp.ones_like(guess), guess]))
