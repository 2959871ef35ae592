"""Run a policy on a scenario: many lanes (seeds, loads) in one compiled program, in chunks, over all local devices.

Host code here only prepares lanes and collects results; nothing is called back from inside the program.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxsched.caching import with_cache, with_graphs
from jaxsched.errors import UserError
from jaxsched.lanes import Lanes, static_of, synthetic_lanes, trace_lanes, with_first_slots
from jaxsched.metrics.result import RolloutResult, Trajectory
from jaxsched.policies.base import Policy
from jaxsched.scenario import Scenario
from jaxsched.sim.clock import split_us
from jaxsched.sim.machine import advance, init_state, is_done
from jaxsched.sim.params import SimParams
from jaxsched.sim.requests import Requests
from jaxsched.sim.state import GONE, Count, Flag, Instance, State
from jaxsched.sim.static import SimStatic
from jaxsched.workloads import Preset
from jaxsched.xla import compiler_options, shard_map

#: Micro-steps between two snapshots, and snapshots per call of the compiled program.
SNAPSHOT_STRIDE = 64
SNAPSHOTS = 8

#: Largest table of idle runs (or of copies) tried; beyond, CACHE_ENTRIES (TIER_ENTRIES) says that some were forgotten.
MOST_RUNS = 8192

Progress = Callable[[int, int], None]  # (turns settled, turns expected)

_ROWS = {name: i for i, name in enumerate(Instance.__dataclass_fields__)}


@functools.lru_cache(maxsize=64)
def _programs(static: SimStatic, param_axes: tuple, request_axes: tuple, num_devices: int):
    """Compiled start and chunk programs. Axes come as (treedef, leaves) so that they can be cached on."""
    params_in = jax.tree.unflatten(*param_axes)
    requests_in = jax.tree.unflatten(*request_axes)

    def start(params: SimParams, requests: Requests, first, epoch, us) -> State:
        state = init_state(static, params, requests.num_rows)
        return _shifted(static, state.replace(arrivals=first, epoch=epoch, now=us), us)

    def chunk(params: SimParams, requests: Requests, state: State):
        def stretch(carry, _):
            carry = advance(static, params, requests, carry, SNAPSHOT_STRIDE)
            return carry, snapshot(carry)

        state, snapshots = jax.lax.scan(stretch, state, None, length=SNAPSHOTS)
        return state, snapshots, is_done(static, params, requests, state)

    start = jax.vmap(start, in_axes=(params_in, requests_in, 0, 0, 0))
    chunk = jax.vmap(chunk, in_axes=(params_in, requests_in, 0))
    if num_devices > 1:
        mesh = Mesh(np.asarray(jax.local_devices()[:num_devices]), ("lanes",))
        spec = lambda axes: jax.tree.map(
            lambda axis: PartitionSpec("lanes") if axis == 0 else PartitionSpec(), axes, is_leaf=lambda x: x is None
        )
        lanes = PartitionSpec("lanes")
        start = shard_map(start, mesh, (spec(params_in), spec(requests_in), lanes, lanes, lanes), lanes)
        chunk = shard_map(chunk, mesh, (spec(params_in), spec(requests_in), lanes), lanes)
    options = compiler_options(is_large=static.tiered)
    return jax.jit(start), jax.jit(chunk, donate_argnums=2, compiler_options=options)


def programs(static: SimStatic, lanes: Lanes, num_devices: int):
    """Compiled start and chunk programs of lanes that divide over the devices."""
    return _programs(static, _freeze(lanes.param_axes), _freeze(lanes.request_axes), num_devices)


def _shifted(static: SimStatic, state: State, us) -> State:
    """First ticks of the routers' late views, of a lane that begins at `us`."""
    if static.delayed_view:
        state = state.replace(next_tick=state.next_tick + us)
    if static.delayed_cache:
        state = state.replace(routing=state.routing.replace(next_tick=state.routing.next_tick + us))
    return state


def snapshot(state: State) -> dict[str, jax.Array]:
    """What a trajectory keeps of a state (`Trajectory.join`)."""
    counts = state.metrics.counts + (state.metrics.counts_high << 30)
    rows = state.instance
    ledger = state.ledger
    return {
        **({} if ledger is None else {"tokens": ledger.tokens + (ledger.tokens_high << 30)}),
        "epoch": state.epoch,
        "now": state.now,
        "arrived": counts[Count.ARRIVED],
        "finished": counts[Count.FINISHED],
        "gone": jnp.sum(counts[jnp.asarray(GONE)]),
        "begun": state.arrivals,
        "done": counts[Count.PROGRAMS_DONE],
        "running": rows[_ROWS["running"]],
        "waiting": rows[_ROWS["waiting"]],
        "free": rows[_ROWS["free"]],
    }


