"""Collecting turns of programs, and the block ids of their prompts, from readers that see one request at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxsched.errors import UserError
from jaxsched.workloads.content import ids_of_turns, num_full_blocks, prefix_conflict, starts_of, with_prefixes
from jaxsched.workloads.graph import Edges
from jaxsched.workloads.readers.text import Record
from jaxsched.workloads.table import Workload

_COLUMNS = (
    "program",
    "turn",
    "arrival_us",
    "prompt_tokens",
    "output_tokens",
    "pause_us",
    "line",
    "priority",
    "klass",
    "tool",
)


@dataclass
class TurnTable:
    """Growing columns of turns; `workload` sorts them by program arrival and validates.

    Block ids are kept for all turns or for none: a file in which only some rows have them is refused where they are
    missing (`prompt_blocks`).
    """

    columns: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in _COLUMNS})
    blocks: list[np.ndarray] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.columns["program"])

    def add(
        self,
        program: int,
        turn: int,
        arrival_us: int,
        prompt_tokens: int,
        output_tokens: int,
        pause_us: int,
        line: int,
        priority: int = 0,
        klass: int = 0,
        tool: int = 0,
        blocks: np.ndarray | None = None,
    ) -> None:
        """One turn. `arrival_us` is the arrival of the program, the same on all its turns; `blocks` are the ids of at
        least the full blocks of its prompt."""
        values = (program, turn, arrival_us, prompt_tokens, output_tokens, pause_us, line, priority, klass, tool)
        for name, value in zip(_COLUMNS, values, strict=True):
            self.columns[name].append(value)
        if blocks is not None:
            self.blocks.append(blocks)

    def prompt_blocks(
        self, record: Record, name: str, prompt_tokens: int, block_tokens: int, first_id: int = 0
    ) -> np.ndarray | None:
        """The ids of the full blocks of the prompt of the turn to be added next, plus `first_id`; None without ids.

        The list may end with one more id, for the block in which the prompt ends: that block is not full, or the answer
        fills it, so what it shares is not known.

        Raises:
            UserError: the list is cut or too long, is missing although earlier rows have one, or holds no ids.
        """
        given, where = record.data.get(name), f"{record.where}, field {name}"
        if not block_tokens or (given is None and not self.blocks):
            return None
        if len(self) and (given is None) == bool(self.blocks):
            found, before = ("no block ids", "have them") if given is None else ("block ids", "have none")
            raise UserError(
                f"{found}, but the rows before {before}", where=where, expected="ids on all rows or on none"
            )
        full = prompt_tokens // block_tokens
        ids = np.asarray(given) if isinstance(given, list) else np.zeros(0, object)
        if len(ids) == 0 and isinstance(given, list):
            ids = np.zeros(0, np.int64)
        if ids.ndim != 1 or ids.dtype.kind != "i" or (ids < 0).any():
            raise UserError(f"{str(given)[:40]}", where=where, expected="a list of integers in [0, 2**63)")
        if len(ids) not in (full, -(-prompt_tokens // block_tokens)):
            either = f"{full} or {full + 1}" if prompt_tokens % block_tokens else f"{full}"
            hint = (
                f"Is the block size of this file not {block_tokens}? content_block_tokens sets it; 0 ignores the ids."
            )
            raise UserError(
                f"{len(ids)} block ids for a prompt of {prompt_tokens} tokens",
                where=where,
                expected=f"{either} ids: blocks of {block_tokens} tokens, the last one perhaps not full",
                hint="The list looks cut. " + hint if len(ids) < full else hint,
            )
        return ids[:full].astype(np.int64) + first_id

    def workload(
        self,
        name: str,
        *,
        content_block_tokens: int = 0,
        tool_names: Sequence[str] = (),
        edges: Edges | None = None,
        **meta: Any,
    ) -> Workload:
        """The validated workload, programs in arrival order (ties by program id).

        `edges` are between turns in the order in which they were added.
        """
        arrays = {k: np.asarray(v) for k, v in self.columns.items()}
        order = np.lexsort((arrays["turn"], arrays["program"], arrays["arrival_us"]))
        columns: dict[str, Any] = {k: v[order] for k, v in arrays.items()}
        if edges is not None:
            columns["edges"] = edges.renumbered(np.argsort(order))
        if self.blocks and content_block_tokens:
            lengths = columns["prompt_tokens"], columns["output_tokens"]
            content = ids_of_turns([self.blocks[row] for row in order], *lengths, content_block_tokens)
            counts = num_full_blocks(*lengths, content_block_tokens)
            start = starts_of(counts)
            if prefix_conflict(content, start, counts) is not None:
                content = with_prefixes(content, start, counts)
                note = "block ids repeat behind different blocks: each is taken together with what precedes it"
                meta["notes"] = (*meta.get("notes", ()), note)
            columns |= {"content": content, "content_start": start, "content_block_size": content_block_tokens}
        return Workload.build(name, tool_names=tool_names, **columns, **meta)


def check_block_tokens(value: int) -> int:
    """The option `content_block_tokens`: tokens that one id of the file covers, 0 = leave the ids out."""
    if not (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        raise UserError(f"content_block_tokens {value!r}", expected="tokens per block id, or 0 to leave the ids out")
    return value


def estimated_pause_s(gap_s: float, output_tokens: int, service_s: float, service_s_per_token: float) -> float:
    """Pause between two arrivals `gap_s` apart, less the estimated service of the first; at least 0."""
    return max(gap_s - service_s - service_s_per_token * output_tokens, 0.0)


def check_service(service_s: float, service_s_per_token: float) -> None:
    """Refuse a negative estimate of the service time."""
    if not (service_s >= 0.0 and service_s_per_token >= 0.0):
        raise UserError(f"service estimate {service_s} s + {service_s_per_token} s/token", expected="numbers >= 0")
