"""A list of jobs as JSON lines: ``{"prompt_tokens": 1800, "output_tokens": 60, "group": "a", "group_tokens": 1500}``.

For one's own offline work, e.g. an OpenAI-style batch file after tokenising. All jobs are there at time 0, in the order
of the file. `group` (a text or a number) names a shared prefix at the beginning of the prompt and `group_tokens` says
how much of the prompt it covers; both or neither. Optional: `predicted_tokens` (default: the truth), `klass`,
`priority`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxsched.errors import UserError
from jaxsched.workloads.names import nearest
from jaxsched.workloads.readers.text import Record, read_jsonl
from jaxsched.workloads.table import Workload

_FIELDS = ("prompt_tokens", "output_tokens", "predicted_tokens", "group", "group_tokens", "klass", "priority")


def read(path: Path) -> Workload:
    """The jobs of a file. Raises UserError for an unknown or wrong field, with its line."""
    rows: list[tuple[int, ...]] = []
    groups: dict[str, int] = {}
    for record in read_jsonl(path):
        for name in record.data:
            if name not in _FIELDS:
                raise UserError(
                    f"unknown field {name!r}", where=record.where, expected=f"of {', '.join(_FIELDS)}",
                    hint=nearest(name, _FIELDS),
                )  # fmt: skip
        prompt, output = record.integer("prompt_tokens", 1), record.integer("output_tokens", 1)
        group, covered = _group(record, groups, prompt)
        predicted = record.integer("predicted_tokens", 1, default=output)
        klass, priority = record.integer("klass", 0, default=0), record.integer("priority", -(2**30), default=0)
        rows.append((prompt, output, predicted, group, covered, klass, priority, record.line))
    names = ("prompt_tokens", "output_tokens", "predicted_tokens", "group", "group_tokens", "klass", "priority", "line")
    columns = dict(zip(names, (np.array(column) for column in zip(*rows, strict=True)), strict=True))
    arrival_us = np.zeros(len(rows), np.int64)
    return Workload.build(path.stem, arrival_us=arrival_us, source=str(path), format="jobs", **columns)


def _group(record: Record, groups: dict[str, int], prompt: int) -> tuple[int, int]:
    """Number of the job's group and tokens of its prefix; -1 and 0 without."""
    name = record.text("group", default=None)
    covered = record.integer("group_tokens", 1, default=None)
    if (name is None) != (covered is None):
        has, lacks = ("group", "group_tokens") if covered is None else ("group_tokens", "group")
        raise UserError(f"{has} without {lacks}", where=record.where, expected="both or neither")
    if name is None or covered is None:
        return -1, 0
    if covered > prompt:
        raise UserError(
            f"group_tokens {covered} of a prompt of {prompt}", where=f"{record.where}, field group_tokens",
            expected="at most prompt_tokens",
        )  # fmt: skip
    return groups.setdefault(name, len(groups)), covered