def _freeze(axes: Any) -> tuple:
    leaves, treedef = jax.tree.flatten(axes, is_leaf=lambda x: x is None)
    return treedef, tuple(leaves)


def run_lanes(
    static: SimStatic, lanes: Lanes, *, num_devices: int | None = None, progress: Progress | None = None
) -> tuple[State, Trajectory]:
    """Run every lane to its end. Returns the final states (numpy, leading lane axis) and the trajectory.

    Where `static` begins with short rows (`SimStatic.with_slots`) or a small table of idle runs, and some lane would
    have needed a larger one, all lanes run again with twice the size: the result is that of full tables, bit for bit.
    `progress` then stands still until it is passed.
    """
    num_lanes = len(lanes.first_program)
    devices = min(num_devices or len(jax.local_devices()), num_lanes)
    lanes = place_lanes(_pad_lanes(lanes, -num_lanes % devices), devices)
    shown = 0

    def show(settled: int) -> None:
        nonlocal shown
        shown = max(shown, settled)
        if progress is not None:
            progress(shown, lanes.num_turns)

    while isinstance(found := run_once(static, lanes, devices, num_lanes, show), SimStatic):
        static = found
    return found


def run_once(
    static: SimStatic,
    lanes: Lanes,
    devices: int,
    num_lanes: int,
    show: Callable[[int], None],
    most_chunks: int | None = None,
) -> tuple[State, Trajectory] | SimStatic:
    """`run_lanes` with tables as `static` has them, or larger ones to try again with once a lane is short of room.

    After `most_chunks` chunks lanes stay as they are, done or not.
    """
    start, chunk = programs(static, lanes, devices)
    epoch, us = split_us(lanes.start_us)
    params, requests = lanes.params, lanes.requests
    state = start(params, requests, jnp.asarray(lanes.first_program, jnp.int32), jnp.asarray(epoch), jnp.asarray(us))
    pieces: list[dict[str, np.ndarray]] = []
    while True:
        state, snapshots, done = chunk(params, requests, state)
        if (larger := _larger(static, np.bitwise_or.reduce(np.asarray(state.flags)))) is not None:
            return larger
        pieces.append({k: np.asarray(v)[:num_lanes] for k, v in snapshots.items()})
        show(int(pieces[-1]["finished"][:, -1].sum() + pieces[-1]["gone"][:, -1].sum()))
        if bool(np.all(np.asarray(done))) or len(pieces) == most_chunks:
            break
    trajectory = Trajectory.join(pieces, lanes.start_us[:num_lanes])
    return jax.tree.map(lambda x: np.asarray(x)[:num_lanes], state), trajectory


def _larger(static: SimStatic, flags: int) -> SimStatic | None:
    """Tables of twice the size where the flags of some lane say that it was short of room; None where all is well."""
    larger = static
    if flags & Flag.SLOTS_SHORT and static.num_slots < static.full_slots:
        larger = larger.with_slots(2 * static.num_slots)
    if flags & Flag.CACHE_ENTRIES and static.prefix_cache == "runs" and static.cache_entries < MOST_RUNS:
        larger = dataclasses.replace(larger, cache_entries=2 * static.cache_entries)
    if flags & Flag.TIER_ENTRIES and static.host_entries < MOST_RUNS:
        larger = dataclasses.replace(larger, tier_entries=2 * static.host_entries)
    return None if larger is static else larger


def place_lanes(lanes: Lanes, num_devices: int) -> Lanes:
    """The lanes on the devices that they are split over, as `programs` takes them."""
    if num_devices == 1:
        return lanes
    return dataclasses.replace(
        lanes,
        params=_place(lanes.params, lanes.param_axes, num_devices),
        requests=_place(lanes.requests, lanes.request_axes, num_devices),
    )


def _place(tree: Any, axes: Any, num_devices: int) -> Any:
    """Put shared leaves on every device and split the others, once, instead of at every call."""
    mesh = Mesh(np.asarray(jax.local_devices()[:num_devices]), ("lanes",))

    def place(axis: Any, leaf: Any) -> Any:
        if leaf is None:  # a column that the workload does not have
            return None
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec("lanes") if axis == 0 else PartitionSpec()))

    return jax.tree.map(place, axes, tree, is_leaf=lambda x: x is None)


