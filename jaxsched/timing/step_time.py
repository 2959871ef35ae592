"""Duration of one engine step, in int32 microseconds: the same bits on every backend, vmapped or not.

The model is a sum of non-negative terms over the features of a step (docs/semantics.md, section 5)::

    duration = max(1, constant_us + context_us)
    constant_us = base_us
                + floor((sum_j token_slope[j] * clip(T - token_start[j], 0, token_width[j])
                         + token_tile * ((T - 1) >> 7)
                         + prefill_row * num_prefill + decode_row * num_decode + prefill_token * prefill_tokens) / 2**8)
                + floor(quad_num * prefill_quad / quad_den)
    context_us = floor(ctx_num * ctx / ctx_den)

with T = total tokens, ``prefill_quad = sum n * ((2 * before + n) >> 6)`` over prefill rows and ``ctx`` the context
tokens of the decode rows (plus those of the prefill rows when `prefill_in_ctx` is 1). Integers, because a float
multiply-add may or may not be fused, depending on the backend and on the surrounding program, and one microsecond
changes a decision.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from jaxsched.errors import UserError
from jaxsched.numerics import scaled_floor

#: Segments of the piecewise-linear table in total tokens.
NUM_SEGMENTS = 16
#: Slopes and row costs are multiples of 2**-SLOPE_BITS microseconds.
SLOPE_BITS = 8
_FRACTION = (1 << SLOPE_BITS) - 1
#: Matmul kernels work in tiles of 128 rows: the first token of each further tile costs `token_tile` more.
TILE_BITS = 7
#: Width of the last segment: the last slope goes on for ever.
OPEN_WIDTH = 1 << 30
#: `scaled_floor` needs num * den below this.
RATIO_LIMIT = 1 << 31
MIN_RATIO_DEN = 1 << 9
#: Constructors leave this factor of room below `RATIO_LIMIT`, so that lanes may scale their coefficients up.
SCALE_ROOM = 8
#: `scale` works in steps of 2**-SCALE_BITS.
SCALE_BITS = 10


class StepTimeParams(struct.PyTreeNode):
    """Coefficients of the step-time model. All int32, all non-negative; a pytree that may carry leading lane axes.

    Within a lane every leaf may have a leading axis of instances, which then differ (`of_instance`).
    """

    base_us: Int[Array, ""]  # every step: host overhead, weight read, kernel floors
    token_start: Int[Array, " j"]  # first token of each segment of the table, increasing
    token_width: Int[Array, " j"]  # tokens in each segment; 0 = unused, OPEN_WIDTH = the last one
    token_slope: Int[Array, " j"]  # cost of each token of the segment, 2**-8 us
    token_tile: Int[Array, ""]  # cost of each tile of 128 tokens begun after the first, 2**-8 us
    prefill_row: Int[Array, ""]  # cost of each prefill row, 2**-8 us
    decode_row: Int[Array, ""]  # cost of each decode row, 2**-8 us
    prefill_token: Int[Array, ""]  # extra cost of a prefill token over any token, 2**-8 us
    quad_num: Int[Array, ""]  # prefill attention: us per unit of prefill_quad = quad_num / quad_den
    quad_den: Int[Array, ""]
    ctx_num: Int[Array, ""]  # KV read: us per context token = ctx_num / ctx_den
    ctx_den: Int[Array, ""]
    prefill_in_ctx: Int[Array, ""]  # 1: prefill rows' contexts are part of ctx (the recorded engine); 0: they are not


def constant_us(
    p: StepTimeParams,
    total_tokens: Int[Array, ""],
    num_prefill: Int[Array, ""],
    prefill_tokens: Int[Array, ""],
    prefill_quad: Int[Array, ""],
    num_decode: Int[Array, ""],
) -> Int[Array, ""]:
    """Everything but the context term, microseconds. Scalars in, scalar out; exact while the result is below 2**31."""
    inside = jnp.clip(total_tokens - p.token_start, jnp.int32(0), p.token_width)
    # floor(sum slope * n / 256) without a wide product: whole microseconds and fractions are summed apart.
    whole = jnp.sum((p.token_slope >> SLOPE_BITS) * inside, dtype=jnp.int32)
    fraction = jnp.sum((p.token_slope & _FRACTION) * inside, dtype=jnp.int32)
    tiles = jnp.maximum(total_tokens - 1, jnp.int32(0)) >> TILE_BITS
    for cost, count in (
        (p.token_tile, tiles),
        (p.prefill_row, num_prefill),
        (p.decode_row, num_decode),
        (p.prefill_token, prefill_tokens),
    ):
        whole = whole + (cost >> SLOPE_BITS) * count
        fraction = fraction + (cost & _FRACTION) * count
    return p.base_us + whole + (fraction >> SLOPE_BITS) + scaled_floor(prefill_quad, p.quad_num, p.quad_den)


def of_instance(p: StepTimeParams, m: Int[Array, ""]) -> StepTimeParams:
    """Coefficients of instance `m`; `p` itself where all instances are alike (decided by the rank of its leaves)."""
    if jnp.ndim(p.base_us) == 0:
        return p
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, m, 0, keepdims=False), p)


def prefill_quad(tokens: Int[Array, "*n"], before: Int[Array, "*n"]) -> Int[Array, "*n"]:
    """Units of prefill attention of rows that compute `tokens` behind `before`."""
    return tokens * ((2 * before + tokens) >> 6)


def quad_us(p: StepTimeParams, tokens: Int[Array, "*n"], before: Int[Array, "*n"]) -> Int[Array, "*n"]:
    """What one prefill row adds to the `constant_us` of a step without `prefill_quad`, microseconds."""
    return scaled_floor(prefill_quad(tokens, before), p.quad_num, p.quad_den)


def context_us(p: StepTimeParams, ctx: Int[Array, "*k"]) -> Int[Array, "*k"]:
    """Time to read the KV of `ctx` context tokens, microseconds; elementwise over any shape."""
    return scaled_floor(ctx, p.ctx_num, p.ctx_den)


def scale(p: StepTimeParams, factor: float | Float[Array, ""]) -> StepTimeParams:
    """The same machine, `factor` times as slow (0 < factor <= 8), for randomising lanes.

    `factor` is rounded to a multiple of 2**-10; every coefficient is then scaled in integers and rounded to nearest, so
    1.0 changes nothing and the result has the same bits everywhere. Works on the host and under `jit`/`vmap`; a Python
    number out of range is a UserError, a traced one is the caller's to bound (`check_range` takes the largest factor).
    """
    if isinstance(factor, int | float) and not 0 < factor <= SCALE_ROOM:
        raise UserError(f"scale factor {factor}", where="step-time scale", expected=f"a number in (0, {SCALE_ROOM}]")
    steps = jnp.round(jnp.asarray(factor, jnp.float32) * (1 << SCALE_BITS)).astype(jnp.int32)

    def scaled(x: Int[Array, "*n"]) -> Int[Array, "*n"]:
        low = x & ((1 << SCALE_BITS) - 1)
        return (x >> SCALE_BITS) * steps + ((low * steps + (1 << (SCALE_BITS - 1))) >> SCALE_BITS)

    return dataclasses.replace(
        p,
        base_us=scaled(p.base_us),
        token_slope=scaled(p.token_slope),
        token_tile=scaled(p.token_tile),
        prefill_row=scaled(p.prefill_row),
        decode_row=scaled(p.decode_row),
        prefill_token=scaled(p.prefill_token),
        quad_num=scaled(p.quad_num),
        ctx_num=scaled(p.ctx_num),
    )


def affine(time_a_us: int, time_b_us_per_token: int, time_c_ns_per_ctx: int) -> StepTimeParams:
    """Exactly ``a + b * T + floor(c * ctx / 1000)``: the recorded engine's model (shared/oracle/vllm/README.md, Clock).

    Raises:
        UserError: a value is not an integer, is negative, or is too large for int32 arithmetic.
    """
    values = {
        "time_a_us": (time_a_us, (1 << 31) - 1),
        "time_b_us_per_token": (time_b_us_per_token, ((1 << 31) - 1) >> SLOPE_BITS),
        "time_c_ns_per_ctx": (time_c_ns_per_ctx, (RATIO_LIMIT - 1) // 1000),
    }
    for name, (value, largest) in values.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value <= largest:
            raise UserError(f"{name} is {value!r}", where="affine step time", expected=f"an integer in [0, {largest}]")
    # c / 1000 = (c * k) / (1000 * k): the same floor, and a finer grain for `scale`.
    k = max(1, math.isqrt(RATIO_LIMIT // SCALE_ROOM // (max(1, int(time_c_ns_per_ctx)) * 1000)))
    return make_params(
        base_us=int(time_a_us),
        token_start=[0],
        token_slope=[int(time_b_us_per_token) << SLOPE_BITS],
        ctx=(int(time_c_ns_per_ctx) * k, 1000 * k),
        prefill_in_ctx=1,
    )


def make_params(
    *,
    base_us: int,
    token_start: list[int],
    token_slope: list[int],
    token_tile: int = 0,
    prefill_row: int = 0,
    decode_row: int = 0,
    prefill_token: int = 0,
    quad: tuple[int, int] = (0, MIN_RATIO_DEN),
    ctx: tuple[int, int] = (0, MIN_RATIO_DEN),
    prefill_in_ctx: int = 0,
) -> StepTimeParams:
    """Host side: build and check `StepTimeParams` from Python integers (units as in the class).

    `quad` and `ctx` are (num, den) pairs. `token_start` and `token_slope` have one entry per segment, at most
    `NUM_SEGMENTS`; the last slope goes on for ever.

    Raises:
        UserError: the table is malformed, or a coefficient is negative or out of range.
    """
    where = "step-time coefficients"
    num = len(token_start)
    if not 1 <= num <= NUM_SEGMENTS or len(token_slope) != num:
        raise UserError(
            f"{num} segment starts and {len(token_slope)} slopes",
            where=where,
            expected=f"1 to {NUM_SEGMENTS}, as many of each",
        )
    width = [after - start for start, after in itertools.pairwise(token_start)]
    if token_start[0] < 0 or min(width, default=1) < 1:
        raise UserError(f"segment starts {token_start}", where=where, expected="non-negative and strictly increasing")
    for name, (ratio_num, ratio_den) in {"quad": quad, "ctx": ctx}.items():
        if ratio_den < MIN_RATIO_DEN or ratio_num < 0 or ratio_num * ratio_den >= RATIO_LIMIT:
            raise UserError(
                f"{name} ratio {ratio_num}/{ratio_den}", where=where, expected="num >= 0, den >= 512, num * den < 2**31"
            )
    plain = {
        "base_us": base_us, "prefill_row": prefill_row, "decode_row": decode_row, "prefill_token": prefill_token,
        **{f"token_slope[{j}]": slope for j, slope in enumerate(token_slope)}, "token_start": token_start[-1],
    }  # fmt: skip
    for name, value in plain.items():
        if not 0 <= value < 1 << 31:
            raise UserError(f"{name} is {value}", where=where, expected="an integer in [0, 2**31)")
    pad = [0] * (NUM_SEGMENTS - num)
    return StepTimeParams(
        base_us=jnp.int32(base_us),
        token_start=jnp.asarray(np.asarray(token_start + pad, np.int32)),
        token_width=jnp.asarray(np.asarray([*width, OPEN_WIDTH, *pad], np.int32)),
        token_slope=jnp.asarray(np.asarray(token_slope + pad, np.int32)),
        token_tile=jnp.int32(token_tile),
        prefill_row=jnp.int32(prefill_row),
        decode_row=jnp.int32(decode_row),
        prefill_token=jnp.int32(prefill_token),
        quad_num=jnp.int32(quad[0]),
        quad_den=jnp.int32(quad[1]),
        ctx_num=jnp.int32(ctx[0]),
        ctx_den=jnp.int32(ctx[1]),
        prefill_in_ctx=jnp.int32(prefill_in_ctx),
    )
