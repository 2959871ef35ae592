"""Which waiting request is next and which running one gives way (docs/semantics.md, 3)."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from tests.oracle import attained, due, fairness
from tests.oracle.data import EngineConfig, Request

#: Orders in which a waiting request may push out a running one.
PREEMPTIVE = ("srpt", "mlfq", "fastswitch", "plas", "atlas", "edf", "aios-rr")
BY_SERVICE = ("plas", "atlas", "aios-rr")
EPOCH_US = 2**30  # the update clock of fastswitch begins anew at each


def _mix(x: int) -> int:
    x = (x ^ (x >> 16)) * 0x85EBCA6B & 0xFFFFFFFF
    x = (x ^ (x >> 13)) * 0xC2B2AE35 & 0xFFFFFFFF
    return x ^ (x >> 16)


def order_key(config: EngineConfig, request: Request, now_us: int, pinned: Collection[int] = ()) -> int:
    """The integer that the preemptive orders compare: smaller goes first."""
    if config.order == "aios-rr":
        return _turn(config, request, now_us)
    if config.order in BY_SERVICE:
        return _service_key(config, request, now_us, request.row in pinned)
    if config.order == "fastswitch":
        if config.loaded_first and not request.is_running and request.row in pinned:
            return -1
        period_us = config.switch_update_us
        period = now_us // EPOCH_US * (EPOCH_US // period_us + 1) + now_us % EPOCH_US // period_us
        return _mix(_mix(period * 0x9E3779B9 & 0xFFFFFFFF) ^ request.program) & 0x7FFFFFFF
    if config.order == "edf":
        return due.finish(config, request)
    if config.order == "srpt":
        return max(request.predicted_tokens - request.gen, 1)
    assert config.order == "mlfq"
    attained = request.num_tokens if request.computed == 0 else request.computed
    for level in range(config.mlfq_levels - 1):
        if attained <= config.mlfq_quantum * 2**level:
            return level
    return config.mlfq_levels - 1


def _turn(config: EngineConfig, request: Request, now_us: int) -> int:
    """Place in the queue; running: before it until the slice is over, then behind all of it."""
    if not request.is_running:
        return request.accounts.tag[request.row]
    is_over = now_us - request.service.began_us >= config.slice_us
    return 2**30 if is_over and request.num_tokens > request.service.began_tokens else -1


def _program_work(config: EngineConfig, request: Request, is_pinned: bool) -> tuple[int, int]:
    """Class, and work left of the program in units of 8 us."""
    work_us = request.remaining_us + (0 if is_pinned else request.history_us)
    if request.record.preemptions > 0:
        return 0, work_us // 8
    return (1 if is_pinned and config.pinned_first else 2), work_us // 8


def _service_key(config: EngineConfig, request: Request, now_us: int, is_pinned: bool) -> int:
    level = attained.level(config, request, now_us)
    if request.is_running:
        advanced = request.num_tokens > request.service.began_tokens
        return 2 * level if config.preempts and advanced else -2
    if is_pinned and config.pinned_first == 2:
        return -1
    return 2 * level + (not (is_pinned and config.pinned_first))


@dataclass
class Choice:
    """The next candidate; for ewsjf also how far the runner-up's score is behind, relative to the winner's."""

    request: Request | None
    relative_gap: float = 1.0  # 1 = no rival


def choose(config: EngineConfig, waiting: list[Request], now_us: int, pinned: Collection[int] = ()) -> Choice:
    """The head of the queue among `waiting` (for fcfs a deque, front first; for the other orders a set).

    `pinned` = rows of the turns whose context is pinned.
    """
    # Its output in flight is not known yet, so its prompt-to-recompute is not: those behind may pass (vLLM: async).
    ready = [r for r in waiting if r.in_flight == 0]
    if not ready:
        return Choice(None)
    if config.order == "fcfs":
        return Choice(ready[0])
    if config.order == "priority":
        return Choice(min(ready, key=lambda r: (r.priority, r.arrival_us, r.row)))
    if config.order == "arrival":
        return Choice(min(ready, key=lambda r: r.sequence))
    if config.order == "pfcfs":
        return Choice(min(ready, key=lambda r: (r.record.preemptions == 0, r.program, r.sequence)))
    if config.order == "continuum":
        return Choice(
            min(ready, key=lambda r: (r.record.preemptions == 0 and 1 + (r.row not in pinned), r.program, r.sequence))
        )
    if config.order == "srpt_program":
        return Choice(min(ready, key=lambda r: (*_program_work(config, r, r.row in pinned), r.sequence)))
    if config.order in fairness.ORDERS:
        return Choice(min(ready, key=lambda r: r.accounts.key(r)))
    if config.order == "sjf":
        return Choice(min(ready, key=lambda r: (r.predicted_tokens, r.sequence)))
    if config.order in PREEMPTIVE:
        return Choice(min(ready, key=lambda r: (order_key(config, r, now_us, pinned), r.sequence)))
    if config.order in due.KEYS:
        return Choice(min(ready, key=lambda r: (due.KEYS[config.order](config, r, now_us), r.sequence)))
    if config.order == "atc":
        ranked = sorted((due.tardiness_cost(config, r, ready, now_us), r.sequence, r.row) for r in ready)
        best = next(r for r in ready if r.row == ranked[0][2])
        return Choice(best, ranked[1][0] - ranked[0][0] if len(ranked) > 1 and ranked[1][0] > ranked[0][0] else 1.0)
    assert config.order == "ewsjf"
    return _choose_ewsjf(config, ready, now_us)


def _choose_ewsjf(config: EngineConfig, ready: list[Request], now_us: int) -> Choice:
    def queue_index(request: Request) -> int:
        return min(request.num_tokens // config.ewsjf_step, config.ewsjf_num_queues - 1)

    def score(request: Request) -> float:
        weight = 1 + config.ewsjf_w * math.log(request.num_tokens + 1)
        return (now_us - request.arrival_us) * weight * config.ewsjf_step / (queue_index(request) + 1)

    heads: dict[int, Request] = {}
    for request in sorted(ready, key=lambda r: r.sequence):
        heads.setdefault(queue_index(request), request)
    ranked = sorted(heads.values(), key=lambda r: (-score(r), r.sequence))
    best = score(ranked[0])
    if len(ranked) == 1 or best == 0:  # all scores 0: an exact tie in any precision
        return Choice(ranked[0])
    return Choice(ranked[0], (best - score(ranked[1])) / best)


def memory_victim(config: EngineConfig, running: list[Request]) -> Request:
    """Who gives way when a running request cannot get its blocks."""
    if config.order == "priority":
        return max(running, key=lambda r: (r.priority, r.arrival_us))  # ties: max() returns the first
    return running[-1]


def order_victim(config: EngineConfig, running: list[Request], now_us: int) -> Request:
    """Who gives way to a better waiting request: the largest key, ties: the last admitted."""
    return max(reversed(running), key=lambda r: order_key(config, r, now_us))
