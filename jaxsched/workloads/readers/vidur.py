"""Vidur processed traces: ``[arrived_at,]num_prefill_tokens,num_decode_tokens[,...]``.

Source: github.com/microsoft/vidur, data/processed_traces. Files without `arrived_at` (seconds) are lengths only and
need
an arrival rate: Poisson arrivals keyed by (seed, row).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxsched.errors import UserError
from jaxsched.workloads.hashing import keyed_exponential
from jaxsched.workloads.readers.csv import check_at_least, read_csv
from jaxsched.workloads.readers.text import check_monotone, to_us
from jaxsched.workloads.table import Workload

HEADER = ("num_prefill_tokens", "num_decode_tokens")


def poisson_arrivals_us(seed: int, num: int, rate_per_s: float) -> np.ndarray:
    """int64 [num]: Poisson arrivals; gap i depends on (seed, i) only."""
    if not (np.isfinite(rate_per_s) and rate_per_s > 0.0):
        raise UserError(f"rate_per_s {rate_per_s}", expected="a finite number > 0")
    return np.cumsum(to_us(keyed_exponential(seed, np.arange(num)) / rate_per_s, 1e6))


def read(path: Path, *, rate_per_s: float | None = None, seed: int = 0) -> Workload:
    """A Vidur processed trace.

    Args:
        path: the CSV file.
        rate_per_s: arrival rate, needed exactly when the file has no `arrived_at`.
        seed: seed of those arrivals.
    """
    columns, line = read_csv(path, dict.fromkeys(HEADER, "int"), {"arrived_at": "float"})
    for name in HEADER:
        check_at_least(path, line, name, columns[name], 1)
    notes = []
    if "arrived_at" in columns:
        if rate_per_s is not None:
            raise UserError(
                "rate_per_s given for a trace that has arrival times",
                where=f"{path}, column arrived_at",
                expected="rate_per_s only for files without arrived_at",
                hint="Use the workload's to_rate to change the load.",
            )
        check_at_least(path, line, "arrived_at", columns["arrived_at"], 0)
        check_monotone(columns["arrived_at"], line, path, "column arrived_at", "s")
        arrival_us = to_us(columns["arrived_at"], 1e6)
    elif rate_per_s is None:
        raise UserError(
            "no column 'arrived_at': the file holds lengths only",
            where=f"{path}, line 1",
            expected="an arrival rate",
            hint="Give rate_per_s (requests per second) for Poisson arrivals.",
        )
    else:
        arrival_us = poisson_arrivals_us(seed, len(line), rate_per_s)
        notes.append(f"Poisson arrivals at {rate_per_s:g}/s (seed {seed}): the file has no arrival times")
    return Workload.build(
        path.stem,
        arrival_us=arrival_us,
        prompt_tokens=columns["num_prefill_tokens"],
        output_tokens=columns["num_decode_tokens"],
        line=line,
        source=str(path),
        format="vidur",
        notes=notes,
    )
