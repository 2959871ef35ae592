"""Who wins, by how much, and how sure that is: rows and sentences from per-seed values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxsched.report.data import FATES, ComparisonData
from jaxsched.report.metrics import change, change_range, higher_is_better, label, show, significant
from jaxsched.stats import Interval, paired_bootstrap, t_interval

#: Metrics that may explain a win or name its price, in the order they are tried.
_EXPLAINING = ("ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tbt_p99_s", "e2e_mean_s", "e2e_p99_s", "goodput_per_s")


@dataclass(frozen=True)
class Contrast:
    """A policy against another on the same seeds, one metric."""

    difference: Interval
    ratio: Interval  # of means
    verdict: str  # "better", "worse", "tie"
    num_seeds: int  # seeds on which both have a value


def mean_interval(values: np.ndarray, confidence: float) -> Interval:
    """Mean over seeds with Student's interval; seeds without a value are left out."""
    finite = values[np.isfinite(values)]
    return t_interval(finite, confidence) if finite.size else Interval(math.nan, math.nan, math.nan, confidence)


def contrast(data: ComparisonData, policy: str, other: str, load: float, metric: str) -> Contrast:
    """Compare two policies. A side wins when the intervals of difference and ratio both exclude "no effect"."""
    x, y = data.values(policy, load, metric), data.values(other, load, metric)
    both = np.isfinite(x) & np.isfinite(y)
    if not both.any():
        nothing = Interval(math.nan, math.nan, math.nan, data.confidence)
        return Contrast(nothing, nothing, "tie", 0)
    difference, ratio = (
        paired_bootstrap(x[both], y[both], effect=effect, confidence=data.confidence, num_bootstrap=data.num_bootstrap)
        for effect in ("difference", "ratio")
    )
    sure = difference.excludes(0) and (math.isnan(ratio.estimate) or ratio.excludes(1))
    good = (difference.estimate > 0) == higher_is_better(metric, data.higher_is_better)
    return Contrast(difference, ratio, ("better" if good else "worse") if sure else "tie", int(both.sum()))


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def comparison_table(data: ComparisonData, metrics: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """One row per load, policy and metric (default: the primary one), ready for JSON (what is not finite is None).

    Keys: ``load, rate_per_s, policy, metric, mean, ci_low, ci_high, difference, difference_low, difference_high, ratio,
    ratio_low, ratio_high, verdict`` (``better``, ``worse`` or ``tie``, against the baseline), ``num_seeds``.
    """
    rows = []
    for load, rate in zip(data.loads, data.rates_per_s, strict=True):
        for policy in data.policies:
            for metric in metrics or [data.primary_metric]:
                mean = mean_interval(data.values(policy, load, metric), data.confidence)
                against = contrast(data, policy, data.baseline, load, metric)
                row: dict[str, Any] = {"load": load, "rate_per_s": rate, "policy": policy, "metric": metric}
                for name, interval in (("ci", mean), ("difference", against.difference), ("ratio", against.ratio)):
                    row["mean" if name == "ci" else name] = _number(interval.estimate)
                    row[f"{name}_low"], row[f"{name}_high"] = _number(interval.low), _number(interval.high)
                rows.append({**row, "verdict": against.verdict, "num_seeds": against.num_seeds})
    return rows


@dataclass(frozen=True)
class Verdict:
    """The outcome at one load."""

    load: float
    rate_per_s: float
    winners: list[str]  # one: it beats every other policy; several: they cannot be told apart
    best: str  # lowest (highest) mean
    headline: str  # a few words
    place: str  # "At 0.95× capacity (19.0 requests/s)"
    story: str  # who wins, ties or loses, by how much, and what else moved
    caution: str  # what to doubt, or nothing

    @property
    def sentence(self) -> str:
        """The whole in words."""
        return f"{self.place}: {self.story} {self.caution}".strip()


def _join(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _percent_range(interval: Interval) -> str:
    """The interval of a ratio as two changes, the one nearer to none first."""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return "interval unbounded: one seed"
    ends = sorted((interval.low, interval.high), key=lambda ratio: abs(ratio - 1))
    return f"{interval.confidence:.0%} CI {change_range(ends[0], ends[1])}"


def judge(data: ComparisonData) -> list[Verdict]:
    """The outcome at every load, by the primary metric, among the policies that are not bounds.

    The policy with the best mean wins alone when it beats each of the others (paired intervals); otherwise it ties with
    those it does not beat. Claiming a win only if all contrasts agree keeps the error of "wins" at the stated level
    without a correction for their number.
    """
    metric = data.primary_metric
    sign = -1.0 if higher_is_better(metric, data.higher_is_better) else 1.0
    verdicts = []
    for load, rate in zip(data.loads, data.rates_per_s, strict=True):
        means = {p: mean_interval(data.values(p, load, metric), data.confidence).estimate for p in data.policies}
        ranked = sorted((p for p in data.contenders() if math.isfinite(means[p])), key=lambda p: sign * means[p])
        place = f"At {load:g}× capacity ({significant(rate)} requests/s)"
        if not ranked:
            text = f"no policy has a value of {label(metric)}."
            verdicts.append(Verdict(load, rate, [], "", "nothing measured", place, text, ""))
            continue
        best = ranked[0]
        others = {p: contrast(data, best, p, load, metric) for p in ranked[1:]}
        equal = [p for p in ranked[1:] if others[p].verdict != "better"]
        winners = [best, *equal]
        if len(ranked) == 1:
            headline, text = f"{best} alone", f"only {best} was measured: {label(metric)} {show(metric, means[best])}."
        elif len(winners) == 1:
            headline = f"{best} wins"
            text = f"{best} wins with {label(metric)} {show(metric, means[best])}"
            text += _against(data, best, ranked[1], others, means, metric) + _why(data, best, ranked[1], load)
        elif len(winners) == len(ranked):
            headline = "no clear winner"
            text = (
                f"no clear winner: {_join(ranked)} cannot be told apart with {len(data.seeds)} seeds "
                f"({label(metric)} {show(metric, means[best])} to {show(metric, means[ranked[-1]])})."
            )
        else:
            headline = f"{' = '.join(winners)}" if len(winners) <= 3 else f"{len(winners)} policies tie"
            nearest = others[equal[0]]
            text = (
                f"{_join(winners)} tie for the lead: {label(metric)} is {show(metric, means[best])} for {best}, "
                f"{show(metric, means[equal[0]])} for {equal[0]} ({_percent_range(nearest.ratio)}, not told apart)."
            )
        losers = [p for p in ranked if p != data.baseline and p not in winners]
        losers = [p for p in losers if contrast(data, p, data.baseline, load, metric).verdict == "worse"]
        if losers:
            worst = losers[-1]
            factor = means[worst] / means[data.baseline] if means.get(data.baseline) else math.nan
            name = f"{_join(losers)} {'lose' if len(losers) > 1 else 'loses'} to the baseline {data.baseline}"
            text += f" {name} ({'up to ' if len(losers) > 1 else ''}{change(factor)})."
        for bound in (p for p in data.policies if data.role(p) == "bound" and math.isfinite(means[p])):
            text += f" The bound {bound} is at {show(metric, means[bound])}."
        verdicts.append(Verdict(load, rate, winners, best, headline, place, text, _caution(data, best, load)))
    return verdicts


def _against(
    data: ComparisonData, best: str, second: str, others: dict[str, Contrast], means: dict[str, float], metric: str
) -> str:
    """How far the winner is ahead of the baseline and of the next best."""
    parts = []
    if best != data.baseline and data.baseline in others:
        ratio = others[data.baseline].ratio
        shown = show(metric, means[data.baseline])
        parts.append(
            f"{change(ratio.estimate)} against the baseline {data.baseline} at {shown} ({_percent_range(ratio)})"
        )
    if second != data.baseline or best == data.baseline:
        ratio = others[second].ratio
        parts.append(f"{change(ratio.estimate)} against the next best, {second} ({_percent_range(ratio)})")
    return ", " + ", ".join(parts) + "."


def _why(data: ComparisonData, best: str, second: str, load: float) -> str:
    """Which other metrics moved with the win, and which it costs."""
    reference = data.baseline if best != data.baseline else second
    gains, costs = [], []
    for metric in _EXPLAINING:
        if metric == data.primary_metric or metric not in data.metrics():
            continue
        found = contrast(data, best, reference, load, metric)
        ratio = found.ratio.estimate
        if found.verdict != "tie" and ratio > 0 and abs(math.log(ratio)) > 0.02:
            entry = (abs(math.log(ratio)), f"{label(metric)} {change(ratio)}")
            (gains if found.verdict == "better" else costs).append(entry)
    text = ""
    if gains:
        text += f" It gains in {_join([t for _, t in sorted(gains, reverse=True)[:2]])}"
        text += f" and pays in {max(costs)[1]}." if costs else "."
    elif costs:
        text += f" It pays in {max(costs)[1]}."
    return text


def finished_share(data: ComparisonData, policy: str, load: float) -> float:
    """Share of requests that finished, over all seeds; NaN where fates were not counted."""
    counts = {f: data.values(policy, load, f"fate_{f}").sum() for f in FATES}
    known = {f: c for f, c in counts.items() if math.isfinite(c)}
    total = sum(known.values())
    return known["finished"] / total if total and "finished" in known else math.nan


def _caution(data: ComparisonData, best: str, load: float) -> str:
    """Latency is measured on requests that finish: say so when the best policy finished clearly fewer than another."""
    shares = {p: finished_share(data, p, load) for p in data.contenders()}
    known = {p: s for p, s in shares.items() if math.isfinite(s)}
    if best not in known:
        return ""
    most = max(known, key=lambda p: known[p])
    if known[most] - known[best] <= 0.01:
        return ""
    return (
        f"Read with care: {best} finished {known[best]:.1%} of its requests, {most} {known[most]:.1%}; "
        "latencies count finished requests only."
    )


def explain_winners(data: ComparisonData) -> list[str]:
    """One sentence or two per load, in the order of loads: who wins, ties or loses, by how much, why, what to doubt."""
    return [verdict.sentence for verdict in judge(data)]


def overall(data: ComparisonData, verdicts: Sequence[Verdict]) -> str:
    """The whole comparison in one line."""
    alone: dict[str, list[str]] = {}
    for verdict in verdicts:
        if len(verdict.winners) == 1 and len(data.contenders()) > 1:
            alone.setdefault(verdict.best, []).append(f"{verdict.load:g}×")
    if not alone:
        return "No policy wins alone at any load."
    ordered = sorted(alone.items(), key=lambda item: -len(item[1]))
    parts = [f"{policy} wins at {_join(loads)}" for policy, loads in ordered]
    open_loads = [f"{v.load:g}×" for v in verdicts if len(v.winners) != 1]
    if open_loads:
        parts.append(f"no single winner at {_join(open_loads)}")
    return "; ".join(parts) + "."
