"""Routers: which instance an arrival goes to (docs/semantics.md, 7)."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from tests.oracle.blocks import Probe, ceil_div
from tests.oracle.data import RouterConfig, Token, Uniform
from tests.oracle.engine import Instance

#: Preble's window of recent requests: so many buckets of so many microseconds.
BUCKET_US, NUM_BUCKETS = 2**24, 11


@dataclass(frozen=True)
class View:
    """What a router sees of one instance."""

    waiting: int = 0
    running: int = 0
    used_blocks: int = 0
    waiting_prompt_blocks: int = 0
    work_tokens: int = 0  # prompt + predicted output tokens of all its requests, whole until they leave
    prefill_tokens: int = 0  # prompt tokens to compute: of those that wait as the router saw it; of those that run

    @staticmethod
    def of(instance: Instance, unmatched: dict[int, int]) -> View:
        waiting, running = instance.waiting, instance.running
        return View(
            waiting=len(waiting),
            running=len(running),
            used_blocks=instance.pool.usable - instance.pool.free,
            waiting_prompt_blocks=sum(ceil_div(r.prompt_tokens, instance.config.block_size) for r in waiting),
            work_tokens=sum(r.prompt_tokens + r.predicted_tokens for r in waiting + running),
            prefill_tokens=sum(unmatched[r.row] for r in waiting)
            + sum(max(r.prompt_tokens - r.computed, 0) for r in running),
        )


@dataclass(frozen=True)
class Arrival:
    """What a router knows of an arriving turn."""

    row: int
    now_us: int
    content: list[Token]  # of the prompt
    predicted_tokens: int
    home: int | None  # instance of the program's previous turn


@dataclass
class Tree:
    """A router's own record of what it sent to one instance: blocks, and when they were sent last."""

    limit_blocks: float
    last_sent: dict[tuple[Token, ...], int] = field(default_factory=dict)  # everything up to a block's end -> when

    def leading(self, prefixes: list[tuple[Token, ...]]) -> int:
        return next((i for i, prefix in enumerate(prefixes) if prefix not in self.last_sent), len(prefixes))

    def insert(self, prefixes: list[tuple[Token, ...]], when: int) -> None:
        self.last_sent |= dict.fromkeys(prefixes, when)
        while len(self.last_sent) > self.limit_blocks:  # least recently sent first, the end before the beginning
            del self.last_sent[min(self.last_sent, key=lambda p: (self.last_sent[p], -len(p)))]


def default_uniform(seed: int) -> Uniform:
    """A reproducible stand-in for the machine's hash."""
    return lambda row, draw: random.Random(f"{seed}/{row}/{draw}").getrandbits(31)


