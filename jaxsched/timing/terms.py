"""The float form of a step-time model: what a description or a fit produces, before it becomes int32 coefficients."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields

import numpy as np

from jaxsched.errors import UserError
from jaxsched.timing.step_time import (
    MIN_RATIO_DEN,
    NUM_SEGMENTS,
    RATIO_LIMIT,
    SCALE_ROOM,
    SLOPE_BITS,
    StepTimeParams,
    make_params,
)


@dataclass(frozen=True)
class Terms:
    """A step-time model in microseconds and floats; the formula is that of `step_time.py`, without the floors."""

    base_us: float
    token_start: tuple[int, ...]  # at most NUM_SEGMENTS, increasing
    token_slope_us: tuple[float, ...]  # us per token inside each segment; the last goes on
    token_tile_us: float = 0.0  # us per tile of 128 tokens begun after the first
    prefill_row_us: float = 0.0
    decode_row_us: float = 0.0
    prefill_token_us: float = 0.0
    quad_us: float = 0.0  # us per unit of prefill_quad
    ctx_us: float = 0.0  # us per context token
    prefill_in_ctx: int = 0

    def quantise(self) -> StepTimeParams:
        """The int32 coefficients nearest to these.

        Raises:
            UserError: a coefficient is negative, not a number, or too large.
        """
        where = "step-time coefficients"
        for name, value in asdict(self).items():
            for number in value if isinstance(value, tuple) else (value,):
                if not math.isfinite(number) or number < 0:
                    raise UserError(f"{name} is {number}", where=where, expected="a finite number >= 0")
        fixed = 1 << SLOPE_BITS
        return make_params(
            base_us=round(self.base_us),
            token_start=list(self.token_start),
            token_slope=[round(slope * fixed) for slope in self.token_slope_us],
            token_tile=round(self.token_tile_us * fixed),
            prefill_row=round(self.prefill_row_us * fixed),
            decode_row=round(self.decode_row_us * fixed),
            prefill_token=round(self.prefill_token_us * fixed),
            quad=_ratio("quad_us", self.quad_us),
            ctx=_ratio("ctx_us", self.ctx_us),
            prefill_in_ctx=self.prefill_in_ctx,
        )

    def to_dict(self) -> dict[str, object]:
        """JSON-able; `from_dict` reads it back."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: object, where: str) -> Terms:
        """Read what `to_dict` wrote.

        Raises:
            UserError: not a mapping, an unknown or missing key, or a value of the wrong type (named with `where`).
        """
        if not isinstance(data, dict):
            raise UserError(
                f"coefficients are {type(data).__name__}", where=where, expected="a mapping of names to numbers"
            )
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise UserError(
                f"unknown coefficient {unknown[0]!r}", where=where, expected=f"one of {', '.join(sorted(known))}"
            )
        if missing := sorted({"base_us", "token_start", "token_slope_us"} - set(data)):
            raise UserError(f"coefficient {missing[0]!r} is missing", where=where)
        clean: dict[str, object] = {}
        for name, value in data.items():
            is_list = name in ("token_start", "token_slope_us")
            if isinstance(value, list) != is_list or not all(map(_is_number, value if is_list else [value])):
                raise UserError(
                    f"{name} is {value!r}",
                    where=where,
                    expected="a list of finite numbers >= 0" if is_list else "a finite number >= 0",
                )
            clean[name] = tuple(value) if is_list else value
        if any(start != int(start) for start in data["token_start"]) or data.get("prefill_in_ctx", 0) not in (0, 1):
            raise UserError("token_start and prefill_in_ctx are integers", where=where)
        return cls(**clean)  # pyright: ignore[reportArgumentType]


def reduce_knots(x: np.ndarray, y: np.ndarray, num_knots: int) -> np.ndarray:
    """Indices of at most `num_knots` points of the curve ``(x, y)`` whose interpolation stays close to it.

    Greedy: drop, one at a time, the inner point whose neighbours predict it with the least relative error. The two ends
    are kept. Deterministic; ties go to the smaller x.
    """
    keep = list(range(len(x)))
    while len(keep) > num_knots:
        left, mid, right = np.asarray(keep[:-2]), np.asarray(keep[1:-1]), np.asarray(keep[2:])
        guess = y[left] + (y[right] - y[left]) * (x[mid] - x[left]) / (x[right] - x[left])
        drop = int(np.argmin(np.abs(guess - y[mid]) / np.maximum(np.abs(y[mid]), 1e-9)))
        del keep[drop + 1]
    return np.asarray(keep)


def table_from_curve(tokens: np.ndarray, curve_us: np.ndarray) -> tuple[float, tuple[int, ...], tuple[float, ...]]:
    """``(base_us, token_start, token_slope_us)`` of a non-decreasing sampled curve; base is its first value."""
    keep = reduce_knots(tokens.astype(np.float64), curve_us, NUM_SEGMENTS + 1)
    x, y = tokens[keep], curve_us[keep]
    slopes = np.diff(y) / np.diff(x)
    return float(y[0]), tuple(int(start) for start in x[:-1]), tuple(float(slope) for slope in slopes)


def _ratio(name: str, value: float) -> tuple[int, int]:
    """``(num, den)`` near `value`, as fine as int32 allows with `SCALE_ROOM` left for `scale`."""
    room = RATIO_LIMIT // SCALE_ROOM
    if value == 0.0:
        return 0, MIN_RATIO_DEN
    den = math.isqrt(int(min(room / value, 2.0**40)))
    num = round(value * den)
    while num * den >= room:
        den -= 1
        num = round(value * den)
    if den < MIN_RATIO_DEN:
        raise UserError(f"{name} is {value}", where="step-time coefficients", expected="below 1000 us")
    return num, den


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
