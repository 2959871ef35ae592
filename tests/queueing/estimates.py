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
    by_gap = (runs.wait * (gap - 1 / runs.rate)).mean(axis=1)
    return [((runs.wait * (service - 1)).mean(axis=1), 0.0), (by_gap, 0.0)]


def offered_load(runs: Runs) -> list[tuple[np.ndarray, float]]:
    """Control for any queue: what the drawn requests offer, mean service - load x mean gap, of mean 0."""
    cohort = runs.plan.cohort
    service = runs.service[:, cohort].mean(axis=1)
    gap = (runs.arrival[:, cohort.stop] - runs.arrival[:, cohort.start]) / (cohort.stop - cohort.start)
    return [((service - gap * runs.rate) / runs.unit_us, 0.0)]


def work_found(runs: Runs) -> list[tuple[np.ndarray, float]]:
    """Control for any work-conserving single server: the mean work that arrivals find, of mean Pollaczek-Khinchine."""
    work = (lindley_start(runs) - runs.arrival)[:, runs.plan.cohort] / runs.unit_us
    return [(work.mean(axis=1), fcfs_wait(runs.traffic.law, runs.traffic.load, runs.system.mean_steps))]


def lindley_start(runs: Runs) -> np.ndarray:
    """When each request would start if its instance served first come first served; ``[seeds, requests]``, us."""
    start = np.empty_like(runs.arrival)
    lanes = np.arange(len(start))
    free_at = np.zeros((len(start), runs.system.num_instances), np.int64)
    for i in range(start.shape[1]):
        instance = runs.instance[:, i]
        start[:, i] = np.maximum(runs.arrival[:, i], free_at[lanes, instance])
        free_at[lanes, instance] = start[:, i] + runs.service[:, i]
    return start


@dataclasses.dataclass(frozen=True)
class Window:
    """A stretch of time fixed beforehand (not by what happens in it, which would bias the comparisons below), per seed.

    All in mean service times; `found` and `stayed` are over the requests that arrive inside.
    """

    length: float
    arrivals: np.ndarray  # how many came
    number: np.ndarray  # time average of the number in system
    found: np.ndarray  # sum of the numbers that arrivals find (what ends at the same microsecond is still there)
    stayed: np.ndarray  # sum of the times in system


def window(runs: Runs) -> Window:
    """The time in which the measured requests are expected to arrive."""
    begin, end = (i * runs.unit_us / runs.rate for i in (runs.plan.cohort.start, runs.plan.cohort.stop))
    inside = (runs.arrival >= begin) & (runs.arrival < end)
    stay = np.clip(runs.finish, begin, end) - np.clip(runs.arrival, begin, end)
    gone = [np.searchsorted(np.sort(f), a, side="left") for f, a in zip(runs.finish, runs.arrival, strict=True)]
    found = np.arange(runs.arrival.shape[1]) - np.stack(gone)
    return Window(
        length=(end - begin) / runs.unit_us,
        arrivals=inside.sum(axis=1),
        number=stay.sum(axis=1) / (end - begin),
        found=np.where(inside, found, 0).sum(axis=1),
        stayed=np.where(inside, runs.finish - runs.arrival, 0).sum(axis=1) / runs.unit_us,
    )
