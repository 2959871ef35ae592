"""What a report is made of: plain data, no simulator types."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

Cdf = tuple[np.ndarray, np.ndarray]  # upper edges in seconds, cumulative fraction

#: Fates in the order they are shown, and what they mean.
FATES: dict[str, str] = {
    "finished": "every output token was delivered",
    "unfinished": "still in the system when the run ended",
    "rejected_size": "refused at arrival: could never fit into the KV memory",
    "rejected_queue": "refused at arrival: the waiting queue was full",
    "rejected_late": "refused: it could no longer meet its limits",
    "timed_out": "dropped at its deadline",
    "never_arrived": "a later turn of a program that ended early",
}


@dataclass
class Timeline:
    """One recorded run, sampled over time.

    Attributes:
        t_s: ``[n]`` seconds, increasing.
        batch: ``[n, instances]`` running requests.
        kv_used_fraction: ``[n, instances]`` share of KV blocks in use.
        queue: ``[n, instances]`` waiting requests.
    """

    t_s: np.ndarray
    batch: np.ndarray
    kv_used_fraction: np.ndarray
    queue: np.ndarray

    def __post_init__(self) -> None:
        self.t_s = np.asarray(self.t_s, np.float64)
        for name in ("batch", "kv_used_fraction", "queue"):
            values = np.asarray(getattr(self, name), np.float64)
            if values.ndim != 2 or values.shape[0] != self.t_s.size:
                raise ValueError(f"timeline {name}: expected [{self.t_s.size}, instances], found {values.shape}")
            setattr(self, name, values)


@dataclass
class ComparisonData:
    """A finished comparison: policies x loads x seeds.

    Attributes:
        title, command: shown as they are; the command is the one that makes this report again.
        config_yaml: the resolved configuration.
        versions: names and versions of what ran (jax, jaxsched, python, platform, git, ...).
        seeds: the seeds, the same for every policy.
        policies, loads: the axes; a load is a multiple of `capacity_per_s`.
        rates_per_s: offered requests per second of each load.
        capacity_note: how the capacity was found, one sentence.
        baseline: the policy the others are compared with.
        primary_metric: the metric that decides.
        higher_is_better: per metric; metrics not named fall back on `jaxsched.report.metrics.higher_is_better`.
        per_seed: (policy, load) -> metric -> ``[num_seeds]``; counts of fates are metrics named ``fate_<fate>``.
        cdfs: (policy, load) -> metric -> (upper edges in seconds, cumulative fraction).
        timelines: policy -> one recorded run.
        notes: sentences for the reader.
        confidence, num_bootstrap: of every interval.
        bounds: policies that know what no real one can (true lengths): shown, but not among those that can win.
            None: those with "oracle" in their name.
    """

    title: str
    command: str
    config_yaml: str
    versions: dict[str, str]
    seeds: list[int]
    policies: list[str]
    loads: list[float]
    rates_per_s: list[float]
    capacity_per_s: float
    capacity_note: str
    baseline: str
    primary_metric: str
    higher_is_better: dict[str, bool]
    per_seed: dict[tuple[str, float], dict[str, np.ndarray]]
    cdfs: dict[tuple[str, float], dict[str, Cdf]] = field(default_factory=dict)
    timelines: dict[str, Timeline] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    confidence: float = 0.95
    num_bootstrap: int = 2000
    bounds: list[str] | None = None

    def __post_init__(self) -> None:
        if self.baseline not in self.policies:
            raise ValueError(f"baseline {self.baseline!r} is not among the policies {self.policies}")
        if len(self.rates_per_s) != len(self.loads):
            raise ValueError(f"{len(self.loads)} loads but {len(self.rates_per_s)} rates")
        for policy in self.policies:
            for load in self.loads:
                values = self.per_seed.get((policy, load), {}).get(self.primary_metric)
                if values is None or np.shape(values) != (len(self.seeds),):
                    found = "nothing" if values is None else f"shape {np.shape(values)}"
                    raise ValueError(
                        f"per_seed[{policy!r}, {load}][{self.primary_metric!r}]: "
                        f"expected {len(self.seeds)} values, found {found}"
                    )

    def contenders(self) -> list[str]:
        """Policies that can win: all but the bounds; all of them if there are only bounds."""
        bounds = [p for p in self.policies if "oracle" in p.lower()] if self.bounds is None else self.bounds
        return [p for p in self.policies if p not in bounds] or list(self.policies)

    def role(self, policy: str) -> str:
        """``baseline``, ``bound`` or nothing."""
        if policy == self.baseline:
            return "baseline"
        return "" if policy in self.contenders() else "bound"

    def values(self, policy: str, load: float, metric: str) -> np.ndarray:
        """``[num_seeds]`` values of a metric; NaN where it was not measured."""
        found = self.per_seed[policy, load].get(metric)
        return np.full(len(self.seeds), np.nan) if found is None else np.asarray(found, np.float64)

    def metrics(self) -> list[str]:
        """Every metric measured for all policies and loads, without the fates, in the order given."""
        first = self.per_seed[self.policies[0], self.loads[0]]
        return [m for m in first if not m.startswith("fate_") and all(m in v for v in self.per_seed.values())]


@dataclass
class SimulationData:
    """A finished simulation of one policy.

    Attributes:
        summary: metric -> ``[num_seeds]``, names as in `ComparisonData.per_seed` (fates included).
        cdfs: metric -> (upper edges in seconds, cumulative fraction).
        timeline: one recorded run, if there is one.
        Others as in `ComparisonData`.
    """

    title: str
    command: str
    config_yaml: str
    versions: dict[str, str]
    seeds: list[int]
    policy: str
    summary: dict[str, np.ndarray]
    cdfs: dict[str, Cdf] = field(default_factory=dict)
    timeline: Timeline | None = None
    notes: list[str] = field(default_factory=list)
    confidence: float = 0.95
