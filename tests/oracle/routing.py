"""Routers: which instance an arrival goes to (docs/semantics.md, 7)."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.oracle.blocks import ceil_div
from tests.oracle.data import RouterConfig, Uniform
from tests.oracle.engine import Instance


@dataclass(frozen=True)
class View:
    """What a router sees of one instance."""

    waiting: int = 0
    running: int = 0
    used_blocks: int = 0
    waiting_prompt_blocks: int = 0
    work_tokens: int = 0  # prompt + predicted output tokens of all its requests, whole until they leave

    @staticmethod
    def of(instance: Instance) -> View:
        waiting, running = instance.waiting, instance.running
        return View(
            waiting=len(waiting),
            running=len(running),
            used_blocks=instance.pool.usable - instance.pool.free,
            waiting_prompt_blocks=sum(ceil_div(r.prompt_tokens, instance.config.block_size) for r in waiting),
            work_tokens=sum(r.prompt_tokens + r.predicted_tokens for r in waiting + running),
        )


def default_uniform(seed: int) -> Uniform:
    """A reproducible stand-in for the machine's hash."""
    return lambda row, draw: random.Random(f"{seed}/{row}/{draw}").getrandbits(31)


class Dispatcher:
    """Chooses instances; keeps the arrival counter and, when the view is delayed, the views of the last tick."""

    def __init__(self, config: RouterConfig, instances: list[Instance], uniform: Uniform | None):
        self.config, self.instances = config, instances
        self.uniform = uniform or default_uniform(config.seed)
        self.num_routed = 0
        self._last_tick = [View() for _ in instances]  # before the first tick: the empty cluster of time 0

    def tick(self) -> None:
        self._last_tick = [View.of(i) for i in self.instances]

    def route(self, row: int, home: int | None = None) -> int:
        """Instance for the arrival of `row` (`home`: that of its previous turn).

        Every arrival counts for round robin, rejected ones too.
        """
        num = len(self.instances)
        count, self.num_routed = self.num_routed, self.num_routed + 1
        if self.config.kind == "round_robin":
            return count % num
        if self.config.kind == "random":
            return self.uniform(row, 0) % num
        views = self._last_tick if self.config.delay_us > 0 else [View.of(i) for i in self.instances]

        def outstanding(i: int) -> int:
            return views[i].waiting + views[i].running

        if self.config.kind == "power_of_two":
            first = self.uniform(row, 0) % num
            if num == 1:
                return first
            second = self.uniform(row, 1) % (num - 1)
            second += second >= first
            return second if outstanding(second) < outstanding(first) else first
        if self.config.kind == "program_sticky" and home is not None:
            return home
        if self.config.kind in ("least_outstanding", "program_sticky"):
            return min(range(num), key=outstanding)  # ties: min() returns the lowest index
        if self.config.kind == "least_kv":
            return min(range(num), key=lambda i: views[i].used_blocks + views[i].waiting_prompt_blocks)
        assert self.config.kind == "least_work"
        return min(range(num), key=lambda i: views[i].work_tokens)
