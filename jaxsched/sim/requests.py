"""The workload as the machine reads it: a table of turns, shared by all lanes (a trace) or one per lane (synthetic)."""

from __future__ import annotations

from typing import NamedTuple

from flax import struct
from jaxtyping import Array, Int


class Requests(struct.PyTreeNode):
    """Turns of programs.

    Rows ``[0, num_programs)`` are first turns in arrival order; later turns follow, reached by `next_turn`.

    A plain request is a program of one turn. Row index = the request's identity everywhere in the machine. The table
    may be padded behind the last turn; padding is never read.
    """

    num_programs: Int[Array, ""]  # how many first turns arrive
    arrival_epoch: Int[Array, " n"]  # first turns: arrival time, epochs of 2**30 us (see sim/clock.py); later turns: 0
    arrival_us: Int[Array, " n"]  # first turns: arrival time inside the epoch; non-decreasing with arrival_epoch
    prompt_tokens: Int[Array, " n"]  # whole prompt of the turn, >= 1
    output_tokens: Int[Array, " n"]  # tokens generated, >= 1
    predicted_tokens: Int[Array, " n"]  # predicted output tokens: what a length-aware policy may see
    klass: Int[Array, " n"]  # SLO class / tenant, in [0, num_classes)
    priority: Int[Array, " n"]  # lower = more important
    program: Int[Array, " n"]  # row of the program's first turn (itself for first turns)
    next_turn: Int[Array, " n"]  # row of the program's next turn, -1 = last
    pause_epoch: Int[Array, " n"]  # later turns: pause between the previous finish and this arrival (epochs part)
    pause_us: Int[Array, " n"]  # the same, part inside the epoch

    @property
    def num_rows(self) -> int:
        """Rows of the table, padding included (static)."""
        return self.prompt_tokens.shape[-1]

    def row(self, index: Int[Array, ""]) -> TurnRow:
        """One turn."""
        return TurnRow(*(getattr(self, name)[index] for name in TURN_COLUMNS))


class TurnRow(NamedTuple):
    """One row of `Requests`; fields and units as there."""

    arrival_epoch: Int[Array, ""]
    arrival_us: Int[Array, ""]
    prompt_tokens: Int[Array, ""]
    output_tokens: Int[Array, ""]
    predicted_tokens: Int[Array, ""]
    klass: Int[Array, ""]
    priority: Int[Array, ""]
    program: Int[Array, ""]
    next_turn: Int[Array, ""]
    pause_epoch: Int[Array, ""]
    pause_us: Int[Array, ""]


TURN_COLUMNS = TurnRow._fields
