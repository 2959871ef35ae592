"""Metrics of tenants from their ledger, from the histograms of their classes and from records. Host side.

Definitions: docs/metrics.md. Service is prompt tokens + 2 x output tokens, over the tenant's weight where tenants are
compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jaxsched.metrics.histogram import mean_us, quantile_us
from jaxsched.metrics.programs import finished_programs
from jaxsched.sim.fair import UNIT
from jaxsched.sim.ledger import GAP, INPUT_PRICE, OUTPUT_PRICE, LedgerState
from jaxsched.sim.state import Hist, Record

if TYPE_CHECKING:
    from jaxsched.scenario import Scenario


def tenant_metrics(
    scenario: Scenario,
    requests: Any,
    first_program: np.ndarray,
    stop: np.ndarray,
    histograms: np.ndarray,
    ledger: LedgerState,
    trajectory: Any,
    spans_s: np.ndarray,
) -> dict[str, np.ndarray]:
    """Per lane: the service gap and its bound, Jain's index, and service and latencies of each tenant."""
    num, tenants = len(spans_s), scenario.tenants
    weights = np.asarray(scenario.tenant_weights())[: len(tenants)]
    prompt = np.asarray(requests.prompt_tokens)
    longest = prompt.max() if prompt.ndim == 1 else prompt.max(1)
    pool = scenario.usable_blocks * scenario.block_size * scenario.num_instances
    gap = np.asarray(ledger.pairs)[:, GAP].max((1, 2)) / UNIT
    bound = 2.0 * np.maximum(INPUT_PRICE * longest, OUTPUT_PRICE * pool) / weights.min()
    found = {"service_gap_tokens": gap, "service_gap_of_bound": gap / bound}

    prices = np.array([INPUT_PRICE, OUTPUT_PRICE])
    tokens = trajectory.tokens[:, :, : len(tenants)] @ prices  # [lanes, n, tenants]
    served = np.stack([
        [trajectory.at(tokens[:, :, u], lane, spans_s[lane]) for u in range(len(tenants))] for lane in range(num)
    ])  # fmt: skip
    demand = np.stack([
        _demand(requests, lane, first_program[lane], stop[lane], len(tenants), prices) for lane in range(num)
    ])  # fmt: skip
    shares = np.stack([max_min(demand[i], weights, served[i].sum()) for i in range(num)])
    found["jain_service"] = jain(np.minimum(served, demand) / np.maximum(shares, 1e-9))
    for u, tenant in enumerate(tenants):
        found[f"tenant_{tenant.name}_service_per_s"] = served[:, u] / np.maximum(spans_s, 1e-9)
        for kind, name in ((Hist.TTFT, "ttft"), (Hist.E2E, "e2e")):
            counts = histograms[:, u, kind]
            found[f"tenant_{tenant.name}_{name}_mean_s"] = mean_us(counts) * 1e-6
            found[f"tenant_{tenant.name}_{name}_p99_s"] = quantile_us(counts, 0.99) * 1e-6
    return found


def tenant_slowdowns(
    scenario: Scenario, requests: Any, record: Record, measured: list[tuple[int, int]]
) -> dict[str, np.ndarray]:
    """Per lane, the mean slowdown of each tenant's measured programs that finished (NaN where there is none)."""
    klass = np.asarray(requests.klass)
    found = {f"tenant_{t.name}_slowdown_mean": np.full(len(measured), np.nan) for t in scenario.tenants}
    for lane, (rows, _, slowdown, _) in enumerate(finished_programs(requests, record, scenario.timing, measured)):
        owner = (klass if klass.ndim == 1 else klass[lane])[rows]
        for u, tenant in enumerate(scenario.tenants):
            if np.any(owner == u):
                found[f"tenant_{tenant.name}_slowdown_mean"][lane] = slowdown[owner == u].mean()
    return found


def jain(values: np.ndarray) -> np.ndarray:
    """Jain's index ``(sum x)^2 / (n sum x^2)`` of each row: 1 = all equal, 1/n = one has all."""
    return values.sum(-1) ** 2 / np.maximum(values.shape[-1] * (values**2).sum(-1), 1e-30)


def max_min(demand: np.ndarray, weights: np.ndarray, total: float) -> np.ndarray:
    """Weighted max-min fair shares of `total`: nobody gets more than its demand, the rest goes by weight."""
    share = np.zeros_like(demand, dtype=np.float64)
    open_ = demand > 0
    left = min(float(total), float(demand.sum()))
    while left > 1e-9 and open_.any():
        level = left / weights[open_].sum()
        full = open_ & (demand - share <= level * weights + 1e-12)
        if not full.any():
            share[open_] += level * weights[open_]
            break
        left -= (demand - share)[full].sum()
        share[full] = demand[full]
        open_ &= ~full
    return share


def _demand(requests: Any, lane: int, first: int, stop: int, num: int, prices: np.ndarray) -> np.ndarray:
    """Service that each tenant asks for: of all its programs' turns (those of a last, unreached turn left out)."""
    pick = lambda name: (lambda x: x if x.ndim == 1 else x[lane])(np.asarray(getattr(requests, name)))
    following = pick("next_turn")
    found, row = np.zeros(num), np.arange(first, stop)
    while len(row):
        cost = prices[0] * pick("prompt_tokens")[row] + prices[1] * pick("output_tokens")[row]
        np.add.at(found, np.minimum(pick("klass")[row], num - 1), cost.astype(np.float64))
        row = following[row]
        row = row[row >= 0]
    return found
