"""Collecting turns of programs from readers that see one request at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jaxsched.workloads.readers.text import sorted_programs
from jaxsched.workloads.table import Workload

_COLUMNS = ("program", "turn", "arrival_us", "prompt_tokens", "output_tokens", "pause_us", "line", "priority", "klass")


@dataclass
class TurnTable:
    """Growing columns of turns; `workload` sorts them by program arrival and validates."""

    columns: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in _COLUMNS})

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
    ) -> None:
        """One turn. `arrival_us` is the arrival of the program, the same on all its turns."""
        values = (program, turn, arrival_us, prompt_tokens, output_tokens, pause_us, line, priority, klass)
        for name, value in zip(_COLUMNS, values, strict=True):
            self.columns[name].append(value)

    def workload(self, name: str, **meta: Any) -> Workload:
        """The validated workload, programs in arrival order (ties by program id)."""
        return Workload.build(name, **sorted_programs(self.columns), **meta)
