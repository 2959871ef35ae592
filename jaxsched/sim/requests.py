"""The workload as the machine reads it: a table of turns, shared by all lanes (a trace) or one per lane (synthetic)."""

from __future__ import annotations

from typing import Any, NamedTuple

from flax import struct
from jaxtyping import Array, Int


class Foresight(struct.PyTreeNode):
    """What only a bound may know of each turn (jaxsched/foresight.py)."""

    remaining_us: Int[Array, " n"]  # engine work of the turn and those after it in its program, its history cached
    history_us: Int[Array, " n"]  # work to compute that history again
    final_tokens: Int[Array, " n"]  # largest context of the turn and those after it


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

    turn: Int[Array, " n"] | None = None  # turns of the program before this one; None = every program has one

    # What the KV prefix cache knows of a turn's content (docs/semantics.md, section 8); None = nothing is shared.
    # Formula form, for chains of runs: the content of a turn is its group's prefix, then its chain. Turns of one chain
    # agree wherever both are defined, so a later turn's prompt holds the earlier one's prompt and outputs.
    chain: Int[Array, " n"] | None = None  # identity of the turn's own content: the row at which it began
    group: Int[Array, " n"] | None = None  # shared prefix (system prompt), >= 0; -1 = none
    group_tokens: Int[Array, " n"] | None = None  # tokens of the prompt that the shared prefix covers
    tool: Int[Array, " n"] | None = None  # kind of the pause before the turn (index of the tool); 0 on first turns
    # Table form, for block-hash traces: ids of all full blocks of prompt + outputs (without the last output token);
    # equal ids = equal content up to the end of the block.
    content_start: Int[Array, " n"] | None = None  # where a turn's ids begin in `content`
    content: Int[Array, " c"] | None = None  # ids >= 0, block after block

    # Programs that are graphs (docs/semantics.md, section 2); None = every program is a chain along `next_turn`. In a
    # graph `next_turn` only lists the program's turns, and `pause_*` is the longest pause of the turn's edges. An edge
    # is (row that waits, pause: epochs, us); row -1 = none.
    edges: Int[Array, "n w 3"] | None = None  # fire when the turn finishes
    spawns: Int[Array, "n v 3"] | None = None  # fire when the turn arrives and joins a queue; None = nobody has any
    needed: Int[Array, " n"] | None = None  # later turns: edges that must fire; first turns: turns of the program
    not_before: Int[Array, "n 2"] | None = None  # earliest arrival after the program's (epochs, us); None = all 0
    heir: Int[Array, " n"] | None = None  # with chains: row of the turn that goes on with this one's, -1 = none

    foresight: Foresight | None = None  # None: the policy is no bound

    @property
    def num_rows(self) -> int:
        """Rows of the table, padding included (static)."""
        return self.prompt_tokens.shape[-1]

    def row(self, index: Int[Array, ""]) -> TurnRow:
        """One turn."""
        columns: dict[str, Any] = {name: getattr(self, name) for name in TURN_COLUMNS}
        return TurnRow(**{name: column[index] for name, column in columns.items() if column is not None})


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
    chain: Int[Array, ""] | None = None
    group: Int[Array, ""] | None = None
    group_tokens: Int[Array, ""] | None = None
    tool: Int[Array, ""] | None = None
    content_start: Int[Array, ""] | None = None


TURN_COLUMNS = TurnRow._fields
