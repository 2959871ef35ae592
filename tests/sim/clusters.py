"""Random small clusters and workloads, for the machine and the plain-Python reference alike.

All lanes of a `Variant` share shapes and switches, so that each variant is one compiled program; everything else
differs from lane to lane. A share of the lanes lives on a lattice: steps, arrivals, pauses, timeouts and ticks are
multiples of the same number of microseconds, so that events coincide all the time and their order matters.
"""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsched import policies
from jaxsched.policies.base import Policy
from jaxsched.policies.past_future import past_future_head
from jaxsched.sim.build import make_params as make_sim_params
from jaxsched.sim.build import make_static
from jaxsched.sim.fair import tenant_params
from jaxsched.sim.params import SimParams
from jaxsched.sim.requests import Requests
from jaxsched.sim.retain import FOREVER_US, OffloadRule, PauseView
from jaxsched.sim.static import SimStatic
from jaxsched.timing.step_time import NUM_SEGMENTS, StepTimeParams, affine, make_params
from tests.oracle.data import EngineConfig, Kind, Order, RouterConfig, StepFeatures, StepTime, Workload
from tests.oracle.fairness import ORDERS
from tests.oracle.tiers import TierConfig
from tests.sim.graphs import random_forks, random_graphs, random_lines
from tests.sim.harness import to_requests
from tests.sim.semantic_lanes import ENTRIES, random_semantic
from tests.sim.semantic_lanes import to_machine as semantic_params
from tests.sim.spec_lanes import random_speculation, to_machine
from tests.sim.tier_lanes import random_tiers, tier_params

LATTICE_US = 1000
#: The reference's (kind, order, asynchronous) of each scheduler.
ENGINES: dict[str, tuple[Kind, Order, bool]] = {
    "vllm": ("vllm", "fcfs", False),
    "vllm-async": ("vllm", "fcfs", True),
    "vllm-priority": ("vllm", "priority", False),
    "vllm-v0": ("vllm-v0", "fcfs", False),
    "sarathi": ("sarathi", "fcfs", False),
    "orca": ("orca", "fcfs", False),
    "static": ("static", "fcfs", False),
    "sjf": ("vllm", "sjf", False),
    "srpt": ("vllm", "srpt", False),
    "mlfq": ("vllm", "mlfq", False),
    "ewsjf": ("vllm", "ewsjf", False),
    "pfcfs": ("vllm", "pfcfs", False),
    "continuum": ("vllm", "continuum", False),
    "plas": ("vllm", "plas", False),
    "atlas": ("vllm", "atlas", False),
    "fastswitch": ("vllm", "fastswitch", False),
    "srpt_program": ("vllm", "srpt_program", False),
    "vtc": ("vllm", "vtc", False),
    "vtc-predict": ("vllm", "vtc-predict", False),
    "wfq": ("vllm", "wfq", False),
    "drr": ("vllm", "drr", False),
    "aios-rr": ("vllm", "aios-rr", False),
    **{name: ("vllm", name, False) for name in ("edd", "edf", "mdd", "slack", "atc")},
}
#: The reference's `admission` and engine by name of the scheduler.
ADMISSIONS = {
    "past_future": ("past_future", "vllm"),
    "conservative": ("conservative", "vllm"),
    "priority-headroom": ("headroom", "vllm-priority"),
    "aios-fifo": ("aios", "vllm"),
}
#: Parameters of the order heads, as `EngineConfig` names them and as the policies do.
ORDER_CONFIG: dict[str, Any] = {
    "mlfq_quantum": 64, "mlfq_levels": 5, "ewsjf_step": 100, "ewsjf_num_queues": 5, "ewsjf_w": 0.5,
    "switch_update_us": 50_000,
}  # fmt: skip
ORDER_PARAMS: dict[str, dict[str, int]] = {
    "mlfq": {"quantum_tokens": 64, "num_levels": 5},
    "ewsjf": {"step_tokens": 100, "num_queues": 5, "weight_milli": 500},
    "fastswitch": {"update_ms": 50},
}
#: A step-time model with every term in use, a lattice, and two plain ones.
TIMINGS: tuple[StepTimeParams, ...] = (
    affine(LATTICE_US, 0, 0),
    affine(8000, 60, 40),
    affine(3000, 10, 900),
    make_params(
        base_us=4000, token_start=[0, 24, 100], token_slope=[2048, 9000, 4321], token_tile=70_001, prefill_row=9999,
        decode_row=7777, prefill_token=1234, quad=(3, 700), ctx=(7, 600), prefill_in_ctx=0,
    ),
)  # fmt: skip
#: Output lengths that Past-Future remembers: few, so that what it has learned soon counts.
HISTORY = 8
#: Time to first token, time per output token, end to end: of both classes.
SLOS_US = ((50_000, 400_000), (12_000, 30_000), (400_000, 2_000_000))
#: Longest gap between two tokens of both classes, where a variant limits it.
GAPS_US = (6_000, 12_000)
MEASURED_FROM = 1


