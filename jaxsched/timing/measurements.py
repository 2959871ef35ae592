"""Reading measured step times from CSV.

One line per measured engine step. Columns (any order, others are ignored):

- `num_prefill_tokens` (required): new prompt tokens in the step, all prefill rows together
- `prefill_context` (required): tokens already cached before each prefill row's chunk
- `num_decode` (required): decoding requests
- `decode_context` (required): tokens cached before the step per decoding request (mean)
- `iteration_ms` (required): measured time, milliseconds
- `num_prefill` (optional): prefill rows sharing `num_prefill_tokens` equally; default 1 if there are prefill tokens
- `model`, `device` (optional): names as in ``jaxsched list models|devices``, or of your own; one of each is selected
- `tp`, `pp` (optional): parallelism; selected likewise

``vidur_iteration_times.csv`` (facts from Microsoft Vidur, MIT) is such a file. Two properties of it are handled, both
from its README. A column ``iteration_ms_no_kv_save``, if present, is the target instead of ``iteration_ms``: the
KV-save time of Llama-3-8B is a profiling artefact (74 ms for a write of about 0.2 ms); the columns agree elsewhere.
Rows whose prefill spans more than 4096 tokens lie outside the profile (its forest repeats the time at the border) and
are left out.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jaxsched.errors import UserError
from jaxsched.timing.devices import find_device
from jaxsched.timing.models import find_model
from jaxsched.timing.names import nearest_hint, normalise
from jaxsched.timing.reference import StepFeatures, prefill_quad

REQUIRED = ("num_prefill_tokens", "prefill_context", "num_decode", "decode_context", "iteration_ms")
NO_KV_SAVE = "iteration_ms_no_kv_save"
#: Column by which a Vidur table is recognised, and the largest prefill chunk + context its attention profile covers.
VIDUR_MARK, VIDUR_MAX_SPAN = "provenance", 4096
_MAX_COUNT = 1 << 24


@dataclass(frozen=True)
class Measurement:
    """One measured step."""

    line: int  # in the file, 1 = header
    kind: str  # decode, prefill or mixed
    features: StepFeatures
    measured_us: float
    given: Mapping[str, float]  # the input columns, for reports


@dataclass(frozen=True)
class Measurements:
    """The selected rows of one file."""

    path: str
    model: str | None
    device: str | None
    tp: int
    pp: int
    target_column: str
    target_reason: str
    rows: list[Measurement]
    excluded: dict[str, int] = field(default_factory=dict)  # reason -> rows left out


def load_measurements(
    path: str | Path,
    *,
    model: str | None = None,
    device: str | None = None,
    tp: int | None = None,
    pp: int | None = None,
    target_column: str | None = None,
) -> Measurements:
    """Read and check a CSV of step times, keeping the rows of one (model, device, tp, pp).

    Raises:
        UserError: the file, a column, or a value is unusable (file, line and column are named), or the selection is
            empty or ambiguous.
    """
    lines = _read(Path(path))
    columns = list(lines[0][1]) if lines else []
    for name in REQUIRED:
        if name not in columns and not (name == "iteration_ms" and target_column):
            raise UserError(
                f"column {name!r} is missing",
                where=f"{path}, line 1",
                expected=f"columns {', '.join(REQUIRED)}",
                hint=nearest_hint(name, columns),
            )
    if target_column is not None and target_column not in columns:
        raise UserError(
            f"column {target_column!r} is missing", where=f"{path}, line 1", hint=nearest_hint(target_column, columns)
        )
    lines = _select_name(lines, "model", model, path)
    lines = _select_name(lines, "device", device, path)
    lines, tp = _select_number(lines, "tp", tp, path)
    lines, pp = _select_number(lines, "pp", pp, path)
    reason = "the only time column"
    if target_column is None:
        target_column = NO_KV_SAVE if NO_KV_SAVE in columns else "iteration_ms"
        if target_column == NO_KV_SAVE:
            differ = sum(row[NO_KV_SAVE] != row["iteration_ms"] for _, row in lines)
            reason = (
                f"iteration_ms holds the KV-save profiling artefact in {differ} of {len(lines)} rows; same elsewhere"
            )
    else:
        reason = "asked for"
    rows = [_measurement(path, line, row, target_column) for line, row in lines]
    excluded: dict[str, int] = {}
    if VIDUR_MARK in columns:
        inside = [r for r in rows if r.given["num_prefill_tokens"] + r.given["prefill_context"] <= VIDUR_MAX_SPAN]
        if len(inside) < len(rows):
            why = f"prefill tokens + context > {VIDUR_MAX_SPAN}: outside Vidur's attention profile, time repeated"
            excluded[why] = len(rows) - len(inside)
        rows = inside
    model, device = (_name(kind, given, lines) for kind, given in (("model", model), ("device", device)))
    return Measurements(str(path), model, device, tp, pp, target_column, reason, rows, excluded)


def canonical_name(kind: str, name: str) -> str:
    """The described model or device `name` means, else the name itself, lower-cased and shortened."""
    try:
        return (find_model(name) if kind == "model" else find_device(name)).name
    except UserError:
        return normalise(name)


def _name(kind: str, given: str | None, lines: list) -> str | None:
    name = given or lines[0][1].get(kind)
    return canonical_name(kind, name) if name else None


def _read(path: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            header = [name.strip() for name in next(reader, [])]
            lines = []
            for fields in reader:
                if not any(fields):
                    continue
                if len(fields) != len(header):
                    raise UserError(
                        f"{len(fields)} fields",
                        where=f"{path}, line {reader.line_num}",
                        expected=f"{len(header)} as in line 1",
                    )
                lines.append((reader.line_num, dict(zip(header, map(str.strip, fields), strict=True))))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot be read: {error}", where=str(path), expected="a CSV file of step times") from None
    if len(set(header)) < len(header):
        raise UserError("a column name occurs twice", where=f"{path}, line 1")
    if not lines:
        raise UserError("the file has no rows", where=str(path), expected="a header and one line per measured step")
    return lines


def _select_name(lines: list, kind: str, wanted: str | None, path: str | Path) -> list:
    if kind not in lines[0][1]:
        return lines
    present = {row[kind] for _, row in lines}
    if wanted is None:
        if len({canonical_name(kind, name) for name in present}) > 1:
            raise UserError(
                f"{len(present)} {kind}s in the file",
                where=str(path),
                expected=f"a choice of {kind}: {', '.join(sorted(canonical_name(kind, name) for name in present))}",
            )
        return lines
    key = canonical_name(kind, wanted)
    chosen = [(line, row) for line, row in lines if canonical_name(kind, row[kind]) == key]
    if not chosen:
        names = sorted({canonical_name(kind, name) for name in present})
        raise UserError(
            f"no rows of {kind} {wanted!r}",
            where=f"{path}, column {kind}",
            expected=f"one of {', '.join(names)}",
            hint=nearest_hint(key, names),
        )
    return chosen


def _select_number(lines: list, kind: str, wanted: int | None, path: str | Path) -> tuple[list, int]:
    if kind not in lines[0][1]:
        return lines, wanted or 1
    values = [int(_number(path, line, row, kind, smallest=1, whole=True)) for line, row in lines]
    present = sorted(set(values))
    if wanted is None and len(present) > 1:
        raise UserError(
            f"{len(present)} values of {kind} in the selected rows",
            where=str(path),
            expected=f"a choice of {kind}: {present}",
        )
    wanted = present[0] if wanted is None else wanted
    if wanted not in present:
        raise UserError(f"no rows with {kind} = {wanted}", where=f"{path}, column {kind}", expected=f"one of {present}")
    return [entry for entry, value in zip(lines, values, strict=True) if value == wanted], wanted


def _measurement(path: str | Path, line: int, row: dict[str, str], target: str) -> Measurement:
    prefill_tokens = int(_number(path, line, row, "num_prefill_tokens", whole=True))
    before = int(_number(path, line, row, "prefill_context", whole=True))
    num_decode = int(_number(path, line, row, "num_decode", whole=True))
    decode_context = _number(path, line, row, "decode_context")
    milliseconds = _number(path, line, row, target)
    num_prefill = 1 if prefill_tokens else 0
    if row.get("num_prefill"):
        num_prefill = int(_number(path, line, row, "num_prefill", whole=True))
    where = f"{path}, line {line}"
    if milliseconds == 0:
        raise UserError(
            "the time is 0", where=f"{where}, column {target}", expected="a positive number of milliseconds"
        )
    if prefill_tokens + num_decode == 0:
        raise UserError("a step of no tokens", where=where, expected="num_prefill_tokens + num_decode >= 1")
    if num_prefill > prefill_tokens or (num_prefill == 0) != (prefill_tokens == 0):
        raise UserError(
            f"{num_prefill} prefill rows share {prefill_tokens} tokens",
            where=where,
            expected="at least one token per row",
        )
    small, more = divmod(prefill_tokens, max(num_prefill, 1))
    quad = more * prefill_quad(small + 1, before) + (num_prefill - more) * prefill_quad(small, before)
    features = StepFeatures(
        total_tokens=prefill_tokens + num_decode,
        num_prefill=num_prefill,
        prefill_tokens=prefill_tokens,
        prefill_quad=quad,
        num_decode=num_decode,
        decode_ctx=round(num_decode * (decode_context + 1)),
        prefill_ctx=num_prefill * before + prefill_tokens,
    )
    kind = "mixed" if prefill_tokens and num_decode else "prefill" if prefill_tokens else "decode"
    given = {
        "num_prefill_tokens": prefill_tokens, "prefill_context": before,
        "num_decode": num_decode, "decode_context": decode_context,
    }  # fmt: skip
    return Measurement(line, kind, features, milliseconds * 1e3, given)


def _number(
    path: str | Path, line: int, row: dict[str, str], column: str, *, smallest: int = 0, whole: bool = False
) -> float:
    text = row[column]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and smallest <= value <= _MAX_COUNT and (not whole or value == int(value))):
        raise UserError(
            f"found {text!r}",
            where=f"{path}, line {line}, column {column}",
            expected=f"{'an integer' if whole else 'a number'} from {smallest} to {_MAX_COUNT}",
        )
    return value
