"""The cluster: arrivals, returns, ticks and instance events in the order of docs/semantics.md, section 1."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.oracle import attained
from tests.oracle.admission import WORD_BITS
from tests.oracle.data import EngineConfig, Record, Request, RouterConfig, StepLog, StepTime, Uniform, Workload
from tests.oracle.engine import Instance
from tests.oracle.rounds import Rounds
from tests.oracle.routing import Arrival, Dispatcher
from tests.oracle.semantic import SemanticCache
from tests.oracle.tiers import Store

FIRST_DRAW = 16  # of the uniform numbers; those before it are the routers'
TICK, CACHE_TICK, ARRIVAL, RETURN, INSTANCE = range(5)  # the order of events at the same time


@dataclass
class Result:
    """One episode. `steps[i]` = schedule() calls of instance i that scheduled or preempted something."""

    records: list[Record]  # one per row of the workload
    steps: list[list[StepLog]]
    stuck: list[bool]  # instances left idle with requests waiting
    smallest_gap: float  # closest decision of ewsjf or llmd_score, relative; near 0 = float32 may decide otherwise
    end_us: int  # time of the last event, 0 if there was none
    #: What retention and the gate did, so that tests know that they did something.
    noted: Counter[str] = field(default_factory=Counter)


def simulate(
    workload: Workload,
    engine: EngineConfig,
    step_time: StepTime,
    *,
    num_instances: int = 1,
    router: RouterConfig | None = None,
    uniform: Uniform | None = None,
    until_us: int | None = None,
) -> Result:
    """Run until nothing is left to happen, or through all events with time <= `until_us`."""
    cluster = _Cluster(workload, engine, step_time, num_instances, router or RouterConfig(), uniform)
    end_us = 0
    while (event := cluster.next_event()) is not None and (until_us is None or event[0] <= until_us):
        cluster.take(event)
        end_us = event[0]
    cluster.check()
    instances = cluster.instances
    if cluster.rounds is not None:
        instances[0].noted["rounds"] = cluster.rounds.number
    return Result(
        records=cluster.records,
        steps=[i.log for i in instances],
        stuck=[i.next_event_us is None and bool(i.waiting) for i in instances],
        smallest_gap=min(cluster.dispatcher.smallest_gap, *(i.smallest_gap for i in instances)),
        end_us=end_us,
        noted=(cluster.semantic.noted if cluster.semantic else Counter())
        + sum((i.noted + i.pool.noted + (i.tiers.noted if i.tiers else Counter()) for i in instances), Counter()),
    )


Event = tuple[int, int, int]  # time, what, row or instance index: events are taken in this order


class _Cluster:
    def __init__(
        self,
        workload: Workload,
        engine: EngineConfig,
        step_time: StepTime,
        num_instances: int,
        router: RouterConfig,
        uniform: Uniform | None,
    ):
        first_turns = workload.arrival_us[: workload.num_programs]
        assert first_turns == sorted(first_turns), "programs must be in arrival order"
        self.workload = workload
        remote = Store(engine.tiers.remote_blocks) if engine.tiers and engine.tiers.remote_blocks else None
        programs: attained.Programs = {}
        words = None if uniform is None else lambda row, draw: uniform(row, FIRST_DRAW + draw) >> (31 - WORD_BITS)
        self.instances = [Instance(engine, step_time, remote, programs, words, uniform) for _ in range(num_instances)]
        self.dispatcher = Dispatcher(router, self.instances, uniform)
        self.records = [Record(row) for row in range(len(workload.prompt_tokens))]
        self.returns: list[tuple[int, int]] = []  # heap of (time, row)
        self.next_program = 0
        self.next_tick_us = router.delay_us
        self.next_cache_tick_us = router.cache_delay_us
        self.num_joined = 0
        self.due: list[list[int]] = [[] for _ in self.records]  # graphs: times that fired edges allow
        self.home: dict[int, int] = {}  # graphs: instance of the turn whose edge fired last
        self.program = list(range(len(self.records)))  # row of each row's first turn
        for row, turn in enumerate(workload.next_turn):
            if turn >= 0:
                self.program[turn] = self.program[row]

        self.semantic = SemanticCache(engine.semantic, uniform or (lambda row, draw: 0)) if engine.semantic else None
        self.rounds = Rounds(workload, self.program) if workload.rounds is not None else None
        if self.rounds is not None:
            self.rounds.instances = self.instances
            for instance in self.instances:
                instance.rounds = self.rounds

    def _next_arrival_us(self) -> int | None:
        if self.next_program >= self.workload.num_programs:
            return None
        if self.rounds is not None:
            return self.rounds.arrival_us(self.next_program)
        search_us = self.semantic.config.search_us if self.semantic else 0
        return self.workload.arrival_us[self.next_program] + search_us

    def next_event(self) -> Event | None:
        """The next event, or None when only ticks would be left."""
        events: list[Event] = []
        if (arrival_us := self._next_arrival_us()) is not None:
            events.append((arrival_us, ARRIVAL, self.next_program))
        if self.returns:
            time_us, row = self.returns[0]
            events.append((time_us, RETURN, row))
        for i, instance in enumerate(self.instances):
            if instance.next_event_us is not None:
                events.append((instance.next_event_us, INSTANCE, i))
        if events and self.dispatcher.config.delay_us > 0:
            events.append((self.next_tick_us, TICK, 0))
        if events and self.dispatcher.config.cache_delay_us > 0:
            events.append((self.next_cache_tick_us, CACHE_TICK, 0))
        return min(events, default=None)

    def take(self, event: Event) -> None:
        now_us, what, index = event
        if what == TICK:
            self.dispatcher.tick()
            self.next_tick_us += self.dispatcher.config.delay_us
        elif what == CACHE_TICK:
            self.dispatcher.cache_tick()
            self.next_cache_tick_us += self.dispatcher.config.cache_delay_us
        elif what == ARRIVAL:
            self.next_program += 1
            self._arrive(index, now_us)
        elif what == RETURN:
            heapq.heappop(self.returns)
            self._arrive(index, now_us)
        else:
            for request in self.instances[index].event(now_us):
                if self.semantic:
                    self.semantic.keep(request.klass, request.row, now_us)
                turn = self.workload.next_turn[request.row]
                if self.workload.waits is not None:
                    self._fire(request.row, "finish", now_us)
                elif turn >= 0:
                    heapq.heappush(self.returns, (now_us + self.workload.pause_us[turn], turn))

    def _arrive(self, row: int, now_us: int) -> None:
        workload, record = self.workload, self.records[row]
        record.arrival_us = now_us
        if self.semantic:
            if self._answered(row, now_us):
                return
            record.arrival_us = workload.arrival_us[row]
        record.fate = "unfinished"
        prompt = workload.prompt_tokens[row]
        content = workload.prompt_content[row] if workload.prompt_content else [(("u", row), k) for k in range(prompt)]
        arrival = Arrival(row, now_us, list(content), workload.predicted_tokens[row], self._home(row))
        record.instance = self.dispatcher.route(arrival)
        request = Request(
            row=row,
            prompt_tokens=prompt,
            output_tokens=workload.output_tokens[row],
            predicted_tokens=workload.predicted_tokens[row],
            klass=workload.klass[row],
            priority=workload.priority[row],
            arrival_us=record.arrival_us,
            sequence=self.num_joined,
            record=record,
            content=list(content),
            output_stream=workload.output_stream[row] if workload.output_stream else ("o", row),
            program=self.program[row],
            **self._context(row),
            **self._foresight(row),
        )
        self.instances[record.instance].arrive(request, now_us)
        self.num_joined += record.fate == "unfinished"
        if workload.waits is not None and record.fate == "unfinished":
            self._fire(row, "arrival", now_us)

    def _answered(self, row: int, now_us: int) -> bool:
        """Whether the cache in front has an answer, `search_us` after the arrival."""
        assert self.semantic is not None
        load = sum(len(i.waiting) + len(i.running) for i in self.instances)
        if not self.semantic.answers(self.workload.klass[row], row, now_us, load):
            return False
        record, config = self.records[row], self.semantic.config
        record.fate, record.arrival_us = "answered", self.workload.arrival_us[row]
        record.first_token_us = record.finish_us = now_us + config.answer_us
        return True

    def _fire(self, row: int, what: str, now_us: int) -> None:
        """Programs that are graphs (docs/semantics.md, 2): the edges that wait for this; turns that are ready now."""
        waits, not_before = self.workload.waits, self.workload.not_before
        assert waits is not None
        for later, edges in enumerate(waits):
            for before, trigger, pause_us in edges:
                if (before, trigger) == (row, what):
                    self.due[later].append(now_us + pause_us)
                    self.home[later] = self.records[row].instance
                    if len(self.due[later]) == len(edges):
                        start_us = self.records[self.program[later]].arrival_us
                        floor_us = start_us + not_before[later] if not_before is not None else 0
                        heapq.heappush(self.returns, (max(*self.due[later], floor_us), later))

    def _foresight(self, row: int) -> dict[str, int]:
        """What bounds know of a turn."""
        workload = self.workload
        if workload.remaining_us is None or workload.history_us is None or workload.final_tokens is None:
            return {}
        return {
            "remaining_us": workload.remaining_us[row],
            "history_us": workload.history_us[row],
            "final_tokens": workload.final_tokens[row],
            "next_final_tokens": workload.final_tokens[workload.next_turn[row]],
        }

    def _home(self, row: int) -> int | None:
        """Instance of the program's previous turn; in a graph, of the one whose edge fired last."""
        if self.workload.waits is not None:
            return self.home.get(row)
        return next((self.records[r].instance for r, turn in enumerate(self.workload.next_turn) if turn == row), None)

    def _context(self, row: int) -> dict[str, Any]:
        """What retention needs to know of a turn (docs/semantics.md, 9)."""
        workload, turn = self.workload, self.workload.next_turn[row]
        if workload.chain is None or workload.group is None or workload.group_tokens is None:
            return {"owner": self.program[row]}
        if workload.waits is not None:
            turn = next(
                (later for later in range(row + 1, len(self.records)) if workload.chain[later] == workload.chain[row]),
                -1,
            )
        block_size = self.instances[0].config.block_size
        goes_on = turn >= 0 and workload.chain[turn] == workload.chain[row]
        return {
            "chain": workload.chain[row],
            "owner": self.program[row] if workload.waits is None else workload.chain[row],
            "next_on_chain": turn if goes_on else -1,
            "next_prompt": workload.prompt_content[turn] if goes_on and workload.prompt_content else [],
            "next_pause_us": workload.pause_us[turn] if goes_on else 0,
            "shared_blocks": workload.group_tokens[row] // block_size if workload.group[row] >= 0 else 0,
        }

    def check(self) -> None:
        """Every row that has arrived and is not over is in exactly one instance, the one it was routed to."""
        inside = sorted((r.row, i) for i, inst in enumerate(self.instances) for r in inst.running + inst.waiting)
        assert inside == [(r.row, r.instance) for r in self.records if r.fate == "unfinished"]
