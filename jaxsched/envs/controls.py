"""What a learner has set, and the machine's heads that read it: tables by program, in the scheduler's parameters.

Controls persist: the machine applies them event by event, until the next decision replaces them. The tables of an
episode have one entry per program; their first element is the row of the episode's first program.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxsched.sim.params import SchedulerParams
from jaxsched.sim.retain import FOREVER_US, PauseView, RetainHead
from jaxsched.sim.views import QueueView, RouterView

#: Key of a turn without a score: behind all that have one, in order of arrival.
UNSCORED = 2**31 - 2
#: Times to live that the retention head chooses from, seconds; the last keeps until the program returns.
TTL_S = (0.0, 0.25, 1.0, 4.0, 16.0, 64.0, 256.0, float("inf"))
#: What programs are kept for before anything was decided about them.
DEFAULT_TTL = 2
#: Shares of the KV pool that contexts of begun programs may fill before new programs wait.
GATE_FRACTIONS = (0.3, 0.45, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.6, 1e6)
#: Tokens per engine step.
TOKEN_BUDGETS = (256, 512, 1024, 2048, 4096, 8192)


class Controls(struct.PyTreeNode):
    """Settings in force; None where the head is not learned."""

    order: Int[Array, " p"] | None = None  # key per program, the smallest goes first
    retain: Int[Array, " p"] | None = None  # index into `TTL_S` per program
    gate: Int[Array, ""] | None = None  # index into `GATE_FRACTIONS`
    batch: Int[Array, ""] | None = None  # index into `TOKEN_BUDGETS`
    route: Int[Array, ""] | None = None  # instance of the next arrival


def key_of(score: Float[Array, "*n"]) -> Int[Array, "*n"]:
    """Integers in the opposite order of the scores: the highest score has the smallest key. NaN goes last."""
    bits = jax.lax.bitcast_convert_type(jnp.asarray(score, jnp.float32) + 0.0, jnp.int32)  # (-0 becomes 0)
    rising = jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return jnp.where(jnp.isnan(score), UNSCORED, jnp.minimum(~rising, UNSCORED - 1))


def ttl_us(bucket: Int[Array, "*n"]) -> Int[Array, "*n"]:
    """Microseconds of a time to live by its index."""
    values = [FOREVER_US if s == float("inf") else round(s * 1e6) for s in TTL_S]
    return jnp.asarray(values, jnp.int32)[bucket]


def _entry(params: Array, program: Int[Array, "*n"]) -> Int[Array, "*n"]:
    first = params[0].astype(jnp.int32)
    return jnp.clip(program - first, 0, params.shape[0] - 2) + 1


def scored_order(params: Int[Array, " k"], view: QueueView) -> Int[Array, " s"]:
    """Order head: the key of the turn's program. params = first program, then keys."""
    return params[_entry(params, view.program)]


def _chosen_ttl(params: Float[Array, " k"], known: None, view: PauseView) -> Int[Array, ""]:
    """Retention head: params = first program, then indices into `TTL_S` (small whole numbers, exact in float32)."""
    del known
    assert view.program is not None
    return ttl_us(params[_entry(params, view.program)].astype(jnp.int32))


CHOSEN_RETENTION = RetainHead(_chosen_ttl)


def chosen_route(view: RouterView) -> Int[Array, ""]:
    """Route head: the instance that was chosen."""
    assert view.params is not None
    return view.params[0].astype(jnp.int32)


def in_force(base: SchedulerParams, controls: Controls, first: Int[Array, ""]) -> SchedulerParams:
    """The scheduler's parameters under the controls of an episode whose programs begin at row `first`."""
    changes: dict[str, Array] = {}
    if controls.order is not None:
        changes["order"] = jnp.concatenate([first[None], controls.order])
    if controls.retain is not None:
        changes["retain"] = jnp.concatenate([first[None], controls.retain]).astype(jnp.float32)
    if controls.gate is not None:
        changes["gate_fraction"] = jnp.asarray(GATE_FRACTIONS, jnp.float32)[controls.gate]
    if controls.batch is not None:
        changes["token_budget"] = jnp.asarray(TOKEN_BUDGETS, jnp.int32)[controls.batch]
    return base.replace(**changes)


def put_by_program(
    table: Int[Array, " p"], values: Int[Array, " n"], program: Int[Array, " n"], where: Bool[Array, " n"]
) -> Int[Array, " p"]:
    """`table` with the values of some items written at their programs (relative to the episode's first)."""
    at = jnp.where(where, program, table.shape[0])
    return table.at[at].set(values, mode="drop")
