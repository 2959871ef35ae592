"""Sizes and switches that fix the compiled program (hashable), as opposed to parameters, which are traced arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax

from jaxsched.sim.admit import AdmitHead
from jaxsched.sim.compress import CompressHead
from jaxsched.sim.fair import FairRule
from jaxsched.sim.retain import OffloadRule, RetainHead
from jaxsched.sim.service import ServiceRule
from jaxsched.sim.views import QueueView, RouterView

#: order head: (parameters, view of one row) -> int32 key per slot, the smallest runs next,
#: ties in arrival order.
OrderHead = Callable[[jax.Array, QueueView], jax.Array]
#: gate head: (weights, view of one row) -> float32 per slot, a factor of `gate_fraction`; the same while a turn waits.
GateHead = Callable[[jax.Array, QueueView], jax.Array]
#: refusal head: (weights, view of one row) -> who is refused if considered now; those who have begun never are.
RefuseHead = Callable[[jax.Array, QueueView], jax.Array]
#: victim head: (its parameters, program of each slot's request) -> int32 per slot; the smallest is preempted first.
VictimHead = Callable[[jax.Array, jax.Array], jax.Array]
#: route head: (view of the cluster) -> index of the instance.
RouteHead = Callable[[RouterView], jax.Array]

FAMILIES = ("v1", "sarathi", "v0", "orca", "static")
CACHES = ("none", "blocks", "runs")
#: Nothing, what the instances hold (sim/kv/seen.py), or what the router remembers to have sent (sim/sent.py).
CACHE_VIEWS = ("none", "cache", "record")


@dataclasses.dataclass(frozen=True)
class SchedulerSpec:
    """The parts of a scheduler that change the program. Semantics: docs/semantics.md, sections 3, 4 and 6."""

    name: str = dataclasses.field(compare=False)  # for messages: equal rules are one compiled program
    family: str = "v1"  # one of FAMILIES: which schedule() is compiled
    order: OrderHead | None = None  # None: FCFS deque (arrivals at the back, preempted at the front)
    static_keys: bool = True  # keys of waiting requests cannot change while they wait
    preemptive: bool = False  # a waiting request with a smaller key may displace a running one
    priority_victims: bool = False  # memory pressure evicts the least important request, not the last admitted
    victim: VictimHead | None = None  # ... or this head's choice, of equal ones the last admitted (V1 family)
    asynchronous: bool = False  # one step ahead: schedule step k+1 when step k starts
    retain: RetainHead | None = None  # pins the KV of paused programs; None: least recently released (vLLM)
    gate: bool = False  # new programs enter only while the contexts of begun ones leave room
    gate_share: GateHead | None = None  # ... which is another one for each program; None: `gate_fraction` for all
    gate_final: bool = False  # ... counted as large as they will grow: a bound
    foresees: bool = False  # a bound: reads `Requests.foresight`
    admit: AdmitHead | None = None  # a memory test at admission beyond the engine's own (V1 family)
    due: bool = False  # reads due dates and predicted work (`DueView`)
    rejects_late: bool = False  # refuses who can no longer meet the limits of its class
    refuse: RefuseHead | None = None  # ... by a learned estimate; None: `due.too_late`
    service: ServiceRule | None = None  # keeps how long calls and programs were served, for the order
    fair: FairRule | None = None  # keeps an account of the tenants' service, for the order
    offload: OffloadRule | None = None  # contexts are copied to host memory; None: the tiers below HBM are not used
    compress: CompressHead | None = None  # KV is evicted after the prefill (sim/compress.py); None: none ever is
    speculates: bool = False  # tokens are drafted and verified (sim/speculate.py)

    @property
    def stops_for_rounds(self) -> bool:
        """Whether the end of a round (sim/rounds.py) can stop it: a synchronous V1 engine that keeps no accounts."""
        keeps = (self.retain, self.service, self.fair, self.offload)
        waits = self.asynchronous or self.gate or self.speculates
        return self.family == "v1" and not waits and all(kept is None for kept in keeps)

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"unknown scheduler family {self.family!r}, expected one of {FAMILIES}")
        if self.gate_final and not (self.gate and self.foresees):
            raise ValueError("a gate on final contexts is a gate, and foresees")
        if self.victim is not None and (self.priority_victims or self.family != "v1"):
            raise ValueError("a victim head needs a V1 engine without priority victims")
        if self.admit is not None and (self.family != "v1" or self.asynchronous):
            raise ValueError("admission heads need a synchronous V1 engine")
        if self.rejects_late and (self.order is None or self.asynchronous or not self.due):
            raise ValueError("early rejection needs an ordered queue, a synchronous engine and due dates")
        if self.refuse is not None and not self.rejects_late:
            raise ValueError("a refusal head needs rejects_late")
        if self.service is not None and (self.order is None or self.asynchronous):
            raise ValueError("attained service needs an ordered queue and a synchronous engine")
        if self.compress is not None and (self.family != "v1" or self.asynchronous):
            raise ValueError("KV compression needs a synchronous V1 engine")
        if self.fair is not None and (self.order is None or self.asynchronous or self.family != "v1"):
            raise ValueError("accounts of tenants need an ordered queue and a synchronous V1 engine")
        if self.speculates and (self.family != "v1" or self.asynchronous or self.admit or self.offload):
            raise ValueError("speculation needs a synchronous V1 engine without an admission head and memory tiers")
        if self.speculates and self.compress is not None:
            raise ValueError("speculation and KV compression: both keep their own count of a request's blocks")


@dataclasses.dataclass(frozen=True)
class SimStatic:
    """Everything that fixes array shapes and the compiled program."""

    scheduler: SchedulerSpec
    route: RouteHead
    num_instances: int
    num_slots: int  # requests an instance can hold besides its FIFO queue: running, preempted, and (ordered) candidates
    max_slots: int | None = None  # slots of a full row, where rows begin shorter (FCFS); None: `num_slots` are all
    queue_capacity: int = 1024  # FIFO entries per instance; a power of two
    max_run_steps: int = 32  # longest run of decode steps taken as one event; 1 = step by step
    block_size: int = 16  # tokens per KV block
    num_paused: int = 0  # paused programs a lane can hold; 0 = every program has one turn
    graphs: bool = False  # programs may be graphs of turns (`Requests.edges`); False = chains
    rounds: bool = False  # programs are released in rounds (sim/rounds.py), not by their arrival times
    num_classes: int = 1
    tenants: bool = False  # classes are tenants whose service is measured (sim/ledger.py)
    ordered_budget: bool = False  # the token budget can run out inside the running list: general, slower running pass
    prefix_cache: str = "none"  # representation of the prefix cache: one of CACHES (V1 family only)
    cache_entries: int = 0  # blocks: the largest pool; runs: idle runs that an instance can hold
    tier_entries: int = 0  # copies that an instance's host memory can hold; 0 = `cache_entries`
    max_blocks: int = 0  # full blocks of the longest turn
    group_prefixes: bool = True  # runs: some turns may begin with a shared prefix of a block or more
    num_tools: int = 1  # kinds of pauses, for retention policies that tell them apart
    host_tier: bool = False  # instances have host memory for contexts (used if the scheduler offloads)
    remote_tier: bool = False  # ... and a pool behind it that all share
    semantic: bool = False  # a cache of answers stands in front of the cluster (sim/semantic.py)
    semantic_entries: int = 0  # ... answers of a class that it can keep
    timeouts: bool = False  # some class has a timeout
    gap_limits: bool = False  # some class limits every single gap between tokens
    delayed_view: bool = False  # routers see the state of the last telemetry tick
    route_by_blocks: bool = False  # the router reads KV use: kept per step of a run, and of waiting prompts
    route_by_work: bool = False  # the router reads predicted work
    route_by_cache: str = "none"  # what the router knows of the prefix caches: one of CACHE_VIEWS
    route_by_window: bool = False  # ... and it reads what it sent in the last minutes (only with the view "cache")
    delayed_cache: bool = False  # the view "cache" is that of the last cache tick
    record_entries: int = 0  # of the view "record": chains and groups, or block ids, that the workload has
    record: bool = False  # keep every request's life in the state
    histograms: bool = True  # keep histograms of times in the state (False: environments, which read counters only)
    trace: bool = False  # emit every step's decisions (needs max_run_steps = 1)
    dense: bool = True  # a micro-step does what it can at once (False: environments, where it is a unit of decisions)
    stall_limit: int = 4096  # micro-steps at one instant, or preemptions without a token, that stop the lane (LIVELOCK)

    def __post_init__(self) -> None:
        if self.queue_capacity & (self.queue_capacity - 1):
            raise ValueError(f"queue_capacity must be a power of two, got {self.queue_capacity}")
        if self.graphs and not self.num_paused:
            raise ValueError("graphs need num_paused > 0: the turns that wait for their pause")
        if self.rounds and not (self.num_paused and self.scheduler.stops_for_rounds):
            raise ValueError("rounds need num_paused > 0 and a scheduler that can stop for them")
        if self.semantic and self.num_paused:
            raise ValueError("the semantic cache answers programs of one turn")
        if self.trace and self.max_run_steps != 1:
            raise ValueError("trace needs max_run_steps = 1")
        if self.prefix_cache not in CACHES:
            raise ValueError(f"unknown prefix cache {self.prefix_cache!r}, expected one of {CACHES}")
        if self.route_by_cache not in CACHE_VIEWS:
            raise ValueError(f"unknown cache view {self.route_by_cache!r}, expected one of {CACHE_VIEWS}")
        if self.prefix_cache != "none" and self.scheduler.compress is not None:
            raise ValueError("compressed KV cannot be found again: no prefix cache")
        if self.prefix_cache != "none" and self.scheduler.family != "v1":
            raise ValueError(f"the {self.scheduler.family} engines have no prefix cache")
        if (self.scheduler.retain or self.scheduler.gate) and self.prefix_cache == "blocks":
            raise ValueError("retention policies and the gate need chains of runs (prefix_cache = runs)")
        if self.remote_tier and not self.host_tier:
            raise ValueError("the remote pool is reached through host memory")
        if self.tiered and self.ranks:
            raise ValueError("an eviction order of contexts goes without memory tiers")
        if self.tiered and (self.scheduler.order is None or self.scheduler.asynchronous):
            raise ValueError("memory tiers need an ordered queue and synchronous stepping")

    @property
    def tiered(self) -> bool:
        """Whether contexts move between HBM and host memory."""
        return self.scheduler.offload is not None and self.host_tier and self.prefix_cache == "runs"

    @property
    def host_entries(self) -> int:
        """Copies that an instance's host memory can hold."""
        return self.tier_entries or self.cache_entries

    @property
    def prefetches(self) -> bool:
        """Whether contexts are loaded before their programs are expected back."""
        return self.tiered and self.scheduler.offload is not None and self.scheduler.offload.returns_in is not None

    @property
    def pins(self) -> bool:
        """Whether contexts can be pinned: by retention, or because they have just been loaded."""
        return self.retains or self.tiered

    @property
    def retains(self) -> bool:
        """Whether KV of paused programs can be pinned."""
        return self.scheduler.retain is not None and self.prefix_cache == "runs"

    @property
    def pins_prefixes(self) -> bool:
        """Whether what is pinned may include the shared prefix below a context."""
        return self.pins and self.group_prefixes

    @property
    def ranks(self) -> bool:
        """Whether contexts of paused programs are evicted in an order of the retention rule's own."""
        return self.retains and self.scheduler.retain is not None and self.scheduler.retain.value is not None

    @property
    def gated(self) -> bool:
        """Whether new programs pass a gate."""
        return self.scheduler.gate and self.prefix_cache == "runs"

    @property
    def full_slots(self) -> int:
        """Slots with which the lack of one never decides anything, whatever this program has."""
        return self.max_slots or self.num_slots

    def with_slots(self, num_slots: int) -> SimStatic:
        """The same cluster with rows of another length, at most full; full rows are one program however they came."""
        full = self.full_slots
        if num_slots >= full:
            return dataclasses.replace(self, num_slots=full, max_slots=None)
        return dataclasses.replace(self, num_slots=num_slots, max_slots=full)

    @property
    def reserves_blocks(self) -> bool:
        """Whether requests can hold more blocks than their tokens need: reserved at admission, or ahead of drafts."""
        return self.scheduler.family != "v1" or self.scheduler.speculates

    @property
    def mixed_runs(self) -> bool:
        """Whether a run of steps may begin with one that finishes prompts (compression evicts after it)."""
        same = self.scheduler.family in ("v1", "sarathi") and self.scheduler.compress is None
        return self.dense and same and self.run_steps > 1

    @property
    def chunk_runs(self) -> bool:
        """Whether a run of steps may compute a prompt chunk by chunk (routers that look into runs see only decodes)."""
        looks = self.keeps_run_blocks or self.route_by_cache == "cache"
        return self.mixed_runs and not (self.ordered_budget or looks)

    @property
    def keeps_run_blocks(self) -> bool:
        """Whether KV use is kept for each step of a run."""
        return (self.route_by_blocks or self.route_by_cache == "cache") and self.run_steps > 1

    @property
    def run_steps(self) -> int:
        """Longest run compiled: asynchronous stepping and speculation decide every step on its own."""
        return 1 if self.scheduler.asynchronous or self.scheduler.speculates else self.max_run_steps
