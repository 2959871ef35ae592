"""Lanes of a run: what a scenario and a policy make of seeds, loads and windows of a trace. Host side.

`Lanes` is the input of `jaxsched.simulation.run_lanes`; `static_of` is the compiled program's description.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsched.caching import with_block_size
from jaxsched.foresight import with_foresight, with_turn_numbers
from jaxsched.policies.april import in_flight
from jaxsched.policies.base import Policy
from jaxsched.policies.batchllm import in_group_order
from jaxsched.scenario import Scenario
from jaxsched.semantic_cache import SemanticCacheModel
from jaxsched.sim.build import NO_LIMIT_US, make_params, make_static
from jaxsched.sim.params import SimParams
from jaxsched.sim.requests import Requests
from jaxsched.sim.rounds import RoundParams
from jaxsched.sim.speculate import SpecParams
from jaxsched.sim.static import SimStatic
from jaxsched.slots import MIN_SLOTS, first_slots, mean_turn
from jaxsched.tiering import ClusterTiers, tier_params
from jaxsched.workloads import Preset, Workload


@dataclasses.dataclass
class Lanes:
    """Inputs of a batch of lanes. Leaves marked in the axes carry a leading lane axis; the others are shared."""

    params: SimParams
    param_axes: Any
    requests: Requests
    request_axes: Any
    first_program: np.ndarray  # [lanes]: where a lane's window of the table begins
    start_us: np.ndarray  # [lanes] int64: when it begins
    num_turns: int  # over all lanes, about: for progress, and to judge how long a run is


def params_of(scenario: Scenario, policy: Policy) -> SimParams:
    """What every lane of a policy on a scenario has in common; seed and measured cohort are those of `make_params`."""
    tiers, cache = _tiers(scenario, policy), _semantic(scenario, policy)
    rounds = None
    if scenario.rounds is not None:
        target, update_us = scenario.rounds
        rounds = RoundParams(
            target=jnp.int32(target), in_flight=jnp.int32(in_flight(policy, target)), update_us=jnp.int32(update_us)
        )
    return make_params(
        policy,
        scenario.timing,
        scenario.usable_blocks,
        num_instances=scenario.num_instances,
        view_delay_us=scenario.router_delay_us,
        cache_delay_us=scenario.cache_delay_us,
        timeout_us=scenario.timeouts(),
        slo_ttft_us=scenario.limits("ttft_us"),
        slo_tpot_us=scenario.limits("tpot_us"),
        slo_e2e_us=scenario.limits("e2e_us"),
        slo_tbt_us=scenario.limits("tbt_us"),
        horizon_us=scenario.horizon_us,
        tenant_weights=scenario.tenant_weights(),
        tiers=None if tiers is None else tier_params(tiers, policy.settings()),
        rounds=rounds,
        speculation=_speculation(scenario, policy),
        semantic=None if cache is None else cache.params(scenario.num_classes, policy.settings()),
    )


def lane_params(scenario: Scenario, policy: Policy, seeds: np.ndarray, first: np.ndarray, stop: np.ndarray):
    """Parameters with a lane axis on what differs between lanes."""
    cut = (stop - first) * scenario.warmup_fraction
    cool = (stop - first) * scenario.cooldown_fraction
    shared = params_of(scenario, policy)
    params = shared.replace(
        seed=jnp.asarray(seeds, jnp.int32),
        measure_from=jnp.asarray(first + cut, jnp.int32),
        measure_to=jnp.asarray(stop - cool, jnp.int32),
    )
    axes = jax.tree.map(lambda _: None, shared).replace(seed=0, measure_from=0, measure_to=0)
    return params, axes


def _tiers(scenario: Scenario, policy: Policy) -> ClusterTiers | None:
    """The memory behind HBM, if there is any and the policy uses it."""
    return scenario.tiers if policy.scheduler.spec.offload is not None else None


def _semantic(scenario: Scenario, policy: Policy) -> SemanticCacheModel | None:
    """The cache of answers in front, if the policy uses it."""
    return scenario.semantic_cache if policy.scheduler.semantic_params else None


def _speculation(scenario: Scenario, policy: Policy) -> SpecParams | None:
    """The draft model, if the policy uses it."""
    if not policy.scheduler.spec.speculates or scenario.speculation is None:
        return None
    return scenario.speculation.params()


def synthetic_lanes(scenario: Scenario, policy: Policy, seeds: Sequence[int], rates: Sequence[float]) -> Lanes:
    """One lane per (rate, seed), rates outermost; each lane has its own table, generated on device."""
    preset = scenario.workload
    assert isinstance(preset, Preset)
    lane_seeds = np.tile(np.asarray(seeds, np.int64), len(rates))
    lane_rates = np.repeat(np.asarray(rates, np.float32), len(seeds))
    generate = _generator(preset, scenario.num_programs, scenario.prediction_error)
    requests = generate(jnp.asarray(lane_seeds, jnp.uint32), jnp.asarray(lane_rates))
    requests = with_truth(policy, requests, scenario)
    num = len(lane_seeds)
    first, stop = np.zeros(num, np.int64), np.full(num, scenario.num_programs)
    params, axes = lane_params(scenario, policy, lane_seeds, first, stop)
    programs = num * scenario.num_programs
    turns = int(programs * preset.mean_turns) if preset.max_turns > 1 else programs
    return Lanes(params, axes, requests, jax.tree.map(lambda _: 0, requests), first, np.zeros(num, np.int64), turns)


@functools.lru_cache(maxsize=32)
def _generator(preset: Preset, num_programs: int, prediction_error: float):
    def one(seed, rate):
        return preset.generate(jax.random.key(seed), num_programs, rate, prediction_sigma=prediction_error)

    return jax.jit(jax.vmap(one))


def trace_lanes(scenario: Scenario, policy: Policy, trace: Workload, num_lanes: int, seeds: Sequence[int]) -> Lanes:
    """One lane per window of the trace; all lanes share the table. Windows of `num_programs` start evenly spaced."""
    trace = with_block_size(trace, scenario)
    width, total = scenario.num_programs, trace.num_programs
    if num_lanes > 1 and scenario.num_programs * num_lanes > total:
        width = max(total // num_lanes, 1)
    first = np.linspace(0, total - width, num_lanes).astype(np.int64)
    stop = first + width
    requests = trace.to_requests(block_size=scenario.block_size)
    requests = with_truth(policy, requests, scenario, cuts=np.concatenate([first, stop]))
    params, axes = lane_params(scenario, policy, np.asarray(seeds), first, stop)
    requests = requests.replace(num_programs=jnp.asarray(stop, jnp.int32))
    request_axes = jax.tree.map(lambda _: None, requests).replace(num_programs=0)
    turns = int(np.searchsorted(np.sort(trace.program), [0, total])[1] / total * width * num_lanes)
    return Lanes(params, axes, requests, request_axes, first, trace.program_arrival_us[first], turns)


def with_truth(policy: Policy, requests: Requests, scenario: Scenario, cuts: np.ndarray | None = None) -> Requests:
    """What bounds know: true output lengths, or what is left of programs. What rules learn from at a program's end.

    And the order of a job list (`cuts`: rows that it must not move across).
    """
    if policy.scheduler.orders_jobs:
        requests = in_group_order(requests, scenario.block_size, cuts)
    if policy.scheduler.sees_true_length:
        requests = requests.replace(predicted_tokens=requests.output_tokens)
    retain = policy.scheduler.spec.retain
    if retain is not None and retain.completed is not None:
        requests = with_turn_numbers(requests)
    return with_foresight(requests, scenario.timing) if policy.scheduler.spec.foresees else requests


def static_of(scenario: Scenario, policy: Policy, record: bool = False) -> SimStatic:
    """The compiled program's description for a policy on a scenario, with full rows."""
    tiers, cache = _tiers(scenario, policy), _semantic(scenario, policy)
    static = make_static(
        policy,
        num_instances=scenario.num_instances,
        num_slots=scenario.num_slots,
        timeouts=any(scenario.timeouts()),
        gap_limits=any(limit < NO_LIMIT_US for limit in scenario.limits("tbt_us")),
        delayed_view=scenario.router_delay_us > 0,
        delayed_cache=scenario.cache_delay_us > 0,
        max_run_steps=scenario.max_run_steps,
        block_size=scenario.block_size,
        num_paused=max(scenario.max_paused_programs, int(scenario.rounds is not None)),
        rounds=scenario.rounds is not None,
        num_classes=scenario.num_classes,
        tenants=bool(scenario.tenants),
        semantic=cache is not None,
        semantic_entries=0 if cache is None else cache.entries,
        host_tier=tiers is not None,
        remote_tier=tiers is not None and tiers.remote is not None,
        record=record,
    )
    # Room for a full row that is preempted, and as much again for those who wait.
    room = 2 << max(static.full_slots, 256).bit_length()
    return dataclasses.replace(static, queue_capacity=max(scenario.queue_capacity, room))


def with_first_slots(static: SimStatic, scenario: Scenario, requests: Requests, rate_per_s: float) -> SimStatic:
    """`static` with the rows that a run at `rate_per_s` begins with: what the scenario says, else an estimate.

    Ordered queues keep full rows: they compare the requests in them, so there is no row that is merely too short.
    """
    if scenario.num_slots is not None or static.scheduler.order is not None:
        return static
    if static.scheduler.compress is not None:  # how many fit depends on what it evicts
        return static
    if scenario.is_job_list:  # as many as memory holds
        prompt, output, _ = mean_turn(requests)
        held = scenario.usable_blocks * scenario.block_size / (prompt + output)
        return static.with_slots(max(1 << int(held).bit_length(), MIN_SLOTS))
    per_instance = rate_per_s / scenario.num_instances
    return static.with_slots(first_slots(static.full_slots, scenario.timing, requests, per_instance))
