"""A plain CSV for one's own logs: ``arrival_s,prompt_tokens,output_tokens[,klass,priority,predicted_tokens]``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxsched.errors import UserError
from jaxsched.workloads.names import nearest
from jaxsched.workloads.readers.csv import check_at_least, read_csv
from jaxsched.workloads.readers.text import check_monotone, to_us
from jaxsched.workloads.table import Workload

HEADER = ("arrival_s", "prompt_tokens", "output_tokens")
_OPTIONAL = ("klass", "priority", "predicted_tokens")
_UNITS = {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}


def read(path: Path, *, columns: Mapping[str, str] | None = None, time_unit: str = "s") -> Workload:
    """A plain table of requests.

    Args:
        path: the CSV file.
        columns: other names of the columns in the file, for example ``{"arrival_s": "req_time"}``.
        time_unit: unit of the arrival column: s, ms, us or ns.
    """
    if time_unit not in _UNITS:
        raise UserError(f"time_unit {time_unit!r}", expected=f"one of {', '.join(_UNITS)}")
    names = {name: name for name in (*HEADER, *_OPTIONAL)}
    for name, other in (columns or {}).items():
        if name not in names:
            raise UserError(
                f"unknown column {name!r}", expected=f"one of {', '.join(names)}", hint=nearest(name, names)
            )
        names[name] = other
    required = {names["arrival_s"]: "float", names["prompt_tokens"]: "int", names["output_tokens"]: "int"}
    found, line = read_csv(path, required, {names[name]: "int" for name in _OPTIONAL})
    time = found[names["arrival_s"]]
    check_at_least(path, line, names["arrival_s"], time, 0)
    check_monotone(time, line, path, f"column {names['arrival_s']}", time_unit)
    for name, low in (("prompt_tokens", 1), ("output_tokens", 1), ("klass", 0), ("predicted_tokens", 1)):
        if names[name] in found:
            check_at_least(path, line, names[name], found[names[name]], low)
    rest: dict[str, Any] = {name: found[names[name]] for name in (*HEADER[1:], *_OPTIONAL) if names[name] in found}
    return Workload.build(
        path.stem,
        arrival_us=to_us(time, _UNITS[time_unit]),
        line=line,
        source=str(path),
        format="lengths_csv",
        **rest,
    )
