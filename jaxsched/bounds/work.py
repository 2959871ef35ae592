"""The least that a turn costs an engine, whatever is batched with it.

A step of T tokens takes ``f(T) + rows + attention + context``, with f(T) what every step of T tokens takes
(`jaxsched/timing/step_time.py`). Of any schedule:

- For every slope s, ``f(T) >= c + s T`` with ``c = min over T of f(T) - s T``: a part for the step, and one for each
  token. At most S requests run at once, so D decode tokens take at least D / S steps. So a turn's **work** is s for
  each of its tokens and c / S for each decode token, plus its own terms: rows, prefill attention, and the context
  that each of its decode steps reads. Steps of an instance do not overlap, so instances together do at most as many
  microseconds of work in a microsecond as there are of them. Each s from 0 to the cheapest share of a token, ``min
  f(T) / T``, is another account of the same time, and all of them hold.
- A turn **alone** takes a step of its own for every token after the first, each at least f(1) plus its own terms.
  Others in the batch only add, since every term grows.

Tokens that a prefix cache might hold (the program's history, the shared prefix, with block ids all but one token) count
as cached, and the roundings of a step (three floors) are granted. Not for what makes a token cheaper than that:
speculative decoding and compressed contexts.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxsched.timing.step_time import SLOPE_BITS, TILE_BITS, StepTimeParams
from jaxsched.workloads import Workload

#: Three terms of a step are rounded down, each by less than this many microseconds.
ROUNDING_US = 3.0
#: Slopes at which work is counted.
ACCOUNTS = 6
_UNIT = 1.0 / (1 << SLOPE_BITS)


@dataclasses.dataclass(frozen=True)
class TurnWork:
    """Of every turn of a workload, in its order; microseconds, float64 ``[turns]`` where not said otherwise."""

    work_us: np.ndarray  # [accounts, turns] engine time that its tokens take away from others
    alone_us: np.ndarray  # from its arrival to its last token on an idle engine
    first_us: np.ndarray  # ... to its first token


def step_us(timing: StepTimeParams, tokens: np.ndarray) -> np.ndarray:
    """f(T): what a step of T tokens takes at least, its rows and contexts left out (float64, before rounding)."""
    start, width, slope = (np.asarray(x, np.float64) for x in (timing.token_start, timing.token_width,
                                                               timing.token_slope))  # fmt: skip
    inside = np.clip(np.asarray(tokens, np.float64)[..., None] - start, 0.0, width)
    tiles = (np.maximum(np.asarray(tokens, np.int64) - 1, 0) >> TILE_BITS) * float(timing.token_tile)
    return float(timing.base_us) + (inside @ slope + tiles) * _UNIT


def token_us(timing: StepTimeParams, most_tokens: int) -> np.ndarray:
    """rho by T_max: ``min over T <= T_max of f(T) / T`` for T_max = 1 .. `most_tokens`."""
    tokens = np.arange(1, most_tokens + 1)
    return np.minimum.accumulate(np.maximum(step_us(timing, tokens) - ROUNDING_US, 0.0) / tokens)


def accounts_us(timing: StepTimeParams, most_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """(c, s) ``[accounts]``: a step of up to `most_tokens` tokens takes at least c and s for each of them."""
    tokens = np.arange(1, most_tokens + 1)
    step = np.maximum(step_us(timing, tokens) - ROUNDING_US, 0.0)
    slopes = np.min(step / tokens) * np.linspace(0.0, 1.0, ACCOUNTS)
    return np.maximum(np.min(step - slopes[:, None] * tokens, axis=1), 0.0), slopes


def turn_work(
    workload: Workload, timing: StepTimeParams, most_step_tokens: int, most_running: int, *, prefix_cache: bool = True
) -> TurnWork:
    """The least work and time of every turn.

    Args:
        timing: of the instances (no lane axes).
        most_step_tokens: tokens that a step may have: the budget, or all that may run at once where that is more.
        most_running: requests that may run at once in an instance.
        prefix_cache: whether KV of earlier requests may be used.
    """
    prompt, output = workload.prompt_tokens.astype(np.float64), workload.output_tokens.astype(np.float64)
    cached = cacheable_tokens(workload).astype(np.float64) if prefix_cache else np.zeros(len(prompt))
    fresh, later = prompt - cached, output - 1.0
    # Chunks are rounded down to 64 token^2, each by less than its own tokens.
    quad = np.maximum(fresh * (2.0 * cached + fresh) / 64.0 - fresh, 0.0)
    prefill = (
        quad * float(timing.quad_num) / float(timing.quad_den)
        + (float(timing.prefill_row) + float(timing.prefill_token) * fresh) * _UNIT
    )
    context = later * prompt + later * output / 2.0  # sum over later tokens k of prompt + k
    decode = context * float(timing.ctx_num) / float(timing.ctx_den) + later * float(timing.decode_row) * _UNIT
    rho = token_us(timing, most_step_tokens)
    own = rho[np.minimum(fresh, most_step_tokens).astype(np.int64) - 1]  # alone a step has no more than its own tokens
    first_us = fresh * own + prefill
    step, each = (share[:, None] for share in accounts_us(timing, most_step_tokens))
    return TurnWork(
        work_us=(fresh + later) * each + later * step / most_running + prefill + decode,
        alone_us=first_us + later * max(float(step_us(timing, np.array([1]))[0]) - ROUNDING_US, 0.0) + decode,
        first_us=first_us,
    )


def cacheable_tokens(workload: Workload) -> np.ndarray:
    """Tokens of each prompt that a cache without limits might hold when it arrives; at most all but one."""
    prompt = workload.prompt_tokens.astype(np.int64)
    if workload.content is not None or workload.edges is not None:
        return prompt - 1
    before = np.zeros(len(prompt), np.int64)
    follows = (workload.turn[1:] > 0) & (workload.chain[1:] == workload.chain[:-1])
    before[1:] = np.where(follows, (workload.prompt_tokens + workload.output_tokens - 1)[:-1], 0)
    return np.minimum(np.maximum(before, workload.group_tokens), prompt - 1)
