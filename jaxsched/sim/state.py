"""The state of one lane (one simulated cluster), a pytree of int32 and float32 arrays.

Layout follows cost on CPU and GPU alike: an event touches one instance, so what whole-row expressions read is `slots`
``[instances, fields, slots]`` (one contiguous slice per event); what only single requests need is `request`
``[instances, slots, columns]`` (one column per event); per-instance scalars are one vector each.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from jaxsched.metrics.histogram import NUM_BINS
from jaxsched.sim.clock import NEVER_US
from jaxsched.sim.compress import init_quality
from jaxsched.sim.fair import FairState, init_fair
from jaxsched.sim.kv import init_cache
from jaxsched.sim.ledger import init_ledger
from jaxsched.sim.params import SimParams
from jaxsched.sim.paused import Paused, init_paused
from jaxsched.sim.routing import init_routing
from jaxsched.sim.semantic import SemanticState, init_semantic
from jaxsched.sim.service import init_service
from jaxsched.sim.static import SimStatic
from jaxsched.sim.tiers import TierState, init_tiers

EMPTY, WAITING, DEAD = -1, -2, -3  # values of the `order` field below zero; >= 0: running, admission number


class Col(enum.IntEnum):
    """Columns of `State.request`."""

    REQUEST = 0  # row of the Requests table
    OUTPUT = 1
    ARRIVAL_EPOCH = 2
    ARRIVAL_US = 3
    KLASS = 4
    PRIORITY = 5
    PREDICTED = 6
    SEQUENCE = 7
    TTFT_US = 8  # saturates at 2^31 - 1
    LAST_EPOCH = 9  # time of the last token when preempted
    LAST_US = 10
    PREEMPTIONS = 11
    LOST_TOKENS = 12  # computed tokens thrown away by preemptions, less those found in the prefix cache at admissions
    PROGRAM_EPOCH = 13  # arrival of the program
    PROGRAM_US = 14
    MEASURED = 15


class Fate(enum.IntEnum):
    """What became of a turn."""

    NEVER_ARRIVED = 0
    UNFINISHED = 1
    FINISHED = 2
    REJECTED_SIZE = 3
    REJECTED_QUEUE = 4
    TIMED_OUT = 5
    REJECTED_LATE = 6
    ANSWERED = 7  # by the semantic cache, without the engine; counted as finished


class Flag(enum.IntFlag):
    """Conditions that stop a lane or void a claim of exactness; always reported."""

    LIVELOCK = 1  # the watchdog saw the clock stand still, or requests preempt each other and nothing come of it
    PAUSED_OVERFLOW = 2  # more paused programs than `num_paused`: programs were cut short
    WINDOW_OVERFLOW = 4  # an ordered queue held requests outside its window (they were not compared)
    STUCK = 8  # an idle instance with waiting requests that can never be admitted
    CACHE_COPIES = 16  # chains of runs met a second copy of a block: from then on the prefix cache is approximate
    CACHE_ENTRIES = 32  # chains of runs had no room for a run, which was forgotten
    TIER_ENTRIES = 128  # host memory or the remote pool had no entry for a copy, which was forgotten
    SLOTS_SHORT = 64  # only the lack of a slot kept a request out: a row too short to be exact (`simulation.run_lanes`)


class Phase(enum.IntEnum):
    """Where an instance event that needs several micro-steps stands."""

    EVENT = 0
    LEAVE = 1  # finish or abort the next request
    REFILL = 2  # move the next request from the FIFO to a slot (ordered queues)
    RUN = 3  # running pass: preempt until it fits
    DISPLACE = 4  # preemptive orders: make room for the best waiting request
    ADMIT = 5  # admit the next waiting request
    DRAIN = 6  # book the next token whose gap is its own


class Hist(enum.IntEnum):
    """Histograms kept per class (TBT: all under class 0)."""

    TTFT = 0
    TPOT = 1
    TBT = 2
    TTST = 3
    E2E = 4
    QUEUE = 5
    NORMALISED = 6
    JCT = 7


class Count(enum.IntEnum):
    """Event counters."""

    ARRIVED = 0
    FINISHED = 1
    REJECTED_SIZE = 2
    REJECTED_QUEUE = 3
    TIMED_OUT = 4
    PREEMPTIONS = 5
    RECOMPUTED_TOKENS = 6
    SCHEDULED_TOKENS = 7
    OUTPUT_TOKENS = 8
    ENGINE_STEPS = 9
    BUSY_US = 10
    PROGRAMS_DONE = 11
    QUEUED = 12  # arrivals that found every slot taken and waited in the FIFO
    MEASURED_ARRIVED = 13
    MICRO_STEPS = 14
    CACHED_TOKENS = 15  # found in the prefix cache at admissions
    HOST_OUT_BLOCKS = 16  # copied from HBM to host memory
    HOST_IN_BLOCKS = 17  # copied from host memory to HBM
    REMOTE_OUT_BLOCKS = 18  # copied from host memory to the remote pool
    REMOTE_IN_BLOCKS = 19  # copied from the remote pool to host memory
    TRANSFERS = 20  # operations of all these copies
    STALL_US = 21  # time that instances waited for copies
    REJECTED_LATE = 22


#: Turns that left without being served.
GONE = (Count.REJECTED_SIZE, Count.REJECTED_QUEUE, Count.TIMED_OUT, Count.REJECTED_LATE)


@dataclasses.dataclass
class Slots:
    """Whole-row fields of one instance, each ``[slots]``; `State.slots` stacks them."""

    computed: Int[Array, " s"]  # tokens whose KV is held or scheduled
    known: Int[Array, " s"]  # prompt + outputs so far (asynchronous: including the one in flight)
    goal: Int[Array, " s"]  # prompt + all outputs
    prompt: Int[Array, " s"]
    order: Int[Array, " s"]  # admission number; EMPTY, WAITING or DEAD below zero
    chunk: Int[Array, " s"]  # tokens in the step that executes; negative: this chunk yields no output token
    last: Int[Array, " s"]  # time of the last token modulo 2^31 us, -1 = none yet
    #: Asynchronous: number of the step of its last token; reserving engines: reserved blocks; compressing: evicted.
    aux: Int[Array, " s"]


@dataclasses.dataclass
class Instance:
    """Scalars of one instance; `State.instance` stacks them."""

    free: Int[Array, ""]  # free KV blocks (first: `init_state` relies on it)
    running: Int[Array, ""]
    waiting: Int[Array, ""]
    head: Int[Array, ""]  # FIFO position of the first entry (wraps)
    length: Int[Array, ""]  # FIFO entries
    admissions: Int[Array, ""]  # next admission number
    in_flight: Int[Array, ""]  # steps scheduled and not ended: 0, 1 (2 when asynchronous)
    end_last: Int[Array, ""]  # end of the last scheduled step (asynchronous)
    steps: Int[Array, ""]  # steps scheduled so far
    bulk: Int[Array, ""]  # requests whose first gap of this run is `bulk_gap`
    bulk_gap: Int[Array, ""]  # us
    emits: Int[Array, ""]  # requests that get a token at each step of this run
    token_time: Int[Array, ""]  # time of the last step that decoded, modulo 2^31
    run_start: Int[Array, ""]  # start of the executing run, relative to the epoch
    work: Int[Array, ""]  # predicted tokens of unfinished requests
    waiting_blocks: Int[Array, ""]  # blocks of waiting prompts


class RoundState(struct.PyTreeNode):
    """Rounds of rollouts (sim/rounds.py)."""

    number: Int[Array, ""]  # rounds that have ended
    settled: Int[Array, ""]  # programs that are done
    released: Int[Array, ""]  # programs that have arrived, or arrive when the round begins
    epoch: Int[Array, ""]  # when the round under way, or to come, begins
    us: Int[Array, ""]
    seen: Int[Array, " m"]  # rounds for whose end each instance has stopped
    stopped: Int[Array, ""]  # requests taken out by ends of rounds


class Metrics(struct.PyTreeNode):
    """Accumulated measurements of a lane. Definitions: docs/metrics.md."""

    histograms: Int[Array, " chb"]  # classes x `Hist` x bins, flat (a reshape inside the loop costs a copy)
    counts: Int[Array, " k"]  # low 30 bits
    counts_high: Int[Array, " k"]  # multiples of 2^30
    class_finished: Int[Array, " c"]  # measured requests that finished
    class_good: Int[Array, " c"]  # ... and met every SLO of their class
    area: Float[Array, "2 2"]  # (batch x us, used blocks x us) x (high, low part)


class Record(struct.PyTreeNode):
    """Every turn's life, on demand; -1 = not reached. Times are (epoch, us)."""

    fate: Int[Array, " n"]
    instance: Int[Array, " n"]
    arrival: Int[Array, "n 2"]
    first_scheduled: Int[Array, "n 2"]
    first_token: Int[Array, "n 2"]
    finish: Int[Array, "n 2"]
    preemptions: Int[Array, " n"]
    scheduled_tokens: Int[Array, " n"]
    cached_first: Int[Array, " n"]  # tokens found in the prefix cache at the first admission
    cached_total: Int[Array, " n"]  # ... and at all admissions


