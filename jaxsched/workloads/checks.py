"""What a workload must be: every refusal names the file and line (or row), what was found and what is expected."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jaxsched.errors import UserError
from jaxsched.sim.clock import EPOCH_US
from jaxsched.workloads.content import followed, num_full_blocks, prefix_conflict

#: Latest representable time: the machine counts epochs in int32 and adds pauses to clock readings.
MAX_TIME_US = (2**30) * EPOCH_US
MAX_TOKENS = 2**30

_LIMITS = {
    "arrival_us": (0, MAX_TIME_US),
    "pause_us": (0, MAX_TIME_US),
    "prompt_tokens": (1, MAX_TOKENS),
    "output_tokens": (1, MAX_TOKENS),
    "predicted_tokens": (1, MAX_TOKENS),
    "klass": (0, 2**30),
    "priority": (-(2**30), 2**30),
    "turn": (0, 2**30),
    "line": (0, 2**31 - 1),
    "group": (-1, 2**30),
    "group_tokens": (0, MAX_TOKENS),
    "tool": (0, 2**30),
}

Columns = Mapping[str, np.ndarray]


def check_ranges(columns: Columns, where: str) -> None:
    """Refuse an empty table and values outside a column's range, naming the first bad row."""
    if len(columns["arrival_us"]) == 0:
        raise UserError("empty workload: no requests", where=where, expected="at least one request")
    for name, (low, high) in _LIMITS.items():
        value = columns[name]
        bad = ~((value >= low) & (value <= high))  # NaN fails both comparisons
        if bad.any():
            row = int(np.argmax(bad))
            raise UserError(
                f"{name} is {value[row]}",
                where=place(columns["line"], row, where),
                expected=f"{low} <= {name} <= {high}",
            )


def check_order(columns: Columns, where: str) -> None:
    """Refuse arrivals that go backwards and programs whose turns are not 0, 1, 2, ... in consecutive rows."""
    arrival, program, turn = columns["arrival_us"], columns["program"], columns["turn"]
    back = np.flatnonzero(arrival[1:] < arrival[:-1])
    if len(back):
        row = int(back[0]) + 1
        raise UserError(
            f"timestamp {arrival[row] / 1e6:.6f} s is earlier than the one before it ({arrival[row - 1] / 1e6:.6f} s)",
            where=place(columns["line"], row, where),
            expected="arrival times that never decrease",
            hint="Sort the trace by time first.",
        )
    later = turn > 0
    broken = later.copy()
    broken[1:] &= (turn[1:] != turn[:-1] + 1) | (program[1:] != program[:-1]) | (arrival[1:] != arrival[:-1])
    broken |= ~later & (columns["pause_us"] != 0)
    if broken.any():
        row = int(np.argmax(broken))
        raise UserError(
            f"turn {turn[row]} of program {program[row]} does not follow its previous one, or a first turn has a pause",
            where=place(columns["line"], row, where),
            expected="the turns of a program in consecutive rows, counted from 0",
        )


def check_sharing(columns: Columns, where: str) -> None:
    """Refuse groups and chains that claim content which the turns cannot hold."""
    group, covered, prompt = columns["group"], columns["group_tokens"], columns["prompt_tokens"]
    line = columns["line"]
    wrong = np.flatnonzero((covered > prompt) | ((group < 0) & (covered > 0)))
    if len(wrong):
        row = int(wrong[0])
        found = "without a group" if group[row] < 0 else f"of a prompt of {prompt[row]}"
        raise UserError(
            f"group_tokens is {covered[row]} {found}",
            where=place(line, row, where),
            expected="at most prompt_tokens, and 0 where group is -1",
        )
    tooled = np.flatnonzero((columns["turn"] == 0) & (columns["tool"] != 0))
    if len(tooled):
        row = int(tooled[0])
        raise UserError(
            f"tool is {columns['tool'][row]} on a first turn", where=place(line, row, where), expected="0: no pause"
        )
    _check_chains(columns, where)


