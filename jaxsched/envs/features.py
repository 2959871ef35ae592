"""Observations of the machine: what a real scheduler could know of its requests and programs, as arrays.

Items are the turns in the slots of all instances (running, waiting) and the programs between two turns. A paused
program shows what is known while it pauses: its tool, for how long, its context; never when it comes back. Times are
``log1p(seconds) / 4``, counts of tokens ``log1p(tokens) / 10``, so that all lie within a few units of 0.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxsched.envs.pool import Pool
from jaxsched.sim.clock import EPOCH_US
from jaxsched.sim.fair import UNIT
from jaxsched.sim.kv.runs import CHAIN, DUE_EPOCH, DUE_US, HIGH, LOW, NEXT, PINNED, UNUSED, RunTableState
from jaxsched.sim.ledger import DIFFERENCE
from jaxsched.sim.params import SimParams
from jaxsched.sim.state import EMPTY, WAITING, Col, Instance, Slots, State
from jaxsched.sim.static import SimStatic

#: Columns of `Observation.items`, in order; then one per kind of pause, one per class of requests if there are several,
#: and with tenants the lead of the item's tenant.
ITEM_FEATURES = (
    "running", "waiting", "paused", "first_turn", "turns_done", "context", "context_share", "first_prompt",
    "since", "program_age", "cached_share", "pinned", "ttl_left", "generated", "preempted", "to_prefill",
    "predicted_output", "predicted_left",
)  # fmt: skip
INSTANCE_FEATURES = ("running", "waiting", "free", "cached", "paused", "pinned", "begun", "pool")
GLOBAL_FEATURES = ("in_system", "waiting", "running", "paused", "oldest_wait", "dt")

_SLOT = {name: i for i, name in enumerate(Slots.__dataclass_fields__)}
_ROW = {name: i for i, name in enumerate(Instance.__dataclass_fields__)}


class Items(struct.PyTreeNode):
    """Who is in the system: `n` places for slots and paused programs, in no order."""

    row: Int[Array, " n"]  # of the request table: the turn, or a paused program's next one; -1 = nobody
    program: Int[Array, " n"]  # relative to the episode's first program
    running: Bool[Array, " n"]
    waiting: Bool[Array, " n"]
    paused: Bool[Array, " n"]
    place: Int[Array, " n"]  # index into the slots of all instances, then the paused programs

    @property
    def present(self) -> Bool[Array, " n"]:
        return self.row >= 0


def times(value_s: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Seconds as a feature."""
    return jnp.log1p(jnp.maximum(value_s, 0.0)) * 0.25


def counts(value: Array) -> Float[Array, "*n"]:
    """Tokens (or requests) as a feature."""
    return jnp.log1p(jnp.maximum(value.astype(jnp.float32), 0.0)) * 0.1


def find_items(static: SimStatic, requests_program: Int[Array, " rows"], state: State, first: Array, num: int) -> Items:
    """Everybody in the system, at most `num`: running and paused ones first, then those who wait, first come first."""
    order = state.slots[:, _SLOT["order"]].reshape(-1)
    here = order != EMPTY
    row = jnp.where(here, state.request[:, :, Col.REQUEST].reshape(-1), -1)
    row = jnp.concatenate([row, state.paused.request])
    running = jnp.concatenate([order >= 0, jnp.zeros_like(state.paused.request, bool)])
    waiting = jnp.concatenate([order == WAITING, jnp.zeros_like(state.paused.request, bool)])
    total = row.shape[0]
    paused = (jnp.arange(total) >= order.shape[0]) & (row >= 0)
    place = jnp.arange(total, dtype=jnp.int32)
    if num < total:
        # The order of arrival of those who wait (by counting: a sort of a few hundred is dearer on a CPU).
        arrival = state.request[:, :, Col.SEQUENCE].reshape(-1)
        queued = waiting[: order.shape[0]]
        key = jnp.where(queued, arrival, 2**31 - 1)
        rank = jnp.sum((key[None, :] < key[:, None]).astype(jnp.int32), axis=1)
        busy = running | paused
        behind = jnp.sum(busy.astype(jnp.int32))
        rank = jnp.concatenate([rank, jnp.zeros(total - order.shape[0], jnp.int32)])
        target = jnp.where(busy, jnp.cumsum(busy.astype(jnp.int32)) - 1, jnp.where(waiting, behind + rank, num))
        place = jnp.full(num, total, jnp.int32).at[target].set(place, mode="drop")
        take = lambda x, missing: jnp.where(place < total, x[jnp.minimum(place, total - 1)], missing)
        row, running, waiting, paused = take(row, -1), take(running, False), take(waiting, False), take(paused, False)
    program = jnp.where(row >= 0, requests_program[jnp.maximum(row, 0)] - first, -1)
    return Items(row, program, running, waiting, paused, place)


