"""Policies x loads x seeds on common random numbers: the same seeds, hence the same workloads, for every policy."""

from __future__ import annotations

import dataclasses
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxsched.errors import UserError
from jaxsched.lanes import static_of
from jaxsched.metrics.result import RolloutResult
from jaxsched.policies.base import Policy
from jaxsched.report import ComparisonData, Timeline
from jaxsched.scenario import Scenario
from jaxsched.simulation import rollouts
from jaxsched.stats import Capacity, find_capacity

#: Metrics put side by side, in the order of the report; `comparison_table` takes them all.
COMPARED = (
    "e2e_mean_s", "e2e_p50_s", "e2e_p99_s", "ttft_mean_s", "ttft_p50_s", "ttft_p99_s",
    "tpot_mean_s", "tpot_p50_s", "tpot_p99_s", "tbt_p50_s", "tbt_p99_s", "ttst_p50_s",
    "queueing_mean_s", "queueing_p99_s", "normalised_mean_s", "jct_mean_s", "jct_p99_s", "jct_max_s", "slowdown_mean",
    "slowdown_p99", "goodput_per_s",
    "slo_attainment", "throughput_per_s", "batch_mean", "kv_used_fraction", "preemptions", "recomputed_tokens",
    "engine_steps", "gpu_seconds", "makespan_s",
    "output_tokens_per_s", "prefix_saving", "quality_loss", "quality_bad_fraction", "kept_ratio",
    "carried_on", "service_gap_tokens", "service_gap_of_bound", "jain_service",
)  # fmt: skip

#: Programs per lane when the capacity of a synthetic workload is measured.
CAPACITY_PROGRAMS = 2400

Say = Callable[[str, int, int], None]  # (what is being done, done, of how many)


def _nothing(what: str, done: int, of: int) -> None:
    del what, done, of


def measure_rate(scenario: Scenario, policy: Policy, rate: float, seeds: Sequence[int]) -> dict[str, float]:
    """Whether the cluster keeps up at a rate, over the second half of the arrivals (pooled over seeds).

    Of programs of several turns whole programs are counted: their later turns only arrive as fast as they are served.

    Returns:
        ``throughput`` in programs per second (finished per arrived, times `rate`, so that the drift of a finite sample
        cancels), ``backlog_slope`` in programs per second, ``p99_ttft`` in seconds.
    """
    result = rollouts(scenario, policy, seeds, [rate])[0]
    t = result.trajectory
    came, left = (t.arrived, t.finished + t.gone) if scenario.max_turns == 1 else (t.begun, t.done)
    arrived = finished = 0.0
    for lane, span in enumerate(result.arrival_span_s):
        window = (0.5 * span, span)
        arrived += np.diff([t.at(came, lane, s) for s in window])[0]
        finished += np.diff([t.at(left, lane, s) for s in window])[0]
    delivered = finished / max(arrived, 1.0)
    return {
        "throughput": rate * delivered,
        "backlog_slope": rate * (1.0 - delivered),
        "p99_ttft": float(np.nanmean(result.metrics["ttft_p99_s"])),
    }


def measure_capacity(
    scenario: Scenario,
    policy: Policy,
    seeds: Sequence[int],
    tol: float = 0.02,
    *,
    num_programs: int = CAPACITY_PROGRAMS,
) -> Capacity:
    """The highest stable arrival rate of a policy (programs per second), by bracketing and bisection.

    `num_programs`: per lane, at least; with a synthetic workload.
    """
    if not scenario.is_trace:
        # Long enough that requests in flight are few against those that arrived.
        scenario = dataclasses.replace(scenario, num_programs=max(scenario.num_programs, num_programs))
    # Full rows at once: overload needs them, and one program for all rates compiles sooner than several faster ones.
    scenario = dataclasses.replace(scenario, num_slots=static_of(scenario, policy).full_slots)
    flood = rollouts(scenario, policy, seeds, [20.0 * scenario.rate_per_s])[0]
    t = flood.trajectory
    rates = []
    for lane in range(len(flood.seeds)):
        done, final = t.finished[lane], t.finished[lane, -1]
        times = np.interp([0.2 * final, 0.7 * final], done, t.t_s[lane])
        rates.append(0.5 * final / max(times[1] - times[0], 1e-9))
    turns = max(float(np.mean(flood.metrics["fate_finished"])) / scenario.num_programs, 1.0)
    guess = max(float(np.mean(rates)) / turns, 1e-6)
    return find_capacity(lambda rate: measure_rate(scenario, policy, rate, seeds), 0.7 * guess, 1.1 * guess, tol)


@dataclasses.dataclass
class Comparison:
    """A finished comparison: the data of the report and every rollout behind it."""

    data: ComparisonData
    results: dict[tuple[str, float], RolloutResult]
    capacity: Capacity | None