def _check_chains(columns: Columns, where: str) -> None:
    """The turns of a chain belong to one program, share a group prefix, and each holds the one before it."""
    chain, program, line = columns["chain"], columns["program"], columns["line"]
    if len(chain) == np.count_nonzero(columns["turn"] == 0) and (chain == program).all():
        return  # plain requests
    order = np.argsort(chain, kind="stable")
    before, after = order[:-1], order[1:]
    linked = chain[before] == chain[after]
    before, after = before[linked], after[linked]

    stranger = np.flatnonzero(program[before] != program[after])
    if len(stranger):
        a, b = int(before[stranger[0]]), int(after[stranger[0]])
        raise UserError(
            f"chain {chain[b]} has turns of the programs {program[a]} and {program[b]}",
            where=place(line, b, where),
            expected="chains inside one program",
            hint="What programs share is a group's prefix, or a list of block ids (content).",
        )
    prompt, output = columns["prompt_tokens"].astype(np.int64), columns["output_tokens"].astype(np.int64)
    short = np.flatnonzero(prompt[after] < prompt[before] + output[before])
    if len(short):
        a, b = int(before[short[0]]), int(after[short[0]])
        raise UserError(
            f"the history is shorter than the prefix that chain {chain[b]} claims: a prompt of {prompt[b]} tokens "
            f"after a prompt of {prompt[a]} and {output[a]} outputs",
            where=place(line, b, where),
            expected=f"at least {prompt[a] + output[a]} tokens",
            hint="Begin a new chain where the history is cut.",
        )
    for name in ("group", "group_tokens"):
        value = columns[name]
        other = np.flatnonzero(value[before] != value[after])
        if len(other):
            a, b = int(before[other[0]]), int(after[other[0]])
            raise UserError(
                f"{name} is {value[b]}, but {value[a]} earlier in chain {chain[b]}",
                where=place(line, b, where),
                expected="one shared prefix along a chain",
            )


def check_content(columns: Columns, content: np.ndarray, start: np.ndarray, block_size: int, where: str) -> None:
    """Refuse lists of block ids that do not fit the lengths, and ids whose prefix is not always the same."""
    if block_size < 1:
        raise UserError(f"content_block_size {block_size}", where=where, expected="tokens per block id, at least 1")
    counts = num_full_blocks(columns["prompt_tokens"], columns["output_tokens"], block_size)
    found = np.diff(np.append(start, len(content)))
    wrong = np.flatnonzero((found != counts) | (np.append(0, np.cumsum(counts)[:-1]) != start))
    if len(wrong):
        row = int(wrong[0])
        raise UserError(
            f"{found[row]} block ids for a prompt of {columns['prompt_tokens'][row]} and "
            f"{columns['output_tokens'][row]} output tokens",
            where=place(columns["line"], row, where),
            expected=f"{counts[row]} ids: the full blocks of {block_size} tokens without the last output token",
        )
    if len(content) and content.min() < 0:
        at = int(np.argmin(content))
        row = int(np.searchsorted(start, at, side="right")) - 1
        raise UserError(f"block id {content[at]}", where=place(columns["line"], row, where), expected="block ids >= 0")
    _check_prefixes(columns["line"], content, start, counts, where)


def _check_prefixes(line: np.ndarray, content: np.ndarray, start: np.ndarray, counts: np.ndarray, where: str) -> None:
    """An id stands for its block and everything before it: it always follows the same id."""
    conflict = prefix_conflict(content, start, counts)
    if conflict is not None:
        at, other = conflict
        row = int(np.searchsorted(start + counts, at, side="right"))
        previous = followed(content, start, counts)
        say = lambda i: "begins a prompt" if previous[i] < 0 else f"follows {previous[i]}"
        raise UserError(
            f"block id {content[at]} {say(at)} here and {say(other)} elsewhere",
            where=place(line, row, where),
            expected="ids that stand for a block together with everything before it",
        )


def place(line: np.ndarray, row: int, where: str) -> str:
    """``file, line N`` when the line is known, else the row."""
    number = int(line[row])
    return f"{where}, line {number}" if number > 0 else f"{where}, row {row}"
