"""What a rollout returns: per-seed metrics with names and units, latency CDFs, trajectories, and records.

Host-side numpy. Definitions: docs/metrics.md.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxsched.metrics.histogram import NUM_BINS, mean_us, quantile_us, upper_edges_us
from jaxsched.metrics.programs import program_metrics
from jaxsched.metrics.tenants import tenant_metrics, tenant_slowdowns
from jaxsched.sim.clock import join_us
from jaxsched.sim.semantic import FALSE_HITS, HITS, LOOKUPS, STALE
from jaxsched.sim.speculate import ACCEPTED, DRAFT_US, DRAFTED, OUTPUTS, ROUNDS
from jaxsched.sim.state import Count, Fate, Flag, Hist, Metrics, Record, State

if TYPE_CHECKING:
    from jaxsched.policies.base import Policy
    from jaxsched.scenario import Scenario

#: Histogram -> (metric name, statistics shown).
LATENCIES = {
    Hist.TTFT: "ttft",
    Hist.TPOT: "tpot",
    Hist.TBT: "tbt",
    Hist.TTST: "ttst",
    Hist.E2E: "e2e",
    Hist.QUEUE: "queueing",
    Hist.NORMALISED: "normalised",
    Hist.JCT: "jct",
}
FLAG_TEXT = {
    Flag.LIVELOCK: "the watchdog stopped a lane: its clock made no progress",
    Flag.PAUSED_OVERFLOW: "more programs paused at once than cluster.max_paused_programs: some were cut short",
    Flag.WINDOW_OVERFLOW: (
        "an ordered queue was longer than its window (cluster.num_slots): late arrivals waited FIFO outside it"
    ),
    Flag.STUCK: "an idle instance held requests that can never be admitted",
    Flag.CACHE_COPIES: (
        "chains of runs met a second copy of a KV block, so hits are approximate from there on "
        "(cluster.prefix_cache: blocks is exact)"
    ),
    Flag.CACHE_ENTRIES: "more idle runs in the prefix cache than its table holds: some were forgotten",
    Flag.TIER_ENTRIES: "more copies of contexts in a memory tier than its table holds: some were forgotten",
    Flag.SLOTS_SHORT: "rows had too few slots to be exact: a request waited for one",
}


@dataclasses.dataclass
class Trajectory:
    """Snapshots of every lane while it ran. Times are seconds since the lane's start."""

    t_s: np.ndarray  # [lanes, n]
    arrived: np.ndarray  # [lanes, n] turns
    finished: np.ndarray
    gone: np.ndarray  # rejected or timed out
    begun: np.ndarray  # programs that arrived (a window of a trace: those before it included)
    done: np.ndarray  # programs that are done
    running: np.ndarray  # [lanes, n, instances]
    waiting: np.ndarray
    free: np.ndarray  # KV blocks
    tokens: np.ndarray | None = None  # [lanes, n, tenants, 2] prompt and output tokens of each tenant, where measured

    @classmethod
    def join(cls, pieces: list[dict[str, np.ndarray]], start_us: np.ndarray) -> Trajectory:
        """From the chunks' snapshots."""
        whole = {key: np.concatenate([piece[key] for piece in pieces], axis=1) for key in pieces[0]}
        t = (join_us(whole.pop("epoch"), whole.pop("now")) - start_us[:, None]) * 1e-6
        return cls(t_s=t, **whole)

    def part(self, lanes: slice) -> Trajectory:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        part: dict[str, Any] = {name: None if value is None else value[lanes] for name, value in values.items()}
        return Trajectory(**part)

    def at(self, values: np.ndarray, lane: int, t_s: float) -> float:
        """A counter at a time, linear between snapshots (from 0 at the start)."""
        t = np.concatenate([[0.0], self.t_s[lane]])
        return float(np.interp(t_s, t, np.concatenate([[0], values[lane]])))