class Dispatcher:
    """Chooses instances; keeps the arrival counter, what the router remembers, and late views as of the last ticks."""

    def __init__(self, config: RouterConfig, instances: list[Instance], uniform: Uniform | None):
        self.config, self.instances = config, instances
        self.uniform = uniform or default_uniform(config.seed)
        self.num_routed = 0
        self.smallest_gap = 1.0  # closest decision of llmd_score
        self.unmatched: dict[int, int] = {}  # row -> prompt tokens that the router saw no cache of
        self.sent: list[tuple[int, int, int, int]] = []  # bucket, instance, prompt tokens to compute, predicted output
        limit = config.params.get("max_tree_tokens", 0.0) / self._block_size
        self.trees = [Tree(limit) for _ in instances]
        self._last_tick = [View() for _ in instances]  # before the first tick: the empty cluster of time 0
        self._last_findable = [frozenset[int]() for _ in instances]

    @property
    def _block_size(self) -> int:
        return self.instances[0].config.block_size

    def tick(self) -> None:
        self._last_tick = [View.of(i, self.unmatched) for i in self.instances]

    def cache_tick(self) -> None:
        self._last_findable = [i.pool.findable() for i in self.instances]

    def route(self, arrival: Arrival) -> int:
        """Instance for an arrival. Every one counts, rejected ones too."""
        delayed = self.config.delay_us > 0
        views = self._last_tick if delayed else [View.of(i, self.unmatched) for i in self.instances]
        matched = self._matched(arrival)
        chosen = self._choose(arrival, views, matched)
        self.num_routed += 1
        unmatched = len(arrival.content) - matched[chosen]
        self.unmatched[arrival.row] = unmatched
        self.sent.append((arrival.now_us // BUCKET_US, chosen, unmatched, arrival.predicted_tokens))
        self.trees[chosen].insert(self._prefixes(arrival), self.num_routed)
        return chosen

    def _prefixes(self, arrival: Arrival) -> list[tuple[Token, ...]]:
        """Everything up to the end of each full block of the prompt."""
        if self.config.kind != "sglang":
            return []
        size, content = self._block_size, arrival.content
        return [tuple(content[: (i + 1) * size]) for i in range(len(content) // size)]

    def _matched(self, arrival: Arrival) -> list[int]:
        """Leading tokens of the prompt, in whole blocks, that the router knows of at each instance."""
        if self.config.kind == "sglang":
            prefixes = self._prefixes(arrival)
            return [tree.leading(prefixes) * self._block_size for tree in self.trees]
        late = self.config.cache_delay_us > 0
        findable = self._last_findable if late else [i.pool.findable() for i in self.instances]
        return [
            i.pool.leading(Probe(arrival.content), there) * self._block_size
            for i, there in zip(self.instances, findable, strict=True)
        ]

    def _choose(self, arrival: Arrival, views: list[View], matched: list[int]) -> int:
        kind, num, row = self.config.kind, len(self.instances), arrival.row
        if kind == "round_robin":
            return self.num_routed % num
        if kind == "random":
            return self.uniform(row, 0) % num

        def outstanding(i: int) -> int:
            return views[i].waiting + views[i].running

        if kind == "power_of_two":
            first = self.uniform(row, 0) % num
            if num == 1:
                return first
            second = self.uniform(row, 1) % (num - 1)
            second += second >= first
            return second if outstanding(second) < outstanding(first) else first
        if kind == "program_sticky" and arrival.home is not None:
            return arrival.home
        if kind in ("least_outstanding", "program_sticky"):
            return min(range(num), key=outstanding)  # ties: min() returns the lowest index
        if kind == "least_kv":
            return min(range(num), key=lambda i: views[i].used_blocks + views[i].waiting_prompt_blocks)
        if kind == "least_work":
            return min(range(num), key=lambda i: views[i].work_tokens)
        rules = {
            "sglang": self._sglang,
            "preble_e2": self._preble,
            "conductor": self._conductor,
            "dynamo_kv": self._dynamo,
            "llmd_score": self._llmd,
        }
        return rules[kind](arrival, views, matched)

    # Cache-aware routers ---------------------------------------------------------------------------------------------

    def _sglang(self, arrival: Arrival, views: list[View], matched: list[int]) -> int:
        p = self.config.params
        load = [view.waiting + view.running for view in views]
        unbalanced = max(load) - min(load) > p["balance_abs_threshold"]
        if unbalanced and max(load) > p["balance_rel_threshold"] * min(load):
            return load.index(min(load))
        if max(matched) > p["cache_threshold"] * len(arrival.content):
            return matched.index(max(matched))
        sizes = [len(tree.last_sent) for tree in self.trees]
        return sizes.index(min(sizes))

    def _preble(self, arrival: Arrival, views: list[View], matched: list[int]) -> int:
        p, prompt = self.config.params, len(arrival.content)
        last = arrival.now_us // BUCKET_US
        load = [0.0] * len(views)
        for bucket, instance, unmatched, predicted in self.sent:
            if bucket > last - NUM_BUCKETS:
                load[instance] += unmatched + p["decode_cost"] * predicted
        cost = [load[i] + prompt - matched[i] for i in range(len(views))]
        if max(matched) > prompt - max(matched):
            chosen = min((i for i in range(len(views)) if matched[i] == max(matched)), key=lambda i: cost[i])
            if p["balance_ratio"] <= 0 or load[chosen] <= p["balance_ratio"] * min(load):
                return chosen
        return cost.index(min(cost))

    def _conductor(self, arrival: Arrival, views: list[View], matched: list[int]) -> int:
        p, longest = self.config.params, max(matched)
        cost = []
        for view, hit in zip(views, matched, strict=True):
            fetches = p["fetch_ratio"] > 0 and longest > p["fetch_ratio"] * hit
            saved = (longest - hit) * (1 - p["fetch_cost"]) if fetches else 0
            cost.append(view.prefill_tokens - hit - saved + p["running_cost"] * view.running)
        return cost.index(min(cost))

    def _dynamo(self, arrival: Arrival, views: list[View], matched: list[int]) -> int:
        weight, size = self.config.params["overlap_weight"], self._block_size
        cost = [
            weight * (v.prefill_tokens - hit) / size + v.used_blocks + v.waiting_prompt_blocks
            for v, hit in zip(views, matched, strict=True)
        ]
        return cost.index(min(cost))

    def _llmd(self, arrival: Arrival, views: list[View], matched: list[int]) -> int:
        p, size = self.config.params, self._block_size

        def shorter(queue: list[int]) -> list[float]:
            span = max(queue) - min(queue)
            return [(max(queue) - q) / span if span else 1.0 for q in queue]

        waits, active = shorter([v.waiting for v in views]), shorter([v.waiting + v.running for v in views])
        blocks = max(len(arrival.content) // size, 1)
        score = [
            p["prefix_weight"] * (matched[i] // size) / blocks
            + p["queue_weight"] * waits[i]
            + p["kv_weight"] * (1 - views[i].used_blocks / self.instances[i].pool.usable)
            + p["active_weight"] * active[i]
            for i in range(len(views))
        ]
        best = max(score)
        weights = p["prefix_weight"], p["queue_weight"], p["kv_weight"], p["active_weight"]
        inputs = [
            [
                x
                for x, weight in zip((matched[i], waits[i], views[i].used_blocks, active[i]), weights, strict=True)
                if weight
            ]
            for i in range(len(views))
        ]
        others = [best - s for s, x in zip(score, inputs, strict=True) if x != inputs[score.index(best)]]
        self.smallest_gap = min([self.smallest_gap, *(gap / max(best, 1e-9) for gap in others)])
        return score.index(best)
