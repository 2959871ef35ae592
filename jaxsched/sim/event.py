"""Scratch of one micro-step: an instance's row while an event works on it, and what is to be booked at its end.

These objects exist while JAX traces a micro-step: plain attribute assignment of traced values, then one write-back.
Nothing here survives the trace, so the micro-step as a whole stays a pure function.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxsched.metrics.histogram import NUM_BINS, bin_of
from jaxsched.sim import ledger as books
from jaxsched.sim.clock import EPOCH_BITS, EPOCH_US
from jaxsched.sim.compress import store_kept
from jaxsched.sim.fair import FairRow, Served, Who, by_tenant
from jaxsched.sim.kv import KvCache, RunTable, load_cache
from jaxsched.sim.params import SimParams
from jaxsched.sim.requests import Requests
from jaxsched.sim.routing import count_waiting
from jaxsched.sim.rows import earliest, latest, read_row, write_row
from jaxsched.sim.service import ServiceRow
from jaxsched.sim.state import (
    EMPTY,
    WAITING,
    Col,
    Count,
    Flag,
    Hist,
    Instance,
    Metrics,
    Slots,
    State,
    max_column_writes,
)
from jaxsched.sim.static import SimStatic
from jaxsched.sim.tiers import Tiers
from jaxsched.timing.step_time import StepTimeParams, of_instance

WRAP_MASK = 2**31 - 1


def ceil_blocks(static: SimStatic, tokens: jax.Array) -> jax.Array:
    """KV blocks that hold `tokens` tokens (>= 0)."""
    size = static.block_size
    if size & (size - 1) == 0:
        return jax.lax.shift_right_logical(tokens + (size - 1), jnp.int32(size.bit_length() - 1))
    return jax.lax.div(tokens + (size - 1), jnp.int32(size))


def first_slot(mask: jax.Array) -> jax.Array:
    """Index of the first True, or the length if there is none (a min, which XLA vectorises; argmax it does not)."""
    index = jnp.arange(mask.shape[-1], dtype=jnp.int32)
    return jnp.min(jnp.where(mask, index, mask.shape[-1]))


def first_smallest(values: jax.Array) -> jax.Array:
    """Index of the smallest value; ties to the lowest index."""
    return first_slot(values == jnp.min(values))


def slot_with(mask: jax.Array, key: jax.Array, largest: bool = False) -> jax.Array:
    """Index of the slot in `mask` with the smallest (largest) key; the length if the mask is empty.

    Ties to the first slot.
    """
    extreme = latest(mask, key) if largest else earliest(mask, key)
    return first_slot(mask & (key == extreme))


def count(mask: jax.Array) -> jax.Array:
    """Number of True."""
    return jnp.sum(mask.astype(jnp.int32))


class Tally:
    """Collects histogram entries and counter increments of a micro-step and books them at once."""

    def __init__(self, static: SimStatic):
        self._num_classes, self._histograms = static.num_classes, static.histograms
        self._index: list[jax.Array] = []
        self._weight: list[jax.Array] = []
        self._counts: dict[Count, jax.Array] = {}

    def observe(self, hist: Hist, klass, value_us: jax.Array, weight: jax.Array) -> None:
        """Add float32 `value_us` (scalar or vector) with int32 `weight` to a histogram."""
        self.observe_bins(hist, klass, bin_of(value_us), weight)

    def observe_bins(self, hist: Hist, klass, bins: jax.Array, weight: jax.Array) -> None:
        """Add to bins of a histogram."""
        index = (klass * len(Hist) + int(hist)) * NUM_BINS + bins
        self._index.append(jnp.atleast_1d(index))
        self._weight.append(jnp.atleast_1d(jnp.broadcast_to(weight.astype(jnp.int32), index.shape)))

    def count(self, which: Count, amount: jax.Array) -> None:
        """Add to a counter."""
        amount = amount.astype(jnp.int32)
        self._counts[which] = self._counts[which] + amount if which in self._counts else amount

    def counted(self, *which: Count) -> jax.Array:
        """Sum of some counters' increments in this micro-step."""
        return sum((self._counts[w] for w in which if w in self._counts), jnp.int32(0))

    def book(self, metrics: Metrics) -> Metrics:
        """One scatter for all histogram entries, one vector add for all counters."""
        histograms = metrics.histograms
        if self._histograms:
            index, weight = jnp.concatenate(self._index), jnp.concatenate(self._weight)
            histograms = histograms.at[index].add(weight, mode="promise_in_bounds")
        zero: jax.Array = jnp.int32(0)
        increments = jnp.stack([self._counts.get(which, zero) for which in Count])
        return metrics.replace(histograms=histograms, counts=metrics.counts + increments)


