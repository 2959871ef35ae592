"""Reading text files by line in bounded memory, and the errors that say where a file is wrong."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from jaxsched.errors import UserError
from jaxsched.workloads.names import nearest

_CHUNK_BYTES = 8 << 20
_MISSING: Any = object()


def open_bytes(path: Path) -> IO[bytes]:
    """The file opened for reading bytes, unpacked when its name ends in .gz. UserError when it cannot be opened."""
    try:
        return cast(IO[bytes], gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")
    except OSError as problem:
        raise UserError(f"cannot be read: {problem.strerror}", where=str(path), expected="a readable file") from None


def line_chunks(path: Path, chunk_bytes: int = _CHUNK_BYTES) -> Iterator[tuple[int, list[bytes]]]:
    """Runs of whole lines: (number of the first, from 1; lines without their ends), without blank ones at the end."""
    first, rest, blank = 1, b"", 0
    with open_bytes(path) as file:
        while True:
            try:
                block = file.read(chunk_bytes)
            except (OSError, EOFError, zlib.error) as problem:
                raise UserError(
                    f"cannot be unpacked: {problem}", where=str(path), expected="a whole .gz file"
                ) from None
            data = rest + block
            lines = data.replace(b"\r\n", b"\n").split(b"\n")
            rest = lines.pop() if block else b""
            kept = [b""] * blank + lines
            blank = 0
            while kept and not kept[-1].strip():
                kept.pop()
                blank += 1
            if kept:
                yield first, kept
                first += len(kept)
            if not block:
                return


@dataclass(frozen=True)
class Record:
    """One JSON object of a file, with accessors that check and name the field."""

    data: dict[str, Any]
    path: Path
    line: int

    @property
    def where(self) -> str:
        """``file, line N``."""
        return f"{self.path}, line {self.line}"

    def number(self, name: str, low: float = 0.0, default: Any = _MISSING) -> float:
        """A finite number >= low."""
        value = self.data.get(name)
        if value is None and default is not _MISSING:
            return default
        if not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value) and value >= low:
            return value
        raise self._refusal(name, value, f"a finite number >= {low:g}")

    def integer(self, name: str, low: int = 0, default: Any = _MISSING) -> int:
        """An integer >= low."""
        value = self.data.get(name)
        if value is None and default is not _MISSING:
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, bool) and isinstance(value, int) and value >= low:
            return value
        raise self._refusal(name, value, f"an integer >= {low}")

    def text(self, name: str, default: Any = _MISSING) -> str:
        """A string (numbers are taken as their text)."""
        value = self.data.get(name)
        if value is None and default is not _MISSING:
            return default
        if not isinstance(value, bool) and isinstance(value, str | int):
            return str(value)
        raise self._refusal(name, value, "a string")

    def _refusal(self, name: str, value: Any, expected: str) -> UserError:
        if name in self.data:
            shown = json.dumps(value)[:40]
            return UserError(f"{shown}", where=f"{self.where}, field {name}", expected=expected)
        return UserError(
            f"field {name} is missing",
            where=self.where,
            expected=expected,
            hint=nearest(name, self.data) or f"The line has: {', '.join(list(self.data)[:12])}.",
        )


def read_jsonl(path: Path) -> Iterator[Record]:
    """The objects of a JSON-lines file. Raises UserError for an empty file, a line that is cut or is not an object."""
    number = 0
    for first, lines in line_chunks(path):
        for number, line in enumerate(lines, start=first):
            try:
                data = json.loads(line)
            except ValueError as problem:
                cut = not line.rstrip().endswith(b"}")
                what = "the line is cut off before its closing brace" if cut else f"not valid JSON ({problem})"
                hint = "The file looks truncated: download it again." if cut else ""
                raise UserError(
                    what, where=f"{path}, line {number}", expected="one JSON object per line", hint=hint
                ) from None
            if not isinstance(data, dict):
                raise UserError(
                    f"a JSON {type(data).__name__}", where=f"{path}, line {number}", expected="one JSON object per line"
                )
            yield Record(data, path, number)
    if number == 0:
        raise empty_file(path)


def empty_file(path: Path) -> UserError:
    """The error for a file without requests."""
    return UserError("the file is empty: no requests", where=str(path), expected="at least one request")


def check_monotone(times: np.ndarray, lines: np.ndarray, path: Path, field: str, unit: str) -> None:
    """Refuse times that go backwards, naming the line. `times` and `lines` are [n], in file order."""
    back = np.flatnonzero(times[1:] < times[:-1])
    if len(back):
        row = int(back[0]) + 1
        raise UserError(
            f"{times[row]} {unit} after {times[row - 1]} {unit}: time goes backwards",
            where=f"{path}, line {lines[row]}, {field}",
            expected="times that never decrease",
            hint="Sort the trace by time first.",
        )


def to_us(value: np.ndarray | float, unit_us: float) -> np.ndarray:
    """Times in a unit of `unit_us` microseconds to the nearest int64 microsecond."""
    return np.rint(np.asarray(value, np.float64) * unit_us).astype(np.int64)


def first_line(path: Path) -> bytes:
    """The first non-empty line, at most 64 KiB of it; empty for an empty file."""
    with open_bytes(path) as file:
        for line in file.read(1 << 16).splitlines():
            if line.strip():
                return line
    return b""