NUM_SCALARS = len(Instance.__dataclass_fields__)


def max_column_writes(static: SimStatic) -> int:
    """Columns of `request` that one micro-step can write: refilled, admitted (cache), preempted twice, first token."""
    return 4 + (static.prefix_cache != "none" and static.scheduler.preemptive) + static.rounds


class PendingWrites(struct.PyTreeNode):
    """What the last micro-step writes to `State.request` and `State.instance`.

    Applied before anything reads them again: a write in the middle of a micro-step, with reads of the old values
    scheduled after it, makes XLA copy the whole array, twice per micro-step (measured: half of the time).
    """

    instance: Int[Array, " w"]  # request columns: instance (out of range = no write), slot, values
    slot: Int[Array, " w"]
    values: Int[Array, "w 16"]
    joined: Int[Array, ""]  # instance that an arrival joined, out of range = none
    change: Int[Array, " 16"]  # ... and what that adds to its scalars
    event: Int[Array, ""]  # instance of the event
    scalars: Int[Array, " 16"]  # ... and its scalars after it


class State(struct.PyTreeNode):
    """One lane."""

    epoch: Int[Array, ""]
    now: Int[Array, ""]  # us since the start of `epoch`
    next_event: Int[Array, " m"]  # next event of each instance, relative to `epoch`; NEVER_US = idle
    run_ends: Int[Array, "m k"]  # end of each step of the executing run; NEVER_US behind the last
    run_used: Int[Array, "m k"]  # KV blocks used during each step of the run (only if the router reads them)
    slots: Int[Array, "m 8 s"]  # the fields of `Slots`, in their order
    request: Int[Array, "m s 16"]  # columns: `Col`
    pending_writes: PendingWrites  # applied at the start of the next micro-step
    instance: Int[Array, "16 m"]  # the fields of `Instance`, in their order
    queue: Int[Array, "m q w"]  # FIFO entries: request row, or -(slot + 1) for a preempted one; wider with sessions
    paused: Paused
    arrivals: Int[Array, ""]  # programs that have arrived
    sequence: Int[Array, ""]  # turns that have arrived
    next_tick: Int[Array, ""]  # next telemetry tick, relative to `epoch`
    view: Int[Array, "v m"]  # the routers' delayed view: rows of `arrivals.live_view`
    locked: Int[Array, ""]  # instance whose event is under way, -1 = none
    phase: Int[Array, ""]
    passed: Int[Array, ""]  # last instance whose event at `now` was taken, -1 = none (runs: whose step ends are past)
    budget: Int[Array, ""]  # tokens left in the schedule() call under way
    preempted: Int[Array, ""]  # 1: this call preempted under memory pressure
    admitted: Int[Array, ""]  # requests this call admitted
    was_idle: Int[Array, ""]  # 1: nothing ran when the call began
    threshold: Int[Array, ""]  # long-prefill cap of this call
    cursor: Int[Array, ""]  # ordered budget: admission number up to which the running pass has come
    pending: Int[Array, ""]  # ordered budget: tokens of the request being tried, 0 = none
    stalled: Int[Array, ""]  # micro-steps since the clock moved
    churned: Int[Array, ""]  # preemptions since a token came out or a request left
    flags: Int[Array, ""]
    metrics: Metrics
    record: Record
    kv: Any = None  # the prefix cache, see sim/kv; None = off
    routing: Any = None  # memory of a cache-aware router (sim/routing.py); None: the router has none
    learned: Any = None  # what the retention policy has learned; None = nothing to learn
    lengths: Any = None  # output lengths seen, a window per instance (sim/admit.py); None = admission does not ask
    late: Any = None  # [m, s] 1: a gap between its tokens was beyond its class's limit; None = no class has one
    service: Any = None  # attained service (sim/service.py); None = the order does not ask
    fair: Any = None  # `FairState`: accounts of the tenants (sim/fair.py); None = the order does not ask
    ledger: Any = None  # `LedgerState`: service of the tenants, measured (sim/ledger.py); None = not asked for
    tiers: TierState | None = None  # host memory and the remote pool, see sim/tiers.py; None = off
    quality: Any = None  # `Quality` of KV compression: ratios and losses (sim/compress.py); None = off
    rounds: Any = None  # `RoundState`: rounds of rollouts, see sim/rounds.py; None = programs arrive by their times
    fired: Int[Array, "n 3"] | None = None  # graphs: what has happened of what each row needs, see sim/graph.py
    speculation: Any = None  # `SpecState` (sim/speculate.py); None = nobody speculates
    semantic: SemanticState | None = None  # answers kept in front (sim/semantic.py); None = no such cache


