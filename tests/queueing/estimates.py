"""Means over seeds with standard errors, and the control variates that make short runs sharp."""

from __future__ import annotations

import dataclasses

import numpy as np

from tests.queueing.systems import Runs
from tests.queueing.theory import fcfs_wait


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its standard error."""

    mean: float
    se: float

    def errors_from(self, theory: float) -> float:
        """Signed distance from `theory` in standard errors."""
        return (self.mean - theory) / self.se

    def plus(self, constant: float) -> Estimate:
        return Estimate(self.mean + constant, self.se)


def estimate(per_seed: np.ndarray, controls: list[tuple[np.ndarray, float]] | None = None) -> Estimate:
    """Mean of a per-seed quantity, adjusted by control variates: (per-seed values, their known expectation).

    Least squares over the seeds; the standard error is that of the regression at the known expectations, with the
    degrees of freedom that the coefficients cost (Lavenberg and Welch 1981). Without controls: the sample mean and its
    usual
    error.
    """
    num = len(per_seed)
    design = np.stack([np.ones(num), *(values - expected for values, expected in controls or [])], axis=1)
    coefficients, _, rank, _ = np.linalg.lstsq(design, per_seed, rcond=None)
    residual = per_seed - design @ coefficients
    variance = residual @ residual / (num - rank)
    return Estimate(float(coefficients[0]), float(np.sqrt(variance * np.linalg.pinv(design.T @ design)[0, 0])))


def settled_before(runs: Runs) -> list[tuple[np.ndarray, float]]:
    """Controls for first come first served: wait x (own service - 1) and wait x (next gap - its mean), both of mean 0.

    A request's wait is settled before its own service and the next gap are known, so the products average out; by
    Lindley's recursion they also carry most of the noise of the mean wait. (A wait that depended on either would show
    as a bias.)
    """
    cohort = runs.plan.cohort
    gap = np.diff(runs.arrival)[:, cohort] / runs.unit_us
    service = runs.service[:, cohort] / runs.unit_us
    mean_gap = 1 / (runs.traffic.load * runs.system.servers)
    by_gap = (runs.wait * (gap - mean_gap)).mean(axis=1)
    return [((runs.wait * (service - 1)).mean(axis=1), 0.0), (by_gap, 0.0)]


def offered_load(runs: Runs) -> list[tuple[np.ndarray, float]]:
    """Control for any queue: what the drawn requests offer, mean service - load x mean gap, of mean 0."""
    cohort = runs.plan.cohort
    service = runs.service[:, cohort].mean(axis=1)
    rate = runs.traffic.load * runs.system.servers
    return [(service / runs.unit_us - rate / arrival_rate(runs), 0.0)]


def work_found(runs: Runs) -> list[tuple[np.ndarray, float]]:
    """Control for any work-conserving single server: the mean work that arrivals find, of mean Pollaczek-Khinchine."""
    work = (lindley_start(runs.arrival, runs.service) - runs.arrival)[:, runs.plan.cohort] / runs.unit_us
    return [(work.mean(axis=1), fcfs_wait(runs.traffic.law, runs.traffic.load, runs.system.mean_steps))]


def lindley_start(arrival: np.ndarray, service: np.ndarray) -> np.ndarray:
    """When each request starts on one first-come-first-served server; ``[seeds, requests]``, microseconds."""
    start = np.empty_like(arrival)
    free_at = np.zeros(len(arrival), arrival.dtype)
    for i in range(arrival.shape[1]):
        start[:, i] = np.maximum(arrival[:, i], free_at)
        free_at = start[:, i] + service[:, i]
    return start


def arrival_rate(runs: Runs) -> np.ndarray:
    """Measured requests per mean service time, per seed."""
    cohort = runs.plan.cohort
    return (cohort.stop - cohort.start) / (runs.arrival[:, cohort.stop] - runs.arrival[:, cohort.start]) * runs.unit_us


def found_by_arrivals(runs: Runs) -> np.ndarray:
    """Mean number in system that measured arrivals find, per seed. (What ends at the same microsecond is still there.)"""
    cohort = runs.plan.cohort
    gone = [np.searchsorted(np.sort(f), a[cohort], side="left") for f, a in zip(runs.finish, runs.arrival, strict=True)]
    return (np.arange(cohort.start, cohort.stop) - np.stack(gone)).mean(axis=1)


def time_average(runs: Runs) -> np.ndarray:
    """Mean number in system over the time in which measured requests arrive, per seed."""
    begin, end = (runs.arrival[:, [i]] for i in (runs.plan.cohort.start, runs.plan.cohort.stop))
    inside = np.clip(runs.finish, begin, end) - np.clip(runs.arrival, begin, end)
    return inside.sum(axis=1) / (end - begin)[:, 0]
