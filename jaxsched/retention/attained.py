"""Program priorities by attained service: PLAS and ATLAS of Autellix (Luo et al., arXiv 2502.13965, section 4).

Rule: a call inherits its program's attained service, PLAS ``p = sum of the service of the program's finished calls``,
ATLAS (programs of several threads) ``p = max over parents of (p_parent + their service)``, kept as one scalar per
program: the longest chain of service so far. Service attained is cut into K levels (multi-level feedback queues); lower
level first, first come first served inside a level; a call that runs through its level's range moves down.
Anti-starvation: a call whose program and itself have waited at least beta times as long as they were served goes to the
first level, and its own wait and service are set to 0. What it inherited no longer counts for its level from then on.

Levels: level L holds attained service in [q * 2^(L-1), q * 2^L), level 0 [0, q), the last is open. The paper gives no
bounds; doubling from 1 s is what the regime study used. beta is the paper's, its value is not published; ours is an
integer, so that the comparison is exact.
Simplified: levels are recomputed from attained service whenever the queue is ordered, not every N decode steps; the
cost of preempting is the engine's.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

from jaxsched.retention.window import LARGEST

MAX_LEVELS = 16


class AttainedParams(struct.PyTreeNode):
    """Settings of the queues (traced)."""

    quantum_us: Int[Array, ""]  # q: upper bound of level 0
    num_levels: Int[Array, ""]  # K, at most `MAX_LEVELS`
    starvation_ratio: Int[Array, ""]  # beta; 0 = never promote


def attained_params(quantum_us: int = 1_000_000, num_levels: int = 10, starvation_ratio: int = 10) -> AttainedParams:
    """Defaults: 1 s to 4.3 min in 10 levels; promote after waiting ten times the service (ours)."""
    return AttainedParams(jnp.int32(quantum_us), jnp.int32(num_levels), jnp.int32(starvation_ratio))


def add_us(total_us: Int[Array, "*n"], more_us: Int[Array, "*n"]) -> Int[Array, "*n"]:
    """Sum of two times (>= 0) that saturates at 2^31 - 1 instead of wrapping."""
    total = jnp.asarray(total_us, jnp.int32)
    return total + jnp.minimum(jnp.asarray(more_us, jnp.int32), LARGEST - total)


def plas_after(program_us: Int[Array, "*n"], call_us: Int[Array, "*n"]) -> Int[Array, "*n"]:
    """PLAS: the program's attained service once a call with `call_us` of service is done."""
    return add_us(program_us, call_us)


def atlas_after(
    program_us: Int[Array, "*n"], inherited_us: Int[Array, "*n"], call_us: Int[Array, "*n"]
) -> Int[Array, "*n"]:
    """ATLAS: the same for the longest chain; `inherited_us` is the priority the call began with."""
    return jnp.maximum(jnp.asarray(program_us, jnp.int32), add_us(inherited_us, call_us))


def service_level(attained_us: Int[Array, "*n"], params: AttainedParams) -> Int[Array, "*n"]:
    """Level of an attained service, 0 .. num_levels - 1."""
    # Bounds stop doubling where the next would overflow: no attained time reaches them.
    exponent = jnp.arange(MAX_LEVELS - 1, dtype=jnp.int32)
    fits = params.quantum_us <= (LARGEST >> exponent)
    bounds = jnp.where(fits, params.quantum_us << exponent, LARGEST)
    above = jnp.asarray(attained_us, jnp.int32)[..., None] >= bounds
    level = jnp.sum((above & fits).astype(jnp.int32), axis=-1)
    return jnp.minimum(level, params.num_levels - 1)


def starves(
    program_wait_us: Int[Array, "*n"],
    call_wait_us: Int[Array, "*n"],
    program_us: Int[Array, "*n"],
    call_us: Int[Array, "*n"],
    params: AttainedParams,
) -> Bool[Array, "*n"]:
    """(W_program + W_call) / (T_program + T_call) >= beta; not while nothing has been waited. Exact in integers."""
    wait, service = add_us(program_wait_us, call_wait_us), add_us(program_us, call_us)
    beta = params.starvation_ratio
    most = jax.lax.div(
        jnp.int32(LARGEST), jnp.maximum(beta, 1)
    )  # beyond it, beta times the service is not representable
    enough = (service <= most) & (wait >= beta * jnp.minimum(service, most))
    return (beta > 0) & (wait > 0) & enough


def attained_key(
    inherited_us: Int[Array, "*n"],
    program_us: Int[Array, "*n"],
    program_wait_us: Int[Array, "*n"],
    call_us: Int[Array, "*n"],
    call_wait_us: Int[Array, "*n"],
    params: AttainedParams,
) -> tuple[Int[Array, "*n"], Bool[Array, "*n"]]:
    """Key of each waiting or running call (its level; the machine breaks ties by arrival), and who is promoted now.

    `inherited_us`: PLAS or ATLAS priority the call began with; `program_us`, `program_wait_us`: service and wait of the
    program's finished calls; `call_us`, `call_wait_us`: those of the call itself since it began or was last promoted.
    The caller passes what it keeps of promoted calls through `promoted_state`: a promoted call then starts in level 0
    with a fresh quantum and moves down as it is served.
    """
    promoted = starves(program_wait_us, call_wait_us, program_us, call_us, params)
    level = service_level(add_us(inherited_us, call_us), params)
    return jnp.where(promoted, jnp.int32(0), level), promoted


def promoted_state(
    promoted: Bool[Array, "*n"],
    inherited_us: Int[Array, "*n"],
    call_us: Int[Array, "*n"],
    call_wait_us: Int[Array, "*n"],
) -> tuple[Int[Array, "*n"], Int[Array, "*n"], Int[Array, "*n"]]:
    """`inherited_us`, `call_us`, `call_wait_us` with those of promoted calls set to 0."""
    cleared = (jnp.where(promoted, 0, jnp.asarray(x, jnp.int32)) for x in (inherited_us, call_us, call_wait_us))
    inherited, call, wait = cleared
    return inherited, call, wait
