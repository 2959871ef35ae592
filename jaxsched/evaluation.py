"""Evaluation of learned policies: training seeds x evaluation seeds, paired, with intervals over both.

A learned policy is as many policies as it was trained times; a rule is one. Every policy runs on the same evaluation
seeds (common random numbers), so what is compared is a matrix ``[training seeds, evaluation seeds]`` of costs with the
rule's row ``[evaluation seeds]``. Both axes are samples: the intervals here resample training seeds and evaluation
seeds (Agarwal et al., "Deep RL at the edge of the statistical precipice", 2021, stratify over tasks in the same way),
and are studentized, since five training seeds are few (percentile intervals are then too short, see `stats`).

NumPy only, besides `run_policies`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from jaxsched.policies.base import Policy
from jaxsched.scenario import Scenario
from jaxsched.stats import Interval, iqm

FloatArray = np.ndarray

#: Metrics kept of every lane.
KEPT = (
    "jct_mean_s",
    "jct_p50_s",
    "jct_p99_s",
    "jct_max_s",
    "active_mean_s",
    "slowdown_mean",
    "slowdown_p99",
    "recomputed_tokens",
    "service_gap_tokens",
    "jain_service",
    "throughput_per_s",
    "simulated_s",
    "e2e_mean_s",
    "goodput_per_s",
    "slo_attainment",
    "ttft_p99_s",
    "tpot_p99_s",
    "fate_rejected_late",
    "preemptions",
)

# --- Intervals over two axes --------------------------------------------------------------------------------------


def two_way_interval(
    values: FloatArray, *, confidence: float = 0.95, num_bootstrap: int = 1000, seed: int = 0
) -> Interval:
    """Interval of the mean of ``values [training seeds, evaluation seeds]``, both axes being samples.

    The pigeonhole bootstrap (Owen 2007: rows and columns resampled independently), studentized with the standard error
    of a two-way layout (`two_way_error`). One row is the ordinary bootstrap-t over evaluation seeds, which says nothing
    about other training seeds.
    """
    x = _matrix(values)
    estimate = float(x.mean())
    scale = float(two_way_error(x[None])[0])
    if x.size == 1 or x.shape[1] == 1:
        return Interval(estimate, -math.inf, math.inf, confidence)
    if scale == 0:
        return Interval(estimate, estimate, estimate, confidence)
    chosen = _resampled(x, num_bootstrap, seed)
    scales = two_way_error(chosen)
    usable = scales > 1e-9 * scale
    t = (chosen.mean((1, 2))[usable] - estimate) / scales[usable]
    low, high = np.quantile(t, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(estimate, estimate - float(high) * scale, estimate - float(low) * scale, confidence)


def two_way_error(values: FloatArray) -> FloatArray:
    """Standard errors of the means of matrices ``[n, rows, columns]`` whose rows and columns are random effects.

    The variance of the mean is ``sd_rows^2 / R + sd_columns^2 / C + sd_rest^2 / (R C)``; of the mean squares of the
    two-way layout it is ``(MS_rows + MS_columns - MS_rest) / (R C)``, here at least the larger of the first two's part.
    """
    num_rows, num_columns = values.shape[1:]
    mean = values.mean((1, 2))
    rows, columns = values.mean(2), values.mean(1)
    of_columns = num_rows * np.sum((columns - mean[:, None]) ** 2, 1) / max(num_columns - 1, 1)
    if num_rows == 1:
        return np.sqrt(of_columns / num_columns)
    of_rows = num_columns * np.sum((rows - mean[:, None]) ** 2, 1) / (num_rows - 1)
    rest = values - rows[:, :, None] - columns[:, None, :] + mean[:, None, None]
    of_rest = np.sum(rest**2, (1, 2)) / ((num_rows - 1) * max(num_columns - 1, 1))
    total = np.maximum(of_rows + of_columns - of_rest, np.maximum(of_rows, of_columns))
    return np.sqrt(total / (num_rows * num_columns))


def iqm_interval(scores: FloatArray, *, confidence: float = 0.95, num_bootstrap: int = 1000, seed: int = 0) -> Interval:
    """Interquartile mean of ``scores [training seeds, evaluation seeds]`` with percentiles of the same resampling."""
    x = _matrix(scores)
    values = [iqm(part.reshape(-1)) for part in _resampled(x, num_bootstrap, seed)]
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(iqm(x.reshape(-1)), float(low), float(high), confidence)


def _resampled(x: FloatArray, num: int, seed: int) -> FloatArray:
    generator = np.random.default_rng(seed)
    rows = generator.integers(0, x.shape[0], (num, x.shape[0]))
    columns = generator.integers(0, x.shape[1], (num, x.shape[1]))
    return x[rows[:, :, None], columns[:, None, :]]


def _matrix(values: FloatArray) -> FloatArray:
    array = np.asarray(values, np.float64)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"need [training seeds, evaluation seeds], found shape {array.shape}")
    return array


# --- Effects ------------------------------------------------------------------------------------------------------


def improvement(costs: FloatArray, rival: FloatArray, **options) -> Interval:
    """Share by which costs ``[T, E]`` are below a rival's ``[E]``: 1 - ratio of geometric means, paired by seed.

    Single seeds differ far more in level than in ratio, so the ratio is taken seed by seed (mean of logarithms).
    """
    logs = two_way_interval(np.log(_matrix(costs)) - np.log(np.asarray(rival, np.float64))[None, :], **options)
    share = lambda value: 1.0 - math.exp(value) if value < 700 else -math.inf
    return Interval(share(logs.estimate), share(logs.high), share(logs.low), logs.confidence)


def increase(values: FloatArray, rival: FloatArray, **options) -> Interval:
    """Share by which values ``[T, E]`` of which more is better are above a rival's ``[E]``: ratio of the plain means
    less 1, paired by seed. The interval is that of the inverse ratio, so that a rival may be 0 in some seeds, or in
    most."""
    inverse = _ratio_of_means(np.asarray(rival, np.float64)[None, :], _matrix(values), **options)
    more = lambda value: 1.0 / value - 1.0 if value > 0 else math.inf
    return Interval(more(inverse.estimate), more(inverse.high), more(inverse.low), inverse.confidence)


def decrease(costs: FloatArray, rival: FloatArray, **options) -> Interval:
    """Share by which costs ``[T, E]`` are below a rival's ``[E]``: 1 less the ratio of the plain means, paired by seed.
    For costs that can be 0 in some seeds, of which there is no geometric mean."""
    ratio = _ratio_of_means(_matrix(costs), np.asarray(rival, np.float64)[None, :], **options)
    return Interval(1.0 - ratio.estimate, 1.0 - ratio.high, 1.0 - ratio.low, ratio.confidence)


def _ratio_of_means(top: FloatArray, bottom: FloatArray, **options) -> Interval:
    """Ratio of plain means with the interval of the delta method, as `normalised_interval`; one of them ``[T, E]``, the
    other ``[1, E]``."""
    share = float(top.mean() / bottom.mean())
    return two_way_interval(share + (top - share * bottom) / float(bottom.mean()), **options)


def mean_improvement(costs: FloatArray, rival: FloatArray) -> float:
    """1 - ratio of the plain means, in which the seeds with the highest costs weigh most."""
    return 1.0 - float(np.mean(_matrix(costs)) / np.mean(rival))


def normalised(costs: FloatArray, reference: FloatArray, bound: FloatArray) -> FloatArray:
    """``(reference - cost) / (reference - bound)`` on the means of the latter two: 0 as the reference, 1 as the bound.

    1 minus it is the normalised regret.

    Raises:
        ValueError: the bound is not below the reference: there is nothing to win.
    """
    top, floor = float(np.mean(reference)), float(np.mean(bound))
    if not floor < top:
        raise ValueError(f"the bound's mean cost {floor:.4g} is not below the reference's {top:.4g}")
    return (top - np.asarray(costs, np.float64)) / (top - floor)


def normalised_interval(costs: FloatArray, reference: FloatArray, bound: FloatArray, **options) -> Interval:
    """`normalised` of the mean cost with its interval (`two_way_interval`), all three being samples on common seeds.

    The score s solves ``mean(reference - cost - s (reference - bound)) = 0``; the interval is that of this mean around
    the estimate, in units of the mean gap (the delta method).
    """
    x, top, floor = _matrix(costs), np.asarray(reference, np.float64), np.asarray(bound, np.float64)
    score = float(normalised(x, top, floor).mean())
    rest = (top - x - score * (top - floor)) / float((top - floor).mean())
    return two_way_interval(score + rest, **options)


def rejects(costs: FloatArray, rival: FloatArray, **options) -> bool:
    """Whether policy and rival differ by the interval: what an A/A test must seldom say."""
    return two_way_interval(_matrix(costs) - np.asarray(rival, np.float64), **options).excludes(0.0)


# --- Running ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Metrics of every policy on the same evaluation seeds."""

    seeds: tuple[int, ...]
    metrics: dict[str, dict[str, FloatArray]]  # policy -> metric -> [training seeds (1 of a rule), evaluation seeds]
    warnings: tuple[str, ...] = ()

    def costs(self, policy: str, metric: str = "jct_mean_s") -> FloatArray:
        """``[training seeds, evaluation seeds]``; one row of a rule."""
        return self.metrics[policy][metric]

    def best(self, names: Sequence[str], metric: str = "jct_mean_s") -> str:
        """The policy with the lowest geometric mean."""
        return min(names, key=lambda name: float(np.log(self.costs(name, metric)).mean()))


