"""Rounds of rollouts (docs/semantics.md, 15): when one ends, who is taken out, when programs arrive."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from tests.oracle.blocks import make_pool
from tests.oracle.data import Request, Workload

if TYPE_CHECKING:
    from tests.oracle.engine import Instance


class Rounds:
    """What all instances of a cluster share."""

    def __init__(self, workload: Workload, program: list[int]):
        assert workload.rounds is not None
        self.target, self.in_flight, self.update_us = workload.rounds
        self.num_programs = workload.num_programs
        self.turns_left = Counter(program)
        self.number = self.settled = self.begin_us = 0
        self.released = self.in_flight
        self.seen: dict[int, int] = {}  # by id of the instance
        self.instances: list[Instance] = []

    def arrival_us(self, index: int) -> int | None:
        """When program `index` arrives, as far as is known."""
        return self.begin_us if index < min(self.released, self.num_programs) else None

    def stops(self, engine: Instance, finished: list[Request], now_us: int) -> bool:
        """After the outputs of a step: whether the instance stops here until the next round begins."""
        for request in finished or [None]:
            if request is not None:
                self.turns_left[request.program] -= 1
                self.settled += self.turns_left[request.program] == 0
            if now_us >= self.begin_us and (self.number + 1) * self.target <= self.settled < self.num_programs:
                self._end(engine, now_us)
        if self.seen.get(id(engine), 0) == self.number:
            return False
        self.seen[id(engine)] = self.number
        engine.stop(now_us, max(now_us, self.begin_us))
        return True

    def _end(self, engine: Instance, now_us: int) -> None:
        self.number += 1
        self.begin_us = now_us + self.update_us
        self.released = self.settled + self.in_flight
        for other in self.instances:
            if other is not engine and other.next_event_us is None:
                other.wake(self.begin_us)


def fresh_pool(engine: Instance):
    """An empty KV pool: the weights are new."""
    config = engine.config
    return make_pool(config.usable_blocks, config.block_size, config.prefix_caching)
