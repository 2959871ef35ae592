"""Statistics of arrivals and lengths, on host: what presets are calibrated to and what describes a workload."""

from __future__ import annotations

import numpy as np


def quantiles(values: np.ndarray) -> dict[str, float]:
    """Mean, p50, p95 and p99."""
    p50, p95, p99 = np.quantile(values, [0.5, 0.95, 0.99])
    return {"mean": float(np.mean(values)), "p50": float(p50), "p95": float(p95), "p99": float(p99)}


def window_counts(arrival_us: np.ndarray, window_s: float) -> np.ndarray:
    """int64 [windows]: arrivals in consecutive whole windows from time 0; the last, partial one is left out."""
    window_us = round(window_s * 1e6)
    return np.bincount(np.asarray(arrival_us, np.int64) // window_us)[:-1]


def dispersion(arrival_us: np.ndarray, window_s: float) -> float:
    """Index of dispersion for counts (IDC): variance over mean of `window_counts`; 1 for Poisson arrivals."""
    counts = window_counts(arrival_us, window_s)
    return float(counts.var() / counts.mean())


def count_autocorrelation(arrival_us: np.ndarray, window_s: float, lag: int) -> float:
    """Autocorrelation of `window_counts` at a lag of `lag` windows."""
    counts = window_counts(arrival_us, window_s).astype(np.float64)
    counts -= counts.mean()
    return float((counts[:-lag] * counts[lag:]).mean() / counts.var())


def gap_cv(arrival_us: np.ndarray) -> float:
    """Coefficient of variation of the inter-arrival times."""
    gaps = np.diff(np.asarray(arrival_us, np.int64)).astype(np.float64)
    return float(gaps.std() / gaps.mean())


def ks_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance between two samples (ties allowed)."""
    grid = np.unique(np.concatenate([a, b]))
    above_a = np.searchsorted(np.sort(a), grid, side="right") / len(a)
    above_b = np.searchsorted(np.sort(b), grid, side="right") / len(b)
    return float(np.abs(above_a - above_b).max())
