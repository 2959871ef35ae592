"""Fitting a step-time model to measured steps, and saying how far to trust it.

The fit is non-negative least squares on relative errors: every coefficient is >= 0, so the model never gets faster with
more tokens or more context. The table over total tokens has its knots at the measured token counts; when there are more
of those than segments, the ones a straight line predicts best are dropped. Where the time jumps right after a multiple
of 128 tokens, the tile term is preferred to a kink (`KINK_WEIGHT`): it also says what happens at the other multiples.

Rows are divided by a hash of their features: the same row always falls on the same side, whatever the order of the
file, and repeated measurements of one point never end up on both sides. No coefficient or knot depends on the rows held
out.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from jaxsched.errors import UserError
from jaxsched.timing.description import StepTime
from jaxsched.timing.devices import DEVICES
from jaxsched.timing.measurements import Measurement, Measurements, load_measurements
from jaxsched.timing.models import MODELS
from jaxsched.timing.nnls import nonnegative_least_squares
from jaxsched.timing.reference import step_time_us_reference
from jaxsched.timing.step_time import NUM_SEGMENTS, TILE_BITS, StepTimeParams
from jaxsched.timing.terms import Terms, reduce_knots

FORMAT = "jaxsched-step-time/1"
HELD_OUT_FRACTION = 0.3
NUM_FOLDS = 5
MIN_ROWS = 12
MIN_TOKEN_COUNTS = 3
#: Knots of the first, fine table; reduced to `NUM_SEGMENTS` afterwards.
MAX_CANDIDATE_KNOTS = 64
#: Weight of a penalty on changes of slope between neighbouring segments, relative like the errors: weak enough that one
#: measured row outweighs it, strong enough to decide what the rows leave open (which of several explanations of a jump,
#: how to go on between and beyond measured sizes). Chosen with TILE_BITS by cross-validation over random splits of
#: Vidur's table: without either, splits that held out every row of 256 tokens missed them by 20 %.
KINK_WEIGHT = 0.1
#: Upper ends of the size regions of the report, in total tokens of the step.
SIZE_REGIONS = (32, 256, 1024)
NUM_WORST = 5


@dataclass(frozen=True)
class Fit:
    """A fitted model and its report (JSON-able): errors per region on rows not fitted, and where it is worst."""

    step_time: StepTime
    report: dict

    @property
    def params(self) -> StepTimeParams:
        """The int32 coefficients."""
        return self.step_time.params

    def save(self, path: str | Path) -> None:
        """Write coefficients and report as JSON, atomically; `load_coefficients` reads the file.

        Raises:
            UserError: the file cannot be written.
        """
        step_time = self.step_time
        document = {
            "format": FORMAT,
            "source": step_time.source,
            "model": step_time.model.name if step_time.model else None,
            "device": step_time.device.name if step_time.device else None,
            "tp": step_time.tp,
            "pp": step_time.pp,
            "coefficients": step_time.terms.to_dict(),
            "report": self.report,
        }
        _write_atomically(Path(path), json.dumps(document, indent=2) + "\n")


def fit_csv(
    path: str | Path,
    *,
    model: str | None = None,
    device: str | None = None,
    tp: int | None = None,
    pp: int | None = None,
    target_column: str | None = None,
    host_overhead_us: float = 0.0,
    seed: int = 0,
) -> Fit:
    """Fit a step-time model to a CSV of measured steps (columns: see `measurements.py`).

    Args:
        path: the file.
        model, device, tp, pp: which rows; may be left out when the file has one of each.
        target_column: column to fit; default: see `measurements.py`.
        host_overhead_us: added to every step after the fit, when the measurements exclude the host's work.
        seed: another seed holds out other rows.

    Raises:
        UserError: the file or a row is unusable, nothing matches, or too little is left to fit.
    """
    data = load_measurements(path, model=model, device=device, tp=tp, pp=pp, target_column=target_column)
    _check_enough(data)
    share = _hash_shares(data.rows, seed)
    held_out = share < HELD_OUT_FRACTION
    train = [row for row, out in zip(data.rows, held_out, strict=True) if not out]
    test = [row for row, out in zip(data.rows, held_out, strict=True) if out]
    terms = fit_terms(train)
    source = f"fitted to {data.path} ({data.target_column}), {len(train)} rows"
    fitted = StepTime(
        terms, source, MODELS.get(data.model or ""), DEVICES.get(data.device or ""), data.tp, data.pp
    )  # fmt: skip
    report = {
        "file": data.path,
        "model": data.model,
        "device": data.device,
        "tp": data.tp,
        "pp": data.pp,
        "target_column": data.target_column,
        "target_reason": data.target_reason,
        "excluded": data.excluded,
        "rows_fitted": len(train),
        "rows_held_out": len(test),
        "held_out": _errors(fitted.params, test),
        "fitted": _errors(fitted.params, train),
        "cross_validation": _cross_validation(data.rows, share),
        "not_measured": _not_measured(train),
        "host_overhead_us": host_overhead_us,
    }
    return Fit(fitted.with_host_overhead(host_overhead_us) if host_overhead_us else fitted, report)


def load_coefficients(path: str | Path) -> StepTime:
    """Read a file written by `Fit.save`.

    Raises:
        UserError: unreadable, not such a file, or a coefficient is missing, negative or not a number.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read: {error}", where=str(path)) from None
    except json.JSONDecodeError as error:
        raise UserError(f"is not JSON: {error.msg}", where=f"{path}, line {error.lineno}") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise UserError("is not a coefficient file", where=str(path), expected=f'"format": "{FORMAT}"')
    terms = Terms.from_dict(document.get("coefficients"), f"{path}, coefficients")
    for kind in ("tp", "pp"):
        value = document.get(kind, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{kind} is {value!r}", where=str(path), expected="an integer >= 1")
    step_time = StepTime(
        terms,
        f"{document.get('source', 'coefficients')} [{path}]",
        MODELS.get(document.get("model") or ""),
        DEVICES.get(document.get("device") or ""),
        document.get("tp", 1),
        document.get("pp", 1),
    )
    step_time.params  # noqa: B018  refuse coefficients out of range here, not at first use
    return step_time


def fit_terms(rows: Sequence[Measurement]) -> Terms:
    """The non-negative terms that minimise the squared relative error over `rows`; uses nothing else."""
    features = [row.features for row in rows]
    tokens = np.asarray([f.total_tokens for f in features], np.float64)
    measured = np.asarray([row.measured_us for row in rows])
    others = np.asarray(
        [
            (
                (f.total_tokens - 1) >> TILE_BITS,
                f.num_prefill,
                f.num_decode,
                f.prefill_tokens,
                f.prefill_quad,
                f.decode_ctx,
            )
            for f in features
        ],
        np.float64,
    )
    knots = np.unique(tokens)
    if len(knots) == 1:  # nothing is known of other sizes: a flat table
        knots = np.append(knots, knots + 1)
    if len(knots) > MAX_CANDIDATE_KNOTS:
        knots = np.unique(np.quantile(knots, np.linspace(0, 1, MAX_CANDIDATE_KNOTS), method="nearest"))
    if len(knots) > NUM_SEGMENTS + 1:
        solution = _solve(tokens, others, measured, knots)
        curve = solution[0] + np.concatenate([[0.0], np.cumsum(solution[1 : len(knots)] * np.diff(knots))])
        knots = knots[reduce_knots(knots, curve, NUM_SEGMENTS + 1)]
    solution = _solve(tokens, others, measured, knots)
    base, slopes, rest = solution[0], solution[1 : len(knots)], solution[len(knots) :]
    return Terms(
        base_us=float(base),
        token_start=tuple(int(knot) for knot in knots[:-1]),
        token_slope_us=tuple(float(slope) for slope in slopes),
        token_tile_us=float(rest[0]),
        prefill_row_us=float(rest[1]),
        decode_row_us=float(rest[2]),
        prefill_token_us=float(rest[3]),
        quad_us=float(rest[4]),
        ctx_us=float(rest[5]),
    )


def _solve(tokens: np.ndarray, others: np.ndarray, measured: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """Base, one slope per segment between `knots`, then the coefficients of `others`."""
    segments = np.clip(tokens[:, None] - knots[:-1], 0.0, np.diff(knots))
    matrix = np.concatenate([np.ones((len(tokens), 1)), segments, others], axis=1)
    # Penalty rows: (slope[j + 1] - slope[j]) * width / typical time there = 0.
    widths = np.diff(knots)
    typical = np.interp(knots[1:-1], *_median_per_count(tokens, measured))
    weight = KINK_WEIGHT * np.sqrt(widths[:-1] * widths[1:]) / typical
    kinks = np.zeros((len(weight), matrix.shape[1]))
    index = np.arange(len(weight))
    kinks[index, 1 + index], kinks[index, 2 + index] = -weight, weight
    rows = np.concatenate([matrix / measured[:, None], kinks])
    return nonnegative_least_squares(rows, np.concatenate([np.ones(len(tokens)), np.zeros(len(weight))]))


def _median_per_count(tokens: np.ndarray, measured: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    counts = np.unique(tokens)
    return counts, np.asarray([np.median(measured[tokens == count]) for count in counts])


def _errors(params: StepTimeParams, rows: Sequence[Measurement]) -> dict:
    """Relative errors of the int32 model on `rows`: per kind, per kind and size, and the worst rows."""
    relative = _relative_errors(params, rows)
    size = np.searchsorted(SIZE_REGIONS, [row.features.total_tokens for row in rows])
    names = [f"<= {edge} tokens" for edge in SIZE_REGIONS] + [f"> {SIZE_REGIONS[-1]} tokens"]
    kinds = np.asarray([row.kind for row in rows])
    regions = []
    for kind in ("decode", "prefill", "mixed"):
        for index, name in enumerate(names):
            here = (kinds == kind) & (size == index)
            if here.any():
                regions.append({"kind": kind, "size": name, **_summary(relative[here])})
    worst = [
        {
            "line": rows[i].line,
            "kind": rows[i].kind,
            **rows[i].given,
            "measured_ms": rows[i].measured_us / 1e3,
            "error": float(relative[i]),
        }
        for i in np.argsort(-np.abs(relative), kind="stable")[:NUM_WORST]
    ]
    by_kind = {
        kind: _summary(relative[kinds == kind]) for kind in ("decode", "prefill", "mixed") if (kinds == kind).any()
    }
    return {"by_kind": by_kind, "by_region": regions, "worst": worst}


def _relative_errors(params: StepTimeParams, rows: Sequence[Measurement]) -> np.ndarray:
    on_host = jax.tree.map(np.asarray, params)
    return np.asarray([step_time_us_reference(on_host, row.features) / row.measured_us - 1.0 for row in rows])


def _summary(relative: np.ndarray) -> dict:
    return {
        "rows": len(relative),
        "mean_abs_error": float(np.abs(relative).mean()),
        "mean_error": float(relative.mean()),
        "max_abs_error": float(np.abs(relative).max()),
    }


def _cross_validation(rows: Sequence[Measurement], share: np.ndarray) -> dict:
    """Mean absolute error per kind when every row is predicted by a fit that did not see it (`NUM_FOLDS` folds)."""
    fold = np.minimum((share * NUM_FOLDS).astype(int), NUM_FOLDS - 1)
    errors: dict[str, list[float]] = {}
    for index in range(NUM_FOLDS):
        train = [row for row, f in zip(rows, fold, strict=True) if f != index]
        params = fit_terms(train).quantise()
        test = [row for row, f in zip(rows, fold, strict=True) if f == index]
        for row, error in zip(test, _relative_errors(params, test), strict=True):
            errors.setdefault(row.kind, []).append(abs(error))
    return {kind: float(np.mean(errors[kind])) for kind in ("decode", "prefill", "mixed") if kind in errors}


def _hash_shares(rows: Sequence[Measurement], seed: int) -> np.ndarray:
    """A number in [0, 1) per row: its rank among the rows of its kind, ordered by a hash of its features.

    Rows with equal features get the same number.
    """
    hashes = [hashlib.sha256(f"{seed}:{row.features}".encode()).hexdigest() for row in rows]
    share = np.zeros(len(rows))
    for kind in {row.kind for row in rows}:
        mine = [i for i, row in enumerate(rows) if row.kind == kind]
        order = {digest: rank for rank, digest in enumerate(sorted({hashes[i] for i in mine}))}
        for i in mine:
            share[i] = order[hashes[i]] / len(order)
    return share


def _check_enough(data: Measurements) -> None:
    counts = {row.features.total_tokens for row in data.rows}
    if len(data.rows) < MIN_ROWS or len(counts) < MIN_TOKEN_COUNTS:
        raise UserError(
            f"{len(data.rows)} usable rows with {len(counts)} different token counts",
            where=data.path,
            expected=f"at least {MIN_ROWS} rows and {MIN_TOKEN_COUNTS} token counts",
            hint=" ".join(f"{count} rows left out ({why})." for why, count in data.excluded.items()),
        )


def _not_measured(rows: Sequence[Measurement]) -> list[str]:
    """Kinds of step no fitted row says anything about; their coefficients are 0 or guesses."""
    kinds = {row.kind for row in rows}
    return [kind for kind in ("decode", "prefill", "mixed") if kind not in kinds]


def _write_atomically(path: Path, text: str) -> None:
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", where=str(path)) from None
