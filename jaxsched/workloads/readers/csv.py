"""Vectorised reading of plain comma-separated files, with exact positions in the errors.

A chunk of lines is converted column by column in NumPy; only when that fails are its values looked at one by one, to
name the line. Quoted fields do not occur in the public traces and are not supported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from jaxsched.errors import UserError
from jaxsched.workloads.names import nearest
from jaxsched.workloads.readers.text import empty_file, line_chunks

#: A column's type: "int", "float", "text" (bytes), or a vectorised parser of a bytes column that raises ValueError.
Kind = str | Callable[[np.ndarray], np.ndarray]


def read_csv(
    path: Path, required: Mapping[str, Kind], optional: Mapping[str, Kind] | None = None
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Columns of a CSV file with a header line.

    Args:
        path: the file.
        required: names and types of the columns it must have.
        optional: the same for columns it may have.

    Returns:
        The columns by name, and the line number of each row (int32).

    Raises:
        UserError: missing column (naming the nearest), wrong number of fields, a value of another type, no rows.
    """
    header: list[str] = []
    chosen: dict[str, Kind] = {}
    parts: dict[str, list[np.ndarray]] = {}
    lines_seen: list[np.ndarray] = []
    for first, lines in line_chunks(path):
        if not header:
            header = [name.strip().decode("utf-8", "replace").lstrip("\ufeff") for name in lines[0].split(b",")]
            _check_header(path, header, required)
            chosen = {**required, **{k: v for k, v in (optional or {}).items() if k in header}}
            parts = {name: [] for name in chosen}
            lines, first = lines[1:], first + 1
        if lines:
            for name, values in _convert(path, first, lines, header, chosen).items():
                parts[name].append(values)
            lines_seen.append(np.arange(first, first + len(lines), dtype=np.int32))
    if not lines_seen:
        raise empty_file(path)
    return {name: np.concatenate(chunks) for name, chunks in parts.items()}, np.concatenate(lines_seen)


def read_headerless_csv(path: Path, kinds: Mapping[str, Kind]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The same for a file without a header whose columns are exactly `kinds`, in order."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in kinds}
    lines_seen: list[np.ndarray] = []
    for first, lines in line_chunks(path):
        for name, values in _convert(path, first, lines, list(kinds), kinds).items():
            parts[name].append(values)
        lines_seen.append(np.arange(first, first + len(lines), dtype=np.int32))
    if not lines_seen:
        raise empty_file(path)
    return {name: np.concatenate(chunks) for name, chunks in parts.items()}, np.concatenate(lines_seen)


def check_at_least(path: Path, lines: np.ndarray, name: str, values: np.ndarray, low: float) -> None:
    """Refuse values below `low` or not finite, naming the first line."""
    bad = ~(values >= low) | ~np.isfinite(values)
    if bad.any():
        row = int(np.argmax(bad))
        raise UserError(
            f"{values[row]}", where=f"{path}, line {lines[row]}, column {name}", expected=f"a number >= {low:g}"
        )


def _check_header(path: Path, header: list[str], required: Mapping[str, Kind]) -> None:
    for name in required:
        if name not in header:
            raise UserError(
                f"no column {name!r}",
                where=f"{path}, line 1",
                expected=f"columns {', '.join(required)}",
                hint=nearest(name, header) or f"The file has: {', '.join(header[:12])}.",
            )


def _convert(
    path: Path, first: int, lines: list[bytes], header: list[str], kinds: Mapping[str, Kind]
) -> dict[str, np.ndarray]:
    """The wanted columns of a run of lines."""
    width = len(header)
    fields = b",".join(lines).split(b",")
    if len(fields) != width * len(lines) or any(line.count(b",") != width - 1 for line in lines):
        for number, line in enumerate(lines, start=first):
            found = line.count(b",") + 1
            if found != width:
                raise UserError(
                    f"{found} fields in {line[:60].decode('utf-8', 'replace')!r}",
                    where=f"{path}, line {number}",
                    expected=f"{width} fields: {', '.join(header)}",
                    hint="The file looks truncated: download it again." if found < width else "",
                )
    result = {}
    for name, kind in kinds.items():
        column = fields[header.index(name) :: width]
        try:
            result[name] = _parse(np.array(column), kind)
        except (ValueError, OverflowError):
            raise _bad_value(path, first, name, column, kind) from None
    return result


def _parse(column: np.ndarray, kind: Kind) -> np.ndarray:
    """One column of bytes as numbers. Raises ValueError when any value does not fit."""
    if callable(kind):
        return kind(column)
    if kind == "text":
        return column
    if kind == "int":
        return column.astype(np.int64)
    values = column.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("not finite")
    return values


def _bad_value(path: Path, first: int, name: str, column: list[bytes], kind: Kind) -> UserError:
    """The error for the first value that does not parse."""
    expected = {"int": "an integer", "float": "a finite number"}.get(kind, "") if isinstance(kind, str) else ""
    expected = expected or getattr(kind, "expected", "another value")
    for number, value in enumerate(column, start=first):
        try:
            parsed = _parse(np.array([value]), kind)
            if isinstance(kind, str) and not math.isfinite(float(parsed[0])):
                raise ValueError
        except (ValueError, OverflowError):
            shown = value.decode("utf-8", "replace")
            return UserError(repr(shown), where=f"{path}, line {number}, column {name}", expected=expected)
    return UserError(f"column {name} cannot be read", where=str(path), expected=expected)
