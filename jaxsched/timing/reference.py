"""Plain-Python counterparts of `step_time.py`: exact integers without a width, a float version, and the overflow check.

Slow and obvious on purpose: tests, `calibrate` and estimates before a run use them, the machine never does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jaxsched.errors import UserError
from jaxsched.timing.step_time import RATIO_LIMIT, SLOPE_BITS, TILE_BITS, StepTimeParams, scale


@dataclass(frozen=True)
class StepFeatures:
    """What a step is, for its duration (docs/semantics.md, section 5). Plain integers."""

    total_tokens: int
    num_prefill: int = 0
    prefill_tokens: int = 0
    prefill_quad: int = 0  # sum over prefill rows of n * ((2 * before + n) >> 6)
    num_decode: int = 0
    decode_ctx: int = 0  # sum over decode rows of (computed before + 1)
    prefill_ctx: int = 0  # sum over prefill rows of (computed before + n)


def prefill_quad(num_tokens: int, before: int) -> int:
    """Prefill attention work of one row, `num_tokens` new after `before` cached ones, in units of 32 causal pairs."""
    return num_tokens * ((2 * before + num_tokens) >> 6)


def step_time_us_reference(params: StepTimeParams, features: StepFeatures) -> int:
    """Duration of a step in microseconds, in Python integers that cannot overflow."""

    def floor_ratio(num: int, den: int) -> int:
        return num // den

    return _duration_us(params, features, floor_ratio)


def step_time_us_float(params: StepTimeParams, features: StepFeatures) -> int:
    """The same in float64 with a floor at the same places; equal to the integers while products stay below 2**53."""

    def floor_ratio(num: int, den: int) -> int:
        return math.floor(float(num) / float(den))

    return _duration_us(params, features, floor_ratio)


def check_range(
    params: StepTimeParams,
    *,
    max_step_tokens: int,
    max_rows: int,
    max_row_tokens: int,
    max_kv_tokens: int,
    max_scale: float = 1.0,
    limit_us: int = (1 << 31) - 1,
) -> int:
    """Host side: the longest step that can occur, microseconds; refuses one that int32 arithmetic could not represent.

    Args:
        params: one set of coefficients (no lane axis).
        max_step_tokens: most tokens in one step (the token budget).
        max_rows: most requests in one step.
        max_row_tokens: longest request, prompt plus output.
        max_kv_tokens: tokens the KV pool holds: the largest sum of contexts.
        max_scale: the largest factor `scale` will be called with.
        limit_us: longest step accepted.

    Raises:
        UserError: the longest step exceeds `limit_us`, or scaling overflows a coefficient.
    """
    if max_scale != 1.0:
        for name in ("quad", "ctx"):
            ratio_num, ratio_den = int(getattr(params, f"{name}_num")), int(getattr(params, f"{name}_den"))
            if ratio_num * max_scale * ratio_den >= RATIO_LIMIT:
                raise UserError(
                    f"coefficient {name} = {ratio_num}/{ratio_den} cannot be scaled by {max_scale}",
                    where="step-time coefficients",
                    expected="num * den * scale < 2**31",
                )
        params = scale(params, max_scale)
    longest = StepFeatures(
        total_tokens=max_step_tokens,
        num_prefill=max_rows,
        prefill_tokens=max_step_tokens,
        prefill_quad=prefill_quad(max_step_tokens, max_row_tokens),
        num_decode=max_rows,
        decode_ctx=max_kv_tokens + max_rows,
        prefill_ctx=0,
    )
    duration = step_time_us_reference(params, longest)
    if duration > limit_us:
        raise UserError(
            f"a step of {max_step_tokens} tokens at {max_kv_tokens} tokens of context can take {duration / 1e6:.0f} s",
            where="step-time coefficients",
            expected=f"at most {limit_us / 1e6:.0f} s (times are int32 microseconds)",
            hint="Use smaller coefficients, token budget or KV capacity.",
        )
    return duration


def _duration_us(p: StepTimeParams, f: StepFeatures, floor_ratio: Callable[[int, int], int]) -> int:
    table = 0
    for start, width, slope in zip(*map(_ints, (p.token_start, p.token_width, p.token_slope)), strict=True):
        table += slope * min(max(f.total_tokens - start, 0), width)
    table += int(p.token_tile) * (max(f.total_tokens - 1, 0) >> TILE_BITS)
    rows = int(p.prefill_row) * f.num_prefill + int(p.decode_row) * f.num_decode
    rows += int(p.prefill_token) * f.prefill_tokens
    ctx = f.decode_ctx + int(p.prefill_in_ctx) * f.prefill_ctx
    constant = int(p.base_us) + floor_ratio(table + rows, 1 << SLOPE_BITS)
    constant += floor_ratio(int(p.quad_num) * f.prefill_quad, int(p.quad_den))
    return max(1, constant + floor_ratio(int(p.ctx_num) * ctx, int(p.ctx_den)))


def _ints(x: object) -> list[int]:
    return np.asarray(x).tolist()
