"""Every policy of the catalogue differs from FCFS and LRU on workloads made for it, and equals them where it must.

Schedulers and parts run in the plain-Python reference, which the machine equals record by record (the other tests of
this folder): a dozen random clusters that are short of memory and seats, and the same ones tamed. What the reference
does not know runs in the machine here, or in the tests that `ELSEWHERE` names. A policy without a pair fails the last
test.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsched import policies
from jaxsched.catalogue import LISTS
from jaxsched.policies.compression import FIXED, UNDER_PRESSURE
from jaxsched.retention.ttl import empty_history, record, record_wait
from jaxsched.sim.retain import RetainHead
from jaxsched.timing.step_time import affine
from tests.oracle.cluster import simulate
from tests.oracle.data import Record
from tests.sim.clusters import RETENTION, SMALL, Lane, Variant, lane_inputs, random_lane, reference_step_time
from tests.sim.differential import reference
from tests.sim.harness import first_difference, machine_records, machine_uniform, run_lanes

LANES = 12
PLENTY = 2000  # blocks
NO_TIMEOUTS = {"timeouts_us": (0, 0)}
FCFS = {"kind": "vllm", "order": "arrival", "asynchronous": False, "admission": "", "rejects_late": False}
Change = Callable[[Lane], Lane]


def engine(**changes: Any) -> Change:
    """Lanes with other settings of the engine."""
    return lambda lane: dataclasses.replace(lane, engine=dataclasses.replace(lane.engine, **changes))


def columns(**values: Any) -> Change:
    """Lanes with one value in a whole column of the workload, or what a function makes of the workload."""

    def change(lane: Lane) -> Lane:
        w = lane.workload
        new = {k: v(w) if callable(v) else [v] * len(w.prompt_tokens) for k, v in values.items()}
        return dataclasses.replace(lane, workload=dataclasses.replace(w, **new))

    return change


def both(*changes: Change) -> Change:
    def change(lane: Lane) -> Lane:
        for each in changes:
            lane = each(lane)
        return lane

    return change


#: One program at a time.
apart = columns(arrival_us=lambda w: [10**9 * i for i in range(len(w.arrival_us))])
plenty = engine(usable_blocks=PLENTY, watermark_blocks=0)
no_limits = engine(limits_us=())
same = both(columns(predicted_tokens=20, output_tokens=20, prompt_tokens=40), plenty)
one_tenant = both(columns(klass=1), engine(**NO_TIMEOUTS))
truth = columns(predicted_tokens=lambda w: list(w.output_tokens))
#: All at once for two seats.
crowd = both(columns(arrival_us=lambda w: [0] * len(w.arrival_us)), engine(max_num_seqs=2, max_queue=0))
itself: Change = lambda lane: lane


@dataclasses.dataclass(frozen=True)
class Pair:
    """Lanes made for a policy, the change that makes its rival of it, and where both must be equal."""

    variant: Variant
    tame: Change  # of the lanes: where it must equal the rival
    rival: Change = dataclasses.field(default_factory=lambda: engine(**FCFS))
    made: Change = itself  # of the lanes, for both
    tame_variant: Variant | None = None  # other lanes for the second half
    least: int = 3  # lanes of `LANES` that differ


def _single(scheduler: str) -> Variant:
    return Variant(scheduler, size=SMALL)


def _turns(scheduler: str, cache: str = "none", **more: Any) -> Variant:
    return Variant(scheduler, turns=True, size=RETENTION, cache=cache, **more)


def _kept(scheduler: str) -> Variant:
    return _turns(scheduler, "runs", router="program_sticky")


def _compress(policy: str) -> Pair:
    """Ratio 1 keeps all; `squeeze` also where there is no pressure."""
    values = policies.COMPRESSIONS[policy].params
    rule = "pressure" if policy == "squeeze" else "fixed"
    on = engine(
        compress=rule, keep_ratio=round(values["ratio"] * 1024), min_kept=1, evict_window=int(values["window"]),
        pressure=(717, 973),
    )  # fmt: skip
    variant = dataclasses.replace(ROOMS, scheduler="vllm")
    return Pair(variant, plenty if policy == "squeeze" else engine(keep_ratio=1024), engine(compress=""), on)


def _drafts(**rule: Any) -> Pair:
    def change(most: int) -> Change:
        def new(lane: Lane) -> Lane:
            drafts = dataclasses.replace(lane.engine.speculation, most=most, **rule)
            return engine(speculation=drafts)(lane)

        return new

    return Pair(Variant("vllm+spec", size=SMALL), change(0), engine(speculation=None), change(4))


ROOMS = Variant("vllm", size=SMALL)
LATER = engine(admission="")
NO_TTL = engine(retention="", ttl_us=0)
NO_TIERS = engine(tiers=None)


def _tier(**changes: Any) -> Change:
    def change(lane: Lane) -> Lane:
        assert lane.engine.tiers is not None
        return engine(tiers=dataclasses.replace(lane.engine.tiers, **changes))(lane)

    return change


HOST = _tier(host_blocks=40, on_preempt=True)
PAIRS: dict[str, Pair] = {
    "vllm-async": Pair(_single("vllm-async"), both(apart, columns(output_tokens=1)), engine(asynchronous=False)),
    "vllm-priority": Pair(_single("vllm-priority"), both(columns(priority=0), plenty)),
    **{
        name: Pair(_single(name), both(apart, plenty, engine(token_budget=1000, max_model_len=1000)))
        for name in ("vllm-v0", "orca", "static")
    },
    "sarathi": Pair(Variant("sarathi"), both(apart, plenty, engine(token_budget=1000, max_model_len=1000))),
    "sjf": Pair(_single("sjf"), columns(predicted_tokens=9), made=crowd),
    "sjf-oracle": Pair(_single("sjf"), columns(predicted_tokens=9), made=both(crowd, truth)),
    "srpt": Pair(_single("srpt"), both(columns(predicted_tokens=200), plenty)),
    "srpt-oracle": Pair(_single("srpt"), same, made=truth),
    "mlfq": Pair(_single("mlfq"), engine(mlfq_levels=1), made=both(crowd, engine(mlfq_quantum=16))),
    "ewsjf": Pair(_single("ewsjf"), engine(ewsjf_num_queues=1), made=both(crowd, engine(ewsjf_step=20))),
    "pfcfs": Pair(_turns("pfcfs"), itself, tame_variant=Variant("pfcfs", size=RETENTION)),
    "continuum": Pair(_kept("continuum+static_ttl"), apart, both(engine(**FCFS), NO_TTL)),
    "plas": Pair(_turns("plas"), engine(num_levels=1, starvation_ratio=0)),
    "atlas": Pair(_turns("atlas"), engine(num_levels=1, starvation_ratio=0)),
    "past_future": Pair(Variant("past_future"), plenty),
    "conservative": Pair(Variant("conservative"), plenty),
    "aggressive": Pair(ROOMS, plenty, engine(watermark_blocks=0), engine(watermark_blocks=2)),
    "priority-headroom": Pair(
        Variant("priority-headroom", size=SMALL), columns(priority=0), LATER, engine(headroom_tokens=200)
    ),
    "fastswitch": Pair(
        _turns("fastswitch", "runs", router="round_robin", tiers="host"), both(apart, plenty),
        both(NO_TIERS, engine(**FCFS)), both(HOST, _tier(overlap=True)),
    ),
    "vllm_swap": Pair(
        _turns("fastswitch", "runs", router="round_robin", tiers="host"), both(apart, plenty),
        both(NO_TIERS, engine(**FCFS)), both(HOST, _tier(overlap=False, keep_copy=False, on_pause=False)),
    ),
    "srpt_program": Pair(_turns("srpt_program"), apart),
    "clair_ttl": Pair(_kept("continuum+clair"), apart, both(engine(**FCFS), engine(retention="", clair_price=0.0))),
    "vtc": Pair(_turns("vtc"), one_tenant),
    "vtc-predict": Pair(_turns("vtc-predict"), one_tenant),
    "vtc-oracle": Pair(_turns("vtc-predict"), one_tenant, made=truth),
    "wfq": Pair(_turns("wfq"), both(same, one_tenant), tame_variant=Variant("wfq", size=RETENTION)),
    "drr": Pair(_turns("drr"), one_tenant),
    "aios-fifo": Pair(_turns("aios-fifo"), apart),
    "aios-rr": Pair(_turns("aios-rr"), both(plenty, engine(slice_us=10**12)), made=engine(slice_us=20_000)),
    "edd": Pair(_single("edd"), no_limits, made=crowd),
    "edf": Pair(_single("edf"), both(no_limits, plenty)),
    "mdd": Pair(_single("mdd"), no_limits, made=crowd),
    "slack": Pair(_single("slack"), both(no_limits, engine(prompt_us=0, output_us=0)), made=crowd),
    "atc": Pair(_single("atc"), both(no_limits, same), made=crowd),
    "static_ttl": Pair(_kept("pfcfs+static_ttl"), plenty, NO_TTL, engine(ttl_us=250_000)),
    "preserve": Pair(_kept("pfcfs+preserve"), plenty, NO_TTL),
    "clair": Pair(
        _kept("pfcfs+clair"), plenty, engine(retention="", clair_price=0.0), engine(clair_price=0.0001)
    ),
    "belady": Pair(_kept("pfcfs+belady"), plenty, NO_TTL),
    "gate": Pair(_kept("pfcfs+gate"), plenty, engine(gate_fraction=0.0)),
    "peak": Pair(
        _kept("srpt_program+clair+peak"), plenty, engine(gate_fraction=0.0, gate_final=False),
        engine(gate_fraction=0.5),
    ),
    "early_reject": Pair(_single("vllm+early_reject"), no_limits),
    "offload": Pair(_turns("pfcfs+offload", "runs", tiers="host"), _tier(host_blocks=0), NO_TIERS, HOST),
    "prefetch": Pair(_turns("pfcfs+prefetch", "runs", tiers="host"), _tier(host_blocks=0), NO_TIERS, HOST),
    **{name: _compress(name) for name in policies.COMPRESSIONS},
    "spec": _drafts(by_batch=False, least=0, stop_below=0),
    "specdec": _drafts(by_batch=False, least=2, stop_below=9830),
    "spec_goodput": _drafts(by_batch=True, least=0, stop_below=0),
    # Routers, against taking turns; on one instance there is nothing to choose.
    **{
        name: Pair(Variant("vllm", name, size=SMALL), itself, rival=itself)
        for name in ("random", "least_outstanding", "least_kv", "power_of_two", "least_work", "program_sticky")
    },
}  # fmt: skip


def _records(variant: Variant, lane: Lane) -> list[Record]:
    return reference(variant, lane).records


@pytest.mark.parametrize("name", PAIRS)
def test_a_policy_differs_from_its_rival_on_lanes_made_for_it_and_equals_it_where_it_must(name: str) -> None:
    pair, is_router = PAIRS[name], name in policies.ROUTERS
    differ = finished = 0
    for seed in range(LANES):
        lane = pair.made(random_lane(pair.variant, seed))
        rival = dataclasses.replace(lane, router=dataclasses.replace(lane.router, kind="round_robin"))
        differ += _records(pair.variant, lane) != _records(pair.variant, rival if is_router else pair.rival(lane))
        variant = pair.tame_variant or pair.variant
        if is_router:
            variant = dataclasses.replace(variant, size=dataclasses.replace(variant.size, num_instances=1))
        lane = pair.tame(pair.made(random_lane(variant, seed)))
        rival = dataclasses.replace(lane, router=dataclasses.replace(lane.router, kind="round_robin"))
        own = _records(variant, lane)
        difference = first_difference(_records(variant, rival if is_router else pair.rival(lane)), own)
        assert not difference, f"{name}, lane {seed}, {lane.engine}:{difference}"
        finished += sum(record.fate == "finished" for record in own)
    assert differ >= pair.least, differ
    assert finished >= 5 * LANES


#: Rules that learn, or reckon in float32: in the machine, all in one program, by number.
LEARNED = ("ttl", "ttl_times", "gittins", "minwaste")
SIZE = dataclasses.replace(RETENTION, usable_tokens=(*RETENTION.usable_tokens, 10_000))
#: A prompt of 200 tokens takes 2.5 s, so that a context is worth the seconds that priors of pauses think of.
SLOW = affine(500_000, 10_000, 0)
#: Settings for small clusters, where they are not the rule's own: the mean context, and a fast engine.
SETTINGS = {
    "gittins": {"mean_tokens": 100.0},
    "gittins_index": {"mean_tokens": 100.0},
    "minwaste": {"chunk_token_us": 10_000.0, "chunk_step_us": 500_000.0},
}


def _settings(name: str) -> list[float]:
    return list({**policies.RETENTIONS[name].params, **SETTINGS.get(name, {})}.values())


def _any_of(names: tuple[str, ...]) -> RetainHead:
    """The rule whose number is the first parameter; its own ones follow."""
    heads = [policies.RETENTIONS[name].head for name in names]

    def ttl(params: jax.Array, known: Any, view: Any) -> jax.Array:
        return jnp.stack([head.ttl(params[1:], known, view) for head in heads])[params[0].astype(jnp.int32)]

    return RetainHead(ttl, start=empty_history, returned=record, readmitted=record_wait)


@pytest.mark.slow
@pytest.mark.parametrize("names", [LEARNED, ("gittins_index",)], ids="+".join)
def test_learned_retention_differs_from_lru_where_memory_is_short_and_equals_it_where_it_is_not(names) -> None:
    variant = Variant(f"pfcfs+{names[0]}", "program_sticky", turns=True, cache="runs", size=SIZE)
    static = variant.static()
    if len(names) > 1:
        static = dataclasses.replace(static, scheduler=dataclasses.replace(static.scheduler, retain=_any_of(names)))
    drawn = [engine(retention="", usable_blocks=12 + seed % 8)(random_lane(variant, seed)) for seed in range(LANES)]
    tame = [engine(usable_blocks=SIZE.usable_tokens[-1] // variant.block_size)(lane) for lane in drawn]
    lanes = [lane for _ in names for lane in (*drawn, *tame)]
    params, requests = lane_inputs(variant, lanes)
    width = 1 + max(len(_settings(name)) for name in names)
    rows = [([float(k)] if len(names) > 1 else []) + _settings(name) for k, name in enumerate(names)]
    retain = np.array([row + [0.0] * (width - len(row)) for row in rows], np.float32)
    scheduler = params.scheduler.replace(retain=np.repeat(retain, 2 * LANES, axis=0))
    timing = jax.tree.map(lambda x: np.repeat(np.asarray(x)[None], len(lanes), axis=0), SLOW)
    state = run_lanes(static, params.replace(scheduler=scheduler, timing=timing), requests)
    found = [machine_records(state, i, len(lane.workload.prompt_tokens)) for i, lane in enumerate(lanes)]
    lru = [
        simulate(
            lane.workload, lane.engine, reference_step_time(SLOW), num_instances=SIZE.num_instances,
            router=lane.router, uniform=machine_uniform(lane.router.seed),
        ).records
        for lane in (*drawn, *tame)
    ]  # fmt: skip
    for k, name in enumerate(names):
        mine = found[2 * LANES * k : 2 * LANES * (k + 1)]
        assert sum(a != b for a, b in zip(mine[:LANES], lru[:LANES], strict=True)) >= 3, name
        for ours, theirs in zip(mine[LANES:], lru[LANES:], strict=True):
            assert not (difference := first_difference(theirs, ours)), f"{name}:{difference}"


#: Policies whose pair is in other tests: (where it differs, where it is equal).
ELSEWHERE = {
    **dict.fromkeys(
        ("batchllm", "prefix_groups"),
        (
            "tests.workloads.test_job_lists:test_groups_in_order_save_what_the_list_allows_and_are_done_sooner",
            "tests.workloads.test_job_lists:test_one_group_and_jobs_one_by_one_stay_as_they_are",
        ),
    ),
    "april": (
        "tests.sim.test_rounds_equal_reference:test_rounds_follow_one_another_and_partial_rollouts_lose_nothing_and_are_done_sooner",
    )
    * 2,
    "semantic_cache": (
        "tests.sim.test_semantic_cache:test_break_even_is_where_the_sheet_has_it_and_no_hits_cost_the_search",
    )
    * 2,
    "disaggregated": (
        "tests.envs.test_disaggregated:test_a_decode_elsewhere_waits_for_the_copies_and_one_at_home_does_not",
        "tests.sim.test_routing_parts:test_disaggregated_routes_the_first_turn_to_one_pool_and_the_second_to_the_other",
    ),
    **dict.fromkeys(
        ("sglang", "preble_e2", "conductor", "dynamo_kv", "llmd_score"),
        (
            "tests.sim.test_routing_parts:test_where_the_load_is_equal_the_longest_match_wins",
            "tests.sim.test_routing_parts:test_one_instance_is_always_chosen",
        ),
    ),
}
#: What the others are compared with.
BASELINES = ("vllm", "round_robin")


def test_every_policy_of_the_catalogue_has_such_a_pair() -> None:
    listed = {part for row in LISTS["policies"]() for part in str(row["name"]).split("+")} | set(policies.ROUTERS)
    learned = {*LEARNED, "gittins_index"}
    assert listed - {*PAIRS, *ELSEWHERE, *learned, *BASELINES} == set()
    assert {*PAIRS, *ELSEWHERE, *learned} - listed == set(), "names that are no policies"
    for where in {test for pair in ELSEWHERE.values() for test in pair}:
        module, name = where.split(":")
        assert name in vars(importlib.import_module(module)), where
    # What runs as `_compress` in the reference is what the catalogue runs.
    for name, method in policies.COMPRESSIONS.items():
        assert method.head is (UNDER_PRESSURE if name == "squeeze" else FIXED), name
    # The scheduler `gittins` is Continuum's order with the retention of that name; oracles are the same rules.
    spec = lambda name: policies.get(name).scheduler.spec
    assert spec("gittins") == dataclasses.replace(spec("continuum"), retain=policies.RETENTIONS["gittins"].head)
    for name in ("sjf", "srpt"):
        assert spec(f"{name}-oracle") == spec(name)
