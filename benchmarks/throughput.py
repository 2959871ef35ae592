"""How fast the machine simulates: requests per second on a preset at a given load, metrics on, lanes over all cores.

    python benchmarks/throughput.py --preset chat --instances 4 --lanes 1 64 256 --policy vllm sarathi [--json]

Each row is timed over whole calls of the compiled program in the middle of the run (after start-up, before the first
lane drains), several times; minimum and median time are turned into rates, the median is the one to quote. The load is
checked, not assumed: the arrival rate is `--load` times the capacity measured for the policy and cluster of the row.
Slots per instance are what a rollout at that rate begins with; where a lane needs more, the row is measured with more.

``--preset agents_tier --rate 0.022 --policy vllm+offload+program_sticky --lanes 16 --requests 1500 --warm-calls 120``
is the case of agents: 4 instances with about 256 live programs together, prefix cache and host tier. Turns are counted
as requests; CPU time on one core (``--cpu-time --devices 1``) says what one core does.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
import time

PRESETS = {
    "chat": "configs/scenarios/chat.yaml",
    "agents": "configs/scenarios/agents_mixed.yaml",
    "agents_tier": "configs/scenarios/agents_many.yaml",  # 256 live programs, host memory behind HBM
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="chat", choices=PRESETS, help="scenario")
    parser.add_argument("--instances", type=int, nargs="+", default=[4])
    parser.add_argument("--policy", nargs="+", default=["vllm"])
    parser.add_argument("--lanes", type=int, nargs="+", help="lanes of a row (default: 1 and 32 per core)")
    parser.add_argument("--load", type=float, default=0.85, help="arrival rate as a multiple of the measured capacity")
    parser.add_argument("--requests", type=int, default=4000, help="requests per lane")
    parser.add_argument("--devices", type=int, help="local devices to spread lanes over (default: one per core)")
    parser.add_argument("--repeats", type=int, default=7, help="timed calls")
    parser.add_argument("--slots", type=int, help="slots per instance to begin with, FCFS only (default: as a rollout)")
    parser.add_argument("--rate", type=float, help="programs/s per instance, instead of measuring the capacity")
    parser.add_argument("--warm-calls", type=int, help="calls before the clock starts (default: a few)")
    parser.add_argument("--cpu-time", action="store_true", help="time by the CPU time of this process: loaded machines")
    parser.add_argument("--json", action="store_true", help="the last line of stdout is a JSON list of the rows")
    options = parser.parse_args()

    from jaxsched.cli import configure_jax

    configure_jax()
    import jax

    devices = options.devices or len(jax.local_devices())
    lanes = options.lanes or [1, 32 * devices]
    backend = f"jax {jax.__version__} on {jax.default_backend()}, {devices} devices"
    print(f"machine: {_machine()}; {backend}; load {options.load}")
    rows = []
    for policy in options.policy:
        for instances in options.instances:
            rate, capacity = _rate(options, policy, instances)
            for num_lanes in lanes:
                rows.append(_row(options, policy, instances, num_lanes, rate, min(devices, num_lanes)))
                rows[-1] |= {"capacity_per_s": capacity, "load": rate / capacity, "machine": _machine()}
                _print(rows[-1], header=len(rows) == 1)
    if options.json:
        print(json.dumps(rows))
    return 0


def _scenario(options: argparse.Namespace, policy: str, instances: int):
    import jaxsched as js

    root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
    scenario = js.load(os.path.join(root, PRESETS[options.preset]), {"cluster.num_instances": instances})
    scenario = dataclasses.replace(scenario, num_programs=options.requests)
    base = dict(scenario.policy.overrides) if scenario.policy else {}
    return scenario, js.policies.get(policy).with_params(**base)


def _rate(options: argparse.Namespace, policy: str, instances: int) -> tuple[float, float]:
    """Arrival rate of a row and the capacity it is a share of (programs/s of the whole cluster)."""
    from jaxsched.comparison import measure_capacity

    if options.rate:
        return options.rate * instances, options.rate * instances / options.load
    # A few instances have the capacity per instance of many; measuring 64 would take longer than the benchmark.
    measured = min(instances, 4)
    scenario, chosen = _scenario(options, policy, measured)
    capacity = measure_capacity(scenario, chosen, seeds=range(8)).capacity * instances / measured
    return options.load * capacity, capacity


def _row(options, policy: str, instances: int, num_lanes: int, rate: float, devices: int) -> dict:
    from jaxsched import simulation as r
    from jaxsched.caching import with_cache

    scenario, chosen = _scenario(options, policy, instances)
    lanes = r.synthetic_lanes(scenario, chosen, list(range(num_lanes)), [rate])
    static = with_cache(r.static_of(scenario, chosen), scenario, lanes.requests)
    if options.slots and static.scheduler.order is None:
        static = static.with_slots(options.slots)
    else:
        static = r.with_first_slots(static, scenario, lanes.requests, rate)
    while not isinstance(row := _timed(options, scenario, static, lanes, devices), dict):
        static = row
    return {
        "preset": options.preset, "policy": policy, "instances": instances, "lanes": num_lanes, "devices": devices,
        "rate_per_s": rate, **row,
    }  # fmt: skip


def _timed(options, scenario, static, lanes, devices: int):
    """One row with the tables of `static`; larger ones if some lane was short of room, warm-up included."""
    import jax
    import numpy as np

    from jaxsched import simulation as r
    from jaxsched.sim.clock import split_us
    from jaxsched.sim.state import Count, Flag

    num_lanes, instances = len(lanes.first_program), scenario.num_instances
    start, chunk = r.programs(static, lanes, devices)
    params, requests = lanes.params, lanes.requests
    if devices > 1:
        params = r._place(params, lanes.param_axes, devices)
        requests = r._place(requests, lanes.request_axes, devices)
    epoch, us = split_us(lanes.start_us)
    state = start(params, requests, lanes.first_program.astype(np.int32), epoch, us)
    num_bytes = sum(x.nbytes for x in jax.tree.leaves(state)) / num_lanes
    clock = time.process_time if options.cpu_time else time.perf_counter
    began = clock()
    compiled = chunk.lower(params, requests, state).compile()
    compile_s = clock() - began

    steps = r.SNAPSHOT_STRIDE * r.SNAPSHOTS
    samples, previous = [], None
    warm = options.warm_calls or max(
        4, int(0.1 * scenario.num_programs * 3 / steps)
    )  # into the steady state before the clock starts
    for call in range(warm + options.repeats):
        began = clock()
        state, _, done = compiled(params, requests, state)
        jax.block_until_ready(state)
        elapsed = clock() - began
        counts = np.asarray(state.metrics.counts, np.int64) + (np.asarray(state.metrics.counts_high, np.int64) << 30)
        now = (np.asarray(state.epoch, np.int64) << 30) + np.asarray(state.now)
        totals = np.append(counts.sum(0), now.sum())
        if np.asarray(done).any():
            break
        if previous is not None and call >= warm:
            samples.append((elapsed, totals - previous))
        previous = totals
    flags = np.bitwise_or.reduce(np.asarray(state.flags))
    if (larger := r._larger(static, flags)) is not None:
        return larger
    if flags & ~int(Flag.WINDOW_OVERFLOW):
        sys.exit(f"error: flags {Flag(int(flags))!r} were raised: the rows would time something else")
    if not samples:
        sys.exit("error: --requests is too small: a lane was done before the measurement; raise it")
    arrived, finished = counts[:, Count.ARRIVED].sum(), counts[:, Count.FINISHED].sum()

    def rates(which: int, scale: float = 1.0) -> tuple[float, float]:
        values = sorted(delta[which] * scale / elapsed for elapsed, delta in samples)
        return float(values[len(values) // 2]), float(values[-1])

    live = (np.asarray(state.arrivals).sum() - counts[:, Count.PROGRAMS_DONE].sum()) / num_lanes

    done_per_s, best = rates(Count.FINISHED)
    micro, micro_best = rates(Count.MICRO_STEPS)
    micro_steps, requests = (sum(d[which] for _, d in samples) for which in (Count.MICRO_STEPS, Count.FINISHED))
    return {
        "bytes_per_lane": num_bytes,
        "requests_per_s": done_per_s, "requests_per_s_best": best,
        "micro_steps_per_s": micro, "micro_steps_per_s_best": micro_best,
        "engine_steps_per_s": rates(Count.ENGINE_STEPS)[0],
        "simulated_s_per_s": rates(len(Count), 1e-6)[0],
        "micro_steps_per_request": float(micro_steps / max(requests, 1)),
        "ns_per_micro_step": 1e9 * devices / micro,
        "busy_fraction": float(counts[:, Count.BUSY_US].sum() / max(now.sum() * instances, 1)),
        "live_programs": float(live),
        "in_system_per_instance": float((arrived - finished) / num_lanes / instances),
        "compile_s": compile_s, "calls": len(samples), "slots": static.num_slots, "prefix_cache": static.prefix_cache,
        "cache_entries": static.cache_entries, "max_run_steps": static.max_run_steps,
    }  # fmt: skip


COLUMNS = (
    ("policy", "{}", 14), ("instances", "{}", 9), ("lanes", "{}", 6), ("slots", "{}", 5),
    ("requests_per_s", "{:,.0f}", 14),
    ("requests_per_s_best", "{:,.0f}", 19), ("micro_steps_per_s", "{:,.0f}", 17), ("engine_steps_per_s", "{:,.0f}", 18),
    ("simulated_s_per_s", "{:,.0f}", 17), ("bytes_per_lane", "{:,.0f}", 14), ("compile_s", "{:.1f}", 9),
    ("busy_fraction", "{:.2f}", 13), ("in_system_per_instance", "{:.1f}", 22),
    ("live_programs", "{:.0f}", 13),
)  # fmt: skip


def _print(row: dict, header: bool) -> None:
    if header:
        print("  ".join(f"{name:>{width}}" for name, _, width in COLUMNS))
    print("  ".join(f"{form.format(row[name]):>{width}}" for name, form, width in COLUMNS), flush=True)


def _machine() -> str:
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{model}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"


if __name__ == "__main__":
    sys.exit(main())