def _pad_lanes(lanes: Lanes, extra: int) -> Lanes:
    """Repeat the last lane so that the lanes divide over the devices."""
    if extra == 0:
        return lanes

    def pad(tree: Any, axes: Any) -> Any:
        def repeat_last(axis: Any, leaf: Any) -> Any:
            return jnp.concatenate([leaf, jnp.repeat(leaf[-1:], extra, axis=0)]) if axis == 0 else leaf

        return jax.tree.map(repeat_last, axes, tree, is_leaf=lambda x: x is None)

    return dataclasses.replace(
        lanes,
        params=pad(lanes.params, lanes.param_axes),
        requests=pad(lanes.requests, lanes.request_axes),
        first_program=np.concatenate([lanes.first_program, np.repeat(lanes.first_program[-1:], extra)]),
        start_us=np.concatenate([lanes.start_us, np.repeat(lanes.start_us[-1:], extra)]),
    )


def rollout(
    scenario: Scenario,
    policy: Policy | None = None,
    seeds: int | Sequence[int] = 1,
    *,
    load: float = 1.0,
    rate_per_s: float | None = None,
    record: bool = False,
    num_devices: int | None = None,
    progress: Progress | None = None,
) -> RolloutResult:
    """Simulate a policy on a scenario, one lane per seed.

    Args:
        scenario: what arrives, on what cluster.
        policy: None = the scenario's own.
        seeds: how many (``scenario.seed, +1, ...``), or which. For a trace, seed i is the i-th of as many evenly spaced
            windows of it.
        load: multiplies the arrival rate.
        rate_per_s: programs per second, instead of the scenario's rate times `load`.
        record: keep every turn's life (`RolloutResult.records`).
        num_devices: how many local devices to spread the lanes over; None = all.
        progress: called after each chunk with (turns settled, turns expected). Never falls: when lanes run again
            because their rows were too short, it stands still until they have come as far.

    Raises:
        UserError: the policy cannot run on the scenario.
    """
    rates = [rate_per_s if rate_per_s is not None else scenario.rate_per_s * load]
    return rollouts(scenario, policy, seeds, rates, record=record, num_devices=num_devices, progress=progress)[0]


def rollouts(
    scenario: Scenario,
    policy: Policy | None,
    seeds: int | Sequence[int],
    rates_per_s: Sequence[float],
    *,
    record: bool = False,
    num_devices: int | None = None,
    progress: Progress | None = None,
) -> list[RolloutResult]:
    """`rollout` at several arrival rates; with a synthetic workload all rates and seeds are lanes of one call."""
    policy = policy or scenario.policy
    if policy is None:
        raise UserError(
            "no policy given", where=f"scenario {scenario.name}", expected="a policy, e.g. policies.get('vllm')"
        )
    seeds = scenario.lane_seeds(seeds)
    if not seeds:
        raise UserError("no seeds", expected="at least one lane")
    for rate in rates_per_s:
        if not rate > 0:
            raise UserError(f"arrival rate {rate}", expected="requests per second above 0")
    scenario.check(policy)
    if policy.network is not None:
        from jaxsched.envs import deploy

        return deploy.rollouts(scenario, policy, seeds, rates_per_s, record=record, progress=progress)
    static = static_of(scenario, policy, record)

    def prepared(requests: Requests, rate: float) -> SimStatic:
        return with_first_slots(with_graphs(with_cache(static, scenario, requests), requests), scenario, requests, rate)

    run = functools.partial(run_lanes, num_devices=num_devices, progress=progress)
    results = []
    if isinstance(scenario.workload, Preset):
        lanes = synthetic_lanes(scenario, policy, seeds, rates_per_s)
        state, trajectory = run(prepared(lanes.requests, max(rates_per_s)), lanes)
        for i, rate in enumerate(rates_per_s):
            part = slice(i * len(seeds), (i + 1) * len(seeds))
            cut = dataclasses.replace(lanes, requests=jax.tree.map(lambda x, p=part: x[p], lanes.requests))
            results.append(
                _result(scenario, policy, seeds, rate, static, cut, _part(state, part), trajectory.part(part))
            )
        return results
    for rate in rates_per_s:
        trace = scenario.workload
        trace = trace if rate == scenario.rate_per_s or scenario.is_job_list else trace.to_rate(rate)
        lanes = trace_lanes(scenario, policy, trace, len(seeds), seeds)
        state, trajectory = run(prepared(lanes.requests, rate), lanes)
        results.append(_result(scenario, policy, seeds, rate, static, lanes, state, trajectory))
    return results


def _part(state: State, part: slice) -> State:
    return jax.tree.map(lambda x: x[part], state)


def _result(scenario, policy, seeds, rate, static, lanes: Lanes, state: State, trajectory: Trajectory) -> RolloutResult:
    return RolloutResult.collect(
        scenario, policy, list(seeds), rate, static, lanes.requests, lanes.first_program, state, trajectory
    )
