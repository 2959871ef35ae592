"""Programs that are graphs: which turns become ready when one finishes or arrives (docs/semantics.md, section 2).

The state is a table by row of the workload: how many edges of the turn have fired, and the latest time that they allow.
A table by row costs memory (3 int32 per row and lane) and no time: an event reads and writes the few rows that the turn
in hand names, wherever they are. (A window per live program would have to be searched, or bound how large programs are
and how many live.) What an event passes over at each micro-step, the times of turns that are ready, stays in
`State.paused`, which holds no turn that still waits for an edge.

A first turn waits for no edge. Its row counts the turns of its program that have finished, so "all that is needed has
happened" means ready for a later turn, and that the program is done for a first one.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxsched.sim.clock import add_us
from jaxsched.sim.paused import indexed
from jaxsched.sim.requests import Requests
from jaxsched.sim.state import Flag, State

#: Columns of `State.fired`.
COUNT, EPOCH, US = range(3)

Stamp = tuple[Int[Array, ""], Int[Array, ""]]  # (epoch, us)


def finish_turn(
    requests: Requests, state: State, row: Int[Array, ""], now: Stamp, program: Stamp, m: Int[Array, ""], active: Array
) -> tuple[State, Bool[Array, ""]]:
    """If `active`, turn `row` finishes at `now` on instance `m`. Returns the state and whether its program is done.

    `program` is the arrival of the program. What a policy keeps of a program along its longest chain (ATLAS: service
    inherited by the turns that wait) would be handed on here, as a further column of `State.fired`.
    """
    assert requests.edges is not None
    first = jnp.stack([requests.program[row], jnp.int32(0), jnp.int32(0)])
    edges = jnp.concatenate([requests.edges[row], first[None]])
    state, happened = _fire(requests, state, edges, now, program, m, active)
    return state, happened[-1]


def arrive_turn(
    requests: Requests, state: State, row: Int[Array, ""], now: Stamp, program: Stamp, m: Int[Array, ""], active: Array
) -> State:
    """If `active`, turn `row` has arrived at `now` and joined the queue of instance `m`."""
    if requests.spawns is None:
        return state
    return _fire(requests, state, requests.spawns[row], now, program, m, active)[0]


def _fire(
    requests: Requests,
    state: State,
    edges: Int[Array, "w 3"],
    now: Stamp,
    program: Stamp,
    m: Int[Array, ""],
    active: Bool[Array, ""],
) -> tuple[State, Bool[Array, " w"]]:
    """Fire edges to distinct rows. Returns the state and for which of the rows everything has happened now."""
    assert requests.needed is not None and state.fired is not None
    there = (edges[:, 0] >= 0) & active
    row = jnp.where(there, edges[:, 0], 0)
    fired = state.fired[row]
    count = fired[:, COUNT] + 1
    epoch, us = _later(*add_us(*now, edges[:, 1], edges[:, 2]), fired[:, EPOCH], fired[:, US])
    table = state.fired.at[jnp.where(there, row, requests.num_rows)].set(
        jnp.stack([count, epoch, us], axis=1), mode="drop"
    )
    happened = there & (count == requests.needed[row])
    ready = happened & (row != requests.program[row])
    if requests.not_before is not None:
        floor = requests.not_before[row]
        epoch, us = _later(*add_us(*program, floor[:, 0], floor[:, 1]), epoch, us)

    # The ready ones take free entries, in order: the k-th of them the k-th free entry.
    paused = state.paused
    num_entries = paused.request.shape[0]
    order = jnp.cumsum(ready.astype(jnp.int32))
    free = jnp.cumsum((paused.request < 0).astype(jnp.int32))
    place = jnp.sum((free[None, :] < order[:, None]).astype(jnp.int32), axis=1)
    lost = jnp.any(ready & (place >= num_entries))
    place = jnp.where(ready, place, num_entries)
    put = lambda field, value: field.at[place].set(value, mode="drop")
    paused = paused.replace(
        request=put(paused.request, row),
        epoch=put(paused.epoch, epoch),
        us=put(paused.us, us),
        program_epoch=put(paused.program_epoch, program[0]),
        program_us=put(paused.program_us, program[1]),
        instance=put(paused.instance, m),
    )
    state = state.replace(
        fired=table,
        paused=indexed(paused, state.epoch),
        flags=state.flags | jnp.where(lost, int(Flag.PAUSED_OVERFLOW), 0),
    )
    return state, happened


def _later(epoch: Array, us: Array, other_epoch: Array, other_us: Array) -> tuple[Array, Array]:
    """The later of two times, elementwise."""
    other = (other_epoch > epoch) | ((other_epoch == epoch) & (other_us > us))
    return jnp.where(other, other_epoch, epoch), jnp.where(other, other_us, us)