def run_policies(
    scenario: Scenario,
    policies: Mapping[str, Policy | Sequence[Policy]],
    seeds: Sequence[int],
    *,
    rate_per_s: float | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Evaluation:
    """Every policy on the same seeds; several policies under one name are the training seeds of one learned policy.

    `rate_per_s`: programs per second; None: the scenario's.
    """
    from jaxsched.groups import GroupRunner, LaneSpec

    found: dict[str, dict[str, FloatArray]] = {}
    warnings: list[str] = []
    own = np.asarray(list(seeds), np.int64)
    if rate_per_s is not None:
        scenario = dataclasses.replace(scenario, rate_per_s=rate_per_s)
    for name, entry in policies.items():
        members = [entry] if isinstance(entry, Policy) else list(entry)
        say(f"simulating {name}")
        runner = GroupRunner(scenario, members[0], record=scenario.max_turns > 1 or bool(scenario.tenants))
        lanes = LaneSpec(np.tile(own, len(members)))
        if len(members) > 1:
            weights = [member.scheduler.weights for member in members]
            assert all(w is not None and len(w) == len(weights[0] or ()) for w in weights), "one network"
            lanes = dataclasses.replace(lanes, weights=np.repeat(np.asarray(weights, np.float32), len(own), axis=0))
        result = runner.rollout(lanes)
        kept = [metric for metric in result.metrics if metric in KEPT or metric.startswith(("tenant_", "goodput_"))]
        found[name] = {metric: np.asarray(result.metrics[metric]).reshape(len(members), len(own)) for metric in kept}
        warnings += [f"{name}: {text}" for text in result.warnings()]
    return Evaluation(tuple(int(seed) for seed in own), found, tuple(warnings))


def run_policy(
    scenario: Scenario, policy: Policy, seeds: Sequence[int], *, at_a_time: int | None = None
) -> Iterator[tuple[list[int], dict[str, FloatArray], list[str]]]:
    """One policy on evaluation seeds, as many at a time as asked for.

    Yields:
        Seeds, metrics ``[seeds]``, and warnings.
    """
    from jaxsched.groups import GroupRunner, LaneSpec

    runner = GroupRunner(scenario, policy, record=scenario.max_turns > 1)
    weights = policy.scheduler.weights
    step = at_a_time or len(seeds)
    for first in range(0, len(seeds), step):
        own = np.asarray(list(seeds[first : first + step]), np.int64)
        # Weights go by lane, so that all runs of one training are one compiled program.
        by_lane = None if weights is None else np.tile(np.asarray(weights, np.float32), (len(own), 1))
        result = runner.rollout(LaneSpec(own, weights=by_lane))
        metrics = {metric: np.asarray(result.metrics[metric]) for metric in KEPT if metric in result.metrics}
        yield [int(seed) for seed in own], metrics, result.warnings()


#: Metric that decides -> what the table shows: metric -> heading.
COLUMNS = {
    "jct_mean_s": {
        "jct_mean_s": "mean JCT, s", "jct_p99_s": "p99 JCT", "jct_max_s": "longest",
        "slowdown_mean": "mean slowdown", "slowdown_p99": "p99 slowdown",
    },
    "service_gap_tokens": {
        "service_gap_tokens": "largest service gap, tokens", "jain_service": "Jain index",
        "throughput_per_s": "requests/s", "simulated_s": "until all are done, s", "e2e_mean_s": "mean E2E, s",
        "preemptions": "preemptions", "goodput_per_s": "good/s",
    },
    "goodput_per_s": {
        "goodput_per_s": "good/s", "slo_attainment": "share that is good", "fate_rejected_late": "refused",
        "ttft_p99_s": "p99 TTFT, s", "tpot_p99_s": "p99 TPOT, s",
    },
}  # fmt: skip


#: Metric that decides -> what the learned policy's gain is; of others it is `improvement`.
GAINS = {"goodput_per_s": increase, "service_gap_tokens": decrease}


def markdown(evaluation: Evaluation, learned: str, *, bounds: Sequence[str] = (), metric: str = "jct_mean_s") -> str:
    """A table: the cost and what stands beside it for every policy, and the learned one's gain on each."""
    costs = evaluation.costs(learned, metric)
    columns = dict(COLUMNS.get(metric, {metric: metric}))
    gain_of = GAINS.get(metric, improvement)
    if metric == "goodput_per_s":  # ... of every class
        classes = [m for m in evaluation.metrics[learned] if m.startswith("goodput_") and m != metric]
        columns |= {m: f"{m[len('goodput_') : -len('_per_s')]}/s" for m in classes}
    lines = [
        f"| policy | {' | '.join(columns.values())} | {learned} is better by |",
        f"| --- | {'---: | ' * len(columns)}--- |",
    ]
    for name, found in evaluation.metrics.items():
        cells = [f"{np.mean(found[m]):.4g}" if m in found else "" for m in columns]
        gain = ""
        if name != learned:
            gains = gain_of(costs, found[metric].mean(0))
            gain = f"{gains.estimate:.1%} [{gains.low:.1%}, {gains.high:.1%}]"
            if gain_of is improvement:
                gain += f"; of the means {mean_improvement(costs, found[metric]):.1%}"
        shown = f"{name} (bound)" if name in bounds else name
        lines.append(f"| {shown} | {' | '.join(cells)} | {gain} |")
    return "\n".join(lines) + "\n"
