"""Train an index policy (`jaxsched/networks/index.py`) on a scenario with `train/es.py`, and export it: the latest
average of the search's means that validation workloads cannot tell from the best.

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
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from jaxsched.errors import UserError
from jaxsched.groups import GroupRunner, LaneSpec
from jaxsched.metrics.histogram import NUM_BINS, mean_us
from jaxsched.metrics.result import total_counts
from jaxsched.policies.base import Policy
from jaxsched.policies.learned import DEADLINE_KIND, FAIR_KIND, KIND, learned, num_weights
from jaxsched.scenario import Scenario
from jaxsched.sim.fair import UNIT
from jaxsched.sim.ledger import GAP
from jaxsched.sim.state import Count, Hist, State
from jaxsched.workloads import Preset
from jaxsched.workloads.sessions import MixedSessions
from train import es
from train.es import EsConfig, EsState
from train.pressure import alike, check_knobs, demand

VALIDATION_SEEDS = 500_000
TRAIN_SEEDS = 1_000_000
SEEDS_PER_RUN = 100_000
#: Job completion time charged for each program that was not done after as many events as an episode may take.
UNFINISHED_S = 5_000.0
#: Factors that make other programs of a scenario's.
SCALES = ("context_scale", "growth_scale", "pause_scale")
#: Service gap charged for each.
UNFINISHED_TOKENS = 10_000.0
#: Added to every gap: to be fairer than half a prompt is worth nothing.
EVEN_TOKENS = 200.0
#: 1 % of the tokens computed again costs as much as a gap that is 10 % larger: throughput is to stay what it is.
WASTE = 10.0


@dataclasses.dataclass(frozen=True)
class Ranges:
    """From which each generation draws its workloads, uniformly in the logarithm (`short_share`: uniformly).

    `load` and `pool` are factors on the scenario's pressure (train/pressure.py): on its multiple of the KV-limited
    capacity and on its pool relative to the working set. For programs as the scenario has them that is the arrival rate
    (nearly) and the pool; where programs are drawn too, rate and pool go with them.
    """

    load: tuple[float, float] = (1.0, 1.0)
    pool: tuple[float, float] = (1.0, 1.0)
    tool_tail: tuple[float, float] = (1.0, 1.0)  # factor on the log-sd of the pauses
    context_scale: tuple[float, float] = (1.0, 1.0)  # factor on all input lengths
    growth_scale: tuple[float, float] = (1.0, 1.0)  # factor on what later turns add
    pause_scale: tuple[float, float] = (1.0, 1.0)  # factor on all pauses
    short_share: tuple[float, float] | None = None  # of a mix of two kinds; None: the preset's own
    turns: float | None = None  # where programs are drawn: their mean turns, so that episodes cost alike; None: theirs
    default_share: float = 0.5  # of a generation's workloads that are the scenario's own

    @property
    def draws_programs(self) -> bool:
        """Whether the programs themselves differ, so that rate and pool have to go with them."""
        scaled = any(getattr(self, name) != (1.0, 1.0) for name in SCALES)
        return scaled or self.short_share is not None or self.turns is not None

    @property
    def knobs(self) -> list[str]:
        """Factors of the workload that differ between its lanes."""
        factors = [name for name in ("tool_tail", *SCALES) if getattr(self, name) != (1.0, 1.0)]
        return [*factors, *(["short_share"] if self.short_share is not None else []),
                *(["turns_factor"] if self.turns is not None else [])]  # fmt: skip

    def __post_init__(self) -> None:
        for name in ("load", "pool", "tool_tail", *SCALES):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise UserError(f"randomise.{name} [{low}, {high}]", expected="[low, high] with 0 < low <= high")
        low, high = self.short_share or (0.0, 1.0)
        if not 0 <= low <= high <= 1:
            raise UserError(f"randomise.short_share [{low}, {high}]", expected="[low, high] within [0, 1]")
        if not 0 <= self.default_share <= 1:
            raise UserError(f"randomise.default_share {self.default_share}", expected="a number in [0, 1]")


@dataclasses.dataclass(frozen=True)
class IndexRun:
    """A training run of an index policy."""

    algo: EsConfig = dataclasses.field(default_factory=EsConfig)
    hidden: int = 0  # tanh units of the order head
    network: str = KIND  # what is minimised: `MEASURES`
    randomise: Ranges = dataclasses.field(default_factory=Ranges)
    validation_seeds: int = 8
    validate_every: int = 5  # generations
    seed: int = 0
    time_limit_s: float = math.inf
    micro_steps_per_program: int = 400  # events that an episode may take; a policy that thrashes takes more

    def __post_init__(self) -> None:
        for name, low in (("hidden", 0), ("validation_seeds", 1), ("validate_every", 1), ("seed", 0)):
            if getattr(self, name) < low:
                raise UserError(f"{name} {getattr(self, name)}", expected=f"{low} or more")


class Progress(struct.PyTreeNode):
    """Where a run stands: enough to go on with it and end at the same bits."""

    search: EsState
    best: Float[Array, " w"]  # what is exported: the latest average of means as good as any so far
    best_validation: Float[Array, ""]  # its cost: mean log of the mean job completion time (s)
    best_generation: Int[Array, ""]
    lowest: Float[Array, " v"]  # costs on the validation workloads of the average with the lowest mean so far


def start(run: IndexRun) -> Progress:
    """All weights 0, not yet validated."""
    zero = jnp.zeros(num_weights(run.hidden, run.network), jnp.float32)
    unknown = jnp.full(run.validation_seeds, jnp.inf, jnp.float32)
    search = es.init(run.algo, zero, jax.random.key(run.seed))
    return Progress(search, zero, jnp.float32(jnp.inf), jnp.int32(0), unknown)


def train(
    run: IndexRun, scenario: Scenario, base: Policy, progress: Progress, log: Callable[[dict[str, Any], Progress], None]
) -> Progress:
    """Search the weights of the index network.

    Args:
        scenario: trained on; a synthetic workload with several turns.
        base: the policy whose router and parameters (budget, sequences) are used.
        progress: `start(run)`, or where an interrupted run stood.
        log: gets one dictionary per generation, with an entry ``validation`` where the mean was validated, and where
            the run stands then.

    Raises:
        UserError: the costs are not numbers.
    """
    check_knobs(scenario, run.randomise.knobs)
    if run.network == FAIR_KIND and not scenario.tenants:
        raise UserError(
            "the network of tenants needs tenants", where=f"scenario {scenario.name}", expected="workload.tenants"
        )
    policy = dataclasses.replace(base, scheduler=learned(hidden=run.hidden, kind=run.network), name="learned")
    if run.network == DEADLINE_KIND and not scenario.slo:
        raise UserError(
            "the deadline index needs limits to meet", where=f"scenario {scenario.name}", expected="a section slo"
        )
    measure = MEASURES[run.network]
    runner = GroupRunner(scenario, policy, most_micro_steps=run.micro_steps_per_program * scenario.num_programs)
    begun = time.perf_counter()
    validation = validation_lanes(run, scenario)  # the same traced arguments as in training: one program

    def mean_logs(lanes: LaneSpec) -> np.ndarray:
        state, _, _ = runner.run(lanes)
        return np.log(measure(state, scenario.num_programs))

    def cost(members: np.ndarray, generation: int) -> np.ndarray:
        drawn = draw_workloads(run, scenario, generation)
        num, seeds = len(members), len(drawn)
        lanes = drawn.part(np.tile(np.arange(seeds), num))
        lanes = dataclasses.replace(lanes, weights=np.repeat(members, seeds, axis=0))
        return mean_logs(lanes).reshape(num, seeds).mean(1)

    def validated(search: EsState, entry: dict[str, Any]) -> None:
        nonlocal progress
        lanes = dataclasses.replace(validation, weights=np.tile(np.asarray(search.average), (len(validation), 1)))
        costs = mean_logs(lanes)
        entry["validation"] = value = float(costs.mean())
        if value < float(progress.lowest.mean()):
            progress = progress.replace(lowest=jnp.asarray(costs, jnp.float32))
        if as_good(costs, np.asarray(progress.lowest)):
            progress = progress.replace(
                best=search.average, best_validation=jnp.float32(value), best_generation=search.generation
            )

    def after(search: EsState, costs: np.ndarray | None) -> bool:
        nonlocal progress
        generation = int(search.generation)
        late = time.perf_counter() - begun > run.time_limit_s
        entry: dict[str, Any] = {"generation": generation, "weights": [float(w) for w in np.asarray(search.average)]}
        if costs is not None:
            entry |= {"cost_mean": float(costs.mean()), "cost_best": float(costs.min()), "cost_sd": float(costs.std())}
        if late or generation == run.algo.generations or generation % run.validate_every == 0:
            validated(search, entry)
        progress = progress.replace(search=search)
        log({**entry, "wall_s": round(time.perf_counter() - begun, 2)}, progress)
        return not late

    if not np.isfinite(float(progress.best_validation)):
        after(progress.search, None)
    es.minimise(run.algo, cost, progress.search, after)
    return progress


def as_good(costs: np.ndarray, lowest: np.ndarray) -> bool:
    """Whether costs are within one standard error of the lowest ones, paired by workload.

    The one-standard-error rule (Breiman et al., "Classification and regression trees", 1984): among what the validation
    cannot tell apart, the search goes with the longest trained. The lowest of several noisy means is a winner by luck.
    """
    more = np.asarray(costs, np.float64) - np.asarray(lowest, np.float64)
    error = more.std(ddof=1) / math.sqrt(len(more)) if len(more) > 1 else 0.0
    return bool(more.mean() <= error)


def mean_jct_s(state: State, num_programs: int) -> np.ndarray:
    """Mean job completion time of each lane's programs in seconds, those that were not done at `UNFINISHED_S`."""
    counts = np.asarray(state.metrics.histograms, np.float64)
    counts = counts.reshape(len(counts), -1, len(Hist), NUM_BINS)[:, :, Hist.JCT].sum(1)
    done = np.asarray(state.metrics.counts)[:, Count.PROGRAMS_DONE] / num_programs
    measured = np.where(counts.sum(1) > 0, mean_us(counts) * 1e-6, UNFINISHED_S)
    return done * measured + (1.0 - done) * UNFINISHED_S