#: Values of an empty slot: harmless in every whole-row expression.
EMPTY_SLOT = dict(computed=0, known=0, goal=1, prompt=0, order=EMPTY, chunk=0, last=-1, aux=0)

QUEUE_WIDTH_SESSIONS = 6  # entry, sequence, arrival (epoch, us), program arrival (epoch, us)


def _nothing_learned(static: SimStatic) -> Any:
    head = static.scheduler.retain
    return head.start(static.num_tools) if static.retains and head is not None and head.start is not None else None


def _no_lengths(static: SimStatic, params: SimParams) -> Any:
    head = static.scheduler.admit
    return None if head is None or head.start is None else head.start(params.scheduler.admit, static.num_instances)


def _nobody_served(static: SimStatic, num_requests: int) -> Any:
    if static.scheduler.service is None:
        return None
    return init_service(static.num_instances, static.num_slots, num_requests if static.num_paused else 1)


def _nothing_owed(static: SimStatic) -> FairState | None:
    rule = static.scheduler.fair
    return None if rule is None else init_fair(rule, static.num_instances, static.num_slots, static.num_classes)


def _first_round(static: SimStatic, params: SimParams) -> RoundState | None:
    if not static.rounds:
        return None
    zero: Array = jnp.int32(0)
    seen = jnp.zeros(static.num_instances, jnp.int32)
    released = jnp.asarray(params.rounds.in_flight, jnp.int32)
    return RoundState(number=zero, settled=zero, released=released, epoch=zero, us=zero, seen=seen, stopped=zero)


