"""Attained service: how long calls, and the programs they belong to, have been served (docs/semantics.md, section 11).

Service of a call is the time it was admitted: from each admission to the preemption or finish that ended it. A
program's is what a rule makes of that of its finished calls (`ServiceRule.finished`: their sum, or the longest chain
of them), kept in one table by program, so that calls of a program may run side by side. A call inherits the table's
entry as the first schedule() call that sees it finds it. Needs an ordered queue; compiled only where
`SchedulerSpec.service` asks for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

from jaxsched.retention.attained import add_us
from jaxsched.sim.clock import EPOCH_BITS, EPOCH_US

#: Times saturate here (35 min 47 s).
LONGEST_US = 2**31 - 1
#: Columns of `ServiceState.programs`.
ATTAINED, SERVED, WAITED = range(3)
#: Rows of `ServiceState.slots`.
(
    INHERITED,
    PROGRAM_SERVED,
    PROGRAM_WAITED,
    CALL_SERVED,
    CLEARED_SERVICE,
    CLEARED_WAIT,
    BEGAN_EPOCH,
    BEGAN_US,
    BEGAN_TOKENS,
) = range(9)


@dataclasses.dataclass(frozen=True)
class ServiceRule:
    """What a scheduler makes of attained service. Hashable: it is part of what is compiled."""

    #: (program's attained us, what the call inherited, the call's service) -> the program's attained us once it is
    #: done.
    finished: Callable[[Array, Array, Array], Int[Array, ""]]
    #: (order parameters, wait and service of the program's finished calls, wait and service of each call since it began
    #: or was last promoted) -> who is promoted: its attained service counts as 0 from now on. None: nobody.
    promotes: Callable[[Array, Array, Array, Array, Array], Bool[Array, " s"]] | None = None


class ServiceState(struct.PyTreeNode):
    """Attained service of a lane, in us, saturating at `LONGEST_US`."""

    #: By program (row of its first turn): attained service as the rule has it, service and wait of its finished calls.
    #: One row where programs have one turn.
    programs: Int[Array, "n 3"]
    #: Per slot: of the program, as the call found it: attained, served, waited; of the call: service of its ended
    #: admissions, service and wait at its last promotion (-1 = never promoted), (epoch, us) of its last admission and
    #: its tokens then.
    slots: Int[Array, "m 9 s"]


def init_service(num_instances: int, num_slots: int, num_programs: int) -> ServiceState:
    """Nobody has been served."""
    return ServiceState(
        programs=jnp.zeros((num_programs, 3), jnp.int32), slots=jnp.zeros((num_instances, 9, num_slots), jnp.int32)
    )


def elapsed_us(epoch: Array, now: Array, since_epoch: Array, since_us: Array) -> Int[Array, "*n"]:
    """Integer microseconds from (since_epoch, since_us) to `now` in `epoch`, saturating; not negative."""
    epochs = jnp.minimum(epoch - since_epoch, 2)
    over = epochs.astype(jnp.float32) * float(EPOCH_US) + (now - since_us).astype(jnp.float32) >= 2.0**31 - 256
    exact = (epochs << EPOCH_BITS) + (now - since_us)
    return jnp.where(over | (epoch - since_epoch > 2), LONGEST_US, jnp.maximum(exact, 0))


class ServiceRow:
    """One instance's part during a micro-step."""

    def __init__(self, rule: ServiceRule, state: ServiceState, m: Array, epoch: Array, now: Array):
        self._rule, self._m, self._epoch, self._now = rule, m, epoch, now
        self._programs = state.programs
        rows = jax.lax.dynamic_index_in_dim(state.slots, m, 0, keepdims=False)
        self._rows = [rows[i] for i in range(rows.shape[0])]
        self._index = jnp.arange(rows.shape[1], dtype=jnp.int32)

    def store(self, state: ServiceState) -> ServiceState:
        """Write it back."""
        rows = jnp.stack(self._rows)
        return ServiceState(self._programs, jax.lax.dynamic_update_index_in_dim(state.slots, rows, self._m, 0))

    def _at(self, row: int, slot: Array) -> Int[Array, ""]:
        return jnp.sum(jnp.where(self._index == slot, self._rows[row], 0))

    def _set(self, mask: Bool[Array, " s"], values: dict[int, Array]) -> None:
        for row, value in values.items():
            self._rows[row] = jnp.where(mask, value, self._rows[row])

    def _since_admission(self) -> Int[Array, " s"]:
        return elapsed_us(self._epoch, self._now, self._rows[BEGAN_EPOCH], self._rows[BEGAN_US])

    def _entry(self, program: Array) -> Int[Array, " 3"]:
        return self._programs[jnp.minimum(program, self._programs.shape[0] - 1)]

    # -- what happens to a call ----------------------------------------------------------------------------------------

    def enter(self, slot: Array, active: Array, program: Array) -> None:
        """A call comes into the view of the scheduler."""
        entry, zero = self._entry(program), jnp.int32(0)
        values = {INHERITED: entry[ATTAINED], PROGRAM_SERVED: entry[SERVED], PROGRAM_WAITED: entry[WAITED]}
        values |= {CALL_SERVED: zero, CLEARED_SERVICE: zero, CLEARED_WAIT: jnp.int32(-1)}
        self._set((self._index == slot) & active, values)

    def begin(self, slot: Array, active: Array, known: Int[Array, " s"]) -> None:
        """It is admitted (`known`: tokens of each slot's call)."""
        epoch, us = self._epoch + (self._now >> EPOCH_BITS), self._now & (EPOCH_US - 1)
        self._set((self._index == slot) & active, {BEGAN_EPOCH: epoch, BEGAN_US: us, BEGAN_TOKENS: known})

    def stop(self, slot: Array, active: Array) -> None:
        """It is preempted."""
        served = add_us(self._rows[CALL_SERVED], self._since_admission())
        self._set((self._index == slot) & active, {CALL_SERVED: served})

    def finish(self, slot: Array, active: Array, program: Array, arrival: tuple[Array, Array]) -> None:
        """It is done (and was running); its program has been served that much more."""
        if self._programs.shape[0] == 1:
            return
        served = add_us(
            self._at(CALL_SERVED, slot), jnp.sum(jnp.where(self._index == slot, self._since_admission(), 0))
        )
        waited = jnp.maximum(elapsed_us(self._epoch, self._now, *arrival) - served, 0)
        entry = self._entry(program)
        after = jnp.stack([
            self._rule.finished(entry[ATTAINED], self._at(INHERITED, slot), served),
            add_us(entry[SERVED], served),
            add_us(entry[WAITED], waited),
        ])  # fmt: skip
        at = jnp.where(active, program, self._programs.shape[0])
        self._programs = self._programs.at[at].set(after, mode="drop")

    def promote(self, params: Array, active: Array, waiting: Bool[Array, " s"], arrival: tuple[Array, Array]) -> None:
        """At the start of a schedule() call those who starve count as never served (`arrival`: of each call)."""
        if self._rule.promotes is None:
            return
        waited = jnp.maximum(elapsed_us(self._epoch, self._now, *arrival) - self._rows[CALL_SERVED], 0)
        call_wait = waited - jnp.maximum(self._rows[CLEARED_WAIT], 0)
        call_service = self._rows[CALL_SERVED] - self._rows[CLEARED_SERVICE]
        starved = self._rule.promotes(
            params, self._rows[PROGRAM_WAITED], call_wait, self._rows[PROGRAM_SERVED], call_service
        )
        cleared = {CLEARED_SERVICE: self._rows[CALL_SERVED], CLEARED_WAIT: waited}
        self._set(waiting & starved & active, cleared)

    def since_admission(self) -> Int[Array, " s"]:
        """Time since the last admission of each call (of those that run)."""
        return self._since_admission()

    def advanced(self, known: Int[Array, " s"]) -> Bool[Array, " s"]:
        """Which running calls have yielded a token since their admission."""
        return known > self._rows[BEGAN_TOKENS]

    def attained(self, running: Bool[Array, " s"]) -> Int[Array, " s"]:
        """Service that counts for each call: inherited and its own, since its last promotion if there was one."""
        own = add_us(self._rows[CALL_SERVED], jnp.where(running, self._since_admission(), 0))
        promoted = self._rows[CLEARED_WAIT] >= 0
        return jnp.where(promoted, own - self._rows[CLEARED_SERVICE], add_us(self._rows[INHERITED], own))
