"""ServeGen client data: a folder ``data/<category>/<model>/`` of ``chunk-<client>-trace.csv`` and ``-dataset.json``.

Source: github.com/alibaba/ServeGen (Xiang et al., arXiv 2505.09999). The CSV has no header: window start (s), rate
(requests/s), CV, pattern (Gamma, Weibull or empty for an idle window), shape, scale (s). The JSON gives length
distributions per six hours as Python-dict strings (parsed with `ast.literal_eval`, never evaluated).

The files describe clients, not requests; requests are generated. A window of a client has exactly ``round(rate *
window)`` requests (the rates are counts); the gaps are drawn from the window's law and scaled together so that this
many fit, which keeps their relative variation. Lengths are drawn from the distribution whose start is the last one not
after the window. Everything is keyed by (seed, client, window): a client's requests do not depend on which other
clients or windows are read.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import numpy as np

from jaxsched.errors import UserError
from jaxsched.workloads.names import nearest
from jaxsched.workloads.readers.csv import check_at_least, read_headerless_csv
from jaxsched.workloads.readers.text import check_monotone, empty_file, open_bytes
from jaxsched.workloads.table import Workload

_KINDS = {"timestamp": "float", "rate": "float", "cv": "float", "pattern": "text", "shape": "float", "scale": "float"}
#: Cumulative distribution of lengths: (values, upper edges).
Lengths = tuple[np.ndarray, np.ndarray]


def client_files(path: Path) -> list[Path]:
    """The clients' trace files of a model folder, ordered by client number."""
    return sorted(path.glob("chunk-*-trace.csv"), key=client_number)


def client_number(file: Path) -> int:
    """The client number in a file name like ``chunk-12-trace.csv``."""
    match = re.match(r"chunk-(\d+)-", file.name)
    if match is None:
        raise UserError(f"file name {file.name!r}", where=str(file), expected="chunk-<number>-trace.csv")
    return int(match.group(1))


def read(
    path: Path,
    *,
    seed: int = 0,
    start_s: float = 0.0,
    end_s: float | None = None,
    window_s: float = 600.0,
    rate_scale: float = 1.0,
    tenants: bool = False,
) -> Workload:
    """Requests generated from ServeGen clients.

    Args:
        path: the folder of one model.
        seed: seed of the generated requests.
        start_s, end_s: windows with ``start_s <= timestamp < end_s`` (file time); the workload's clock starts at
        `start_s`.
        window_s: length of a window; the published data has 600 s.
        rate_scale: multiplies every client's rate (fewer or more requests, not faster ones).
        tenants: set `klass` to the position of the client (0, 1, ...) instead of 0.
    """
    files = client_files(path)
    if not files:
        raise _wrong_folder(path)
    if not (np.isfinite(rate_scale) and rate_scale > 0.0):
        raise UserError(f"rate_scale {rate_scale}", expected="a finite number > 0")
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    for position, file in enumerate(files):
        lengths = _load_lengths(file.with_name(file.name.replace("-trace.csv", "-dataset.json")))
        columns, line = read_headerless_csv(file, {**_KINDS, "cv": "text", "shape": "text", "scale": "text"})
        _check(file, columns, line, window_s)
        for row in range(len(line)):
            time, rate = float(columns["timestamp"][row]), float(columns["rate"][row])
            count = int(np.rint(rate * window_s * rate_scale))
            if count < 1 or time < start_s or (end_s is not None and time >= end_s):
                continue
            random = np.random.default_rng([seed, client_number(file), int(time)])
            gaps = _gaps(random, columns, row, count + 1, f"{file}, line {line[row]}")
            arrival_s = time - start_s + window_s * np.cumsum(gaps[:-1]) / gaps.sum()
            prompt, output = _sample(random, lengths, time, count, f"{file}, line {line[row]}")
            klass = np.full(count, position if tenants else 0)
            parts.append((np.rint(arrival_s * 1e6).astype(np.int64), prompt, output, klass))
    if not parts:
        raise UserError(
            f"no request in [{start_s}, {end_s}) s", where=str(path), expected="windows with a positive rate"
        )
    arrival, prompt, output, klass = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(arrival, kind="stable")
    return Workload.build(
        f"{path.parent.name}-{path.name}",
        arrival_us=arrival[order],
        prompt_tokens=prompt[order],
        output_tokens=output[order],
        klass=klass[order],
        source=str(path),
        format="servegen",
        notes=[f"requests generated from {len(files)} clients (seed {seed})"],
        counts={"clients": len(files)},
    )


