"""Mean time in system of the queues that the machine is configured to be, in units of the mean service time.

Two values per queue. The *limit* is the textbook one, with continuous service times. The machine serves whole engine
steps, so each queue also has an *exact* value for that very system: service of a whole number of steps, and, where the
discipline acts at step boundaries only, those boundaries. The exact values go to the limits as the mean number of steps
grows; `test_theory.py` checks that, and the tests of the machine use the exact ones, so that no tolerance has to hide a
discretisation.

Sources: Kleinrock, Queueing Systems I and II (Pollaczek-Khinchine, Erlang C, processor sharing); Schrage and Miller
1966 (SRPT); Vvedenskaya, Dobrushin and Karpelevich 1996, Mitzenmacher 2001 (power of two); Gast and Van Houdt 2017 (its
1/N term). The step-level versions are derived in docs/validation.md.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from scipy import linalg, stats


@dataclasses.dataclass(frozen=True)
class Law:
    """Service law with mean 1 in the limit: a mixture of exponentials (geometrics in steps), or a constant."""

    name: str
    weights: tuple[float, ...]
    means: tuple[float, ...]  # of the exponentials; empty: constant 1
    limit_scv: float  # squared coefficient of variation

    def component_steps(self, mean_steps: int) -> np.ndarray:
        """Mean steps of each geometric."""
        return np.asarray(self.means) * mean_steps

    def second_moment_steps(self, mean_steps: int) -> float:
        """E[O^2] of the number of steps O; E[O] is `mean_steps`."""
        if not self.means:
            return float(mean_steps**2)
        m = self.component_steps(mean_steps)
        return float(np.dot(self.weights, 2 * m * m - m))

    def pmf(self, mean_steps: int) -> np.ndarray:
        """P(O = 1), P(O = 2), ..., cut where less than 1e-16 is left."""
        if not self.means:
            return np.eye(1, mean_steps, mean_steps - 1)[0]
        m = self.component_steps(mean_steps)
        k = np.arange(1, int(40 * m.max()))
        return sum(w / mi * (1 - 1 / mi) ** (k - 1) for w, mi in zip(self.weights, m, strict=True))

    def draw(self, generator: np.random.Generator, mean_steps: int, num: int) -> np.ndarray:
        """Numbers of steps of `num` requests, int64."""
        if not self.means:
            return np.full(num, mean_steps)
        which = generator.choice(len(self.weights), size=num, p=self.weights)
        return generator.geometric(1 / self.component_steps(mean_steps)[which])


def balanced_hyperexponential(scv: float) -> Law:
    """H2 with mean 1, the given C^2, and equal load in both phases."""
    p = (1 + math.sqrt((scv - 1) / (scv + 1))) / 2
    return Law(f"H2, C^2 = {scv:g}", (p, 1 - p), (1 / (2 * p), 1 / (2 * (1 - p))), scv)


M = Law("M", (1.0,), (1.0,), 1.0)
D = Law("D", (1.0,), (), 0.0)
H2 = balanced_hyperexponential(10.0)


# -- one server, first come first served -------------------------------------------------------------------------------


def fcfs_limit(law: Law, load: float) -> float:
    """Pollaczek-Khinchine."""
    return 1 + load * (1 + law.limit_scv) / (2 * (1 - load))


def fcfs(law: Law, load: float, mean_steps: int) -> float:
    """Pollaczek-Khinchine for service of a whole number of steps.

    A server that finishes what it began has no other boundary.
    """
    return 1 + fcfs_wait(law, load, mean_steps)


def fcfs_wait(law: Law, load: float, mean_steps: int) -> float:
    """Mean wait, which is the mean work in system under every work-conserving discipline."""
    return load * law.second_moment_steps(mean_steps) / mean_steps**2 / (2 * (1 - load))


# -- one server, shortest remaining first ------------------------------------------------------------------------------


def srpt_limit(law: Law, load: float) -> float:
    """Schrage and Miller, by quadrature over the size."""
    means, weights = np.asarray(law.means)[:, None], np.asarray(law.weights)[:, None]
    x = np.linspace(0, 40 * max(law.means), 400_001)[None]
    density = np.sum(weights / means * np.exp(-x / means), axis=0)
    tail = np.sum(weights * np.exp(-x / means), axis=0)
    x, width = x[0], x[0, 1]

    def integral(values: np.ndarray) -> np.ndarray:
        return np.concatenate([[0.0], np.cumsum((values[1:] + values[:-1]) * width / 2)])

    below = 1 - load * integral(x * density)
    wait = load * (integral(x * x * density) + x * x * tail) / (2 * below**2)
    return float(integral((wait + integral(1 / below)) * density)[-1])


def srpt(law: Law, load: float, mean_steps: int) -> float:
    """SRPT that decides at step boundaries. Derivation: docs/validation.md."""
    p = law.pmf(mean_steps)
    size = np.arange(1, len(p) + 1.0)
    arrivals = load / mean_steps  # per step
    up_to = np.cumsum(p)
    above = np.maximum(1 - up_to, 0)
    load_up_to = arrivals * np.cumsum(size * p)
    load_below = np.concatenate([[0.0], load_up_to[:-1]])
    steps_beyond = np.maximum(mean_steps - np.cumsum(size * p), 0) - (size + 1) * above
    work = arrivals * (np.cumsum(size**2 * p) + (size + 1) ** 2 * above + steps_beyond) / (2 * (1 - load_up_to))
    stretched = np.concatenate([[0.0], np.cumsum(1 / (1 - load_below))[:-1]])
    return float(np.dot(p, work / (1 - load_below) + 1 + stretched)) / mean_steps


# -- queues that are Markov chains at step boundaries ------------------------------------------------------------------


def ps_limit(load: float) -> float:
    """Processor sharing: whatever the service law."""
    return 1 / (1 - load)


def ps(law: Law, load: float, mean_steps: int) -> float:
    """All share: a step with B requests lasts B units, gives each one token, and lets new ones in at its end.

    Numbers per phase at step starts are a Markov chain for mixtures of two geometrics (one: the second gets weight 0).
    """
    weights = np.asarray([*law.weights, 0.0][:2])
    means = np.asarray([*law.component_steps(mean_steps), 1.0][:2])
    most = math.ceil(math.log(1e-6) / math.log(load))
    sizes = (most + 1, most + 1 if len(law.weights) > 1 else 1)
    count = np.stack(np.meshgrid(*map(np.arange, sizes), indexing="ij"), axis=-1).reshape(-1, 2)
    count = count[count.sum(axis=1) <= most]
    step = count.sum(axis=1).astype(float)
    arrivals = load / mean_steps
    transition = np.ones((len(count), len(count)))
    for phase in range(2):
        transition *= _next_count(count[:, phase], arrivals * weights[phase] * step, 1 / means[phase], most)[
            :, count[:, phase]
        ]
    entry = [
        int(np.flatnonzero((count == one).all(axis=1))[0]) if w > 0 else 0
        for one, w in zip(np.eye(2, dtype=int), weights, strict=True)
    ]
    empty = int(np.flatnonzero(step == 0)[0])
    number = _mean_number(transition, step, step, arrivals, empty, entry, weights)
    return number / load


def many_servers(load_erlangs: float, servers: int, mean_steps: int) -> tuple[float, float]:
    """M/Geo/c whose servers step together: (P(not admitted at the first step boundary), mean time in system).

    The number in system at step starts is a Markov chain; new requests enter at step boundaries, or at once if nobody
    is in.
    """
    arrivals = load_erlangs / mean_steps
    most = servers + math.ceil(math.log(1e-12) / math.log(load_erlangs / servers))
    n = np.arange(most + 1)
    busy = np.minimum(n, servers)
    step = np.ones(most + 1)
    finishing = stats.binom.pmf(n[None], busy[:, None], 1 / mean_steps)
    arriving = stats.poisson.pmf(n, arrivals)
    transition = np.zeros((most + 1, most + 1))
    blocked = np.zeros(most + 1)  # arrivals of a step that do not get in at its end
    for start in n:
        for done in range(busy[start] + 1):
            left = start - done
            transition[start, left:] += finishing[start, done] * arriving[: most + 1 - left]
            late = np.maximum(n - max(servers - left, 0), 0)
            blocked[start] += finishing[start, done] * np.dot(arriving, late)
    chain = _stationary(transition, arrivals, 0, [1], [1.0])
    number = _mean_number(transition, n.astype(float), step, arrivals, 0, [1], [1.0])
    time = _cycle_time(chain, transition, step, arrivals, 0)
    return float(chain @ blocked / time / arrivals), number / load_erlangs


def erlang_c(load_erlangs: float, servers: int) -> tuple[float, float]:
    """M/M/c: (P(wait), mean wait)."""
    terms = np.array([load_erlangs**k / math.factorial(k) for k in range(servers)])
    last = load_erlangs**servers / math.factorial(servers) * servers / (servers - load_erlangs)
    wait = last / (terms.sum() + last)
    return float(wait), float(wait / (servers - load_erlangs))


def _next_count(count: np.ndarray, arriving: np.ndarray, leave: float, most: int) -> np.ndarray:
    """Rows: law of the next count, Binomial survivors plus Poisson arrivals."""
    k = np.arange(most + 1)
    staying = stats.binom.pmf(k[None], count[:, None], 1 - leave)
    coming = stats.poisson.pmf(k[None], arriving[:, None])
    result = np.zeros_like(staying)
    for new in k:
        result[:, new:] += staying[:, : most + 1 - new] * coming[:, new : new + 1]
    return result


def _stationary(transition, arrivals, empty, entry, weights) -> np.ndarray:
    """Stationary law at step starts; an empty system waits for its next arrival, which starts a step at once."""
    chain = transition.copy()
    for state, weight in zip(entry, weights, strict=True):
        chain[:, state] += transition[:, empty] * weight
    chain[:, empty] -= transition[:, empty]
    keep = np.arange(len(chain)) != empty
    chain = chain[np.ix_(keep, keep)]
    chain /= chain.sum(axis=1, keepdims=True)  # what is cut off is below 1e-5
    system = chain.T - np.eye(len(chain))
    system[-1] = 1
    result = np.zeros(len(transition))
    result[keep] = np.linalg.solve(system, np.eye(len(chain))[-1])
    return result


def _cycle_time(chain, transition, step, arrivals, empty) -> float:
    return float(chain @ step + chain @ transition[:, empty] / arrivals)


def _mean_number(transition, number, step, arrivals, empty, entry, weights) -> float:
    """Time average of the number in system: those at the start of the step and, growing, those that come during it."""
    chain = _stationary(transition, arrivals, empty, entry, weights)
    inside = number * step + arrivals * step**2 / 2
    return float(chain @ inside) / _cycle_time(chain, transition, step, arrivals, empty)


# -- many instances behind a router ------------------------------------------------------------------------------------


def power_of_two_limit(load: float) -> float:
    """Infinitely many servers: the fraction with at least i requests is load ** (2 ** i - 1)."""
    return sum(load ** (2**i - 1) for i in range(1, 40)) / load


def power_of_two(load: float, servers: int, *, distinct: bool = True, levels: int = 40) -> float:
    """N servers, two drawn (distinct ones, as the router does), to order 1/N.

    The refined mean field of Gast and Van Houdt. `x[i]`: fraction of servers with more than i requests. Mean shift =
    -A^-1 (tr(B W) / 2 + C) / N with A, B the first and second derivatives of the drift, W the covariance of the
    fluctuations, and C what drawing without replacement changes.
    """
    x = load ** (2.0 ** np.arange(1, levels + 1) - 1)
    before, after = np.concatenate([[1.0], x[:-1]]), np.concatenate([x[1:], [0.0]])
    first = np.diag(-2 * load * x - 1) + np.diag(2 * load * x[:-1], -1) + np.diag(np.ones(levels - 1), 1)
    noise = np.diag(load * (before**2 - x**2) + x - after)
    spread = np.diag(linalg.solve_continuous_lyapunov(first, -noise))
    second = load * (np.concatenate([[0.0], spread[:-1]]) - spread)
    without = load * ((before**2 - before) - (x**2 - x)) if distinct else 0
    shift = -np.linalg.solve(first, second + without)
    return float(x.sum() + shift.sum() / servers) / load
