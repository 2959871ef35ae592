"""One instance: arrivals, steps in flight, outputs, preemption (docs/semantics.md, 1, 2, 5 and 6)."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.oracle import admission, attained, due, fairness, other_engines, vllm_v1
from tests.oracle.blocks import CachingPool, Context, Hit, ceil_div, make_pool
from tests.oracle.compression import evict
from tests.oracle.data import EngineConfig, Record, Request, StepFeatures, StepLog, StepTime
from tests.oracle.orders import BY_SERVICE, choose
from tests.oracle.rounds import Rounds, fresh_pool
from tests.oracle.speculation import MOST, Bits, decodes_now
from tests.oracle.tiers import Load, Store, Tiers


@dataclass
class Call:
    """One schedule() call in progress. `scheduled` is in batch order: running requests, then admissions."""

    now_us: int
    budget: int
    scheduled: dict[Request, int] = field(default_factory=dict)
    draft_cap: int = 0  # most tokens that a request may draft
    admitted: list[tuple[Request, int, bool]] = field(default_factory=list)  # request, cached tokens, resumed
    preempted: list[Request] = field(default_factory=list)


@dataclass
class Step:
    """A step in flight. `sampled` = requests that get an output token at its end, in batch order."""

    end_us: int
    sampled: list[Request]
    log: StepLog
    drafted: dict[Request, int] = field(default_factory=dict)


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
        self._check()
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
            considered = [r for r in self.waiting if not r.is_new_program or self._gate_is_open(r)]
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
            self._prefetch(self.plans.pop(due[1])[1], now_us)
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
        features = _features(call)
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
        self._remove(request, now_us, self._context(request, now_us))

    def _plan_prefetch(self, request: Request, now_us: int) -> None:
        """The context of a program that pauses is to be in HBM when it is expected back."""
        tiers = self.config.tiers
        assert tiers is not None
        full_blocks = (request.prompt_tokens + request.output_tokens - 1) // self.config.block_size
        load_us = tiers.host_in.time_us(max(full_blocks - request.shared_blocks, 0))
        later = Request(
            row=request.next_on_chain, prompt_tokens=len(request.next_prompt), output_tokens=1, predicted_tokens=1,
            klass=0, priority=0, arrival_us=0, sequence=0, record=Record(request.next_on_chain),
            content=list(request.next_prompt), output_stream=None, program=request.program, owner=request.owner,
            chain=request.chain, shared_blocks=request.shared_blocks, final_tokens=request.next_final_tokens,
        )  # fmt: skip
        self.plans[later.row] = (now_us + max(tiers.returns_in_us - load_us, 0), later)

    def _prefetch(self, later: Request, now_us: int) -> None:
        """Load a context ahead of its turn, into blocks that are free and not pinned."""
        if any(request.row == later.row for request in self.waiting):
            return
        assert self.tiers is not None and isinstance(self.pool, CachingPool)
        hit = self.pool.lookup(later)
        most = (later.num_tokens - 1) // self.config.block_size
        load = self.tiers.find(later.chain, later.shared_blocks, len(hit.blocks), most, now_us)
        if load is None or load.blocks + hit.num_evictable + self.pool.pinned_besides(hit) > self.pool.free:
            return
        self.noted["prefetched"] += 1
        self.tiers.load(later.chain, later.shared_blocks, len(hit.blocks), load, now_us)
        self.pool.begin_load(later, hit, load.blocks, load.end_us, pinned=False)

    def _is_expired(self, request: Request, now_us: int) -> bool:
        timeouts_us = self.config.timeouts_us
        timeout_us = timeouts_us[request.klass] if request.klass < len(timeouts_us) else 0
        return timeout_us > 0 and request.arrival_us + timeout_us <= now_us

    def _abort(self, request: Request, now_us: int) -> None:
        request.record.fate = "timed_out"
        self._remove(request, now_us)

    def _context(self, request: Request, now_us: int) -> Context | None:
        """What retention makes of the blocks of a program that pauses; None if it is over."""
        if request.next_on_chain < 0:
            return None
        ttl_us = self._time_to_live(request)
        deadline_us = now_us + ttl_us if ttl_us > 0 else None
        returns_us = now_us + request.next_pause_us
        return Context(request.next_on_chain, request.owner, deadline_us, request.next_final_tokens, returns_us)

    def _time_to_live(self, request: Request) -> float:
        config = self.config
        if config.retention == "preserve":
            return math.inf
        if config.retention in ("static_ttl", "belady"):
            return config.ttl_us
        if config.retention == "clair":
            full_blocks = (request.prompt_tokens + request.output_tokens - 1) // config.block_size
            own = max(full_blocks - request.shared_blocks, 0) * config.block_size
            percent = 100 * own / (config.usable_blocks * config.block_size)
            worth = self._reload_us(own) > config.clair_price * request.next_pause_us * percent
            return request.next_pause_us if worth else 0
        return 0

    def _reload_us(self, tokens: int) -> int:
        """Time of one prefill of so many tokens."""
        if tokens == 0:
            return 0
        recompute_us = self.step_time(StepFeatures(tokens, tokens, 0, 0, 1, tokens, tokens, tokens * (tokens >> 6)))
        if self.config.tiers is None:
            return recompute_us
        return min(recompute_us, self.config.tiers.host_in.time_us(tokens // self.config.block_size))

    def _gate_is_open(self, request: Request) -> bool:
        """Whether a new program may begin: begun ones leave room, or nothing runs."""
        config = self.config
        if config.gate_fraction == 0 or not self.running:
            return True
        begun = self.running + [r for r in self.waiting if r.row != r.program]
        waiting_rows = {r.row for r in self.waiting}
        paused = [c for c in self.pool.contexts if c.next_turn not in waiting_rows]
        if config.gate_final:
            tokens = [r.final_tokens for r in [*begun, request]] + [c.final_tokens for c in paused]
            return sum(ceil_div(t, config.block_size) for t in tokens) < config.gate_fraction * config.usable_blocks
        blocks = sum(ceil_div(r.num_tokens, config.block_size) for r in begun) + sum(len(c.blocks) for c in paused)
        return blocks + ceil_div(request.prompt_tokens, config.block_size) < config.gate_fraction * config.usable_blocks

    def _remove(self, request: Request, now_us: int, context: Context | None = None) -> None:
        self.num_left += 1
        copies = context is not None and self.tiers is not None and self.tiers.config.on_pause
        if copies and self.tiers is not None and self.tiers.config.overlap and self.tiers.config.returns_in_us >= 0:
            self._plan_prefetch(request, now_us)
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

    def _check(self) -> None:
        """Conservation of requests, tokens and blocks."""
        config = self.config
        assert len(self.running) <= config.max_num_seqs
        num_inside = len(self.running) + len(self.waiting)
        assert len({*self.running, *self.waiting}) == num_inside == self.num_joined - self.num_left
        self.pool.check(self.running)
        for request in self.running + self.waiting:
            record = request.record
            assert record.fate == "unfinished"
            assert record.scheduled_tokens_total + record.cached_tokens_total - request.discarded == request.computed
            assert 0 <= request.in_flight <= len(self.in_flight)
        for request in self.running:
            drafts = MOST if config.speculation else 0
            assert request.is_running and 0 < request.computed <= request.num_tokens + drafts
            if config.kind == "vllm":  # blocks are taken as tokens are scheduled, none ahead but for drafts
                blocks = ceil_div(request.computed - request.dropped, config.block_size)
                assert blocks <= self.pool.held(request) <= (blocks if not drafts else math.inf)
        for request in self.waiting:
            assert not request.is_running and request.computed == 0 and self.pool.held(request) == 0


def _features(call: Call) -> StepFeatures:
    ctx = num_decode = decode_ctx = num_prefill = prefill_tokens = prefill_ctx = quad = 0
    for request, n in call.scheduled.items():
        before = request.computed - n
        ctx += request.computed
        if before > 0 and (n == 1 or request.computed > request.num_tokens):  # (the latter verifies drafts)
            num_decode += 1
            decode_ctx += request.computed - request.dropped
            ctx -= request.dropped
        else:
            num_prefill += 1
            prefill_tokens += n
            prefill_ctx += request.computed
            quad += n * ((2 * before + n) >> 6)
    total = sum(call.scheduled.values())
    return StepFeatures(total, ctx, num_decode, decode_ctx, num_prefill, prefill_tokens, prefill_ctx, quad)