def seconds_since(state: State, epoch: Array, us: Array) -> Float[Array, "*n"]:
    """Float seconds from (epoch, us) to the clock of the state."""
    return ((state.epoch - epoch).astype(jnp.float32) * EPOCH_US + (state.now - us).astype(jnp.float32)) * 1e-6


def item_features(
    static: SimStatic, params: SimParams, pool: Pool, state: State, items: Items, sigmas: tuple[Array, Array]
) -> Float[Array, "n f"]:
    """Features of `ITEM_FEATURES`; `sigmas`: log-sd of the predictions of output and of what is left, < 0 = hidden."""
    table, num_slots = pool.requests, static.num_instances * static.num_slots
    row = jnp.maximum(items.row, 0)
    slot, entry = jnp.minimum(items.place, num_slots - 1), jnp.clip(items.place - num_slots, 0, static.num_paused - 1)
    columns = state.request.reshape(num_slots, -1)[slot]
    rows = jnp.swapaxes(state.slots, 1, 2).reshape(num_slots, -1)[slot]
    paused = items.paused
    if static.num_paused:
        pause = state.paused
        start_epoch, start_us = pause.epoch[entry] - table.pause_epoch[row], pause.us[entry] - table.pause_us[row]
        epoch = jnp.where(paused, start_epoch, columns[:, Col.ARRIVAL_EPOCH])
        us = jnp.where(paused, start_us, columns[:, Col.ARRIVAL_US])
        born = (
            jnp.where(paused, pause.program_epoch[entry], columns[:, Col.PROGRAM_EPOCH]),
            jnp.where(paused, pause.program_us[entry], columns[:, Col.PROGRAM_US]),
        )
    else:
        epoch, us = columns[:, Col.ARRIVAL_EPOCH], columns[:, Col.ARRIVAL_US]
        born = epoch, us
    turn = pool.turn[row]
    known, prompt, computed = rows[:, _SLOT["known"]], rows[:, _SLOT["prompt"]], rows[:, _SLOT["computed"]]
    context = jnp.where(paused, pool.before_tokens[row], known)
    idle, pinned, due = _own_runs(static, state, items.row)
    held = jnp.where(items.running, computed, idle * static.block_size)
    pool_tokens = jnp.max(params.usable_blocks).astype(jnp.float32) * static.block_size
    error = pool.error[row]
    predict = lambda tokens, sigma: jnp.where(
        sigma < 0.0, 0.0, counts(tokens * jnp.exp(jnp.maximum(sigma, 0.0) * error))
    )
    slot_only = lambda x: jnp.where(paused, 0.0, x)
    features = [
        items.running, items.waiting, paused, turn == 0, counts(turn), counts(context),
        context.astype(jnp.float32) / pool_tokens, counts(table.prompt_tokens[table.program[row]]),
        times(seconds_since(state, epoch, us)), times(seconds_since(state, *born)),
        jnp.minimum(held.astype(jnp.float32) / jnp.maximum(context, 1).astype(jnp.float32), 1.0), pinned, times(due),
        slot_only(counts(known - prompt)), slot_only(columns[:, Col.PREEMPTIONS] > 0), slot_only(counts(known - held)),
        slot_only(predict(columns[:, Col.OUTPUT].astype(jnp.float32), sigmas[0])),
        predict(pool.left_tokens[row].astype(jnp.float32), sigmas[1]),
    ]  # fmt: skip
    table_features = [jnp.asarray(f, jnp.float32) for f in features]
    if static.num_tools > 1:
        assert table.tool is not None
        kind = jnp.where(turn > 0, table.tool[row], -1)
        table_features += [(kind == tool).astype(jnp.float32) for tool in range(static.num_tools)]
    if static.num_classes > 1:
        table_features += [(table.klass[row] == k).astype(jnp.float32) for k in range(static.num_classes)]
    if static.tenants:
        table_features.append(tenant_leads(state)[table.klass[row]])
    return jnp.where(items.present[:, None], jnp.stack(table_features, axis=1), 0.0)