@dataclasses.dataclass(frozen=True)
class Size:
    """How large the clusters of a variant are."""

    num_instances: int
    max_num_seqs: int
    num_rows: int  # of the table of turns
    max_prompt: int
    max_output: int
    usable_tokens: tuple[int, ...]  # size of an instance's KV pool, in tokens


MEDIUM = Size(3, 16, 64, 500, 160, (520, 600, 900, 6000))
SMALL = Size(2, 8, 16, 120, 24, (160, 200, 300, 2000))
#: Contexts of some programs fill a pool.
RETENTION = Size(2, 8, 32, 100, 80, (190, 240, 300, 500))


@dataclasses.dataclass(frozen=True)
class Variant:
    """What fixes the compiled program."""

    scheduler: str  # of ENGINES, with a retention rule or "gate" added by "+"
    router: str = "least_outstanding"
    block_size: int = 16
    turns: bool = False
    timeouts: bool = False
    delay: bool = False
    gaps: bool = False  # classes limit every gap between tokens
    graphs: bool = False  # programs are graphs (needs `turns`)
    thresholds: bool = False  # long-prefill thresholds, and budgets below the number of sequences (V1)
    cache: str = "none"  # representation of the prefix cache
    prefixes: bool = False  # with retention too, many programs begin with a group's prefix
    semantic: bool = False  # a cache of answers in front
    tiers: str = ""  # "host", or "remote" (host memory and, in some lanes, a remote pool); needs "+offload"
    size: Size = MEDIUM

    @property
    def name(self) -> str:
        switches = ("turns", "graphs", "timeouts", "delay", "thresholds", "gaps", "semantic")
        marks = [mark for mark in switches if getattr(self, mark)]
        marks += [f"cache_{self.cache}"] if self.cache != "none" else []
        marks += ["prefixes"] if self.prefixes else []
        return "-".join([self.scheduler, self.router, f"b{self.block_size}", *marks])

    @property
    def base(self) -> str:
        """The scheduler without retention and gate."""
        return self.scheduler.split("+")[0]

    @property
    def parts(self) -> list[str]:
        """Retention and gate."""
        return [part for part in self.scheduler.split("+")[1:] if part not in policies.SPECULATIONS]

    @property
    def speculates(self) -> bool:
        """Whether tokens are drafted; then by any rule."""
        return self.policy.scheduler.spec.speculates

    @property
    def seed_name(self) -> str:
        """Lanes of both representations of the prefix cache are the same."""
        return self.name.replace("cache_runs", "cache").replace("cache_blocks", "cache")

    @property
    def max_blocks(self) -> int:
        """Blocks of the longest turn that shares content."""
        return (2 * self.size.max_prompt + self.size.max_output) // self.block_size + 1

    @property
    def measured(self) -> range:
        """Programs of the measured cohort."""
        return range(MEASURED_FROM, self.size.num_rows // 2)

    @property
    def policy(self) -> Policy:
        policy = policies.compose(
            self.scheduler, self.router, max_num_seqs=self.size.max_num_seqs, **ORDER_PARAMS.get(self.base, {})
        )
        if "belady" in self.parts:  # with pins in some lanes: the order in which they are broken is its own too
            retain = dataclasses.replace(policy.scheduler.spec.retain, ttl=_first_parameter_ms)
            spec = dataclasses.replace(policy.scheduler.spec, retain=retain)
            policy = dataclasses.replace(policy, scheduler=dataclasses.replace(policy.scheduler, spec=spec))
        if "prefetch" in self.parts:
            # A prediction that differs from lane to lane and that the reference knows: the last retention parameter.
            spec = dataclasses.replace(policy.scheduler.spec, offload=OffloadRule(returns_in=_returns_in))
            policy = dataclasses.replace(policy, scheduler=dataclasses.replace(policy.scheduler, spec=spec))
        if self.base != "past_future":
            return policy
        spec = dataclasses.replace(policy.scheduler.spec, admit=past_future_head(HISTORY))
        return dataclasses.replace(policy, scheduler=dataclasses.replace(policy.scheduler, spec=spec))

    def static(self, max_run_steps: int = 32) -> SimStatic:
        """Slots for every row in ordered queues, so that they are exact."""
        ordered = self.policy.scheduler.spec.order is not None
        rows = self.size.num_rows
        static = make_static(
            self.policy,
            num_instances=self.size.num_instances,
            num_slots=rows if ordered else self.size.max_num_seqs,
            queue_capacity=1 << (2 * rows - 1).bit_length(),
            block_size=self.block_size,
            timeouts=self.timeouts,
            gap_limits=self.gaps,
            delayed_view=self.delay,
            num_paused=rows if self.turns else 0,
            graphs=self.graphs,
            num_classes=2,
            prefix_cache=self.cache,
            usable_blocks=max(self.size.usable_tokens) // self.block_size,
            max_blocks=self.max_blocks if self.cache != "none" else 0,
            max_run_steps=max_run_steps,
            record=True,
            semantic=self.semantic,
            semantic_entries=ENTRIES if self.semantic else 0,
            host_tier=bool(self.tiers),
            remote_tier=self.tiers == "remote",
        )
        return dataclasses.replace(static, ordered_budget=static.ordered_budget or self.thresholds)


@dataclasses.dataclass(frozen=True)
class Lane:
    """One cluster and its workload."""

    workload: Workload
    engine: EngineConfig
    router: RouterConfig
    timing: int  # index into TIMINGS


def random_lane(variant: Variant, seed: int) -> Lane:
    """The lane `seed` of a variant."""
    draw = random.Random(f"{variant.seed_name}/{seed}")
    on_lattice = draw.random() < 0.35
    engine = _random_engine(variant, draw, on_lattice)
    delay_us = draw.choice([3, 17, 60]) * LATTICE_US if variant.delay else 0
    return Lane(
        _random_workload(variant, draw, on_lattice),
        engine,
        RouterConfig(variant.router, delay_us, seed),
        0 if on_lattice else draw.randrange(1, len(TIMINGS)),
    )


def _random_engine(variant: Variant, draw: random.Random, on_lattice: bool) -> EngineConfig:
    kind, order, asynchronous = ENGINES[ADMISSIONS.get(variant.base, ("", variant.base))[1]]
    size = variant.size
    parts = variant.parts
    by_service: dict[str, Any] = {}
    if order == "fastswitch":
        by_service = {"loaded_first": draw.random() < 0.5}
    if order == "srpt_program":
        by_service = {"pinned_first": draw.randrange(2)}
    if order in ("plas", "atlas"):
        by_service = {
            "quantum_us": draw.choice([5, 20, 80]) * 1000,
            "num_levels": draw.choice([2, 4, 10]),
            "starvation_ratio": draw.choice([0, 1, 3]),
            "preempts": draw.random() < 0.7,
            "pinned_first": draw.randrange(3),
        }
    if order in ORDERS:
        by_service = {
            "weights": draw.choice([(1.0, 1.0), (1.0, 2.0), (3.0, 0.5)]),
            "drr_quantum": draw.choice([10, 100, 1000]),
        }
    admission: dict[str, Any] = {}
    if variant.base in ADMISSIONS:
        admission = {
            "admission": ADMISSIONS[variant.base][0],
            "history": HISTORY,
            "max_output": draw.choice([size.max_output, size.max_output // 2]),
            "reserved": draw.choice([0.0, 0.05, 0.25]),
            "overcommit": draw.choice([0.75, 1.0, 1.5]),
            "headroom_tokens": draw.choice([0, 16, 100]),
        }
    if variant.base == "aios-fifo":
        admission["open_tokens"] = draw.choice([1, 4, 16])
    if order == "aios-rr":
        by_service |= {"slice_us": draw.choice([5, 20, 80]) * 1000, "starvation_ratio": 0}
    no_rules = ("gate", "peak", "offload", "prefetch", "early_reject")
    rule = next((part for part in parts if part not in no_rules), "")
    dates: dict[str, Any] = {}
    if variant.policy.scheduler.spec.due:
        dates = {
            "limits_us": tuple(zip(*SLOS_US, strict=True)),
            "prompt_us": draw.choice([0, 60, 2000]),
            "output_us": draw.choice([0, 4000, 20_000]),
            "rejects_late": "early_reject" in parts,
        }
    if parts and order == "fcfs":
        order = "arrival"  # a queue that pins and the gate can look into
    longest = size.max_prompt + size.max_output
    is_v1, whole = kind == "vllm", False
    threshold = 0
    budget = draw.choice([size.max_num_seqs, 4 * size.max_num_seqs, longest, 4 * longest])
    if kind == "vllm-v0":
        budget = draw.choice([longest // 2, longest, 3 * longest])
    elif variant.thresholds:
        budget = draw.choice([size.max_num_seqs // 2, 3 * size.max_num_seqs, longest])
        threshold = draw.choice([0, 5, size.max_prompt // 8])
    elif is_v1 and draw.random() < 0.25:
        whole, budget = True, draw.choice([longest * 2 // 3, 3 * longest])
    drafts: dict[str, Any] = {}
    if variant.speculates:
        speculation = random_speculation(draw, LATTICE_US if on_lattice else 0)
        drafts = {"speculation": speculation}
        if not variant.thresholds:  # decodes and their drafts fit into the budget
            budget = max(budget, size.max_num_seqs * (1 + speculation.most))
    if variant.semantic:
        drafts |= {"semantic": random_semantic(draw, LATTICE_US if on_lattice else 0)}
    return EngineConfig(
        usable_blocks=draw.choice(size.usable_tokens) // variant.block_size,
        kind=kind,
        order=order,
        asynchronous=asynchronous,
        token_budget=budget,
        max_num_seqs=draw.choice([2, size.max_num_seqs // 2, size.max_num_seqs]),
        long_prefill_threshold=threshold,
        adaptive=threshold > 0 and draw.random() < 0.5,
        chunked_prefill=not whole,
        watermark_blocks=draw.choice([0, 0, 3]) if kind not in ("orca", "static") else 0,
        reserve_full_isl=draw.random() < 0.7,
        block_size=variant.block_size,
        max_model_len=draw.choice([longest // 3, longest]),
        prefix_caching=variant.cache != "none",
        max_queue=draw.choice([0, 0, 1, 4]),
        timeouts_us=(0, draw.choice([0, 40, 200, 2000]) * LATTICE_US) if variant.timeouts else (0, 0),
        retention=rule,  # type: ignore[arg-type]
        ttl_us=_ttl_us(rule, draw, "prefetch" in parts),
        clair_price=draw.choice([0.001, 0.003, 0.01]) if rule == "clair" else 0.0,
        gate_fraction=_gate_fraction(parts, draw),
        gate_final="peak" in parts,
        tiers=_random_tiers(variant, draw, on_lattice) if variant.tiers else None,
        **ORDER_CONFIG,
        **by_service,
        **admission,
        **dates,
        **drafts,
    )


def _ttl_us(rule: str, draw: random.Random, prefetch: bool) -> int:
    if rule == "belady":
        return draw.choice([0, 0, 10, 60]) * LATTICE_US
    if rule == "static_ttl" and prefetch:  # mostly short, or nothing is lost in a pause
        return draw.choice([1, 1, 1, 60]) * LATTICE_US
    return draw.choice([1, 10, 60, 250]) * LATTICE_US if rule == "static_ttl" else 0


def _gate_fraction(parts: list[str], draw: random.Random) -> float:
    """All exact in float32."""
    if "peak" in parts:
        return draw.choice([1.0, 2.0, 4.0, 8.0])
    return draw.choice([0.25, 0.5, 0.75, 1.0]) if "gate" in parts else 0.0


def _random_tiers(variant: Variant, draw: random.Random, on_lattice: bool) -> TierConfig:
    pool_blocks = max(variant.size.usable_tokens) // variant.block_size
    tiers = random_tiers(pool_blocks, variant.tiers == "remote", draw, LATTICE_US if on_lattice else 0)
    if "prefetch" not in variant.parts:
        return tiers
    if draw.random() < 0.8:  # contexts are not lost, nor is what is expected
        tiers = dataclasses.replace(
            tiers, host_blocks=draw.choice([pool_blocks // 3, 4 * pool_blocks]), overlap=True, on_pause=True
        )
    return dataclasses.replace(tiers, returns_in_us=draw.choice([-1, 10, 30, 60, 120, 250]) * LATTICE_US)


def _random_workload(variant: Variant, draw: random.Random, on_lattice: bool) -> Workload:
    size, grid = variant.size, LATTICE_US if on_lattice else 1
    share = 4 if variant.graphs else 3 if variant.turns else 2
    num_programs = draw.randint(4, size.num_rows * 2 // share)
    mean_gap_us = draw.choice([1, 4, 10, 60]) * LATTICE_US
    arrival, clock = [], 0
    for _ in range(num_programs):
        if draw.random() < 0.85:  # else at the same time as the one before
            clock += int(draw.expovariate(1 / mean_gap_us)) // grid * grid
        arrival.append(clock)

    def length(longest: int) -> int:
        return min(longest, max(1, int(draw.lognormvariate(0, 1) * longest / 5)))

    prompt = [length(size.max_prompt) for _ in arrival]
    output = [length(size.max_output) for _ in arrival]
    next_turn, pause = [-1] * num_programs, [0] * num_programs
    for first in range(num_programs if variant.turns else 0):
        last = first
        while draw.random() < (0.8 if variant.graphs else 0.5) and len(prompt) < size.num_rows:
            prompt.append(length(size.max_prompt))
            output.append(length(size.max_output))
            pause.append(draw.choice([0, 0, draw.randint(1, 3000) * LATTICE_US // 10 // grid * grid]))
            next_turn[last], last = len(next_turn), len(next_turn)
            next_turn.append(-1)
    num = len(prompt)
    shared: dict[str, Any] = {}
    if variant.graphs:
        shared = random_graphs(draw, next_turn, num_programs, grid)
        pause = shared.pop("pause_us")
        history = (draw, shared["waits"], prompt, output, 2 * size.max_prompt)
        if variant.cache == "runs":
            shared |= random_lines(*history, variant.block_size)
        elif variant.cache == "blocks":
            shared |= random_forks(*history)
    elif variant.cache != "none":
        shared = _share(variant, draw, prompt, output, next_turn[:], num_programs)
    if variant.base == "srpt_program":  # any numbers: what they should be is tested apart
        shared["remaining_us"] = [draw.choice([0, 8, draw.randrange(4000)]) for _ in prompt]
        shared["history_us"] = [draw.choice([0, draw.randrange(4000)]) for _ in prompt]
        shared["final_tokens"] = [draw.randint(1, size.max_prompt) for _ in prompt]
    return Workload(
        num_programs=num_programs,
        arrival_us=arrival + [0] * (num - num_programs),
        prompt_tokens=prompt,
        output_tokens=output,
        predicted_tokens=[max(1, int(tokens * draw.lognormvariate(0, 0.5))) for tokens in output],
        klass=[draw.randint(0, 1) for _ in prompt],
        priority=[draw.randint(0, 2) for _ in prompt],
        next_turn=next_turn,
        pause_us=pause,
        **shared,
    )


def _share(
    variant: Variant, draw: random.Random, prompt: list[int], output: list[int], next_turn: list[int], num_programs: int
) -> dict[str, Any]:
    """Give turns shared content; `prompt` grows by what they share. Groups' prefixes, then a chain per program.

    A later turn goes on with its program's chain, or (its history is cut) begins a new one.
    """
    longest = 2 * variant.size.max_prompt
    sizes = [draw.choice([0, 1, 2, 5]) * variant.block_size + draw.choice([0, 0, 3]) for _ in range(3)]
    group, group_tokens, chain = [-1] * len(prompt), [0] * len(prompt), list(range(len(prompt)))
    content: list[list[Any]] = [[] for _ in prompt]
    for first in range(num_programs):
        rarely = (variant.parts or variant.tiers) and not variant.prefixes
        which = draw.choice([-1] * 9 + [0] if rarely else [-1, 0, 1, 2])
        size = sizes[which] if which >= 0 else 0
        row, before = first, -1
        while row >= 0:
            group[row], group_tokens[row] = which, size
            start = [(("g", which), k) for k in range(size)]
            if before >= 0 and draw.random() < 0.85:
                history = content[before] + [(("o", before), k) for k in range(output[before])]
                if len(history) + prompt[row] <= longest:
                    start, chain[row] = history, chain[before]
            new = [(("u", row), k) for k in range(min(prompt[row], longest - len(start)))]
            content[row] = start + new
            prompt[row] = len(content[row])
            before, row = row, next_turn[row]
    return {"prompt_content": content, "chain": chain, "group": group, "group_tokens": group_tokens}


def lane_inputs(variant: Variant, lanes: list[Lane]) -> tuple[SimParams, Requests]:
    """What the machine takes, with a leading lane axis. NumPy: thousands of lanes are built in a moment."""
    num = len(lanes)
    engines = [lane.engine for lane in lanes]
    base = make_sim_params(
        variant.policy,
        TIMINGS[0],
        1,
        num_instances=variant.size.num_instances,
        timeout_us=(0, 0),
        slo_ttft_us=SLOS_US[0],
        slo_tpot_us=SLOS_US[1],
        slo_e2e_us=SLOS_US[2],
        slo_tbt_us=GAPS_US if variant.gaps else None,
        measure_from=MEASURED_FROM,
        measure_to=variant.measured.stop,
    )
    base = jax.tree.map(lambda x: np.broadcast_to(np.asarray(x), (num, *np.shape(x))), base)

    def column(values: list) -> np.ndarray:
        return np.asarray(values, np.int32)

    timings = jax.tree.map(lambda *leaves: np.stack([np.asarray(x) for x in leaves]), *TIMINGS)
    usable = column([engine.usable_blocks for engine in engines])
    params = base.replace(
        timing=jax.tree.map(lambda x: x[column([lane.timing for lane in lanes])], timings),
        scheduler=base.scheduler.replace(
            token_budget=column([engine.token_budget for engine in engines]),
            max_num_seqs=column([engine.max_num_seqs for engine in engines]),
            long_prefill_threshold=column([engine.long_prefill_threshold for engine in engines]),
            adaptive_threshold=column([engine.adaptive for engine in engines]),
            chunked_prefill=column([engine.chunked_prefill for engine in engines]),
            reserve_full_isl=column([engine.reserve_full_isl for engine in engines]),
            watermark_blocks=column([engine.watermark_blocks for engine in engines]),
            max_model_len=column([engine.max_model_len for engine in engines]),
            gate_fraction=np.asarray([engine.gate_fraction for engine in engines], np.float32),
            **_service_params(variant, engines),
            admit=np.asarray([_admit_params(engine) for engine in engines], np.float32),
            retain=np.asarray([_retain_params(variant, engine) for engine in engines], np.float32),
        ),
        usable_blocks=np.repeat(usable[:, None], variant.size.num_instances, axis=1),
        max_queue=column([engine.max_queue for engine in engines]),
        view_delay_us=column([lane.router.delay_us for lane in lanes]),
        seed=column([lane.router.seed for lane in lanes]),
        timeout_us=column([engine.timeouts_us for engine in engines]),
    )
    if variant.base in ORDERS:
        weights = [tenant_params(list(engine.weights)) for engine in engines]
        params = params.replace(tenants=jax.tree.map(lambda *leaves: np.stack(leaves), *weights))
    if variant.tiers:
        tiers = [tier_params(engine.tiers) for engine in engines if engine.tiers is not None]
        params = params.replace(tiers=jax.tree.map(lambda *leaves: np.stack(leaves), *tiers))
    if variant.speculates:
        model, rule = to_machine([engine.speculation for engine in engines])
        params = params.replace(speculation=model, scheduler=params.scheduler.replace(draft=rule))
    if variant.semantic:
        params = params.replace(semantic=semantic_params([engine.semantic for engine in engines]))
    blocks = (variant.block_size, variant.max_blocks) if variant.cache != "none" else None
    tables = [to_requests(lane.workload, variant.size.num_rows, blocks) for lane in lanes]
    return params, jax.tree.map(lambda *leaves: np.stack(leaves), *tables)


def _service_params(variant: Variant, engines: list[EngineConfig]) -> dict[str, np.ndarray]:
    """Orders by attained service take their parameters lane by lane."""
    if variant.policy.scheduler.spec.due:
        return {"work": np.asarray([(e.prompt_us, e.output_us) for e in engines], np.int32)}
    if variant.base == "fastswitch":
        rows = [(e.switch_update_us // 1000, int(e.loaded_first)) for e in engines]
        return {"order": np.asarray(rows, np.int32)}
    if variant.base == "srpt_program":
        return {"order": np.asarray([(e.pinned_first,) for e in engines], np.int32)}
    if variant.base == "aios-rr":
        return {"order": np.asarray([(e.slice_us // 1000,) for e in engines], np.int32)}
    if variant.base in ORDERS:
        rows = [(1, 2, e.drr_quantum) if variant.base == "drr" else (1, 2) for e in engines]
        return {"order": np.asarray(rows, np.int32)}
    if variant.base not in ("plas", "atlas"):
        return {}
    rows = [(e.quantum_us // 1000, e.num_levels, e.starvation_ratio, int(e.preempts), e.pinned_first) for e in engines]
    return {"order": np.asarray(rows, np.int32)}


def _admit_params(engine: EngineConfig) -> list[float]:
    """As the admission heads take them."""
    rules = {
        "past_future": [engine.max_output, engine.reserved], "conservative": [engine.max_output, engine.overcommit],
        "headroom": [engine.headroom_tokens], "aios": [engine.open_tokens],
    }  # fmt: skip
    return rules.get(engine.admission, [])


def _retain_params(variant: Variant, engine: EngineConfig) -> list[float]:
    """As the retention rules take them."""
    ttl_ms = [engine.ttl_us / 1000]
    rules = {
        "static_ttl": ttl_ms, "belady": ttl_ms, "clair": [engine.clair_price],
        "gittins_index": [0.1, 100.0],  # price, mean tokens of a context (the reference does not have this rule)
    }  # fmt: skip
    rule = rules.get(engine.retention, [])
    if "prefetch" not in variant.parts or engine.tiers is None:
        return rule
    return [*rule, float(engine.tiers.returns_in_us)]


def _first_parameter_ms(params, known, view: PauseView) -> jax.Array:
    del known, view
    return (params[0] * 1000.0).astype(jnp.int32)


def _returns_in(params, known, view: PauseView) -> jax.Array:
    del known, view
    return jnp.where(params[-1] < 0, FOREVER_US, params[-1].astype(jnp.int32))


def reference_step_time(timing: StepTimeParams) -> StepTime:
    """The formula of jaxsched/timing/step_time.py on Python integers."""
    p = jax.tree.map(lambda x: np.asarray(x).tolist(), timing)

    def step_time(f: StepFeatures) -> int:
        cost = sum(
            p.token_slope[j] * min(max(f.total_tokens - p.token_start[j], 0), p.token_width[j])
            for j in range(NUM_SEGMENTS)
        )
        cost += p.token_tile * ((f.total_tokens - 1) >> 7) + p.prefill_row * f.num_prefill
        cost += p.decode_row * f.num_decode + p.prefill_token * f.prefill_tokens
        ctx = f.decode_ctx + p.prefill_in_ctx * f.prefill_ctx
        return p.base_us + (cost >> 8) + p.quad_num * f.quad // p.quad_den + p.ctx_num * ctx // p.ctx_den

    return step_time