def _no_answers(static: SimStatic, params: SimParams) -> SemanticState | None:
    if not static.semantic:
        return None
    return init_semantic(params.semantic, static.num_classes, static.semantic_entries)


def _nothing_drafted(static: SimStatic) -> Any:
    from jaxsched.sim.speculate import init_speculation  # it works on this state

    return init_speculation(static)


def init_state(static: SimStatic, params: SimParams, num_requests: int) -> State:
    """An empty cluster at time 0."""
    m, s, k = static.num_instances, static.num_slots, static.run_steps
    zeros = lambda *shape: jnp.zeros(shape, jnp.int32)
    full = lambda value, *shape: jnp.full(shape, value, jnp.int32)
    n = num_requests if static.record else 0
    return State(
        epoch=zeros(),
        now=zeros(),
        next_event=full(NEVER_US, m),
        run_ends=full(NEVER_US, m, k),
        run_used=zeros(m, k if static.route_by_blocks or static.keeps_run_blocks else 0),
        slots=jnp.stack([full(EMPTY_SLOT[name], m, s) for name in Slots.__dataclass_fields__], axis=1),
        request=zeros(m, s, len(Col)),
        pending_writes=PendingWrites(
            instance=full(m, max_column_writes(static)),
            slot=zeros(max_column_writes(static)),
            values=zeros(max_column_writes(static), len(Col)),
            joined=full(m),
            change=zeros(NUM_SCALARS),
            event=full(m),
            scalars=zeros(NUM_SCALARS),
        ),
        instance=zeros(NUM_SCALARS, m).at[0].set(params.usable_blocks),
        queue=zeros(m, static.queue_capacity, QUEUE_WIDTH_SESSIONS if static.num_paused else 1),
        paused=init_paused(static.num_paused),
        arrivals=zeros(),
        sequence=zeros(),
        next_tick=jnp.asarray(params.view_delay_us, jnp.int32) if static.delayed_view else full(NEVER_US),
        view=zeros(7 if static.route_by_cache == "cache" else 5, m),
        locked=full(-1),
        phase=zeros(),
        passed=full(-1),
        budget=zeros(),
        preempted=zeros(),
        admitted=zeros(),
        was_idle=zeros(),
        threshold=zeros(),
        cursor=zeros(),
        pending=zeros(),
        stalled=zeros(),
        churned=zeros(),
        flags=zeros(),
        metrics=Metrics(
            histograms=zeros(static.num_classes * len(Hist) * NUM_BINS if static.histograms else 0),
            counts=zeros(len(Count)),
            counts_high=zeros(len(Count)),
            class_finished=zeros(static.num_classes),
            class_good=zeros(static.num_classes),
            area=jnp.zeros((2, 2), jnp.float32),
        ),
        record=Record(
            fate=zeros(n),
            instance=full(-1, n),
            arrival=full(-1, n, 2),
            first_scheduled=full(-1, n, 2),
            first_token=full(-1, n, 2),
            finish=full(-1, n, 2),
            preemptions=zeros(n),
            scheduled_tokens=zeros(n),
            cached_first=zeros(n),
            cached_total=zeros(n),
        ),
        kv=init_cache(static, params),
        routing=init_routing(static, params, num_requests),
        learned=_nothing_learned(static),
        lengths=_no_lengths(static, params),
        late=zeros(m, s) if static.gap_limits else None,
        service=_nobody_served(static, num_requests),
        fair=_nothing_owed(static),
        ledger=init_ledger(static.num_classes) if static.tenants else None,
        tiers=init_tiers(static),
        quality=init_quality(m, s) if static.scheduler.compress is not None else None,
        rounds=_first_round(static, params),
        fired=zeros(num_requests, 3) if static.graphs else None,
        speculation=_nothing_drafted(static),
        semantic=_no_answers(static, params),
    )
