"""Programs between two turns: who returns next, without a pass over all of them (docs/decisions/0006).

The entries are grouped in blocks. Of each block the state keeps when its next turn is due, which one, and how many
entries are free; so a return or a pause looks at one number per block and at the entries of one block.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

from jaxsched.sim.clock import EPOCH_US
from jaxsched.sim.rows import BEYOND, earliest, known_time, value_at

Stamp = tuple[Int[Array, ""], Int[Array, ""]]  # (epoch, us)


class Paused(struct.PyTreeNode):
    """Programs between two turns; of graphs, turns that are ready and whose time has not come."""

    request: Int[Array, " p"]  # row of the next turn, -1 = free entry
    epoch: Int[Array, " p"]  # when it arrives
    us: Int[Array, " p"]
    program_epoch: Int[Array, " p"]
    program_us: Int[Array, " p"]
    instance: Int[Array, " p"]  # where the last turn ran
    #: When it arrives relative to the lane's epoch; `BEYOND`: not in this epoch or the next, or a free entry.
    when: Int[Array, " p"]
    soonest: Int[Array, " b"]  # of each block of entries: the smallest of these
    row: Int[Array, " b"]  # ... and the smallest row that is due then
    room: Int[Array, " b"]  # ... and free entries


def init_paused(num_entries: int) -> Paused:
    """Nobody is paused."""
    full = lambda value: jnp.full(num_entries, value, jnp.int32)
    blocks = jnp.zeros(num_entries // _width(num_entries), jnp.int32)
    entries = Paused(full(-1), full(0), full(0), full(0), full(0), full(0), full(BEYOND), blocks, blocks, blocks)
    return indexed(entries, jnp.int32(0))


def _width(num_entries: int) -> int:
    """Entries of a block: the largest divisor up to the root."""
    return max((w for w in range(1, int(num_entries**0.5) + 1) if num_entries % w == 0), default=1)


def _blocks(field: Int[Array, " p"]) -> Int[Array, "b w"]:
    return field.reshape(-1, _width(field.shape[0]))


def relative_time(epoch: Int[Array, "*n"], us: Int[Array, "*n"], now_epoch: Int[Array, ""]) -> Int[Array, "*n"]:
    """(epoch, us) relative to `now_epoch`; `BEYOND` if not in it or the next."""
    ahead = epoch - now_epoch
    return jnp.where(ahead < 2, jnp.clip(ahead, -2, 1) * EPOCH_US + us, BEYOND)


def indexed(paused: Paused, epoch: Int[Array, ""]) -> Paused:
    """The same entries with times relative to `epoch`, looked at one by one."""
    when = jnp.where(paused.request >= 0, relative_time(paused.epoch, paused.us, epoch), BEYOND)
    soonest, row = _first(_blocks(when), _blocks(paused.request))
    room = jnp.sum((_blocks(paused.request) < 0).astype(jnp.int32), axis=1)
    return paused.replace(when=when, soonest=soonest, row=row, room=room)


def _first(when: Int[Array, "*b w"], request: Int[Array, "*b w"]) -> tuple[Int[Array, "*b"], Int[Array, "*b"]]:
    """Of each block: the smallest time, and the smallest row of those that have it."""
    soonest = jnp.min(when, axis=-1)
    return soonest, jnp.min(jnp.where(when == soonest[..., None], request, BEYOND), axis=-1)


def next_return(paused: Paused) -> Int[Array, ""]:
    """Time of the earliest return, relative to the epoch; `NEVER_US` if there is none in it or the next."""
    return known_time(jnp.min(paused.soonest))


def take(
    paused: Paused, time: Int[Array, ""], active: Bool[Array, ""]
) -> tuple[Paused, Int[Array, ""], Stamp, Int[Array, ""]]:
    """If `active`, the turn that is due at that time goes; of several the smallest row.

    Returns the others, its row, the arrival of its program, and where its last turn ran (anything, unless `active`).
    """
    due = paused.soonest == time
    row = earliest(due, paused.row)
    block = _first_true(due & (paused.row == row))
    request, when = _block(paused.request, block), _block(paused.when, block)
    place = _first_true(request == row)
    entry = jnp.minimum(block, paused.room.shape[0] - 1) * request.shape[0] + place
    pick = functools.partial(value_at, index=entry)
    found = (pick(paused.program_epoch), pick(paused.program_us)), pick(paused.instance)

    there = jnp.arange(request.shape[0], dtype=jnp.int32) == place
    soonest, first = _first(jnp.where(there, BEYOND, when), request)
    at = jnp.where(active, entry, paused.request.shape[0])
    here = (jnp.arange(due.shape[0], dtype=jnp.int32) == block) & active
    paused = paused.replace(
        request=paused.request.at[at].set(-1, mode="drop"),
        when=paused.when.at[at].set(BEYOND, mode="drop"),
        soonest=jnp.where(here, soonest, paused.soonest),
        row=jnp.where(here, first, paused.row),
        room=paused.room + here,
    )
    return paused, row, *found


def put(
    paused: Paused,
    epoch: Int[Array, ""],
    active: Bool[Array, ""],
    row: Int[Array, ""],
    time: Stamp,
    program: Stamp,
    instance: Int[Array, ""],
) -> tuple[Paused, Bool[Array, ""]]:
    """If `active`, turn `row` is due at that time (`epoch`: the lane's). Returns whether there was no entry for it."""
    block = _first_true(paused.room > 0)
    request = _block(paused.request, block)
    place = _first_true(request < 0)
    lost = active & (block == paused.room.shape[0])
    active &= ~lost
    when = relative_time(*time, epoch)

    at = jnp.where(active, block * request.shape[0] + place, paused.request.shape[0])
    write = lambda field, value: field.at[at].set(value, mode="drop")
    here = (jnp.arange(paused.room.shape[0], dtype=jnp.int32) == block) & active
    earlier = here & ((when < paused.soonest) | ((when == paused.soonest) & (row < paused.row)))
    paused = paused.replace(
        request=write(paused.request, row),
        epoch=write(paused.epoch, time[0]),
        us=write(paused.us, time[1]),
        program_epoch=write(paused.program_epoch, program[0]),
        program_us=write(paused.program_us, program[1]),
        instance=write(paused.instance, instance),
        when=write(paused.when, when),
        soonest=jnp.where(earlier, when, paused.soonest),
        row=jnp.where(earlier, row, paused.row),
        room=paused.room - here,
    )
    return paused, lost


def _first_true(mask: Bool[Array, " n"]) -> Int[Array, ""]:
    """Index of the first True, or the length."""
    return jnp.min(jnp.where(mask, jnp.arange(mask.shape[0], dtype=jnp.int32), mask.shape[0]))


def _block(field: Int[Array, " p"], block: Int[Array, ""]) -> Int[Array, " w"]:
    """The entries of a block; of the last where it is beyond it."""
    return jax.lax.dynamic_index_in_dim(_blocks(field), block, 0, keepdims=False)
