"""Train an index policy (`jaxsched/networks/index.py`) on a scenario with `train/es.py`, and export the best mean.

Workloads of generations, of validation and of tests have different seeds: training from `TRAIN_SEEDS` on, validation
from `VALIDATION_SEEDS` on; below are the test seeds, which nothing here looks at.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxsched.errors import UserError
from jaxsched.groups import GroupRunner, LaneSpec
from jaxsched.metrics.histogram import NUM_BINS
from jaxsched.metrics.result import mean_us
from jaxsched.networks.index import IndexShape
from jaxsched.policies.base import Policy
from jaxsched.policies.learned import learned
from jaxsched.scenario import Scenario
from jaxsched.sim.state import Count, Hist, State
from train.es import EsConfig, EsState, minimise

VALIDATION_SEEDS = 500_000
TRAIN_SEEDS = 1_000_000
SEEDS_PER_RUN = 100_000
#: What a policy is charged whose lane the watchdog stopped, or whose programs cannot all run.
UNFINISHED_S = 1e6


@dataclasses.dataclass(frozen=True)
class Ranges:
    """From which each generation draws its workloads, uniformly in the logarithm; 1 = as the scenario says."""

    load: tuple[float, float] = (1.0, 1.0)  # of the arrival rate
    pool: tuple[float, float] = (1.0, 1.0)  # of the KV pool
    tool_tail: tuple[float, float] = (1.0, 1.0)  # of the log-sd of the pauses
    default_share: float = 0.5  # of a generation's workloads that are the scenario's own

    def __post_init__(self) -> None:
        for name in ("load", "pool", "tool_tail"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise UserError(f"randomise.{name} [{low}, {high}]", expected="[low, high] with 0 < low <= high")
        if not 0 <= self.default_share <= 1:
            raise UserError(f"randomise.default_share {self.default_share}", expected="a number in [0, 1]")


@dataclasses.dataclass(frozen=True)
class IndexRun:
    """A training run of an index policy."""

    algo: EsConfig = dataclasses.field(default_factory=EsConfig)
    hidden: int = 0  # tanh units of the order head
    randomise: Ranges = dataclasses.field(default_factory=Ranges)
    validation_seeds: int = 8
    validate_every: int = 5  # generations
    seed: int = 0
    time_limit_s: float = math.inf

    def __post_init__(self) -> None:
        for name, low in (("hidden", 0), ("validation_seeds", 1), ("validate_every", 1), ("seed", 0)):
            if getattr(self, name) < low:
                raise UserError(f"{name} {getattr(self, name)}", expected=f"{low} or more")


@dataclasses.dataclass
class Trained:
    """What a run found."""

    weights: np.ndarray  # float32 [w], the mean with the lowest validation cost
    validation: float  # its mean log of the mean job completion time (s)
    generations: int
    stopped: str  # "generations" or "time limit"


def train(run: IndexRun, scenario: Scenario, base: Policy, log: Callable[[dict[str, Any]], None]) -> Trained:
    """Search the weights of the index network.

    Args:
        scenario: trained on; a synthetic workload with several turns.
        base: the policy whose router and parameters (budget, sequences) are used.
        log: gets one dictionary per generation, with an entry ``validation`` where the mean was validated.
    """
    shape = IndexShape(run.hidden)
    policy = dataclasses.replace(base, scheduler=learned(hidden=run.hidden), name="learned")
    runner = GroupRunner(scenario, policy)
    start = time.perf_counter()
    best = Trained(np.zeros(shape.num_weights, np.float32), math.inf, 0, "generations")

    def mean_logs(lanes: LaneSpec) -> np.ndarray:
        state, _, _ = runner.run(lanes)
        return np.log(mean_jct_s(state, scenario.num_programs))

    def cost(members: np.ndarray, generation: int) -> np.ndarray:
        drawn = draw_workloads(run, scenario, generation)
        num, seeds = len(members), len(drawn)
        lanes = drawn.part(np.tile(np.arange(seeds), num))
        lanes = dataclasses.replace(lanes, weights=np.repeat(members, seeds, axis=0))
        return mean_logs(lanes).reshape(num, seeds).mean(1)

    validation = LaneSpec(np.arange(VALIDATION_SEEDS, VALIDATION_SEEDS + run.validation_seeds))

    def validate(weights: np.ndarray) -> float:
        tiled = np.tile(weights, (run.validation_seeds, 1))
        return float(mean_logs(dataclasses.replace(validation, weights=tiled)).mean())

    def after(state: EsState, costs: np.ndarray) -> bool:
        generation, mean = int(state.generation), np.asarray(state.mean)
        seconds = time.perf_counter() - start
        late = seconds > run.time_limit_s
        last = late or generation == run.algo.generations
        entry: dict[str, Any] = {
            "generation": generation,
            "cost_mean": float(np.mean(costs)),
            "cost_best": float(np.min(costs)),
            "cost_sd": float(np.std(costs)),
            "weights": [float(w) for w in mean],
        }
        if last or generation % run.validate_every == 0:
            entry["validation"] = value = validate(mean)
            if value < best.validation:
                best.weights, best.validation = mean, value
        best.generations, best.stopped = generation, "time limit" if late else "generations"
        log({**entry, "wall_s": round(time.perf_counter() - start, 2)})
        return not late

    value = validate(best.weights)
    best.validation = value
    log(
        {
            "generation": 0,
            "validation": value,
            "weights": [0.0] * shape.num_weights,
            "wall_s": time.perf_counter() - start,
        }
    )
    minimise(run.algo, cost, best.weights, jax.random.key(run.seed), after)
    return best


def mean_jct_s(state: State, num_programs: int) -> np.ndarray:
    """Mean job completion time of each lane's measured programs in seconds; `UNFINISHED_S` where not all were done."""
    counts = np.asarray(state.metrics.histograms, np.float64)
    counts = counts.reshape(len(counts), -1, len(Hist), NUM_BINS)[:, :, Hist.JCT].sum(1)
    done = np.asarray(state.metrics.counts)[:, Count.PROGRAMS_DONE] >= num_programs
    return np.where(done, mean_us(counts) * 1e-6, UNFINISHED_S)


def draw_workloads(run: IndexRun, scenario: Scenario, generation: int) -> LaneSpec:
    """The workloads of a generation: the first ones as the scenario says, the others from the ranges."""
    num = run.algo.seeds
    key = np.random.default_rng([run.seed, generation])
    own = np.arange(num) < round(run.randomise.default_share * num)
    uniform = key.uniform(size=(3, num))

    def within(bounds: tuple[float, float], place: np.ndarray) -> np.ndarray:
        low, high = np.log(bounds[0]), np.log(bounds[1])
        return np.where(own, 1.0, np.exp(low + (high - low) * place))

    first = TRAIN_SEEDS + SEEDS_PER_RUN * run.seed + num * generation
    return LaneSpec(
        seeds=np.arange(first, first + num),
        rates_per_s=scenario.rate_per_s * within(run.randomise.load, uniform[0]),
        usable_blocks=np.round(scenario.usable_blocks * within(run.randomise.pool, uniform[1])).astype(np.int64),
        knobs={"tool_tail": within(run.randomise.tool_tail, uniform[2])},
    )