def _wrong_folder(path: Path) -> UserError:
    """The error for a folder without client files; lists the model folders below it when there are some."""
    below = sorted({str(file.parent.relative_to(path)) for file in path.glob("**/chunk-*-trace.csv")})
    hint = f"Give one of its model folders: {', '.join(below[:8])}." if below else ""
    return UserError("no client files", where=str(path), expected="files named chunk-<client>-trace.csv", hint=hint)


def _check(file: Path, columns: dict[str, np.ndarray], line: np.ndarray, window_s: float) -> None:
    check_at_least(file, line, "timestamp", columns["timestamp"], 0)
    check_at_least(file, line, "rate", columns["rate"], 0)
    check_monotone(columns["timestamp"], line, file, "column timestamp", "s")
    steps = np.diff(columns["timestamp"])
    if (steps < window_s).any():
        row = int(np.argmax(steps < window_s)) + 1
        raise UserError(
            f"windows {steps[row - 1]:g} s apart",
            where=f"{file}, line {line[row]}",
            expected=f"at least window_s = {window_s:g} s",
        )


def _gaps(random: np.random.Generator, columns: dict[str, np.ndarray], row: int, num: int, where: str) -> np.ndarray:
    """`num` positive gaps of the window's law, up to a scale."""
    pattern = columns["pattern"][row].decode("utf-8", "replace").strip()
    try:
        shape = float(columns["shape"][row])
    except ValueError:
        shape = float("nan")
    if not (np.isfinite(shape) and shape > 0.0):
        raise UserError(
            f"shape {columns['shape'][row].decode('utf-8', 'replace')!r}", where=where, expected="a number > 0"
        )
    if pattern == "Gamma":
        gaps = random.gamma(shape, size=num)
    elif pattern == "Weibull":
        gaps = random.weibull(shape, size=num)
    else:
        raise UserError(
            f"pattern {pattern!r} in a window with requests", where=where, expected="Gamma or Weibull",
            hint=nearest(pattern, ("Gamma", "Weibull")),
        )  # fmt: skip
    return np.maximum(gaps, 1e-12)


def _load_lengths(file: Path) -> list[tuple[float, Lengths | None, Lengths | None]]:
    """(window start, prompt distribution, output distribution) in order; None where the client had no requests."""
    with open_bytes(file) as handle:
        try:
            data = json.load(handle)
        except ValueError as problem:
            raise UserError(f"not valid JSON ({problem})", where=str(file), expected="a ServeGen dataset") from None
    if not isinstance(data, dict) or not data:
        raise empty_file(file)
    windows = []
    for start, fields in data.items():
        both = []
        for name in ("input_tokens", "output_tokens"):
            both.append(_distribution(fields, name, f"{file}, window {start}"))
        windows.append((float(start), both[0], both[1]))
    return sorted(windows, key=lambda window: window[0])


def _distribution(fields: dict, name: str, where: str) -> Lengths | None:
    """A length distribution from its Python-dict string."""
    if not isinstance(fields, dict) or name not in fields:
        raise UserError(f"field {name} is missing", where=where, expected="input_tokens and output_tokens")
    try:
        pdf = ast.literal_eval(fields[name]) if isinstance(fields[name], str) else fields[name]
        values = np.array([int(v) for v in pdf], np.int64)
        weights = np.array([float(p) for p in pdf.values()], np.float64)
    except (ValueError, SyntaxError, TypeError, AttributeError):
        raise UserError(
            f"{str(fields[name])[:40]!r}", where=f"{where}, field {name}", expected="{length: probability}"
        ) from None
    if len(values) == 0:
        return None
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0 and (values >= 0).all()):
        raise UserError(
            "negative or NaN entries", where=f"{where}, field {name}", expected="{length >= 0: probability >= 0}"
        )
    return np.maximum(values, 1), np.cumsum(weights) / weights.sum()


def _sample(
    random: np.random.Generator,
    lengths: list[tuple[float, Lengths | None, Lengths | None]],
    time: float,
    num: int,
    where: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Prompt and output lengths of `num` requests of a window."""
    usable = [w for w in lengths if w[0] <= time] or lengths[:1]
    _, prompt, output = usable[-1]
    if prompt is None or output is None:
        raise UserError(
            f"no length distribution for the window at {time:g} s",
            where=where,
            expected="one in the client's dataset.json",
        )
    return tuple(
        values[np.minimum(np.searchsorted(edges, random.random(num), side="right"), len(values) - 1)]
        for values, edges in (prompt, output)
    )  # type: ignore[return-value]