@dataclasses.dataclass
class Event:
    """One instance's row and the lane registers that an event changes."""

    static: SimStatic
    params: SimParams
    requests: Requests
    state: State  # as loaded; big arrays (`request`, `queue`, `record`, `paused`) are replaced here as they are written
    tally: Tally
    m: jax.Array  # instance
    now: jax.Array
    slots: Slots
    inst: Instance
    kv: KvCache
    below: Tiers | None = None  # host memory and the remote pool, as this instance sees them
    # What `sim/offload.py` does before the next step is formed.
    releases: list = dataclasses.field(default_factory=list)
    candidate: Any = None
    prefetch: Any = None
    waits_for_copies: Any = False
    trace: dict | None = None  # decisions of this micro-step, when `static.trace`
    late: jax.Array | None = None  # slots whose request had too long a gap, where classes limit gaps
    kept: jax.Array | None = None  # ratio of each slot's KV, where it is compressed
    service: ServiceRow | None = None  # attained service, where the order asks for it
    fair: FairRow | None = None  # accounts of the tenants, where the order asks for them
    writes: list = dataclasses.field(default_factory=list)  # pending `write_column`s: (slot, values, active)

    @classmethod
    def load(cls, static, params, requests, state: State, tally: Tally, m, now) -> Event:
        """Read instance `m` (one slice of each array)."""
        rows = read_row(state.slots, m)
        scalars = jax.lax.dynamic_index_in_dim(state.instance, m, 1, keepdims=False)
        scalars = scalars + jnp.where(state.pending_writes.joined == m, state.pending_writes.change, 0)
        rule, fair = static.scheduler.service, static.scheduler.fair
        owed = (params.scheduler.of_order(), params.tenants)
        return cls(
            static, params, requests, state, tally, m, now,
            Slots(*rows),
            Instance(*(scalars[i] for i in range(scalars.shape[0]))),
            load_cache(static, requests, state, m),
            Tiers(static, params, state.tiers, m) if static.tiered else None,
            trace={} if static.trace else None,
            late=jax.lax.dynamic_index_in_dim(state.late, m, 0, keepdims=False) if static.gap_limits else None,
            kept=None
            if state.quality is None
            else jax.lax.dynamic_index_in_dim(state.quality.kept, m, 0, keepdims=False),
            service=ServiceRow(rule, state.service, m, state.epoch, now) if rule is not None else None,
            fair=FairRow(fair, state.fair, m, owed, static.num_classes) if fair is not None else None,
        )  # fmt: skip

    def store(self) -> State:
        """Write the row back."""
        rows = [getattr(self.slots, name) for name in Slots.__dataclass_fields__]
        scalars = jnp.stack([getattr(self.inst, name) for name in Instance.__dataclass_fields__])
        unused = [(jnp.int32(0), jnp.zeros(len(Col), jnp.int32), jnp.bool_(False))]
        writes = self.writes + unused * (max_column_writes(self.static) - len(self.writes))
        pending = self.state.pending_writes.replace(
            instance=jnp.stack([jnp.where(on, self.m, self.static.num_instances) for _, _, on in writes]),
            slot=jnp.stack([slot for slot, _, _ in writes]),
            values=jnp.stack([values for _, values, _ in writes]),
            event=self.m,
            scalars=scalars,
        )
        flags = self.state.flags
        if self.static.prefix_cache == "runs":
            flags |= jnp.where(self.kv.copies, int(Flag.CACHE_COPIES), 0)
            flags |= jnp.where(self.kv.overflow, int(Flag.CACHE_ENTRIES), 0)
        if self.static.tiered:
            flags |= jnp.where(self.tiers.overflow, int(Flag.TIER_ENTRIES), 0)
            self.state = self.state.replace(tiers=self.tiers.store(self.state.tiers))
        return self.state.replace(
            flags=flags,
            kv=self.kv.store(self.state.kv),
            late=None
            if self.late is None
            else jax.lax.dynamic_update_index_in_dim(self.state.late, self.late, self.m, 0),
            quality=None if self.kept is None else store_kept(self.state.quality, self.kept, self.m),
            service=None if self.service is None else self.service.store(self.state.service),
            fair=None if self.fair is None else self.fair.store(self.state.fair),
            pending_writes=pending,
            slots=write_row(self.state.slots, self.m, rows),
        )

    # -- small helpers shared by the parts of an event -----------------------------------------------------------------

    @property
    def runs(self) -> RunTable:
        """The cache as chains of runs (retention policies have no other)."""
        assert isinstance(self.kv, RunTable)
        return self.kv

    @property
    def tiers(self) -> Tiers:
        """The tiers below HBM (only where `static.tiered`)."""
        assert self.below is not None
        return self.below

    @property
    def timing(self) -> StepTimeParams:
        """How long this instance's steps take."""
        return of_instance(self.params.timing, self.m)

    @property
    def index(self) -> jax.Array:
        return jnp.arange(self.static.num_slots, dtype=jnp.int32)

    @property
    def running_mask(self) -> jax.Array:
        return self.slots.order >= 0

    def at(self, field: jax.Array, slot: jax.Array) -> jax.Array:
        """Value of a row field at a slot; 0 if there is no such slot. (A masked sum is one kernel, a gather two.)"""
        return jnp.sum(jnp.where(self.index == slot, field, 0))

    def column(self, slot: jax.Array) -> jax.Array:
        """All request columns of a slot ``[16]`` (clamped), with what this micro-step has written."""
        slot = jnp.minimum(slot, self.static.num_slots - 1)
        values = self.state.request[self.m, slot]
        for written, new, active in self.writes:
            values = jnp.where(active & (written == slot), new, values)
        return values

    def column_of(self, which: Col) -> jax.Array:
        """One request column of the whole row ``[slots]``, with what this micro-step has written."""
        values = self.state.request[self.m, :, which]
        for written, new, active in self.writes:
            values = jnp.where(active & (written == self.index), new[which], values)
        return values

    def write_column(self, slot: jax.Array, values: jax.Array, active: jax.Array) -> None:
        """Set the request columns of a slot if `active`.

        Writes are kept until `store`: a write between reads of the big array would make XLA copy all of it.
        """
        self.writes = [(s, v, on & ~(active & (s == slot))) for s, v, on in self.writes]
        self.writes.append((slot, values, active))

    def tokens_in_flight(self) -> jax.Array:
        """Asynchronous: output tokens of each slot that the engine does not know yet (0 or 1 when schedule() runs)."""
        if not self.static.scheduler.asynchronous:
            return jnp.zeros_like(self.slots.aux)
        return (self.slots.aux > self.inst.steps - self.inst.in_flight).astype(jnp.int32)

    def cache_outputs(self, begins: jax.Array) -> None:
        """At the end of a step or run: the blocks that its outputs filled become findable."""
        self.kv.register(self.running_mask & begins, self.slots.order, self.slots.computed - self.tokens_in_flight())

    def cache_scheduled(self, active: jax.Array, slot: jax.Array | None = None) -> None:
        """Inside schedule(): the blocks that this call's tokens will fill become findable.

        vLLM registers a block when its tokens are scheduled, as far as they are known
        (single_type_kv_cache_manager.py).
        """
        filled = self.slots.computed + self.slots.chunk
        tokens = jnp.minimum(filled, self.slots.known - self.tokens_in_flight())
        if slot is None:
            self.kv.register((self.slots.chunk > 0) & active, self.slots.order, tokens)
        else:
            self.kv.register_one(slot, active, self.at(tokens, slot))

    def held_blocks(self, computed: jax.Array, reserved: jax.Array) -> jax.Array:
        """KV blocks of a request with `computed` tokens (`reserved`: `Slots.aux`)."""
        if self.static.scheduler.compress is not None:
            return ceil_blocks(self.static, computed - reserved)
        blocks = ceil_blocks(self.static, computed)
        return jnp.maximum(blocks, reserved) if self.static.reserves_blocks else blocks

    def wrapped(self, relative_us: jax.Array) -> jax.Array:
        """Absolute time modulo 2^31 us, never negative: differences are exact up to 35 minutes."""
        return (relative_us + (self.state.epoch << EPOCH_BITS)) & WRAP_MASK

    def stamp(self, relative_us: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(epoch, us) of a time relative to the current epoch."""
        return self.state.epoch + (relative_us >> EPOCH_BITS), relative_us & (EPOCH_US - 1)

    def since(self, relative_us: jax.Array, epoch: jax.Array, us: jax.Array) -> jax.Array:
        """Float32 microseconds from (epoch, us) to a time relative to the current epoch."""
        return (self.state.epoch - epoch).astype(jnp.float32) * EPOCH_US + (relative_us - us).astype(jnp.float32)

    def add_waiting(self, sign: int, active: jax.Array, prompt: jax.Array, row: jax.Array) -> None:
        """A request (of table row `row`) joins (+1) or leaves (-1) the waiting ones."""
        self.inst.waiting = self.inst.waiting + sign * active.astype(jnp.int32)
        if self.static.route_by_blocks:
            blocks = jnp.where(active, ceil_blocks(self.static, prompt), 0)
            self.inst.waiting_blocks = self.inst.waiting_blocks + sign * blocks
        if self.static.route_by_cache == "cache":
            routing = count_waiting(self.state.routing, self.m, row, sign, active)
            self.state = self.state.replace(routing=routing)
        if self.static.tenants:
            book = books.wait(self.state.ledger, self.requests.klass[row], sign * active.astype(jnp.int32))
            self.state = self.state.replace(ledger=book)

    # -- tenants -------------------------------------------------------------------------------------------------------

    def _who(self, slot: jax.Array, column: jax.Array) -> tuple:
        """The request of a slot, and the tenants and states of all slots, as rules of fairness see them."""
        prompt, order = self.at(self.slots.prompt, slot), self.slots.order
        outputs = self.at(self.slots.known, slot) - prompt
        tag = jnp.int32(0) if self.fair is None else self.at(self.fair.tag, slot)
        who = Who(column[Col.KLASS], prompt, column[Col.PREDICTED], outputs, tag)
        return who, self.column_of(Col.KLASS), order == WAITING, order != EMPTY

    def enter_account(self, slot: jax.Array, active: jax.Array, column: jax.Array) -> None:
        """A request comes into the view of the scheduler."""
        if self.fair is not None:
            self.fair.enter(slot, active, *self._who(slot, column))

    def serve_outputs(self, outputs: jax.Array) -> None:
        """Tokens ``[slots]`` that a step, or a run of steps, has yielded are booked to the tenants."""
        static = self.static
        if self.fair is None and not static.tenants:
            return
        tenant = self.column_of(Col.KLASS)
        by = by_tenant(tenant, outputs, static.num_classes)
        if self.fair is not None:
            past = self.slots.known - self.slots.prompt - self.column_of(Col.PREDICTED)
            beyond = by_tenant(tenant, jnp.clip(past, 0, outputs), static.num_classes)
            self.fair.serve(Served(by, beyond))
        if static.tenants:
            book = books.give(self.state.ledger, self.params.tenants, jnp.zeros_like(by), by)
            self.state = self.state.replace(ledger=book)

    def charge_prompt(self, slot: jax.Array, active: jax.Array, column: jax.Array, prompt: jax.Array) -> None:
        """A request is admitted for the first time: its prompt is booked to the tenant."""
        if self.fair is not None:
            self.fair.admit(slot, active, *self._who(slot, column))
        if self.static.tenants:
            mine = (jnp.arange(self.static.num_classes, dtype=jnp.int32) == column[Col.KLASS]) & active
            inputs = jnp.where(mine, prompt, 0)
            book = books.give(self.state.ledger, self.params.tenants, inputs, jnp.zeros_like(inputs))
            self.state = self.state.replace(ledger=book)

    def sample_ledger(self, active: jax.Array) -> None:
        """Look at the differences between the tenants."""
        if self.static.tenants:
            self.state = self.state.replace(ledger=books.sample(self.state.ledger, active))

    def drop_work(self, active: jax.Array, prompt: jax.Array, column: jax.Array) -> None:
        """A request's predicted work is gone."""
        if self.static.route_by_work:
            self.inst.work = self.inst.work - jnp.where(active, prompt + column[Col.PREDICTED], 0)

    def note(self, **values: jax.Array) -> None:
        """Keep decisions for the trace (only when tracing)."""
        if self.trace is not None:
            self.trace.update(values)

    def record(self, request: jax.Array, active: jax.Array, **values) -> None:
        """Write fields of a request's record if `active` (only when recording)."""
        if not self.static.record:
            return
        rec = self.state.record
        where = jnp.where(active, request, rec.fate.shape[0])
        changes = {}
        for name, value in values.items():
            field = getattr(rec, name)
            value = jnp.stack(value) if isinstance(value, tuple) else value
            changes[name] = field.at[where].set(value, mode="drop")
        self.state = self.state.replace(record=rec.replace(**changes))

    def note_gap(self, mask: jax.Array, gap_us: jax.Array) -> None:
        """A gap between two tokens ends for the requests in `mask`; those whose class allows less are late."""
        assert self.late is not None
        limit = self.params.slo_tbt_us[self.column_of(Col.KLASS)]
        self.late = jnp.where(mask & (gap_us > limit), 1, self.late)

    def measured(self, column: jax.Array) -> jax.Array:
        return column[Col.MEASURED]


def apply_pending(state: State) -> State:
    """Write what the last micro-step left (again and again the same, if applied twice: increments are cleared)."""
    p = state.pending_writes
    instance = state.instance.at[:, p.joined].add(p.change, mode="drop").at[:, p.event].set(p.scalars, mode="drop")
    none = jnp.int32(state.next_event.shape[0])
    return state.replace(
        request=state.request.at[p.instance, p.slot].set(p.values, mode="drop"),
        instance=instance,
        pending_writes=p.replace(instance=jnp.full_like(p.instance, none), joined=none, event=none),
    )


def set_where(mask: jax.Array, value: jax.Array | int, field: jax.Array) -> jax.Array:
    """`field` with `value` where `mask`."""
    return jnp.where(mask, value, field)