@dataclasses.dataclass
class RolloutResult:
    """One policy at one arrival rate on one scenario, over seeds."""

    scenario: Scenario
    policy: Policy
    seeds: list[int]
    rate_per_s: float  # programs per second offered
    metrics: dict[str, np.ndarray]  # name -> [num_seeds]
    histograms: np.ndarray  # [num_seeds, classes, Hist, bins], counts
    trajectory: Trajectory
    flags: np.ndarray  # [num_seeds], bits of `Flag`
    record: Record | None  # leaves [num_seeds, turns, ...], when recorded
    requests: Any  # the table the lanes ran on (numpy leaves where recorded)
    arrival_span_s: np.ndarray  # [num_seeds] time from the first to the last program arrival

    @classmethod
    def collect(
        cls, scenario, policy, seeds, rate, static, requests, first_program, state: State, trajectory, *,
        from_zero: bool = False,
    ):  # fmt: skip
        """Derive every metric from the final states. `from_zero`: lanes that share a table begin at its time 0, not at
        their first program's arrival."""
        num = len(seeds)
        m = state.metrics
        counts = total_counts(m)
        hist = np.asarray(m.histograms).reshape(num, static.num_classes, len(Hist), NUM_BINS)
        stop = np.broadcast_to(np.asarray(requests.num_programs), (num,))
        spans = _arrival_spans(requests, first_program, stop, from_zero)
        metrics: dict[str, np.ndarray] = {}
        total = hist.sum(axis=1)
        for kind, name in LATENCIES.items():
            if kind == Hist.JCT and not static.num_paused:
                continue
            values = total[:, kind]
            metrics[f"{name}_mean_s"] = mean_us(values) * 1e-6
            for label, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
                metrics[f"{name}_{label}_s"] = quantile_us(values, q) * 1e-6
        metrics["tbt_p999_s"] = quantile_us(total[:, Hist.TBT], 0.999) * 1e-6
        measured_s = spans * (1.0 - scenario.warmup_fraction - scenario.cooldown_fraction)
        sim_s = np.maximum(trajectory.t_s[:, -1], 1e-9)
        if scenario.is_job_list:  # all there at one instant: measured until the last is done
            spans = measured_s = sim_s
        measured_s = np.maximum(measured_s, 1e-9)
        class_good = np.asarray(m.class_good)
        good, finished = class_good.sum(1), np.asarray(m.class_finished).sum(1)
        measured = np.maximum(counts[:, Count.MEASURED_ARRIVED], 1)
        metrics["goodput_per_s"] = good / measured_s
        metrics["slo_attainment"] = good / measured
        for c, slo in enumerate(scenario.slo if len(scenario.slo) > 1 else ()):
            metrics[f"goodput_{slo.name}_per_s"] = class_good[:, c] / measured_s
        metrics["throughput_per_s"] = _throughput(trajectory, spans, scenario.warmup_fraction)
        metrics["measured_finished"] = finished.astype(np.float64)
        busy_s = counts[:, Count.BUSY_US] * 1e-6
        area = np.asarray(m.area, np.float64).sum(-1) * 1e-6  # [num, 2] batch x s, blocks x s
        metrics["batch_mean"] = area[:, 0] / np.maximum(busy_s, 1e-9)
        metrics["kv_used_fraction"] = area[:, 1] / (sim_s * scenario.num_instances * scenario.usable_blocks)
        metrics["busy_fraction"] = busy_s / (sim_s * scenario.num_instances)
        metrics["gpu_seconds"] = busy_s * scenario.gpus_per_instance
        for name, which in (
            ("preemptions", Count.PREEMPTIONS),
            ("recomputed_tokens", Count.RECOMPUTED_TOKENS),
            ("scheduled_tokens", Count.SCHEDULED_TOKENS),
            ("output_tokens", Count.OUTPUT_TOKENS),
            ("engine_steps", Count.ENGINE_STEPS),
            ("queued_beyond_window", Count.QUEUED),
            ("micro_steps", Count.MICRO_STEPS),
            ("programs_done", Count.PROGRAMS_DONE),
        ):
            metrics[name] = counts[:, which].astype(np.float64)
        if scenario.tiers is not None and static.host_tier:
            block_bytes = scenario.tiers.block_bytes
            for name, which in (
                ("host_out_bytes", Count.HOST_OUT_BLOCKS),
                ("host_in_bytes", Count.HOST_IN_BLOCKS),
                ("remote_out_bytes", Count.REMOTE_OUT_BLOCKS),
                ("remote_in_bytes", Count.REMOTE_IN_BLOCKS),
            ):
                metrics[name] = counts[:, which].astype(np.float64) * block_bytes
            metrics["transfers"] = counts[:, Count.TRANSFERS].astype(np.float64)
            metrics["stall_s"] = counts[:, Count.STALL_US] * 1e-6
        if state.speculation is not None:
            spec = state.speculation
            drafted = np.asarray(spec.counts, np.float64) + np.asarray(spec.counts_high, np.float64) * 2.0**30
            metrics["drafted_tokens"] = drafted[:, DRAFTED]
            metrics["draft_acceptance"] = drafted[:, ACCEPTED] / np.maximum(drafted[:, DRAFTED], 1)
            metrics["tokens_per_round"] = drafted[:, OUTPUTS] / np.maximum(drafted[:, ROUNDS], 1)
            metrics["draft_s"] = drafted[:, DRAFT_US] * 1e-6
        metrics["simulated_s"] = sim_s
        if scenario.is_job_list:
            metrics["makespan_s"] = sim_s
        if state.quality is not None:
            done = np.maximum(counts[:, Count.FINISHED], 1)
            metrics["quality_loss"] = np.asarray(state.quality.loss, np.float64) / done
            metrics["quality_bad_fraction"] = np.asarray(state.quality.bad, np.float64) / done
            metrics["kept_ratio"] = np.asarray(state.quality.share, np.float64) / done
        if state.rounds is not None:
            stopped = np.asarray(state.rounds.stopped, np.float64)
            metrics["rounds"] = np.asarray(state.rounds.number, np.float64)
            metrics["carried_on"] = stopped
            metrics["preemptions"] = metrics["preemptions"] - stopped
        metrics["output_tokens_per_s"] = counts[:, Count.OUTPUT_TOKENS] / sim_s
        if state.kv is not None:
            cached = counts[:, Count.CACHED_TOKENS].astype(np.float64)
            # A request that outputs n tokens decodes n - 1 of them; all else that was scheduled is prefill.
            decoded = counts[:, Count.OUTPUT_TOKENS] - counts[:, Count.FINISHED]
            metrics["prefix_saving"] = cached / np.maximum(cached + counts[:, Count.SCHEDULED_TOKENS] - decoded, 1)
        answered = 0
        if state.semantic is not None:
            found = np.asarray(state.semantic.counts, np.int64)
            answered = found[:, HITS]
            metrics["hit_rate"] = answered / np.maximum(found[:, LOOKUPS], 1)
            metrics["false_hit_rate"] = found[:, FALSE_HITS] / np.maximum(answered, 1)
            metrics["stale_answers"] = found[:, STALE].astype(np.float64)
            metrics["fate_answered"] = answered.astype(np.float64)
        settled = {
            "finished": counts[:, Count.FINISHED] - answered,
            "rejected_size": counts[:, Count.REJECTED_SIZE],
            "rejected_queue": counts[:, Count.REJECTED_QUEUE],
            "rejected_late": counts[:, Count.REJECTED_LATE],
            "timed_out": counts[:, Count.TIMED_OUT],
        }
        settled["unfinished"] = counts[:, Count.ARRIVED] - sum(settled.values()) - answered
        settled["never_arrived"] = _num_turns(requests, first_program, stop) - counts[:, Count.ARRIVED]
        for name, value in settled.items():
            metrics[f"fate_{name}"] = np.asarray(value, np.float64)
        record = state.record if static.record else None
        first = np.asarray(first_program)[:num]
        cut = [(stop - first) * share for share in (scenario.warmup_fraction, scenario.cooldown_fraction)]
        cohorts = list(zip((first + cut[0]).astype(int), (stop - cut[1]).astype(int), strict=True))
        if record is not None and static.num_paused and requests.edges is None:
            metrics |= program_metrics(requests, record, scenario.timing, cohorts)
        if scenario.tenants and state.ledger is not None:
            metrics |= tenant_metrics(scenario, requests, first_program, stop, hist, state.ledger, trajectory, spans)
            if record is not None and requests.edges is None:
                metrics |= tenant_slowdowns(scenario, requests, record, cohorts)
        return cls(
            scenario, policy, seeds, rate, metrics, hist, trajectory, np.asarray(state.flags), record, requests, spans
        )

    # -- reading ---------------------------------------------------------------------------------------------------

    def cdfs(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Latency -> (upper edges in seconds, cumulative fraction), pooled over seeds and classes."""
        edges = upper_edges_us() * 1e-6
        found = {}
        for kind in (Hist.TTFT, Hist.TPOT, Hist.TBT, Hist.E2E):
            counts = self.histograms[:, :, kind].sum((0, 1)).astype(np.float64)
            if counts.sum() > 0:
                used = np.flatnonzero(counts)
                keep = slice(max(used[0] - 1, 0), used[-1] + 1)
                found[f"{LATENCIES[kind]}_s"] = (edges[keep], (np.cumsum(counts) / counts.sum())[keep])
        return found

    def warnings(self) -> list[str]:
        """One sentence for each flag that any lane raised, and one where no request could ever fit into the pool."""
        found = [
            f"{text} ({int(((self.flags & flag) != 0).sum())} of {len(self.seeds)} lanes)"
            for flag, text in FLAG_TEXT.items()
            if np.any(self.flags & flag)
        ]
        refused = int(self.metrics["fate_rejected_size"].sum())
        if refused and not self.metrics["fate_finished"].sum():
            found.append(
                f"nothing finished: {refused} requests were refused at arrival, none of them could ever fit into the "
                f"pool of {self.scenario.usable_blocks} usable KV blocks; raise cluster.kv_blocks"
            )
        return found

    def summary(self) -> Summary:
        """The small table: medians and tails of latency, goodput, throughput, preemptions, KV use, every fate."""
        return Summary(self)

    def records(self, lane: int = 0) -> dict[str, np.ndarray]:
        """Every turn's life as columns (times in seconds since time 0, NaN = not reached). Needs ``record=True``."""
        if self.record is None:
            raise ValueError("this rollout kept no records; call rollout(..., record=True)")
        rec, table = self.record, self.requests
        lead = np.ndim(table.prompt_tokens) > 1

        def column(field: str) -> np.ndarray:
            values = np.asarray(getattr(table, field))
            return values[lane] if lead else values

        def seconds(times: Any) -> np.ndarray:
            pairs = np.asarray(times)
            return np.where(pairs[:, 0] >= 0, join_us(pairs[:, 0], pairs[:, 1]) * 1e-6, np.nan)

        fate = np.asarray(rec.fate[lane])
        names = np.array([f.name.lower() for f in Fate])
        program = column("program")
        stop = int(np.broadcast_to(np.asarray(table.num_programs), (len(self.seeds),))[lane])
        keep = (program < stop) & ((fate != Fate.NEVER_ARRIVED) | _reachable(column("next_turn"), stop))
        columns = {
            "request": np.arange(len(fate)),
            "program": program,
            "klass": column("klass"),
            "priority": column("priority"),
            "prompt_tokens": column("prompt_tokens"),
            "output_tokens": column("output_tokens"),
            "predicted_tokens": column("predicted_tokens"),
            "fate": names[fate],
            "instance": np.asarray(rec.instance[lane]),
            "arrival_s": seconds(rec.arrival[lane]),
            "first_scheduled_s": seconds(rec.first_scheduled[lane]),
            "first_token_s": seconds(rec.first_token[lane]),
            "finish_s": seconds(rec.finish[lane]),
            "preemptions": np.asarray(rec.preemptions[lane]),
            "scheduled_tokens": np.asarray(rec.scheduled_tokens[lane]),
            "cached_tokens_first": np.asarray(rec.cached_first[lane]),
            "cached_tokens_total": np.asarray(rec.cached_total[lane]),
        }
        return {name: values[keep] for name, values in columns.items()}


def total_counts(metrics: Metrics) -> np.ndarray:
    """Counters of finished lanes, int64 ``[lanes, len(Count)]``."""
    return np.asarray(metrics.counts, np.int64) + (np.asarray(metrics.counts_high, np.int64) << 30)


def _reachable(next_turn: np.ndarray, num_programs: int) -> np.ndarray:
    """Rows that belong to a program (padding and unused turns do not)."""
    found = np.zeros(len(next_turn), bool)
    row = np.arange(min(num_programs, len(next_turn)))
    while len(row):
        found[row] = True
        row = next_turn[row]
        row = row[row >= 0]
    return found


def _num_turns(requests: Any, first: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """Turns that the lanes' programs have in all."""
    following, program = np.asarray(requests.next_turn), np.asarray(requests.program)
    if following.ndim == 1:
        reachable = _reachable(following, int(stop.max()))
        owner = np.sort(program[reachable])
        return np.searchsorted(owner, stop) - np.searchsorted(owner, first)
    return np.array([_reachable(following[i], int(stop[i])).sum() for i in range(len(stop))])


def _arrival_spans(requests: Any, first: np.ndarray, stop: np.ndarray, from_zero: bool = False) -> np.ndarray:
    """Seconds from the lane's start to its last program arrival."""
    epoch, us = np.asarray(requests.arrival_epoch), np.asarray(requests.arrival_us)
    last = np.maximum(stop - 1, 0)
    if epoch.ndim == 1:
        end, begin = join_us(epoch[last], us[last]), 0 if from_zero else join_us(epoch[first], us[first])
        return np.maximum(end - begin, 1) * 1e-6
    lane = np.arange(len(stop))
    return np.maximum(join_us(epoch[lane, last], us[lane, last]), 1) * 1e-6


def _throughput(trajectory: Trajectory, spans: np.ndarray, warmup: float) -> np.ndarray:
    """Turns finished per second between the warm-up cut and the last program arrival."""
    begin = spans * warmup
    rates = [
        (trajectory.at(trajectory.finished, i, spans[i]) - trajectory.at(trajectory.finished, i, begin[i]))
        / max(spans[i] - begin[i], 1e-9)
        for i in range(len(spans))
    ]
    return np.asarray(rates)


class Summary:
    """A printable table of a rollout; `rows` for machines."""

    LATENCY_ROWS = ("ttft", "tpot", "tbt", "ttst", "e2e", "queueing")
    OTHER_ROWS = (
        "throughput_per_s",
        "goodput_per_s",
        "slo_attainment",
        "preemptions",
        "kv_used_fraction",
        "batch_mean",
    )

    def __init__(self, result: RolloutResult):
        self.result = result
        m = result.metrics
        self.rows: dict[str, float] = {
            name: float(np.nanmean(values)) if np.isfinite(values).any() else float("nan") for name, values in m.items()
        }

    def __str__(self) -> str:
        r, rows = self.result, self.rows
        offered = f"{r.rate_per_s:.4g} programs/s, {len(r.seeds)} seeds (means over seeds)"
        title = f"{r.scenario.name}: {r.policy.name}, {offered}"
        lines = [title, f"{'':12}{'p50':>10}{'p90':>10}{'p99':>10}  seconds"]
        names = [*self.LATENCY_ROWS, *(["jct"] if "jct_p50_s" in rows else [])]
        for name in names:
            cells = "".join(f"{rows[f'{name}_{q}_s']:>10.4g}" for q in ("p50", "p90", "p99"))
            lines.append(f"{name.upper() if name != 'queueing' else 'Queueing':12}{cells}")
        lines.append("  ".join(f"{name} {rows[name]:.4g}" for name in self.OTHER_ROWS))
        if "transfers" in rows:
            moved = ("host_out_bytes", "host_in_bytes", "remote_out_bytes", "remote_in_bytes", "transfers", "stall_s")
            lines.append("  ".join(f"{name} {rows[name]:.4g}" for name in moved))
        if "drafted_tokens" in rows:
            drafts = ("drafted_tokens", "draft_acceptance", "tokens_per_round", "draft_s")
            lines.append("  ".join(f"{name} {rows[name]:.4g}" for name in drafts))
        if "hit_rate" in rows:
            answers = ("hit_rate", "false_hit_rate", "stale_answers")
            lines.append("  ".join(f"{name} {rows[name]:.4g}" for name in answers))
        fates = {name[5:]: value for name, value in rows.items() if name.startswith("fate_")}
        lines.append("fates: " + ", ".join(f"{name} {value:.6g}" for name, value in fates.items()))
        lines += [f"warning: {text}" for text in r.warnings()]
        return "\n".join(lines)

    __repr__ = __str__
