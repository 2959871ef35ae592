"""Inputs and outputs of the reference: dataclasses of Python integers. Times are absolute integer microseconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.oracle.tiers import TierConfig

Token = tuple[Any, int]  # (stream, offset): two tokens are the same token iff the pairs are equal
StepLog = dict[str, Any]  # one line of a recording's steps.jsonl
Uniform = Callable[[int, int], int]  # (request row, draw number) -> a non-negative integer

Kind = Literal["vllm", "sarathi", "vllm-v0", "orca", "static"]
Order = Literal[
    "fcfs", "priority", "sjf", "srpt", "mlfq", "ewsjf", "arrival", "pfcfs", "continuum", "fastswitch", "plas", "atlas",
    "srpt_program", "edd", "edf", "mdd", "slack", "atc", "vtc", "vtc-predict", "wfq", "drr", "aios-rr",
]  # fmt: skip
Retention = Literal["", "static_ttl", "preserve", "clair", "belady"]
Router = Literal[
    "round_robin", "random", "least_outstanding", "least_kv", "power_of_two", "least_work", "program_sticky",
    "sglang", "preble_e2", "conductor", "dynamo_kv", "llmd_score",
]  # fmt: skip
Fate = Literal[
    "finished", "unfinished", "rejected_size", "rejected_queue", "rejected_late", "timed_out", "never_arrived",
    "answered",
]  # fmt: skip


@dataclass(frozen=True)
class EngineConfig:
    """One engine. `order`, `asynchronous`, thresholds and caching concern kind "vllm" only (docs/semantics.md)."""

    usable_blocks: int  # vLLM: num_gpu_blocks - 1 (the null block)
    kind: Kind = "vllm"
    order: Order = "fcfs"
    asynchronous: bool = False
    token_budget: int = 2048
    max_num_seqs: int = 128
    long_prefill_threshold: int = 0  # 0 = off
    adaptive: bool = False
    chunked_prefill: bool = True
    watermark_blocks: int = 0  # vllm: only while something runs; vllm-v0 and sarathi: always; orca and static: never
    reserve_full_isl: bool = True
    block_size: int = 16
    max_model_len: int = 32768  # what orca and static reserve per request
    max_queue: int = 0  # 0 = unlimited
    timeouts_us: tuple[int, ...] = ()  # per class, 0 = none; classes beyond the tuple have none
    mlfq_quantum: int = 256
    mlfq_levels: int = 4
    ewsjf_step: int = 256
    ewsjf_num_queues: int = 8
    ewsjf_w: float = 1.0
    switch_update_us: int = 1_000_000  # of fastswitch: how often priorities are drawn
    loaded_first: bool = True  # fastswitch: who has been swapped in goes before all
    prefix_caching: bool = False
    retention: Retention = ""  # time to live of a paused program's context (needs prefix caching)
    ttl_us: int = 0  # of static_ttl
    clair_price: float = 0.01
    gate_fraction: float = 0.0  # of the pool; 0 = no gate
    gate_final: bool = False  # contexts count as large as they will grow
    admission: Literal["", "past_future", "conservative", "headroom", "aios"] = ""
    max_output: int = 4096  # longest output that both reckon with
    reserved: float = 0.05  # past_future
    overcommit: float = 1.0  # conservative
    headroom_tokens: int = 0  # headroom: kept free beside a request that is more important
    open_tokens: int = 32  # aios: outputs of a running request from which on nobody joins the batch
    history: int = 200  # past_future: output lengths remembered
    weights: tuple[float, ...] = (1.0, 1.0)  # of the tenants, by class
    drr_quantum: int = 1024  # weighted tokens
    slice_us: int = 1_000_000  # of aios-rr
    quantum_us: int = 1_000_000  # plas and atlas: service that the first level covers
    num_levels: int = 10
    starvation_ratio: int = 10  # 0 = nobody is promoted
    preempts: bool = True
    pinned_first: int = 1  # 0: no; 1: inside a level; 2: before all levels
    limits_us: tuple[tuple[int, int, int], ...] = ()  # per class: time to first token, per output token, end to end
    prompt_us: int = 80  # predicted time of a request alone, per token
    output_us: int = 20_000
    lookahead_tenths: int = 20  # of atc
    rejects_late: bool = False
    compress: Literal["", "fixed", "pressure"] = ""  # KV compression; shares in 1,024ths
    keep_ratio: int = 1024
    pressure: tuple[int, int] = (717, 973)  # of the pool: nothing goes below, the ratio holds above
    min_kept: int = 64
    evict_window: int = 0
    tiers: TierConfig | None = None  # host memory and a remote pool for contexts
    speculation: Any = None  # `speculation.Speculation`: tokens are drafted
    semantic: Any = None  # `semantic.SemanticConfig`: a cache of answers in front of the cluster

    def __post_init__(self) -> None:
        if (self.retention or self.gate_fraction) and not self.prefix_caching:
            raise ValueError("retention and the gate need the prefix cache")
        if self.tiers is not None and (not self.prefix_caching or self.asynchronous or self.order == "fcfs"):
            raise ValueError("memory tiers need the prefix cache, an ordered queue and synchronous stepping")
        if self.kind != "vllm" and (self.asynchronous or self.prefix_caching or self.order != "fcfs"):
            raise ValueError(f"kind {self.kind!r} is synchronous, fcfs and without a prefix cache")


@dataclass(frozen=True)
class RouterConfig:
    """How arrivals are spread; `delay_us` = D, 0 = routers see the live state; `seed` feeds the default `uniform`.

    `cache_delay_us`: the same for what they see of the prefix caches. `params`: of a cache-aware router, by name.
    """

    kind: Router = "round_robin"
    delay_us: int = 0
    seed: int = 0
    cache_delay_us: int = 0
    params: dict[str, float] = field(default_factory=dict)


@dataclass
class Workload:
    """The columns of `jaxsched.sim.requests.Requests` as lists, with absolute times.

    Rows ``[0, num_programs)`` are first turns in arrival order; the arrival of later turns is not read.
    `prompt_content` and `output_stream` say what the tokens are, for the prefix cache only; absent: all unique.
    """

    num_programs: int
    arrival_us: list[int]
    prompt_tokens: list[int]
    output_tokens: list[int]
    predicted_tokens: list[int]
    klass: list[int]
    priority: list[int]
    next_turn: list[int]  # -1 = last turn
    pause_us: list[int]  # of a later turn: from the previous turn's finish to this arrival
    prompt_content: list[list[Token]] | None = None
    output_stream: list[Any] | None = None  # the k-th output token of row i is (output_stream[i], k)
    #: The same content as `Requests` says it by formula. The reference reads it for retention only: what a program's
    #: own context is, and whether its next turn goes on with it.
    chain: list[int] | None = None
    group: list[int] | None = None
    group_tokens: list[int] | None = None

    #: Programs that are graphs: per row, the (row, "finish" or "arrival", pause) that it waits for; `next_turn` then
    #: only lists the turns of a program and `pause_us` is not read. And its earliest arrival after the program's.
    waits: list[list[tuple[int, str, int]]] | None = None
    not_before: list[int] | None = None

    #: Rounds of rollouts: programs that end one, programs in the system when one begins, us between two. Arrival times
    #: are then not read.
    rounds: tuple[int, int, int] | None = None

    #: What bounds know of each turn: work left of its program, work to compute its history again, largest context.
    remaining_us: list[int] | None = None
    history_us: list[int] | None = None
    final_tokens: list[int] | None = None

    @staticmethod
    def simple(arrival_us: list[int], prompt_tokens: list[int], output_tokens: list[int], **columns: Any) -> Workload:
        """One-turn programs of class and priority 0 with exact predictions, unless a column is given."""
        num = len(arrival_us)
        defaults: dict[str, Any] = {
            "num_programs": num,
            "predicted_tokens": list(output_tokens),
            "klass": [0] * num,
            "priority": [0] * num,
            "next_turn": [-1] * num,
            "pause_us": [0] * num,
        }
        return Workload(
            arrival_us=arrival_us, prompt_tokens=prompt_tokens, output_tokens=output_tokens, **(defaults | columns)
        )


@dataclass(frozen=True)
class StepFeatures:
    """What a step-time model sees. `before` = tokens computed before the step, `n` = scheduled in it."""

    total_tokens: int  # sum n
    ctx: int  # sum before + n
    num_decode: int  # rows with n == 1 and before > 0, so also a last chunk of one token
    decode_ctx: int  # sum before + 1 of those
    num_prefill: int  # all other rows
    prefill_tokens: int
    prefill_ctx: int  # sum before + n of the prefill rows
    quad: int  # sum n * ((2 * before + n) >> 6) of the prefill rows


StepTime = Callable[[StepFeatures], int]


@dataclass
class Record:
    """One row's life; -1 = it did not happen. `instance` is where it was routed, also when rejected there."""

    row: int
    instance: int = -1
    arrival_us: int = -1
    first_scheduled_us: int = -1  # the schedule() call that first admitted it
    first_token_us: int = -1
    finish_us: int = -1
    preemptions: int = 0
    scheduled_tokens_total: int = 0  # recomputation included, refunded tokens not
    cached_tokens_first: int = 0  # prefix-cache hit at the first admission
    cached_tokens_total: int = 0
    fate: Fate = "never_arrived"


