"""What a router can see of all instances' prefix caches at an instant, and how much of a prompt it finds there.

An instance's cache is written at its events. Between them, inside a run of decode steps, blocks fill and the oldest
idle ones go; both follow from how many steps have ended (docs/semantics.md, 7), so that what is seen does not depend on
how long the runs are.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

from jaxsched.sim.kv.blocks import FREE, BlockTable, BlockTableState
from jaxsched.sim.kv.runs import RunTable, RunTableState
from jaxsched.sim.requests import Requests
from jaxsched.sim.static import SimStatic


class RunsSeen(struct.PyTreeNode):
    """Of chains of runs."""

    runs: Int[Array, "m 2 r"]  # idle runs: chain, end (blocks)
    slots: Int[Array, "m 4 s"]  # per slot: blocks registered, own chain, group (as a chain), blocks of the group prefix


class BlocksSeen(struct.PyTreeNode):
    """Of block tables."""

    entries: Int[Array, "m 2 p"]  # findable blocks: id, depth
    slots: Int[Array, "m 3 s"]  # per slot: where its ids begin; first block and end of those filled in this run


Seen = RunsSeen | BlocksSeen | None


def look(
    static: SimStatic,
    requests: Requests | None,
    kv: RunTableState | BlockTableState | None,
    taken: Int[Array, " m"],
    filled: Int[Array, "m s"],
    wanted: Bool[Array, ""],
) -> Seen:
    """The caches with what the executing runs have changed so far.

    Args:
        taken: blocks that each instance has taken since its last event.
        filled: tokens whose blocks are findable by now, of slots whose run has come further than its first step, else
            0.
        wanted: false: what is returned will not be read, and may be wrong.
    """
    if kv is None:
        return None
    index = jnp.arange(static.num_instances, dtype=jnp.int32)
    full = filled // static.block_size

    if isinstance(kv, RunTableState):

        def of_runs(m, runs, slots, scalars, taken, full) -> RunsSeen:
            table = RunTable(static, requests, m, runs, slots, scalars)
            table.take(taken)
            table.debt = jnp.where(wanted, table.debt, 0)
            table.settle()
            registered = jnp.maximum(table.registered, full)
            return RunsSeen(
                runs=jnp.stack([table.chain, table.high]),
                slots=jnp.stack([registered, table.own, table.group, table.group_blocks]),
            )

        return jax.vmap(of_runs)(index, kv.runs, kv.slots, kv.scalars, taken, full)

    def of_blocks(m, entries, slots, scalars, taken, full) -> BlocksSeen:
        table = BlockTable(static, requests, m, entries, slots, scalars)
        table.take(taken)
        table.debt = jnp.where(wanted, table.debt, 0)
        table.settle()
        end = jnp.maximum(table.registered, full)
        return BlocksSeen(
            entries=jnp.stack([table.id, table.depth]), slots=jnp.stack([table.start, table.registered, end])
        )

    return jax.vmap(of_blocks)(index, kv.entries, kv.slots, kv.scalars, taken, full)


def matched_blocks(static: SimStatic, requests: Requests, seen: Seen, row: Int[Array, ""]) -> Int[Array, " m"]:
    """Leading full blocks of a turn's prompt, never all of it, that each instance is seen to hold."""
    if seen is None:
        return jnp.zeros(static.num_instances, jnp.int32)
    most = (requests.prompt_tokens[row] - 1) // static.block_size
    if isinstance(seen, RunsSeen):

        def in_runs(runs, slots) -> Int[Array, ""]:
            chain, high = runs
            table = RunTable.seen(static, requests, chain, high, slots)
            own, group, group_blocks = table.content(row)
            resident = table.resident(own, group, group_blocks)[1]
            # (In a late view the program's previous turn may still hold what its next one will find.)
            held = jnp.max(jnp.where(table.own == own, table.registered, 0))
            resident = jnp.where(resident >= group_blocks, jnp.maximum(resident, held), resident)
            return jnp.minimum(resident, most)

        return jax.vmap(in_runs)(seen.runs, seen.slots)

    content, starts = requests.content, requests.content_start
    assert content is not None and starts is not None
    last, length = content.shape[0] - 1, static.max_blocks
    # A run fills at most so many blocks of a slot.
    ahead = jnp.arange(static.run_steps // static.block_size + 2, dtype=jnp.int32)[:, None]

    def in_blocks(entries, slots) -> Int[Array, ""]:
        identity, depth = entries
        start, first, end = slots
        wanted = lambda depth: content[jnp.clip(starts[row] + depth, 0, last)]
        there = (identity != FREE) & (depth < most) & (identity == wanted(depth))
        new = first + ahead
        fresh = (new < end) & (new < most) & (content[jnp.clip(start + new, 0, last)] == wanted(new))
        found = jnp.zeros(length + 1, bool)
        found = found.at[jnp.where(there, depth, length)].set(True)
        found = found.at[jnp.where(fresh, new, length)].set(True)
        index = jnp.arange(length + 1, dtype=jnp.int32)
        return jnp.min(jnp.where(~found | (index >= most), index, length))

    return jax.vmap(in_blocks)(seen.entries, seen.slots)