def max_service_gap(state: State, num_programs: int) -> np.ndarray:
    """Largest service gap of each lane (weighted tokens, and `EVEN_TOKENS`); every program that is not done adds
    `UNFINISHED_TOKENS`. Times the power `WASTE` of tokens computed per token that had to be.
    """
    gap = np.asarray(state.ledger.pairs)[:, GAP].max((1, 2)) / UNIT  # type: ignore[union-attr]
    counts = total_counts(state.metrics)
    left = num_programs - counts[:, Count.PROGRAMS_DONE]
    computed, again = counts[:, Count.SCHEDULED_TOKENS], counts[:, Count.RECOMPUTED_TOKENS]
    waste = computed / np.maximum(computed - again, 1)
    return (gap + EVEN_TOKENS + UNFINISHED_TOKENS * left) * waste**WASTE


def programs_per_good(state: State, num_programs: int) -> np.ndarray:
    """Programs of each lane (and one) per measured request that met all limits of its class (and one more, so that a
    lane without any has a cost). What an episode that is not over still holds is not good."""
    return (1.0 + num_programs) / (1.0 + np.asarray(state.metrics.class_good, np.float64).sum(1))


#: What each network is searched for: the mean over workloads of the logarithm of ...
MEASURES: dict[str, Callable[[State, int], np.ndarray]] = {
    KIND: mean_jct_s,  # the mean job completion time
    FAIR_KIND: max_service_gap,  # the largest service gap between tenants, at equal throughput
    DEADLINE_KIND: programs_per_good,  # programs per request that met its limits
}


