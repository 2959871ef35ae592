"""Scratch of one micro-step: an instance's row while an event works on it, and what is to be booked at its end.

These objects exist while JAX traces a micro-step: plain attribute assignment of traced values, then one write-back. Nothing
here survives the trace, so the micro-step as a whole stays a pure function.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxsched.metrics.histogram import NUM_BINS, bin_of
from jaxsched.sim.clock import EPOCH_BITS, EPOCH_US
from jaxsched.sim.params import SimParams
from jaxsched.sim.requests import Requests
from jaxsched.sim.state import Col, Count, Hist, Instance, Metrics, Slots, State
from jaxsched.sim.static import SimStatic

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


def slot_with(mask: jax.Array, key: jax.Array, largest: bool = False) -> jax.Array:
    """Index of the slot in `mask` with the smallest (largest) key, ties to the first slot; the length if the mask is empty."""
    extreme = jnp.max(jnp.where(mask, key, -(2**31))) if largest else jnp.min(jnp.where(mask, key, 2**31 - 1))
    return first_slot(mask & (key == extreme))


def count(mask: jax.Array) -> jax.Array:
    """Number of True."""
    return jnp.sum(mask.astype(jnp.int32))


class Tally:
    """Collects histogram entries and counter increments of a micro-step and books them at once."""

    def __init__(self, static: SimStatic):
        self._num_classes = static.num_classes
        self._index: list[jax.Array] = []
        self._weight: list[jax.Array] = []
        self._counts: dict[Count, jax.Array] = {}

    def observe(self, hist: Hist, klass, value_us: jax.Array, weight: jax.Array) -> None:
        """Add float32 `value_us` (scalar or vector) with int32 `weight` to a histogram."""
        index = (klass * len(Hist) + int(hist)) * NUM_BINS + bin_of(value_us)
        self._index.append(jnp.atleast_1d(index))
        self._weight.append(jnp.atleast_1d(jnp.broadcast_to(weight.astype(jnp.int32), index.shape)))

    def count(self, which: Count, amount: jax.Array) -> None:
        """Add to a counter."""
        amount = amount.astype(jnp.int32)
        self._counts[which] = self._counts[which] + amount if which in self._counts else amount

    def book(self, metrics: Metrics) -> Metrics:
        """One scatter for all histogram entries, one vector add for all counters."""
        flat = metrics.histograms.reshape(-1)
        flat = flat.at[jnp.concatenate(self._index)].add(jnp.concatenate(self._weight), mode="promise_in_bounds")
        zero = jnp.int32(0)
        increments = jnp.stack([self._counts.get(which, zero) for which in Count])
        return metrics.replace(
            histograms=flat.reshape(metrics.histograms.shape), counts=metrics.counts + increments
        )


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
    trace: dict | None = None  # decisions of this micro-step, when `static.trace`

    @classmethod
    def load(cls, static, params, requests, state: State, tally: Tally, m, now) -> Event:
        """Read instance `m` (one slice of each array)."""
        rows = jax.lax.dynamic_index_in_dim(state.slots, m, 0, keepdims=False)
        scalars = jax.lax.dynamic_index_in_dim(state.instance, m, 0, keepdims=False)
        return cls(
            static, params, requests, state, tally, m, now,
            Slots(*(rows[i] for i in range(rows.shape[0]))),
            Instance(*(scalars[i] for i in range(scalars.shape[0]))),
            {} if static.trace else None,
        )  # fmt: skip

    def store(self) -> State:
        """Write the row back."""
        rows = jnp.stack([getattr(self.slots, name) for name in Slots.__dataclass_fields__])
        scalars = jnp.stack([getattr(self.inst, name) for name in Instance.__dataclass_fields__])
        return self.state.replace(
            slots=jax.lax.dynamic_update_index_in_dim(self.state.slots, rows, self.m, 0),
            instance=jax.lax.dynamic_update_index_in_dim(self.state.instance, scalars, self.m, 0),
        )

    # -- small helpers shared by the parts of an event -----------------------------------------------------------------

    @property
    def index(self) -> jax.Array:
        return jnp.arange(self.static.num_slots, dtype=jnp.int32)

    @property
    def running_mask(self) -> jax.Array:
        return self.slots.order >= 0

    def at(self, field: jax.Array, slot: jax.Array) -> jax.Array:
        """Value of a row field at a slot (clamped to the last slot)."""
        return jax.lax.dynamic_index_in_dim(field, jnp.minimum(slot, self.static.num_slots - 1), 0, keepdims=False)

    def column(self, slot: jax.Array) -> jax.Array:
        """All request columns of a slot ``[16]`` (clamped)."""
        return self.state.request[self.m, jnp.minimum(slot, self.static.num_slots - 1)]

    def write_column(self, slot: jax.Array, values: jax.Array, active: jax.Array) -> None:
        """Set the request columns of a slot if `active`."""
        where = jnp.where(active, slot, self.static.num_slots)
        self.state = self.state.replace(request=self.state.request.at[self.m, where].set(values, mode="drop"))

    def held_blocks(self, computed: jax.Array, reserved: jax.Array) -> jax.Array:
        """KV blocks of a request with `computed` tokens."""
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

    def measured(self, column: jax.Array) -> jax.Array:
        return column[Col.MEASURED]


def set_where(mask: jax.Array, value: jax.Array | int, field: jax.Array) -> jax.Array:
    """`field` with `value` where `mask`."""
    return jnp.where(mask, value, field)
