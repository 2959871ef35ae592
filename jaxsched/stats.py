"""Statistics of comparisons: paired intervals over seeds, the interquartile mean, the saturation point. NumPy only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from jaxsched.errors import UserError

FloatArray = np.ndarray


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval."""

    estimate: float
    low: float
    high: float
    confidence: float = 0.95

    def excludes(self, value: float) -> bool:
        """Whether `value` lies outside the interval."""
        return value < self.low or value > self.high

    @property
    def width(self) -> float:
        """Length of the interval."""
        return self.high - self.low


def _values(values: Sequence[float] | FloatArray, what: str = "values") -> FloatArray:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{what} must be one-dimensional and not empty, found shape {array.shape}")
    return array


# --- Student's t --------------------------------------------------------------------------------------------------


def _t_cdf(t: float, dof: int) -> float:
    """Distribution function of Student's t: the finite series of Abramowitz & Stegun 26.7.3 and 26.7.4."""
    theta = math.atan2(t, math.sqrt(dof))
    cos2 = math.cos(theta) ** 2
    total, term = 0.0, 1.0
    if dof % 2 == 0:
        for k in range(dof // 2):
            total += term
            term *= (2 * k + 1) / (2 * k + 2) * cos2
        return 0.5 + 0.5 * math.sin(theta) * total
    for k in range((dof - 1) // 2):
        total += term
        term *= (2 * k + 2) / (2 * k + 3) * cos2
    return 0.5 + (theta + math.sin(theta) * math.cos(theta) * total) / math.pi


def t_quantile(probability: float, dof: int) -> float:
    """Quantile of Student's t with `dof` degrees of freedom, by bisection on the distribution function."""
    if not 0 < probability < 1 or dof < 1:
        raise ValueError(f"need 0 < probability < 1 and dof >= 1, found {probability}, {dof}")
    if probability < 0.5:
        return -t_quantile(1 - probability, dof)
    low, high = 0.0, 1.0
    while _t_cdf(high, dof) < probability:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_cdf(middle, dof) < probability else (low, middle)
    return (low + high) / 2


def t_interval(values: Sequence[float] | FloatArray, confidence: float = 0.95) -> Interval:
    """Student's interval of the mean of independent values (one a seed). One value has an unbounded interval."""
    array = _values(values)
    mean = float(array.mean())
    if array.size == 1:
        return Interval(mean, -math.inf, math.inf, confidence)
    half = t_quantile(0.5 + confidence / 2, array.size - 1) * float(array.std(ddof=1)) / math.sqrt(array.size)
    return Interval(mean, mean - half, mean + half, confidence)


# --- Bootstrap ----------------------------------------------------------------------------------------------------

Effect = Literal["difference", "ratio"]
Method = Literal["studentized", "percentile", "bca"]
MIN_RESAMPLE_ERROR = 0.25  # least standard error of a resample, as a share of the sample's (see `paired_bootstrap`)


def paired_bootstrap(
    values: Sequence[float] | FloatArray,
    baseline: Sequence[float] | FloatArray,
    *,
    effect: Effect = "difference",
    method: Method = "studentized",
    confidence: float = 0.95,
    num_bootstrap: int = 2000,
    seed: int = 0,
) -> Interval:
    """Interval of the effect of a policy against the baseline on the same seeds; seeds are resampled as pairs.

    Args:
        values, baseline: one value a seed, in the same order of seeds.
        effect: ``"difference"`` of means (values - baseline) or ``"ratio"`` of means (values / baseline).
        method: ``"percentile"``, ``"bca"`` (bias-corrected and accelerated: Efron 1987) or ``"studentized"``
            (bootstrap-t: Efron & Tibshirani 1993, chapter 12; Hall 1988). With few seeds the first two are too short
            (A/A tests at 95 % with eight seeds, normal or lognormal values, reject 11-17 % of the time against 5-8 %
            for the last, which is hence the default). Its ratio is studentized on the logarithm, so that its interval
            is positive where the values are; and a resample's standard error counts as at least a quarter of the
            sample's: resamples that miss the one outlier of eight seeds have almost none, and their t values made
            intervals of many times the range of the data. The misses stay what they were (eight seeds: normal 5.5,
            exponential 6.2, lognormal 9.7 %; Student's t 4.6, 12.1, 16.5 %), the longest twentieth is two to three
            times shorter.
        confidence: of the two-sided interval.
        num_bootstrap: resamples.
        seed: of the resampling; the result is a function of the arguments alone.

    Returns:
        The effect with its interval. One pair gives an unbounded interval; a ratio to a mean of 0 is NaN.

    Raises:
        ValueError: the two are not of one length.
    """
    x, y = _values(values), _values(baseline, "baseline")
    if x.size != y.size:
        raise ValueError(f"paired values need one baseline each, found {x.size} and {y.size}")
    return _bootstrap(x, y, effect, method, confidence, num_bootstrap, seed)


def _bootstrap(
    x: FloatArray, y: FloatArray, effect: Effect, method: Method, confidence: float, num_bootstrap: int, seed: int
) -> Interval:
    estimate = float(_effects(x[None], y[None], effect)[0])
    if x.size == 1:
        return Interval(estimate, -math.inf, math.inf, confidence)
    if not math.isfinite(estimate):
        return Interval(math.nan, math.nan, math.nan, confidence)
    chosen = np.random.default_rng(seed).integers(0, x.size, (num_bootstrap, x.size))
    effects = _effects(x[chosen], y[chosen], effect)
    tail = (1 - confidence) / 2
    if method == "percentile":
        low, high = np.quantile(effects, [tail, 1 - tail])
    elif method == "bca":
        low, high = _bca(x, y, effect, estimate, effects, tail)
    elif method == "studentized":
        low, high = _studentized(x, y, effect, estimate, chosen, effects, tail)
    else:
        raise ValueError(f"unknown method {method!r}")
    return Interval(estimate, float(low), float(high), confidence)


def _studentized(
    x: FloatArray,
    y: FloatArray,
    effect: Effect,
    estimate: float,
    chosen: FloatArray,
    effects: FloatArray,
    tail: float,
) -> tuple[float, float]:
    """Bootstrap-t limits, with floored standard errors; those of a positive ratio on its logarithm."""
    scale = _standard_errors(x[None], y[None], effect)[0]
    scales = _standard_errors(x[chosen], y[chosen], effect)
    on_log = effect == "ratio" and estimate > 0 and bool(np.all(effects > 0))
    if on_log:  # d log r = dr / r
        scale, scales = scale / estimate, scales / effects
        estimate, effects = math.log(estimate), np.log(effects)
    usable_mask = scales > 1e-12 * scale  # a resample of one seed over and over has no spread and no t value
    if scale == 0 or not usable_mask.any():
        low = high = estimate
    else:
        t = (effects[usable_mask] - estimate) / np.maximum(scales[usable_mask], MIN_RESAMPLE_ERROR * scale)
        t_low, t_high = np.quantile(t, [tail, 1 - tail])
        low, high = estimate - t_high * scale, estimate - t_low * scale
    return (math.exp(low), math.exp(high)) if on_log else (float(low), float(high))


def _effects(x: FloatArray, y: FloatArray, effect: Effect) -> FloatArray:
    """Effect of each row of pairs ``[num, num_seeds]``."""
    if effect == "difference":
        return x.mean(1) - y.mean(1)
    if effect == "ratio":
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(y.mean(1) == 0, np.nan, x.mean(1) / y.mean(1))
    raise ValueError(f"unknown effect {effect!r}")


def _standard_errors(x: FloatArray, y: FloatArray, effect: Effect) -> FloatArray:
    """Standard error of the effect of each row; the ratio's by linearisation (the delta method)."""
    if effect == "difference":
        residual = x - y
        unit = np.ones(x.shape[0])
    else:
        unit = np.where(y.mean(1) == 0, np.nan, y.mean(1))  # (no ratio: the row is left out)
        residual = x - (x.mean(1) / unit)[:, None] * y
    return residual.std(1, ddof=1) / math.sqrt(x.shape[1]) / np.abs(unit)


def _bca(
    x: FloatArray, y: FloatArray, effect: Effect, estimate: float, effects: FloatArray, tail: float
) -> tuple[float, float]:
    """Bias-corrected and accelerated percentiles (Efron 1987, with the jackknife acceleration)."""
    normal = NormalDist()
    below = (np.sum(effects < estimate) + 0.5 * np.sum(effects == estimate)) / effects.size
    bias = normal.inv_cdf(float(np.clip(below, 1 / (2 * effects.size), 1 - 1 / (2 * effects.size))))
    keep_mask = ~np.eye(x.size, dtype=bool)
    left_out = np.array([_effects(x[keep][None], y[keep][None], effect)[0] for keep in keep_mask])
    deviation = left_out.mean() - left_out
    spread = np.sum(deviation**2)
    acceleration = float(np.sum(deviation**3) / (6 * spread**1.5)) if spread > 0 else 0.0

    def level(probability: float) -> float:
        z = bias + normal.inv_cdf(probability)
        return normal.cdf(bias + z / (1 - acceleration * z))

    low, high = np.quantile(effects, [level(tail), level(1 - tail)])
    return float(low), float(high)


def unpaired_bootstrap(
    values: Sequence[float] | FloatArray,
    baseline: Sequence[float] | FloatArray,
    *,
    confidence: float = 0.95,
    num_bootstrap: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile interval of the difference of means of two independent samples (for runs without common seeds)."""
    x, y = _values(values), _values(baseline, "baseline")
    generator = np.random.default_rng(seed)
    mean_x = x[generator.integers(0, x.size, (num_bootstrap, x.size))].mean(1)
    mean_y = y[generator.integers(0, y.size, (num_bootstrap, y.size))].mean(1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(mean_x - mean_y, [tail, 1 - tail])
    return Interval(float(x.mean() - y.mean()), float(low), float(high), confidence)


def sign_test(values: Sequence[float] | FloatArray, baseline: Sequence[float] | FloatArray) -> float:
    """Two-sided p-value that policy and baseline are equally likely to win a seed; ties are left out."""
    x, y = _values(values), _values(baseline, "baseline")
    if x.size != y.size:
        raise ValueError(f"paired values need one baseline each, found {x.size} and {y.size}")
    wins, losses = int(np.sum(x > y)), int(np.sum(x < y))
    num = wins + losses
    tail = sum(math.comb(num, k) for k in range(min(wins, losses) + 1)) / 2**num
    return min(1.0, 2 * tail)


def iqm(values: Sequence[float] | FloatArray) -> float:
    """Interquartile mean: the mean of the middle half; a value on the edge of it counts by its share.

    Source: the aggregate recommended by Agarwal et al., "Deep RL at the edge of the statistical precipice", 2021.
    """
    array = np.sort(_values(values))
    cut = array.size / 4
    position = np.arange(array.size)
    weight = np.clip(np.minimum(position + 1 - cut, array.size - cut - position), 0, 1)
    return float(np.sum(weight * array) / np.sum(weight))


# --- Saturation ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """One measured rate and whether the system kept up with it."""

    rate: float
    stable: bool
    measured: Mapping[str, float]


@dataclass(frozen=True)
class Capacity:
    """The largest rate found stable, the bracket around the true one, and every measurement that led there."""

    capacity: float
    low: float  # largest rate seen stable
    high: float  # smallest rate seen unstable above it
    evaluations: tuple[Evaluation, ...]


def is_stable(rate: float, measured: Mapping[str, float], *, min_delivered: float = 0.98) -> bool:
    """Whether a system keeps up: it delivers what is offered and its backlog does not grow.

    Args:
        rate: offered requests per second.
        measured: ``throughput`` (delivered requests per second) and ``backlog_slope`` (requests per second by which the
            number of unfinished requests grows; growth below ``(1 - min_delivered) * rate`` is drift of a finite run).
        min_delivered: share of the offered rate that must be delivered.
    """
    keeps_up = measured["throughput"] >= min_delivered * rate
    return keeps_up and measured.get("backlog_slope", 0.0) <= (1 - min_delivered) * rate


def find_capacity(
    measure: Callable[[float], Mapping[str, float]],
    low: float,
    high: float,
    tol: float = 0.02,
    *,
    stable: Callable[[float, Mapping[str, float]], bool] = is_stable,
    max_evaluations: int = 40,
) -> Capacity:
    """The highest stable rate, by doubling or halving to a bracket and geometric bisection inside it.

    Args:
        measure: runs the system at a rate (requests per second) and returns at least ``throughput`` and
            ``backlog_slope``; use the same seeds at every rate.
        low, high: first guess of a stable and of an unstable rate; both are checked and moved where they are not.
        tol: the bracket is narrowed to ``high <= low * (1 + tol)``.
        stable: the criterion.
        max_evaluations: how often `measure` may be called.

    Raises:
        ValueError: not ``0 < low < high`` or ``tol <= 0``.
        UserError: no bracket within `max_evaluations`: nothing is stable, or everything is.
    """
    if not 0 < low < high or tol <= 0:
        raise ValueError(f"need 0 < low < high and tol > 0, found {low}, {high}, {tol}")
    evaluations: list[Evaluation] = []

    def holds(rate: float) -> bool:
        if len(evaluations) >= max_evaluations:
            rates = [e.rate for e in evaluations]
            state = "stable" if evaluations[-1].stable else "not stable"
            raise UserError(
                f"no saturation point between {min(rates):.4g} and {max(rates):.4g} requests/s "
                f"after {len(rates)} runs (the last one was {state})",
                where="capacity search",
                expected="a rate at which the backlog begins to grow",
                hint="Give compare.capacity as a number of requests per second.",
            )
        measured = dict(measure(rate))
        evaluations.append(Evaluation(rate, bool(stable(rate, measured)), measured))
        return evaluations[-1].stable

    if holds(low):
        while holds(high):
            low, high = high, high * 2
    else:
        low, high = low / 2, low
        while not holds(low):
            low, high = low / 2, low
    while high > low * (1 + tol) and len(evaluations) < max_evaluations:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return Capacity(low, low, high, tuple(evaluations))


def find_knee(load: Sequence[float] | FloatArray, latency: Sequence[float] | FloatArray) -> int:
    """Index of the knee of a latency-load curve: the point furthest below the chord from first to last.

    Source: the Kneedle idea (Satopaa et al., 2011) with both axes scaled to [0, 1]. Latency is taken by its logarithm,
    or a single saturated point would put the knee right before it whatever the rest does.

    Raises:
        ValueError: fewer than three points, loads that do not increase, or latencies that are not positive.
    """
    x, y = _values(load, "load"), _values(latency, "latency")
    if x.size != y.size or x.size < 3:
        raise ValueError(f"need at least three points of load and latency, found {x.size} and {y.size}")
    if np.any(np.diff(x) <= 0) or np.any(y <= 0):
        raise ValueError("loads must increase and latencies must be positive")
    log_y = np.log(y)
    if np.ptp(log_y) == 0:
        return int(x.size - 1)
    scaled_x = (x - x[0]) / (x[-1] - x[0])
    scaled_y = (log_y - log_y[0]) / (log_y[-1] - log_y[0]) if log_y[-1] != log_y[0] else log_y - log_y[0]
    return int(np.argmax(scaled_x - scaled_y))