def compare(
    scenario: Scenario,
    policies: Mapping[str, Policy],
    loads: Sequence[float],
    seeds: int | Sequence[int],
    *,
    baseline: str,
    metric: str = "e2e_mean_s",
    capacity_per_s: float | None = None,
    capacity_of: str | None = None,
    capacity_seeds: int | None = None,
    capacity_programs: int = CAPACITY_PROGRAMS,
    confidence: float = 0.95,
    num_bootstrap: int = 2000,
    command: str = "",
    config_yaml: str = "",
    say: Say = _nothing,
) -> Comparison:
    """Run every policy at every load on the same seeds.

    Args:
        loads: multiples of the capacity; the capacity is the highest stable rate of `capacity_of` unless given.
        capacity_of: one of `policies`; None: the baseline.
        capacity_seeds, capacity_programs: how many seeds (None: all) and programs per lane that is measured with.
        baseline: name of the policy the others are compared with.
        metric: the metric that decides.
        say: progress callback.
    """
    seeds = scenario.lane_seeds(seeds)
    for policy in policies.values():
        scenario.check(policy)
    capacity = None
    if scenario.is_job_list:
        if len(loads) > 1:
            raise UserError(
                f"loads {', '.join(f'{load:g}' for load in loads)} of a list of jobs",
                where=f"scenario {scenario.name}, compare.loads",
                expected="one load: all jobs are there at time 0, so there is no rate to multiply",
            )
        capacity_per_s, note = scenario.rate_per_s, "a list of jobs: all there at time 0, rates mean nothing"
    elif capacity_per_s is None:
        of = capacity_of or baseline
        say(f"measuring the capacity of {of}", 0, 1)
        few = seeds[:capacity_seeds]
        capacity = measure_capacity(scenario, policies[of], few, num_programs=capacity_programs)
        capacity_per_s = capacity.capacity
        note = (
            f"highest stable rate of {of}, bisected to [{capacity.low:.4g}, {capacity.high:.4g}] programs/s "
            f"in {len(capacity.evaluations)} runs: at least 98 % of the arrivals of the second half delivered in it"
        )
    else:
        note = "given"
    rates = [load * capacity_per_s for load in loads]
    results: dict[tuple[str, float], RolloutResult] = {}
    for i, (name, policy) in enumerate(policies.items()):
        say(f"simulating {name}", i, len(policies))
        # Slowdowns of programs need the life of every turn.
        lives = rollouts(scenario, policy, seeds, rates, record=scenario.max_turns > 1 or bool(scenario.tenants))
        for load, result in zip(loads, lives, strict=True):
            results[name, load] = dataclasses.replace(result, record=None)
    say("done", len(policies), len(policies))
    data = ComparisonData(
        title=scenario.name,
        command=command,
        config_yaml=config_yaml,
        versions=versions(),
        seeds=seeds,
        policies=list(policies),
        loads=list(loads),
        rates_per_s=rates,
        capacity_per_s=capacity_per_s,
        capacity_note=note,
        baseline=baseline,
        primary_metric=metric,
        higher_is_better={},
        per_seed={key: compared_metrics(result) for key, result in results.items()},
        cdfs={key: result.cdfs() for key, result in results.items()},
        timelines={name: timeline(results[name, _shown_load(loads)]) for name in policies},
        notes=[*scenario.notes, *_warnings(results), f"Timelines: seed {seeds[0]} at load {_shown_load(loads):g}."],
        confidence=confidence,
        num_bootstrap=num_bootstrap,
        bounds=[name for name, policy in policies.items() if policy.scheduler.is_bound],
    )
    return Comparison(data, results, capacity)


def compared_metrics(result: RolloutResult) -> dict[str, np.ndarray]:
    """The compared metrics and the fates of a rollout."""
    fates = [name for name in result.metrics if name.startswith(("fate_", "tenant_"))]
    return {name: result.metrics[name] for name in (*COMPARED, *fates) if name in result.metrics}


def _shown_load(loads: Sequence[float]) -> float:
    """The load whose timelines are shown: the highest that is not overload, if any."""
    below = [load for load in loads if load < 1.0]
    return max(below) if below else min(loads)


def timeline(result: RolloutResult, lane: int = 0) -> Timeline:
    """Batch, KV use and queue of every instance over one lane's run."""
    t = result.trajectory
    end = int(np.searchsorted(t.t_s[lane], t.t_s[lane, -1])) + 1
    part = slice(0, end)
    blocks = result.scenario.usable_blocks
    return Timeline(
        t_s=t.t_s[lane, part],
        batch=t.running[lane, part],
        kv_used_fraction=1.0 - t.free[lane, part] / blocks,
        queue=t.waiting[lane, part],
    )


def _warnings(results: Mapping[tuple[str, float], RolloutResult]) -> list[str]:
    return [f"{name} at load {load:g}: {text}." for (name, load), r in results.items() for text in r.warnings()]


def versions() -> dict[str, str]:
    """Names and versions of everything that decides a number."""
    import jax

    import jaxsched

    found = {
        "jaxsched": jaxsched.__version__,
        "jax": jax.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}, {jax.default_backend()} x {len(jax.local_devices())}",
    }
    root = Path(__file__).resolve().parents[1]
    if (root / ".git").exists():
        try:
            git = subprocess.run(
                ["git", "-C", str(root), "describe", "--always", "--dirty"], capture_output=True, text=True, timeout=10
            )
            if git.returncode == 0:
                found["git"] = git.stdout.strip()
        except (OSError, subprocess.TimeoutExpired):
            pass
    return found
