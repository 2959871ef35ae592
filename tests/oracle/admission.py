"""Admission by the predicted peak of memory, or by the longest outputs (docs/semantics.md, 11)."""

from __future__ import annotations

import bisect
from collections.abc import Callable

import numpy as np

from tests.oracle.data import EngineConfig, Request

WORD_BITS = 22
Words = Callable[[int, int], int]  # (row, draw) -> a word


def first_lengths(config: EngineConfig) -> list[int]:
    """The history of an instance that has finished nothing."""
    return [config.max_output] * (config.history // 2)


def lets_in(
    config: EngineConfig, lengths: list[int], running: list[Request], candidate: Request, words: Words, held_tokens: int
) -> bool:
    """Whether the policy's own test admits the candidate."""
    if config.admission == "" or not running:
        return True
    if config.admission == "aios":
        return all(r.gen < config.open_tokens for r in running)
    pool = config.usable_blocks * config.block_size
    if config.admission == "headroom":
        if config.headroom_tokens == 0 or all(r.priority >= candidate.priority for r in running):
            return True
        tokens = sum(r.num_tokens for r in [*running, candidate])
        return tokens + held_tokens + config.headroom_tokens <= pool
    if config.admission == "conservative":
        grown = held_tokens
        for request in [*running, candidate]:
            most = request.num_tokens + config.max_output - request.gen
            rounded = -(-most // config.block_size) * config.block_size
            # One that has outgrown the longest output is what it is now.
            grown += rounded - most + max(most, request.num_tokens)
        return grown <= np.float32(config.overcommit) * np.float32(pool)
    usable = np.ceil(np.float32(pool) * (np.float32(1) - np.float32(config.reserved)))
    history = sorted(lengths[-config.history :])
    num_drawn = len(running) + (candidate.gen > 0)
    draws = min(5, 200 // num_drawn + 1)
    peaks = []
    for draw in range(draws):
        batch = [(r.num_tokens, _remaining(config, history, r, words(r.row, draw))) for r in running]
        word = words(candidate.row, draw)
        if candidate.gen > 0:
            left = _remaining(config, history, candidate, word)
        else:
            left = min(history[word * len(history) >> WORD_BITS], config.max_output)
        peaks.append(_peak([*batch, (candidate.num_tokens, left)]))
    return max(peaks) + held_tokens < usable


def _remaining(config: EngineConfig, history: list[int], request: Request, word: int) -> int:
    """One draw of what is left of its outputs, from those of the history that are longer than what it has."""
    points = [request.gen, *history[bisect.bisect(history, request.gen) :], config.max_output]
    position = word * (len(points) - 1)
    left, share = position >> WORD_BITS, position % (1 << WORD_BITS)
    drawn = points[left] + (((points[left + 1] - points[left]) * share + (1 << (WORD_BITS - 1))) >> WORD_BITS)
    return max(drawn - request.gen, 0)


def _peak(batch: list[tuple[int, int]]) -> int:
    """The paper's formula: longest remaining first, the tokens held at the end of the i-th."""
    most = held = 0
    for i, (tokens, left) in enumerate(sorted(batch, key=lambda pair: -pair[1]), start=1):
        held += tokens
        most = max(most, held + i * left)
    return most
