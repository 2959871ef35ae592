"""One instance: arrivals, steps in flight, outputs, preemption (docs/semantics.md, 1, 2, 5 and 6)."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable

from tests.oracle import admission, attained, conservation, due, fairness, other_engines, prefetch, retention, vllm_v1
from tests.oracle.blocks import CachingPool, Context, Hit, ceil_div, make_pool
from tests.oracle.compression import evict
from tests.oracle.data import EngineConfig, Request, StepLog, StepTime
from tests.oracle.orders import BY_SERVICE, choose
from tests.oracle.rounds import Rounds, fresh_pool
from tests.oracle.speculation import Bits, decodes_now
from tests.oracle.steps import Call, Step, features_of
from tests.oracle.tiers import Load, Store, Tiers

SCHEDULERS: dict[str, Callable[[Instance, Call], None]] = {
    "vllm": vllm_v1.schedule,
    "sarathi": other_engines.sarathi,
    "vllm-v0": other_engines.vllm_v0,
    "orca": other_engines.orca,
    "static": other_engines.static,
}


class Instance:
    """One engine. The cluster calls `arrive` and, at `next_event_us`, `event`."""

    def __init__(
        self,
        config: EngineConfig,
        step_time: StepTime,
        remote: Store | None = None,
        programs: attained.Programs | None = None,
        words: admission.Words | None = None,
        bits: Bits | None = None,
    ):
        self.bits = bits or (lambda row, draw: 0)
        self.lengths = admission.first_lengths(config)  # outputs of requests that finished here
        self.words = words or (lambda row, draw: 0)
        self.accounts = fairness.Accounts(config) if config.order in fairness.ORDERS else None
        self.programs = {} if programs is None else programs  # what they were served, at all instances
        self.config, self.step_time = config, step_time
        self.pool = make_pool(config.usable_blocks, config.block_size, config.prefix_caching)
        self.pool.by_return = config.retention == "belady"
        self.tiers = Tiers(config.tiers, remote) if config.tiers else None
        self.plans: dict[int, tuple[int, Request]] = {}  # turn -> when its context is loaded, its prompt
        self.running: list[Request] = []  # admission order
        self.waiting: list[Request] = []  # fcfs: front first; other orders: any order
        self.in_flight: deque[Step] = deque()
        self.log: list[StepLog] = []
        self.noted: Counter[str] = Counter()  # what pins and the gate did
        self.smallest_gap = 1.0  # closest ewsjf decision so far (see orders.Choice)
        self.num_joined = self.num_left = 0  # requests that entered the queue; that finished or timed out
        self._wake_us: int | None = None  # an arrival found the instance idle
        self.rounds: Rounds | None = None  # of rollouts

    # Events ----------------------------------------------------------------------------------------------------------

    @property
    def next_event_us(self) -> int | None:
        return self.in_flight[0].end_us if self.in_flight else self._wake_us

    def never_fits(self, prompt_tokens: int, output_tokens: int) -> bool:
        """Could not run to its end even alone."""
        config = self.config
        most_tokens = prompt_tokens + output_tokens - 1
        whole_prompts = config.kind == "vllm-v0" or (config.kind == "vllm" and not config.chunked_prefill)
        if whole_prompts and most_tokens > config.token_budget:
            return True
        if config.kind in ("orca", "static"):
            if most_tokens > config.max_model_len:
                return True
            most_tokens = config.max_model_len
        if config.speculation:  # the last step drafts as much as any, and holds as many slots ahead
            most_tokens += 2 * config.speculation.most
        watermark = max(config.watermark_blocks, 1) if config.kind in ("vllm-v0", "sarathi") else 0
        return ceil_div(most_tokens, config.block_size) + watermark > config.usable_blocks

    def arrive(self, request: Request, now_us: int) -> None:
        """Join the queue or be rejected (only joining wakes an idle instance)."""
        if self.never_fits(request.prompt_tokens, request.output_tokens):
            request.record.fate = "rejected_size"
        elif 0 < self.config.max_queue <= len(self.waiting):
            request.record.fate = "rejected_queue"
        else:
            self.waiting.append(request)
            self.num_joined += 1
            if not self.in_flight:
                self._wake_us = now_us

    def event(self, now_us: int) -> list[Request]:
        """Outputs of the step that ends now, then schedule(). Returns the finished requests in order."""
        self._wake_us = None
        finished = self._process_outputs(self.in_flight.popleft()) if self.in_flight else []
        if self.rounds is not None and self.rounds.stops(self, finished, now_us):
            return finished
        depth = 2 if self.config.asynchronous else 1
        while len(self.in_flight) < depth:
            call = self._schedule(now_us)
            # A call that only preempted is repeated unless the end of a step will bring the next one anyway.
            if not call.scheduled and (self.in_flight or not call.preempted):
                break
        conservation.check(self)
        return finished

    def wake(self, at_us: int) -> None:
        """An idle instance has an event at that time."""
        self._wake_us = at_us

    def stop(self, now_us: int, until_us: int) -> None:
        """The end of a round: what runs is taken out, the last admitted first, and the KV pool is emptied."""
        call = Call(now_us, 0)
        for request in list(reversed(self.running)):
            self.preempt(call, request)
            self.noted["stopped"] += 1
        self.pool = fresh_pool(self)
        for request in self.waiting:  # a pool has names of its own for contents
            request.block_hashes.clear()
        self._wake_us = until_us

    # What the scheduler functions use --------------------------------------------------------------------------------

    def next_candidate(self, call: Call) -> Request | None:
        """Head of the queue; heads past their deadline are dropped."""
        while True:
            considered = [r for r in self.waiting if not r.is_new_program or retention.gate_is_open(self, r)]
            self.noted["kept_out_by_gate"] += len(considered) < len(self.waiting)
            considered = [r for r in considered if r.row not in self.pool.loading]
            choice = choose(self.config, considered, call.now_us, self.pool.pinned_turns())
            if choice.request is None:
                return None
            self.smallest_gap = min(self.smallest_gap, choice.relative_gap)
            if self._is_expired(choice.request, call.now_us):
                self._abort(choice.request, call.now_us)
            elif due.too_late(self.config, choice.request, call.now_us):
                choice.request.record.fate = "rejected_late"
                self._remove(choice.request, call.now_us)
            else:
                return choice.request

    def drafts(self, call: Call, request: Request) -> int:
        """Tokens that a running request drafts in this call."""
        speculation = self.config.speculation
        if not speculation or not decodes_now(request):
            return 0
        return speculation.drafts(self.bits, request, call.draft_cap)

    @property
    def lookahead(self) -> int:
        """Slots that a running request holds ahead of what is scheduled."""
        return self.config.speculation.most if self.config.speculation else 0

    def run(self, call: Call, request: Request, n: int) -> None:
        """Put n tokens of a running request, for which it holds blocks, into the step."""
        request.computed += n
        request.record.scheduled_tokens_total += n
        call.budget -= n
        call.scheduled[request] = n
        # vLLM makes blocks findable when they are scheduled; a token in flight is not known and so cannot be hashed.
        self.pool.register(request, min(request.computed, request.prompt_tokens + request.delivered))

    def admit(
        self, call: Call, request: Request, n: int, *, block_tokens: int, hit: Hit | None = None, loaded_tokens: int = 0
    ) -> None:
        """Move a waiting request to the end of running, with blocks for `block_tokens` tokens, and run n.

        `loaded_tokens` behind the hit come from host memory before the step.
        """
        hit = hit or Hit()
        self.waiting.remove(request)
        self.plans.pop(request.row, None)
        self.running.append(request)
        request.is_running = True
        request.dropped = request.kept_ratio = 0
        self.pool.admit(request, hit, block_tokens)
        request.computed = found_tokens = hit.tokens + loaded_tokens
        if request.service is not None:
            request.service.began_us, request.service.began_tokens = call.now_us, request.num_tokens
        record = request.record
        if self.accounts is not None and record.preemptions == 0:
            self.accounts.admit(request)
        if record.first_scheduled_us < 0:
            record.first_scheduled_us = call.now_us
            record.cached_tokens_first = found_tokens
        record.cached_tokens_total += found_tokens
        call.admitted.append((request, found_tokens, record.preemptions > 0))
        self.run(call, request, n)

    def find_load(self, call: Call, request: Request, hit: Hit) -> Load | None:
        """What the tiers can add to a hit."""
        if self.tiers is None:
            return None
        most = (request.num_tokens - 1) // self.config.block_size
        return self.tiers.find(request.chain, request.shared_blocks, len(hit.blocks), most, call.now_us)

    def begin_load(self, call: Call, request: Request, hit: Hit, load: Load) -> bool:
        """Book a load. Returns whether the request must wait for it."""
        assert self.tiers is not None and isinstance(self.pool, CachingPool)
        self.tiers.load(request.chain, request.shared_blocks, len(hit.blocks), load, call.now_us)
        if self.tiers.config.overlap:
            self.plans.pop(request.row, None)
            self.pool.begin_load(request, hit, load.blocks, load.end_us)
        return self.tiers.config.overlap

    def wait_for_copies(self) -> bool:
        """A running request lacks blocks that copies under way will set free: the step waits for all of them."""
        if self.tiers is None or self.pool.next_copy_us is None:
            return False
        self.tiers.stall_us = max(self.tiers.stall_us, self.pool.end_copies(math.inf))
        self.noted["waited_for_copies"] += 1
        return True

    def preempt(self, call: Call, victim: Request) -> None:
        """Recompute preemption: blocks and computed tokens are lost, outputs kept; what this call gave is refunded."""
        n = call.scheduled.pop(victim, 0)
        call.budget += n
        victim.record.scheduled_tokens_total -= n
        victim.discarded += victim.computed - n
        victim.computed = 0
        self._release(victim, call.now_us, copies=self.tiers is not None and self.tiers.config.on_preempt)
        self.running.remove(victim)
        victim.is_running = False
        if victim.service is not None:
            attained.stop(victim, call.now_us)
        if self.accounts is not None:
            self.accounts.requeue(victim)
        self.waiting.insert(0, victim)
        victim.record.preemptions += 1
        call.preempted.append(victim)

    # Inside an event -------------------------------------------------------------------------------------------------

    def _schedule(self, now_us: int) -> Call:
        """One schedule() call; it forms a step if anything was scheduled."""
        for request in list(self.running):
            if self._is_expired(request, now_us):
                self._abort(request, now_us)
        self.pool.end_copies(now_us)
        self.pool.refresh_pins(now_us, self.waiting)
        if self.accounts is not None:
            for request in sorted(self.waiting, key=lambda r: r.sequence):
                request.accounts = self.accounts
                self.accounts.enter(request)
        if self.config.order in BY_SERVICE:
            for request in self.waiting:
                attained.enter(self.programs, request)
            self.noted["promoted"] += attained.promote(self.config, self.waiting, now_us)
        while (due := min(((t, row) for row, (t, _) in self.plans.items() if t <= now_us), default=None)) is not None:
            prefetch.begin(self, self.plans.pop(due[1])[1], now_us)
            self.pool.end_copies(now_us)  # it may have taken no time
            self.pool.refresh_pins(now_us, self.waiting)
        call = Call(now_us, self.config.token_budget)
        if self.config.speculation:
            call.draft_cap = self.config.speculation.cap(self)
            self.noted[f"cap_{call.draft_cap}"] += 1
            self.noted["cut_by_batch"] += call.draft_cap < self.config.speculation.most
        SCHEDULERS[self.config.kind](self, call)
        if not call.scheduled and not call.preempted:
            if not self.in_flight:  # a copy that ends may let in those who wait
                wakes = [t for t, _ in self.plans.values()]
                wakes += [self.pool.next_copy_us] if self.waiting and self.pool.next_copy_us is not None else []
                self._wake_us = min(wakes, default=None)
            return call
        features = features_of(call)
        start_us = max(now_us, self.in_flight[-1].end_us) if self.in_flight else now_us
        if self.tiers and call.scheduled:
            self.noted["stall_us"] += max(self.tiers.stall_us - now_us, 0)
            start_us = max(start_us, self.tiers.stall_us)
        drafted = {r: r.computed - r.num_tokens for r in call.scheduled if r.computed > r.num_tokens}
        draft_us = self.config.speculation.time_us(max(drafted.values()), sum(drafted.values())) if drafted else 0
        end_us = start_us + max(1, self.step_time(features) + draft_us) if call.scheduled else start_us
        sampled = [r for r in call.scheduled if r.computed >= r.num_tokens]
        for request in sampled:
            request.in_flight += 1
        log: StepLog = {
            "step": len(self.log),
            "t_sched_us": now_us,
            "t_start_us": start_us,
            "t_end_us": end_us,
            "tokens": [[r.row, n] for r, n in call.scheduled.items()],
            "total": features.total_tokens,
            "ctx": features.ctx,
            "admitted": [[r.row, cached, int(resumed)] for r, cached, resumed in call.admitted],
            "preempted": [r.row for r in call.preempted],
            "running": len(self.running),
            "waiting": len(self.waiting),
            "free_blocks": self.pool.free,
            "finished": [],
            "free_blocks_after": self.pool.free,
        }
        self.log.append(log)
        if call.scheduled:
            self.in_flight.append(Step(end_us, sampled, log, drafted))
        return call

    def _process_outputs(self, step: Step) -> list[Request]:
        """One output token for each sampled request, in batch order; the finished ones leave."""
        finished = []
        evict(self, step)
        for request in step.sampled:
            request.in_flight -= 1
            if request.is_over:
                continue  # timed out while the token was in flight
            for _ in range(self._outputs(request, step)):
                request.delivered += 1
                if self.accounts is not None:
                    self.accounts.serve(request)
                if self.config.prefix_caching:
                    request.content.append((request.output_stream, request.delivered - 1))
            if request in step.drafted:  # rejected tokens, and those behind the last, were computed in vain
                excess = request.computed - (request.num_tokens - 1)
                request.computed -= excess
                request.record.scheduled_tokens_total -= excess
            if self.config.asynchronous and request.is_running:
                self.pool.register(request, request.computed - request.in_flight)
            if request.record.first_token_us < 0:
                request.record.first_token_us = step.end_us
            if request.delivered == request.output_tokens:
                self._finish(request, step.end_us)
                finished.append(request)
        step.log["finished"] = [r.row for r in finished]
        step.log["free_blocks_after"] = self.pool.free
        return finished

    def _outputs(self, request: Request, step: Step) -> int:
        """Tokens that a request gets from a step: the drafts that were right, and one of the target model's own."""
        if request not in step.drafted:
            return 1
        drafted = step.drafted[request]
        accepted = self.config.speculation.accepted(self.bits, request, drafted)
        self.noted["drafted"] += drafted
        self.noted["accepted"] += accepted
        return min(accepted + 1, request.output_tokens - request.delivered)

    def _finish(self, request: Request, now_us: int) -> None:
        """Its last token's KV is never computed. In async mode it may have been preempted meanwhile."""
        assert request.in_flight == 0
        assert not request.is_running or request.computed == request.num_tokens - 1
        if self.accounts is not None:
            self.accounts.finish(request)
        if request.service is not None:
            attained.finish(self.config, self.programs, request, now_us)
        request.record.fate = "finished"
        self.lengths.append(request.output_tokens)
        request.record.finish_us = now_us
        self._remove(request, now_us, retention.context_of(self, request, now_us))

    def _is_expired(self, request: Request, now_us: int) -> bool:
        timeouts_us = self.config.timeouts_us
        timeout_us = timeouts_us[request.klass] if request.klass < len(timeouts_us) else 0
        return timeout_us > 0 and request.arrival_us + timeout_us <= now_us

    def _abort(self, request: Request, now_us: int) -> None:
        request.record.fate = "timed_out"
        self._remove(request, now_us)

    def _remove(self, request: Request, now_us: int, context: Context | None = None) -> None:
        self.num_left += 1
        copies = context is not None and self.tiers is not None and self.tiers.config.on_pause
        if copies and self.tiers is not None and self.tiers.config.overlap and self.tiers.config.returns_in_us >= 0:
            prefetch.plan(self, request, now_us)
        self._release(request, now_us, context, copies=copies)
        (self.running if request.is_running else self.waiting).remove(request)
        request.is_running = False

    def _release(self, request: Request, now_us: int, context: Context | None = None, copies: bool = False) -> None:
        """Let go of its blocks; if `copies`, the host's copy of its context is brought up to date."""
        if self.tiers is None or not isinstance(self.pool, CachingPool) or not request.is_running:
            self.pool.release(request, context)
            return
        high = self.pool.num_registered(request)
        if copies and high > request.shared_blocks:
            self.tiers.copy_out(request.chain, request.shared_blocks, high, now_us)
        self.pool.release(request, context, self.tiers.copying_until(request.chain, now_us))
