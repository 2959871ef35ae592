"""Past-Future admission: Gong et al., "Past-Future Scheduler for LLM Serving under SLA Guarantees" (ASPLOS 2025).

Past: the output lengths of the last W finished requests. A running request that has generated g tokens draws its length
from what is left of them: inverse of the distribution function, linear between the points {g}, {h in history: h > g},
{its limit}; a candidate draws one of the history. Future: all requests decode in lockstep, so with requests in order of
remaining tokens, longest first, the memory at the end of the i-th is ``i * rem_i + sum of cur_j, j <= i``, and ::

    M* = max over i of  rem_i * #{j: rem_j >= rem_i} + sum of cur_j over {j: rem_j >= rem_i}

is the future peak. Of several independent draws, min(5, floor(200 / n) + 1) for n running requests (one if nothing
runs), the largest M* counts. The candidate is admitted while M* < (1 - reserved) * capacity, less what paused requests
and the prefix cache hold; the first that does not fit ends the round. Requests that outgrow the pool after all are
evicted to the head of the queue (the engine's recompute preemption).

From LightLLM's `PastFutureQueue`: W = 200, half of it filled with the longest allowed output at the start, reserved
5 %, five draws, 200 samples. The paper speaks of the last 1,000 or so. Its baselines: `conservative_fits` (every
request grows to its limit; overcommit 100 to 150 %) and `aggressive_fits` (only what is there now counts; watermark 90
to 99 %); and LightLLM's default before it, `heuristic_output`.
Simplified: token-granular memory (no blocks); prefill takes no decode steps (LightLLM pads for its chunks).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxsched.retention.window import Window, empty_window, held, push

WINDOW = 200  # finished requests remembered
MAX_DRAWS = 5
DRAW_SAMPLES = 200
RESERVED = 0.05  # share of the pool kept back
#: Bits of a uniform word: a word w stands for the number w / 2^22 in [0, 1). Draws are exact in integers.
WORD_BITS = 22
MOST_LENGTHS = 500  # of a window: 2^22 times one more fits int32
_BLOCK = 32  # slots compared with all others at a time


def empty_lengths(max_output_tokens: Int[Array, ""] | int, window: int = WINDOW, rows: int = 1) -> Window:
    """Histories (one row each) half filled with the longest allowed output, so that the start is cautious."""
    if window > MOST_LENGTHS:
        raise ValueError(f"a history of output lengths holds at most {MOST_LENGTHS}, not {window}")
    filled = jnp.arange(window, dtype=jnp.int32) < window // 2
    empty = empty_window(rows, window)
    longest = jnp.asarray(max_output_tokens, jnp.int32)
    return Window(
        ring=jnp.where(filled, longest, empty.ring),
        ordered=jnp.where(filled, longest, empty.ordered),
        count=jnp.full((rows,), window // 2, jnp.int32),
    )


def record_output(lengths: Window, output_tokens: Int[Array, ""], mask: Bool[Array, ""] | bool = True) -> Window:
    """A request finished after `output_tokens`. O(W)."""
    return push(lengths, jnp.zeros((1,), jnp.int32), output_tokens, jnp.broadcast_to(mask, (1,)))


def remaining_output(
    lengths: Window,
    generated: Int[Array, " S"],
    limit: Int[Array, " S"],
    fresh: Bool[Array, " S"],
    words: Int[Array, " S"],
) -> Int[Array, " S"]:
    """Predicted output tokens still to come (>= 0), one draw per slot; O(S W). Exact in integers, halves rounded up.

    `limit`: most output tokens of the request (below 2^19); `fresh`: candidates, which draw from the whole history;
    `words`: `WORD_BITS` bits, independent per slot for the paper's rule, or a constant for that conditional quantile of
    every request.
    """
    ordered, num = lengths.ordered[0], held(lengths)[0]
    place = jnp.arange(ordered.shape[0], dtype=jnp.int32)
    shorter = jnp.sum(((ordered[:, None] <= generated[None, :]) & (place < num)[:, None]).astype(jnp.int32), axis=0)
    longer = num - shorter
    # Points 0 .. longer + 1: generated, the longer ones of the history, the limit.
    position = words * (longer + 1)
    left = position >> WORD_BITS

    def point(k):
        within = ordered[jnp.clip(shorter + k - 1, 0, ordered.shape[0] - 1)]
        return jnp.where(k == 0, generated, jnp.where(k > longer, limit, within))

    # gap * share / 2^22, rounded, in two halves of the share: none of the products leaves int32.
    share, half = position & ((1 << WORD_BITS) - 1), WORD_BITS // 2
    gap = point(left + 1) - point(left)
    low = (gap * (share & ((1 << half) - 1))) >> half
    drawn = point(left) + ((gap * (share >> half) + low + (1 << (half - 1))) >> half)
    pick = jnp.clip((words * num) >> WORD_BITS, 0, jnp.maximum(num - 1, 0))
    anew = jnp.where(num > 0, jnp.minimum(ordered[pick], limit), limit)
    return jnp.maximum(jnp.where(fresh, anew, drawn) - generated, 0)


def future_peak(
    current_tokens: Int[Array, " S"], remaining_tokens: Int[Array, " S"], mask: Bool[Array, " S"]
) -> Int[Array, ""]:
    """M*: most tokens held at any future step, if nobody is admitted; 0 without requests. O(S^2), no sort."""
    current = jnp.where(mask, current_tokens, 0)
    remaining = jnp.where(mask, remaining_tokens, -1)
    pad = (0, -mask.shape[0] % _BLOCK)
    blocks = (
        jnp.pad(current, pad).reshape(-1, _BLOCK),
        jnp.pad(remaining, pad, constant_values=-1).reshape(-1, _BLOCK),
    )

    def outlasting(held_then, block):
        held, left = block
        # Masked slots (-1) outlast nobody who counts.
        theirs = jnp.where(left[:, None] >= remaining[None, :], held[:, None] + remaining[None, :], 0)
        return held_then + jnp.sum(theirs, axis=0), None

    # A loop over blocks, so that XLA keeps its inputs in memory: as one [S, S] expression it works out afresh, for each
    # of the S^2 pairs, whatever made `remaining_tokens` (draws from a history: 20 us instead of 1 at 128 slots).
    held_then, _ = jax.lax.scan(outlasting, jnp.zeros_like(current), blocks)
    return jnp.max(jnp.where(mask, held_then, 0))


def past_future_peak(
    lengths: Window,
    current_tokens: Int[Array, " S"],
    generated: Int[Array, " S"],
    limit: Int[Array, " S"],
    mask: Bool[Array, " S"],
    fresh: Bool[Array, " S"],
    words: Int[Array, "draws S"],
) -> Int[Array, ""]:
    """The largest M* over the draws that count, of running requests and the candidates marked `fresh`.

    `current_tokens`: KV the request holds, or, of a candidate, will hold after its prefill. Rows of `words` beyond
    ``min(draws, floor(200 / running) + 1)`` are not used. `generated` counts the token that a prefill yields: of a
    candidate it is 0, and its peak then errs by the one token whose KV is never computed.
    """
    running = jnp.sum((mask & ~fresh).astype(jnp.int32))
    draws = jnp.where(running > 0, DRAW_SAMPLES // jnp.maximum(running, 1) + 1, 1)

    def one(draw):
        return future_peak(current_tokens, remaining_output(lengths, generated, limit, fresh, draw), mask)

    peaks = jax.vmap(one)(words)
    return jnp.max(jnp.where(jnp.arange(words.shape[0], dtype=jnp.int32) < draws, peaks, 0))


def fits(
    peak_tokens: Int[Array, ""],
    capacity_tokens: Int[Array, ""],
    held_elsewhere: Int[Array, ""] | int = 0,
    reserved: Float[Array, ""] | float = RESERVED,
) -> Bool[Array, ""]:
    """Whether the peak stays below the pool less its reserve and what paused requests and the prefix cache hold."""
    usable = jnp.asarray(capacity_tokens, jnp.float32) * (1.0 - jnp.asarray(reserved, jnp.float32))
    return peak_tokens + held_elsewhere < jnp.ceil(usable).astype(jnp.int32)


def aggressive_fits(
    current_tokens: Int[Array, " S"],
    mask: Bool[Array, " S"],
    capacity_tokens: Int[Array, ""],
    watermark: Float[Array, ""] | float = 0.95,
) -> Bool[Array, ""]:
    """Aggressive baseline: the tokens there now (candidate included) stay within `watermark` of the pool."""
    now = jnp.sum(jnp.where(mask, current_tokens, 0))
    return now.astype(jnp.float32) <= jnp.asarray(watermark, jnp.float32) * jnp.asarray(capacity_tokens, jnp.float32)


def conservative_fits(
    current_tokens: Int[Array, " S"],
    generated: Int[Array, " S"],
    limit: Int[Array, " S"],
    mask: Bool[Array, " S"],
    capacity_tokens: Int[Array, ""],
    overcommit: Float[Array, ""] | float = 1.0,
    held_elsewhere: Int[Array, ""] | int = 0,
) -> Bool[Array, ""]:
    """Conservative baseline: every request grown to its limit, all at once, fits `overcommit` times the pool."""
    grown = current_tokens + jnp.maximum(limit - generated, 0)
    total = (jnp.sum(jnp.where(mask, grown, 0)) + held_elsewhere).astype(jnp.float32)
    return total <= jnp.asarray(overcommit, jnp.float32) * jnp.asarray(capacity_tokens, jnp.float32)


def heuristic_output(
    generated: Int[Array, " S"], limit: Int[Array, " S"], busy: Bool[Array, ""], floor_tokens: int = 1024
) -> Int[Array, " S"]:
    """LightLLM's lengths without a history: ``max(1024, 1.1 * generated)`` up to the limit, the limit when busy.

    Busy: pool use at or above LightLLM's `router_token_ratio`. Total output tokens, not the remaining ones.
    """
    guess = jnp.maximum(jnp.int32(floor_tokens), (generated.astype(jnp.float32) * 1.1).astype(jnp.int32))
    return jnp.where(busy, limit, jnp.minimum(guess, limit))