@dataclass(eq=False)
class Request:
    """A turn that has arrived. `sequence` counts the arrivals that joined a queue, cluster-wide."""

    row: int
    prompt_tokens: int
    output_tokens: int
    predicted_tokens: int
    klass: int
    priority: int
    arrival_us: int
    sequence: int
    record: Record
    content: list[Token]  # the prompt's tokens, then the outputs delivered (empty without prefix caching)
    output_stream: Any
    program: int = -1  # row of the program's first turn
    owner: int = -1  # whose context its blocks are: the program; in a graph the row at which its chain began
    next_on_chain: int = -1  # row of the next turn if that goes on with this one's content
    next_pause_us: int = 0  # the pause before it: for `clair` only
    remaining_us: int = 0  # for bounds only, as `Workload` has them
    history_us: int = 0
    final_tokens: int = 0
    next_final_tokens: int = 0  # ... of the next turn on the chain
    chain: int = -1  # identity of the turn's own content
    shared_blocks: int = 0  # full blocks of the prefix shared with other programs: not the program's own
    next_prompt: list[Token] = field(default_factory=list)  # the next turn's, if it goes on with this one's content
    computed: int = 0  # tokens whose KV exists or is scheduled
    delivered: int = 0  # output tokens processed
    in_flight: int = 0  # output tokens of steps that have been scheduled and not yet processed
    discarded: int = 0  # computed tokens lost to preemptions
    is_running: bool = False
    service: Any = None  # of plas and atlas: `attained.Service`
    accounts: Any = None  # of the instance: `fairness.Accounts`
    dropped: int = 0  # KV compression: tokens of `computed` that are gone, and the ratio since the last prefill
    kept_ratio: int = 0
    block_hashes: list[int] = field(default_factory=list)  # of the full blocks known so far (prefix caching)

    @property
    def gen(self) -> int:
        """Output tokens as schedule() counts them: those in flight included."""
        return self.delivered + self.in_flight

    @property
    def num_tokens(self) -> int:
        return self.prompt_tokens + self.gen

    @property
    def wanted(self) -> int:
        """Tokens left to schedule; none once the token in flight is the last."""
        return 0 if self.gen == self.output_tokens else self.num_tokens - self.computed

    @property
    def is_new_program(self) -> bool:
        """A first turn that has not been preempted: what the gate may keep waiting."""
        return self.row == self.program and self.record.preemptions == 0

    @property
    def is_over(self) -> bool:
        return self.record.fate != "unfinished"
