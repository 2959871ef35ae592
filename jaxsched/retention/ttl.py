"""Continuum's time-to-live of a paused program's KV (Li et al., "Continuum", arXiv 2511.02230, also "CacheTTL").

Rule: when a turn ends in a call of tool `f`, its KV is pinned for::

    tau* = argmax over tau in {0} and S of  P(tau, f) * (T * eta + Reload) - tau          (ties: the smaller tau)

P: empirical distribution function of the tool's durations; T: mean queueing wait of requests whose KV had been evicted
(what a program pays for coming back without its KV, besides the reload); eta = -Corr(k, N - k) of turns done and turns
left: 1 when programs have a fixed number of turns, 0 when they are memoryless, may be negative; Reload: time to
recompute or load the context. The memory held, mem(r) / mean, multiplies gain and cost alike and cancels.

Samples: with at most `min_samples` durations in all, the prior Exp(mean 1 s) with eta = 1, in closed form
``max(0, mean * ln((T + Reload) / mean))``; else with at most that many of this tool, those of all tools; else its own.

Chosen here, since the authors' estimators are unpublished: durations are the last `W` of each tool and of all; T is the
plain mean of the first `wait_window` waits and an exponential moving mean after that, 0 before any; pairs
(k, N - k) are those of the pauses of completed programs, k = 1 .. N-1, and eta is 1 until they vary. The closed form is
that of a public reconstruction; the paper only names a default.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxsched.retention.window import LARGEST, Window, empty_window, held, push

WINDOW = 100  # durations kept per tool
_TURN_PAIRS = float(2**24)  # float32 counts exactly up to here; the means move exponentially beyond


class TtlParams(struct.PyTreeNode):
    """Settings of the estimators (traced)."""

    min_samples: Int[Array, ""]  # K: more durations than this before an empirical distribution is believed
    prior_mean_us: Float[Array, ""]  # mean of the exponential prior
    wait_window: Float[Array, ""]  # waits in the moving mean T


class ToolHistory(struct.PyTreeNode):
    """What has been seen of pauses, waits and program lengths; one per scheduler (times in microseconds)."""

    durations: Window  # rows: one per tool, then one for all tools; saturate at 2^31 - 1
    wait_us: Float[Array, ""]  # T
    wait_count: Int[Array, ""]
    pair_count: Float[Array, ""]  # pairs (k, N - k); the two have the same mean and variance by symmetry
    pair_mean: Float[Array, ""]  # of k
    pair_square: Float[Array, ""]  # mean of k^2
    pair_product: Float[Array, ""]  # mean of k * (N - k)


def ttl_params(min_samples: int = 100, prior_mean_us: float = 1e6, wait_window: float = 100.0) -> TtlParams:
    """Defaults of the paper (100 samples) and of its reconstruction (1 s); `wait_window` is ours."""
    return TtlParams(jnp.int32(min_samples), jnp.float32(prior_mean_us), jnp.float32(wait_window))


def empty_history(num_tools: int, window: int = WINDOW) -> ToolHistory:
    """Nothing seen yet."""
    zero = jnp.float32(0.0)
    return ToolHistory(
        durations=empty_window(num_tools + 1, window),
        wait_us=zero,
        wait_count=jnp.int32(0),
        pair_count=zero,
        pair_mean=zero,
        pair_square=zero,
        pair_product=zero,
    )


def record(
    history: ToolHistory, tool: Int[Array, ""], duration_us: Int[Array, ""], mask: Bool[Array, ""] | bool = True
) -> ToolHistory:
    """A pause of `tool` lasted `duration_us` (next arrival minus previous finish, on the server's clock).

    A tool outside the table counts for all tools together only. Nothing happens where not `mask`. O(W).
    """
    num_tools = history.durations.count.shape[0] - 1
    tool = jnp.asarray(tool, jnp.int32)
    # The row of all tools is not a tool: an index that happens to name it is as unknown as any other.
    own = jnp.where((tool >= 0) & (tool < num_tools), tool, -1)
    rows = jnp.stack([own, jnp.int32(num_tools)])
    return history.replace(durations=push(history.durations, rows, duration_us, jnp.broadcast_to(mask, (2,))))


def record_wait(
    history: ToolHistory,
    wait_us: Int[Array, ""],
    mask: Bool[Array, ""] | bool = True,
    params: TtlParams | None = None,
) -> ToolHistory:
    """A request whose KV had been evicted was admitted after `wait_us` in the queue."""
    params = params or ttl_params()
    count = jnp.minimum(history.wait_count, LARGEST - 1) + 1
    weight = 1.0 / jnp.minimum(count.astype(jnp.float32), params.wait_window)
    mean = history.wait_us + (jnp.asarray(wait_us, jnp.float32) - history.wait_us) * weight
    return history.replace(
        wait_us=jnp.where(mask, mean, history.wait_us), wait_count=jnp.where(mask, count, history.wait_count)
    )


def record_program(history: ToolHistory, num_turns: Int[Array, ""], mask: Bool[Array, ""] | bool = True) -> ToolHistory:
    """A program of `num_turns` turns is done: its num_turns - 1 pairs (k, N - k) enter the statistics of eta."""
    turns = jnp.asarray(num_turns, jnp.float32)
    pairs = jnp.where(mask, jnp.maximum(turns - 1.0, 0.0), 0.0)
    # Means over k = 1 .. N-1 of k, k^2 and k (N - k).
    mean = turns * 0.5
    square = turns * (2.0 * turns - 1.0) / 6.0
    product = turns * (turns + 1.0) / 6.0
    count = jnp.minimum(history.pair_count + pairs, _TURN_PAIRS)
    share = pairs / jnp.maximum(count, 1.0)
    return history.replace(
        pair_count=count,
        pair_mean=history.pair_mean + (mean - history.pair_mean) * share,
        pair_square=history.pair_square + (square - history.pair_square) * share,
        pair_product=history.pair_product + (product - history.pair_product) * share,
    )


def mean_pause_us(history: ToolHistory, tool: Int[Array, ""]) -> Float[Array, ""]:
    """Mean of the last pauses of a tool, or of all tools, or (none seen) 0. O(W)."""
    num_tools = history.durations.count.shape[0] - 1
    row = jnp.where(history.durations.count[jnp.minimum(tool, num_tools - 1)] > 0, tool, num_tools)
    num = held(history.durations)[row]
    samples = history.durations.ordered[row].astype(jnp.float32)
    there = jnp.arange(samples.shape[0]) < num
    return jnp.sum(jnp.where(there, samples, 0.0)) / jnp.maximum(num, 1).astype(jnp.float32)


def eta(history: ToolHistory) -> Float[Array, ""]:
    """-Corr(k, N - k) in [-1, 1]; 1, the value under the prior, while turns done do not vary."""
    centre = history.pair_mean * history.pair_mean
    variance = history.pair_square - centre
    covariance = history.pair_product - centre
    # A single program of two turns has one pair; rounding leaves a variance of about 1e-7 of the square.
    varies = variance > 1e-5 * history.pair_square
    return jnp.where(varies, jnp.clip(-covariance / jnp.where(varies, variance, 1.0), -1.0, 1.0), jnp.float32(1.0))


def best_ttl(
    history: ToolHistory, tool: Int[Array, ""], reload_us: Int[Array, ""], params: TtlParams | None = None
) -> Int[Array, ""]:
    """tau* in microseconds for a pause of `tool` whose KV takes `reload_us` to get back; 0 = do not pin. O(W).

    Gains are compared exactly, as ``n * (P * B - tau) = (samples <= tau) * B - n * tau`` in two words of 16 bits, B
    being ``T * eta + Reload`` in whole microseconds: the choice, ties included, is the same on every backend.
    """
    params = params or ttl_params()
    num_tools = history.durations.count.shape[0] - 1
    tool = jnp.asarray(tool, jnp.int32)
    known = (tool >= 0) & (tool < num_tools)
    row = jnp.where(known, tool, num_tools)
    row = jnp.where(history.durations.count[row] > params.min_samples, row, num_tools)
    has_samples = history.durations.count[num_tools] > params.min_samples
    reload = jnp.asarray(reload_us, jnp.float32)
    gain_us = _whole_us(history.wait_us * eta(history) + reload)
    sampled = _best_sample(history.durations.ordered[row], held(history.durations)[row], gain_us)
    ratio = (history.wait_us + reload) / params.prior_mean_us
    prior = _whole_us(params.prior_mean_us * jnp.log(jnp.maximum(ratio, 1.0)))
    return jnp.where(has_samples, sampled, prior)


def _whole_us(value: Float[Array, ""]) -> Int[Array, ""]:
    """Rounded and saturated to what int32 holds, at least 0 (a negative gain pins nothing)."""
    return jnp.round(jnp.clip(value, 0.0, 2147483520.0)).astype(jnp.int32)


def _best_sample(ordered: Int[Array, " W"], num: Int[Array, ""], gain_us: Int[Array, ""]) -> Int[Array, ""]:
    """argmax over {0} and the first `num` of `ordered` of (place + 1) * gain - num * tau; ties to the smaller tau."""
    place = jnp.arange(ordered.shape[0], dtype=jnp.int32)
    # Of equal samples the last has the place of the distribution function, and the others less gain than it.
    at_most = place + 1
    high = at_most * (gain_us >> 16) - num * (ordered >> 16)
    low = at_most * (gain_us & 0xFFFF) - num * (ordered & 0xFFFF)
    high, low = high + (low >> 16), low & 0xFFFF
    valid = place < num
    best_high = jnp.max(jnp.where(valid, high, -(2**31)))
    leading = valid & (high == best_high)
    best_low = jnp.max(jnp.where(leading, low, -1))
    tau = jnp.min(jnp.where(leading & (low == best_low), ordered, LARGEST))
    pays = (best_high > 0) | ((best_high == 0) & (best_low > 0))
    return jnp.where(pays, tau, jnp.int32(0))
