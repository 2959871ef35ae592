"""Azure LLM inference traces 2023 and 2024: ``TIMESTAMP,ContextTokens,GeneratedTokens``.

Source: github.com/Azure/AzurePublicDataset, data/AzureLLMInferenceTrace_*.csv. Timestamps are
``YYYY-MM-DD HH:MM:SS`` with up to seven fractional digits; the 2024 files add ``+00:00``. Time 0 is the first row.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxsched.workloads.readers.csv import check_at_least, read_csv
from jaxsched.workloads.readers.text import check_monotone
from jaxsched.workloads.table import Workload

HEADER = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def parse_timestamps(column: np.ndarray) -> np.ndarray:
    """Bytes [n] like ``2023-11-16 18:15:46.6805900+00:00`` to int64 microseconds since 1970 (finer digits are cut off).

    Raises:
        ValueError: some value has another form.
    """
    width = column.dtype.itemsize
    if width < 19:
        raise ValueError("too short")
    text = np.frombuffer(np.ascontiguousarray(column).tobytes(), np.uint8).reshape(len(column), width)

    def number(start: int, stop: int) -> np.ndarray:
        digits = text[:, start:stop].astype(np.int64) - ord("0")
        if ((digits < 0) | (digits > 9)).any():
            raise ValueError("not a digit")
        return digits @ (10 ** np.arange(stop - start - 1, -1, -1))

    for position, mark in ((4, b"-"), (7, b"-"), (13, b":"), (16, b":")):
        if (text[:, position] != mark[0]).any():
            raise ValueError("separator")
    if (~np.isin(text[:, 10], (ord(" "), ord("T")))).any():
        raise ValueError("separator")
    month, day = number(5, 7), number(8, 10)
    hour, minute, second = number(11, 13), number(14, 16), number(17, 19)
    months = (number(0, 4) - 1970) * 12 + month - 1
    starts = months.astype("datetime64[M]")
    length = ((starts + np.timedelta64(1, "M")).astype("datetime64[D]") - starts.astype("datetime64[D]")).astype(
        np.int64
    )
    if ((month < 1) | (month > 12) | (day < 1) | (day > length) | (hour > 23) | (minute > 59) | (second > 60)).any():
        raise ValueError("out of range")
    days = starts.astype("datetime64[D]").astype(np.int64) + day - 1
    micros, position = _fraction(text)
    _check_zone(text, position)
    return (((days * 24 + hour) * 60 + minute) * 60 + second) * 1_000_000 + micros


parse_timestamps.expected = "YYYY-MM-DD HH:MM:SS[.fffffff][+00:00]"  # type: ignore[attr-defined]


def read(path: Path, *, skip_empty: bool = False) -> Workload:
    """An Azure trace.

    Args:
        path: the CSV file (or .csv.gz).
        skip_empty: leave out (and count) rows with zero tokens instead of refusing them.
    """
    columns, line = read_csv(path, {"TIMESTAMP": parse_timestamps, "ContextTokens": "int", "GeneratedTokens": "int"})
    time, prompt, output = (columns[name] for name in HEADER)
    counts = {}
    for name, values in (("ContextTokens", prompt), ("GeneratedTokens", output)):
        check_at_least(path, line, name, values, 0 if skip_empty else 1)
    if skip_empty:
        keep = (prompt > 0) & (output > 0)
        counts["empty_requests_skipped"] = int(np.count_nonzero(~keep))
        time, prompt, output, line = time[keep], prompt[keep], output[keep], line[keep]
    check_monotone(time, line, path, "column TIMESTAMP", "us")
    return Workload.build(
        path.stem,
        arrival_us=time - (time[0] if len(time) else 0),
        prompt_tokens=prompt,
        output_tokens=output,
        line=line,
        source=str(path),
        format="azure",
        counts=counts,
    )


def _fraction(text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Microseconds of the optional fraction, and the position of the first character behind it."""
    rows, width = text.shape
    micros, position = np.zeros(rows, np.int64), np.full(rows, 19)
    if width <= 19:
        return micros, position
    active = text[:, 19] == ord(".")
    position = np.where(active, 20, position)
    for k in range(20, width):
        digit = text[:, k].astype(np.int64) - ord("0")
        active = active & (digit >= 0) & (digit <= 9)
        if k < 26:
            micros += np.where(active, digit * 10 ** (25 - k), 0)
        position = np.where(active, k + 1, position)
    return micros, position


def _check_zone(text: np.ndarray, position: np.ndarray) -> None:
    """What follows the time must be nothing, Z or +00:00."""
    rows, width = text.shape
    padded = np.concatenate([text, np.zeros((rows, 7), np.uint8)], axis=1)
    tail = padded[np.arange(rows)[:, None], np.minimum(position, width)[:, None] + np.arange(7)]
    allowed = [np.frombuffer(zone.ljust(7, b"\0"), np.uint8) for zone in (b"", b"Z", b"+00:00")]
    if not np.logical_or.reduce([(tail == zone).all(axis=1) for zone in allowed]).all():
        raise ValueError("time zone")
