"""The int32 step-time function against Python integers: affine exactness, references, lanes, overflow, monotonicity."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsched.errors import UserError
from jaxsched.timing import (
    StepFeatures,
    StepTimeParams,
    affine,
    check_range,
    constant_us,
    context_us,
    describe,
    scale,
    step_time_us_reference,
)
from jaxsched.timing.reference import prefill_quad, step_time_us_float
from jaxsched.timing.step_time import NUM_SEGMENTS, make_params

INT32_MAX = (1 << 31) - 1


@jax.jit
def duration(p: StepTimeParams, x: jax.Array) -> jax.Array:
    total, num_prefill, prefill_tokens, quad, num_decode, decode_ctx, prefill_ctx = x
    constant = constant_us(p, total, num_prefill, prefill_tokens, quad, num_decode)
    return jnp.maximum(jnp.int32(1), constant + context_us(p, decode_ctx + p.prefill_in_ctx * prefill_ctx))


def as_vector(f: StepFeatures) -> np.ndarray:
    fields = (
        f.total_tokens,
        f.num_prefill,
        f.prefill_tokens,
        f.prefill_quad,
        f.num_decode,
        f.decode_ctx,
        f.prefill_ctx,
    )
    return np.asarray(fields, np.int32)


@st.composite
def features(draw: st.DrawFn) -> StepFeatures:
    num_decode = draw(st.integers(0, 512))
    prefill_tokens = draw(st.integers(0 if num_decode else 1, 16384))
    num_prefill = draw(st.integers(1, min(prefill_tokens, 64))) if prefill_tokens else 0
    before = draw(st.integers(0, 65536))
    return StepFeatures(
        total_tokens=prefill_tokens + num_decode,
        num_prefill=num_prefill,
        prefill_tokens=prefill_tokens,
        prefill_quad=prefill_quad(prefill_tokens, before),
        num_decode=num_decode,
        decode_ctx=draw(st.integers(num_decode, 1 << 22)) if num_decode else 0,
        prefill_ctx=num_prefill * before + prefill_tokens,
    )


@st.composite
def coefficients(draw: st.DrawFn) -> StepTimeParams:
    num = draw(st.integers(1, NUM_SEGMENTS))
    starts = sorted(draw(st.sets(st.integers(0, 16384), min_size=num, max_size=num)))
    den = draw(st.integers(512, 1 << 14))
    return make_params(
        base_us=draw(st.integers(0, 10**6)),
        token_start=starts,
        token_slope=draw(st.lists(st.integers(0, 1 << 18), min_size=num, max_size=num)),
        token_tile=draw(st.integers(0, 1 << 20)),
        prefill_row=draw(st.integers(0, 1 << 16)),
        decode_row=draw(st.integers(0, 1 << 16)),
        prefill_token=draw(st.integers(0, 1 << 12)),
        quad=(draw(st.integers(0, 3 * den)), den),
        ctx=(draw(st.integers(0, 4 * den // 100)), den),
        prefill_in_ctx=draw(st.integers(0, 1)),
    )


@settings(max_examples=300, deadline=None)
@given(
    a=st.integers(0, INT32_MAX),
    b=st.integers(0, 8_388_607),
    c=st.integers(0, 2_147_483),
    tokens=st.integers(1, 65536),
    ctx=st.integers(0, 1 << 24),
)
def test_affine_equals_python_integers_wherever_the_result_fits_int32(a: int, b: int, c: int, tokens: int, ctx: int):
    # Draw from the whole range, then shrink the coefficients into what fits, so that the border itself is reached.
    ctx_part = min(c, INT32_MAX * 1000 // max(ctx, 1)) if c * ctx // 1000 > INT32_MAX else c
    left = INT32_MAX - ctx_part * ctx // 1000
    b = min(b, left // tokens)
    a = min(a, left - b * tokens)
    expected = max(1, a + b * tokens + ctx_part * ctx // 1000)
    x = as_vector(StepFeatures(tokens, num_decode=1, decode_ctx=ctx))
    assert int(duration(affine(a, b, ctx_part), x)) == expected


def test_affine_reproduces_the_recorded_engine_including_prefill_contexts():
    f = StepFeatures(600, 2, 590, 0, 10, decode_ctx=5_003, prefill_ctx=1_244)
    assert int(duration(affine(8000, 60, 40), as_vector(f))) == 8000 + 60 * 600 + 40 * (5_003 + 1_244) // 1000


@settings(max_examples=200, deadline=None)
@given(p=coefficients(), f=features())
def test_device_equals_python_integers_and_the_float_reference(p: StepTimeParams, f: StepFeatures):
    exact = step_time_us_reference(p, f)
    assert step_time_us_float(p, f) == exact
    if exact <= INT32_MAX:
        assert int(duration(p, as_vector(f))) == exact


def test_lanes_with_their_own_coefficients_equal_a_loop():
    params = [scale(describe("llama-3-8b", "a100").params, factor) for factor in (0.5, 1.0, 1.37, 3.0)]
    steps = [StepFeatures(1, 0, 0, 0, 1, 9000), StepFeatures(700, 2, 640, prefill_quad(320, 100) * 2, 60, 70_000)]
    x = jnp.stack([as_vector(f) for f in steps])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    lanes = jax.vmap(jax.vmap(duration, (None, 0)), (0, None))(stacked, x)
    assert lanes.dtype == jnp.int32
    assert lanes.tolist() == [[step_time_us_reference(p, f) for f in steps] for p in params]


def test_context_term_is_elementwise_over_a_run_of_contexts():
    p = describe("llama-3-8b", "a100").params
    ctx = np.arange(32, dtype=np.int32) * 64 + 100_000
    assert context_us(p, ctx).tolist() == [int(p.ctx_num) * int(c) // int(p.ctx_den) for c in ctx]


def test_scale_by_one_changes_nothing_and_by_two_doubles():
    p = describe("mixtral-8x7b", "h100", tp=2).params
    for before, after in zip(jax.tree.leaves(p), jax.tree.leaves(scale(p, 1.0)), strict=True):
        np.testing.assert_array_equal(before, after)
    f = StepFeatures(2000, 1, 1950, prefill_quad(1950, 0), 50, 60_000)
    # The three terms are floored apart: doubling may differ by one microsecond each.
    assert abs(step_time_us_reference(scale(p, 2.0), f) - 2 * step_time_us_reference(p, f)) <= 3


def test_scale_under_vmap_equals_scale_on_the_host():
    p = affine(8000, 60, 40)
    factors = jnp.asarray([0.9, 1.1, 2.5], jnp.float32)
    lanes = jax.vmap(scale, (None, 0))(p, factors)
    for lane, factor in enumerate((0.9, 1.1, 2.5)):
        host = scale(p, factor)
        for left, right in zip(jax.tree.leaves(lanes), jax.tree.leaves(host), strict=True):
            np.testing.assert_array_equal(left[lane], right)


@pytest.mark.parametrize("factor", [0.0, -1.0, 9.0, float("nan")])
def test_scale_refuses_factors_out_of_range(factor: float):
    with pytest.raises(UserError, match="scale factor"):
        scale(affine(1, 1, 1), factor)


@pytest.mark.parametrize("values", [(-1, 60, 40), (8000, 8_388_608, 40), (8000, 60, 2_147_484), (8000, 60.5, 40)])
def test_affine_refuses_values_that_int32_cannot_hold(values: tuple):
    with pytest.raises(UserError, match="affine step time"):
        affine(*values)


def test_a_step_beyond_int32_microseconds_is_refused_on_the_host():
    limits = dict(max_step_tokens=65536, max_rows=256, max_row_tokens=131072, max_kv_tokens=1 << 20)
    assert check_range(affine(8000, 60, 40), **limits) == 8000 + 60 * 65536 + 40 * ((1 << 20) + 256) // 1000
    with pytest.raises(UserError, match="can take"):
        check_range(affine(8000, 40_000, 40), **limits)
    with pytest.raises(UserError, match="can take"):
        check_range(affine(8000, 20_000, 40), **limits, max_scale=2.0)


def test_scaling_a_coefficient_out_of_its_ratio_is_refused():
    p = make_params(base_us=1, token_start=[0], token_slope=[0], ctx=((1 << 31) // 1024 - 1, 1024))
    with pytest.raises(UserError, match=r"coefficient ctx .* cannot be scaled"):
        check_range(p, max_step_tokens=1, max_rows=1, max_row_tokens=1, max_kv_tokens=1, max_scale=2.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_us": -1}, "base_us is -1"),
        ({"token_slope": [1 << 31]}, r"token_slope\[0\]"),
        ({"token_start": [5, 5], "token_slope": [1, 1]}, "strictly increasing"),
        ({"token_start": list(range(17)), "token_slope": [1] * 17}, "17 segment starts"),
        ({"ctx": (1, 100)}, "ctx ratio 1/100"),
        ({"quad": (1 << 22, 1 << 9)}, "quad ratio"),
    ],
)
def test_malformed_coefficients_are_refused(change: dict, message: str):
    good = {"base_us": 1, "token_start": [0], "token_slope": [1]}
    with pytest.raises(UserError, match=message):
        make_params(**{**good, **change})


@settings(max_examples=100, deadline=None)
@given(p=coefficients(), f=features(), more=st.integers(1, 4096))
def test_more_tokens_or_context_never_make_a_step_faster(p: StepTimeParams, f: StepFeatures, more: int):
    base = step_time_us_reference(p, f)
    for name in ("total_tokens", "prefill_tokens", "prefill_quad", "decode_ctx", "num_decode", "num_prefill"):
        longer = StepFeatures(**{**f.__dict__, name: getattr(f, name) + more})
        assert step_time_us_reference(p, longer) >= base