def _own_runs(
    static: SimStatic, state: State, row: Int[Array, " n"]
) -> tuple[Int[Array, " n"], Float[Array, " n"], Float[Array, " n"]]:
    """Idle blocks of each item's own context, whether they are pinned, seconds until the pin ends."""
    if not isinstance(state.kv, RunTableState):
        return jnp.zeros_like(row), jnp.zeros(row.shape), jnp.zeros(row.shape)
    runs = jnp.swapaxes(state.kv.runs, 0, 1).reshape(state.kv.runs.shape[1], -1)
    mine = (runs[NEXT][None, :] == row[:, None]) & (runs[CHAIN] != UNUSED)[None, :] & (row >= 0)[:, None]
    pick = lambda field: jnp.sum(jnp.where(mine, field[None, :], 0), axis=1)
    idle, pinned = pick(runs[HIGH] - runs[LOW]), pick(runs[PINNED])
    left = -seconds_since(state, jnp.minimum(runs[DUE_EPOCH], state.epoch + 8), runs[DUE_US])
    # (One context is one run; a sum of float32 would be a call of a library, over a table written for it.)
    due = jnp.max(jnp.where(mine & (runs[PINNED] > 0)[None, :], jnp.maximum(left, 0.0)[None, :], 0.0), axis=1)
    return idle, jnp.minimum(pinned, 1).astype(jnp.float32), due


def instance_features(static: SimStatic, params: SimParams, state: State, items: Items) -> Float[Array, "m g"]:
    """Features of `INSTANCE_FEATURES`: counts as such, memory as shares of the pool."""
    blocks = params.usable_blocks.astype(jnp.float32)
    inst = state.instance
    zero = jnp.zeros_like(blocks)
    cached = paused = pinned = zero
    if isinstance(state.kv, RunTableState):
        runs = state.kv.runs
        length = jnp.where(runs[:, CHAIN] != UNUSED, runs[:, HIGH] - runs[:, LOW], 0).astype(jnp.float32)
        total = lambda mask: jnp.sum(jnp.where(mask, length, 0.0), axis=1) / blocks
        cached, paused, pinned = total(length > 0), total(runs[:, NEXT] >= 0), total(runs[:, PINNED] > 0)
    order, known = state.slots[:, _SLOT["order"]], state.slots[:, _SLOT["known"]].astype(jnp.float32)
    held = jnp.sum(jnp.where(order >= 0, known, 0.0), axis=1) / (blocks * static.block_size)
    columns = [
        counts(inst[_ROW["running"]]), counts(inst[_ROW["waiting"]]),
        inst[_ROW["free"]].astype(jnp.float32) / blocks, cached, paused, pinned, held + paused, counts(blocks),
    ]  # fmt: skip
    return jnp.stack(columns, axis=1).astype(jnp.float32)


def tenant_leads(state: State) -> Float[Array, " u"]:
    """How far each tenant is ahead in service of those that wait, since both have been waiting: in 10,000 weighted
    tokens over its weight, squashed into (-1, 1); 0 for a tenant that does not wait."""
    assert state.ledger is not None
    waits = (state.ledger.waiting > 0).astype(jnp.float32)
    ahead = state.ledger.pairs[DIFFERENCE].astype(jnp.float32) * (1.0 / (UNIT * 10_000.0))
    lead = jnp.sum(ahead * waits[None, :], axis=1) / jnp.maximum(jnp.sum(waits), 1.0)
    return lead / (1.0 + jnp.abs(lead))


def tenant_features(state: State) -> Float[Array, " 2u"]:
    """`tenant_leads`, then the waiting requests of every tenant."""
    assert state.ledger is not None
    return jnp.concatenate([tenant_leads(state), counts(state.ledger.waiting)])


def global_features(state: State, items: Items, dt_s: Float[Array, ""]) -> Float[Array, " d"]:
    """Features of `GLOBAL_FEATURES`."""
    number = lambda mask: counts(jnp.sum(mask.astype(jnp.int32)))
    waits = seconds_since(state, state.request[:, :, Col.ARRIVAL_EPOCH], state.request[:, :, Col.ARRIVAL_US])
    queued = state.slots[:, _SLOT["order"]] == WAITING
    oldest = jnp.max(jnp.where(queued, waits, 0.0))
    return jnp.stack([
        number(items.present), number(items.waiting), number(items.running), number(items.paused), times(oldest),
        times(dt_s),
    ]).astype(jnp.float32)  # fmt: skip


__all__ = [
    "GLOBAL_FEATURES",
    "INSTANCE_FEATURES",
    "ITEM_FEATURES",
    "Items",
    "find_items",
    "global_features",
    "instance_features",
    "item_features",
    "tenant_features",
]
