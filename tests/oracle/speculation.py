"""Speculative decoding in plain Python (docs/semantics.md, 16)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.oracle.data import Request, StepFeatures

if TYPE_CHECKING:
    from tests.oracle.engine import Instance

Bits = Callable[[int, int], int]  # (row, draw) -> 31 bits
MOST = 16


@dataclass(frozen=True)
class Speculation:
    """A draft model and a rule, in the integers of the specification."""

    most: int
    least: int = 0
    stop_below: int = 0  # 2**-15
    by_batch: bool = False
    outputs: tuple[int, ...] = ()  # expected tokens of a round with 0, 1, ... drafts, 2**-8
    chances: tuple[tuple[int, ...], ...] = ()  # [level of request][level of token], 2**-15
    means: tuple[int, ...] = ()
    head: int = 1024  # 2**-10
    pass_us: int = 0
    token: int = 0  # 2**-8 us

    def _word(self, bits: Bits, row: int, position: int) -> int:
        return bits(row, 2**20 + position)

    def _level(self, bits: Bits, row: int) -> int:
        return bits(row, 2**16) % len(self.chances)

    def is_right(self, bits: Bits, row: int, position: int) -> bool:
        """Whether the draft model guesses the output token number `position` of a request."""
        word, chances = self._word(bits, row, position), self.chances[self._level(bits, row)]
        return word % 2**15 < chances[(word >> 15) % 64]

    def believed(self, bits: Bits, row: int, position: int) -> int:
        """What its head takes for the probability of that."""
        word, level = self._word(bits, row, position), self._level(bits, row)
        return self.chances[level][(word >> 15) % 64] if (word >> 21) % 1024 < self.head else self.means[level]

    def drafts(self, bits: Bits, request: Request, cap: int) -> int:
        """How many tokens a request that decodes drafts."""
        chance, number = 2**15, 0
        while number < MOST:
            chance = chance * self.believed(bits, request.row, request.gen + number) >> 15
            number += 1
            if chance < self.stop_below:
                break
        return min(max(number, self.least), cap)

    def accepted(self, bits: Bits, request: Request, drafted: int) -> int:
        """How many of them are right before the first that is not; `request` without outputs in flight."""
        number = 0
        while number < drafted and self.is_right(bits, request.row, request.gen + number):
            number += 1
        return number

    def time_us(self, passes: int, tokens: int) -> int:
        return self.pass_us * passes + (self.token * tokens >> 8)

    def cap(self, engine: Instance) -> int:
        """At the start of a schedule() call: the most that a request may draft in it."""
        if not self.by_batch:
            return self.most
        decodes = [r for r in engine.running if decodes_now(r)]
        best, best_score = 0, -1
        for k in range(self.most + 1):
            total, ctx = len(decodes) * (k + 1), sum(r.num_tokens + k for r in decodes)
            step_us = engine.step_time(StepFeatures(total, ctx, len(decodes), ctx, 0, 0, 0, 0))
            score = (self.outputs[k] << 17) // max(step_us + self.time_us(k, len(decodes) * k), 1)
            if score > best_score:
                best, best_score = k, score
        return best


def decodes_now(request: Request) -> bool:
    """All but its last token is computed, and that is an output."""
    return request.num_tokens - request.computed == 1 and request.gen >= 1
