"""Several tenants in one workload: each with a source, a rate, a share of the episode, and a weight of its own.

A tenant's programs are those that its own preset would generate alone, under a seed of its own, so that what one tenant
does changes nothing in the others (`klass` tells whose a program is). Programs of all tenants are then numbered in
order of arrival.

An episode of N programs lasts as long as the tenants together take on average to send N; tenant u is there from
``begin`` to ``end`` of it, in shares: a flood can begin in the middle. How many programs each sends is fixed, when they
come is random.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxsched.sim.clock import EPOCH_BITS, EPOCH_US
from jaxsched.sim.requests import TURN_COLUMNS, Requests
from jaxsched.workloads.arrivals import split_gap
from jaxsched.workloads.generate import Knobs, RequestSpec, generate_requests
from jaxsched.workloads.sessions import MixedSessions, SessionSpec, generate_sessions
from jaxsched.workloads.split import SplitSpec

#: Streams of the tenants' seeds (`keyed` has the others).
_FIRST_STREAM = 1000
#: Columns of the table that hold rows of it.
_ROWS = ("program", "next_turn", "chain")


TenantSpec = RequestSpec | SessionSpec | MixedSessions
#: The same as a tuple.
SPECS = (RequestSpec, SessionSpec, MixedSessions)


@dataclass(frozen=True)
class TenantPart:
    """One tenant of a mixture."""

    name: str
    spec: TenantSpec
    rate_per_s: float  # programs per second while it is there, at load 1
    begin: float = 0.0  # share of the episode at which it comes
    end: float = 1.0  # ... and goes
    priority: int = 0  # of its requests; lower = more important

    def __post_init__(self) -> None:
        if isinstance(self.spec, SplitSpec):  # a `RequestSpec` by inheritance, which would be generated whole
            raise ValueError(f"tenant {self.name!r}: split requests cannot be one of several tenants'")

    @property
    def max_turns(self) -> int:
        return 1 if isinstance(self.spec, RequestSpec) else self.spec.max_turns


@dataclass(frozen=True)
class TenantMix:
    """All tenants."""

    parts: tuple[TenantPart, ...]

    @property
    def max_turns(self) -> int:
        return max(part.max_turns for part in self.parts)

    @property
    def tool_names(self) -> tuple[str, ...]:
        """Of the tenant with most kinds of pauses; the kinds of several tenants are counted together."""
        names = [() if isinstance(p.spec, RequestSpec) else p.spec.tool_names for p in self.parts]
        return max(names, key=len)

    @property
    def rate_per_s(self) -> float:
        """Programs per second of all tenants, over the episode."""
        return sum(part.rate_per_s * (part.end - part.begin) for part in self.parts)

    def counts(self, num_programs: int) -> list[int]:
        """Programs of each tenant: in proportion to rate and presence, largest remainders up."""
        shares = np.array([part.rate_per_s * (part.end - part.begin) for part in self.parts])
        exact = num_programs * shares / shares.sum()
        counts = np.floor(exact).astype(int)
        late = np.argsort(-(exact - counts), kind="stable")[: num_programs - counts.sum()]
        counts[late] += 1
        return counts.tolist()

    def num_rows(self, num_programs: int) -> int:
        """Rows of the table."""
        counts = self.counts(num_programs)
        return sum(count * part.max_turns for count, part in zip(counts, self.parts, strict=True))


def generate_tenants(
    spec: TenantMix, key: Array, num_programs: int, rate_per_s: Float[Array, ""], knobs: Knobs
) -> Requests:
    """One table of the programs of all tenants; `rate_per_s` is that of all together (`TenantMix.rate_per_s`)."""
    speed = jnp.asarray(rate_per_s, jnp.float32) / jnp.float32(spec.rate_per_s)
    span_us = jnp.float32(num_programs / spec.rate_per_s * 1e6) / speed
    tables, programs, groups = [], [], 0
    for index, (part, count) in enumerate(zip(spec.parts, spec.counts(num_programs), strict=True)):
        if count == 0:
            continue
        own = jax.random.fold_in(key, _FIRST_STREAM + index)
        generate: Any = generate_requests if isinstance(part.spec, RequestSpec) else generate_sessions
        factors = {name: jnp.float32(getattr(part.spec, name, value)) for name, value in knobs.items()}
        factors["prediction_sigma"] = knobs["prediction_sigma"]
        table = generate(part.spec, own, count, jnp.float32(part.rate_per_s) * speed, factors)
        epoch, us = split_gap(jnp.float32(part.begin) * span_us)
        us = us + table.arrival_us
        table = table.replace(
            arrival_epoch=table.arrival_epoch + epoch + (us >> EPOCH_BITS),
            arrival_us=us & (EPOCH_US - 1),
            klass=jnp.full_like(table.klass, index),
            priority=jnp.full_like(table.priority, part.priority),
        )
        if table.group is not None:
            table = table.replace(group=jnp.where(table.group >= 0, table.group + groups, -1))
            groups += _num_groups(part.spec)
        tables.append(table)
        programs.append(count)
    return _merged(tables, programs)


def _merged(tables: list[Requests], programs: list[int]) -> Requests:
    """One table: first turns of all in order of arrival, then the other rows, table after table."""
    total = sum(programs)
    first = lambda name: jnp.concatenate([getattr(t, name)[:n] for t, n in zip(tables, programs, strict=True)])
    order = jnp.lexsort((first("arrival_us"), first("arrival_epoch"))).astype(jnp.int32)
    place = jnp.zeros(total, jnp.int32).at[order].set(jnp.arange(total, dtype=jnp.int32))
    moved, begun, behind = [], 0, total  # where each row of each table goes
    for table, count in zip(tables, programs, strict=True):
        rest = jnp.arange(table.num_rows - count, dtype=jnp.int32) + behind
        moved.append(jnp.concatenate([place[begun : begun + count], rest]))
        begun, behind = begun + count, behind + table.num_rows - count
    target = jnp.concatenate(moved)

    def column(name: str) -> Array | None:
        found = [getattr(table, name) for table in tables]
        if all(part is None for part in found):
            return None
        parts = []
        for part, table, rows in zip(found, tables, moved, strict=True):
            if part is None:  # requests of one turn that share nothing
                own = {"chain": table.program, "group": jnp.full_like(table.program, -1)}
                part = own.get(name, jnp.zeros_like(table.program))
            parts.append(jnp.where(part >= 0, rows[jnp.maximum(part, 0)], -1) if name in _ROWS else part)
        values = jnp.concatenate(parts)
        return jnp.zeros_like(values).at[target].set(values)

    columns: dict[str, Any] = {name: column(name) for name in (*TURN_COLUMNS, "turn") if name != "content_start"}
    # (Of later rows the arrival is not read.)
    return Requests(num_programs=jnp.int32(total), **columns)


def _num_groups(spec: TenantSpec) -> int:
    """Shared prefixes that the programs of a specification can have."""
    if isinstance(spec, MixedSessions):
        return max(_num_groups(spec.short), _num_groups(spec.long))
    return 1 if spec.groups is None else len(spec.groups.probabilities)