def draw_workloads(run: IndexRun, scenario: Scenario, generation: int) -> LaneSpec:
    """The workloads of a generation: the first ones as the scenario says, the others from the ranges."""
    num = run.algo.seeds
    first = TRAIN_SEEDS + SEEDS_PER_RUN * run.seed + num * generation
    own = np.arange(num) < round(run.randomise.default_share * num)
    return drawn_lanes(run.randomise, scenario, np.arange(first, first + num), own, [run.seed, generation])


def validation_lanes(run: IndexRun, scenario: Scenario) -> LaneSpec:
    """Workloads of the validation: the same share of them the scenario's own, the others from the ranges; always the
    same ones."""
    num = run.validation_seeds
    seeds = np.arange(VALIDATION_SEEDS, VALIDATION_SEEDS + num)
    own = np.arange(num) < round(run.randomise.default_share * num)
    return drawn_lanes(run.randomise, scenario, seeds, own, [VALIDATION_SEEDS])


def drawn_lanes(
    ranges: Ranges, scenario: Scenario, seeds: np.ndarray, own_mask: np.ndarray, key: list[int]
) -> LaneSpec:
    """A workload per seed: as the scenario says where `own_mask`, else drawn from the ranges."""
    names = ["load", "pool", "tool_tail", *SCALES]
    uniform = np.random.default_rng(key).uniform(size=(len(names) + 1, len(seeds)))
    found = {}
    for name, place in zip(names, uniform, strict=False):
        low, high = np.log(getattr(ranges, name))
        found[name] = np.where(own_mask, 1.0, np.exp(low + (high - low) * place))
    assert isinstance(scenario.workload, Preset)
    knobs = {"tool_tail": found["tool_tail"]} if "tool_tail" in scenario.workload.options else {}
    knobs |= {name: found[name] for name in SCALES if getattr(ranges, name) != (1.0, 1.0)}
    usual = {name: 1.0 for name in knobs}
    if ranges.short_share is not None:
        assert isinstance(scenario.workload, Preset)
        assert isinstance(scenario.workload.spec, MixedSessions)
        usual["short_share"] = scenario.workload.spec.short_share
        low, high = ranges.short_share
        knobs["short_share"] = np.where(own_mask, usual["short_share"], low + (high - low) * uniform[-1])
    if ranges.turns is not None:
        usual["turns_factor"] = 1.0
        knobs["turns_factor"] = np.ones(len(seeds))
    rates, pools = found["load"].copy(), found["pool"].copy()
    if ranges.draws_programs:
        base = demand(scenario, usual)
    for i in np.flatnonzero(~own_mask) if ranges.draws_programs else ():
        values = {name: float(column[i]) for name, column in knobs.items()}
        other = demand(scenario, values)
        if ranges.turns is not None:
            knobs["turns_factor"][i] = values["turns_factor"] = ranges.turns / other.turns
            other = demand(scenario, values)
        pools[i], rates[i] = alike(base, other, found["pool"][i], found["load"][i])
    return LaneSpec(
        seeds=seeds,
        rates_per_s=scenario.rate_per_s * rates,
        usable_blocks=np.round(scenario.usable_blocks * pools).astype(np.int64),
        knobs=knobs,
    )
