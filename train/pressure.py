"""How hard a workload presses on a KV pool: to draw workloads of other programs that are as overloaded as the scenario.

Of a workload's programs on the scenario's hardware (the regime study's normalisation, `headroom.md`):

    capacity with unlimited memory   c ~ 1 / (engine work of a program)                        programs/s
    working set                      W ~ c * (sum over turns of context x (pause + service))   tokens
    KV-limited capacity              ~ c * (pool / W)^0.3                                       programs/s

The exponent is fitted to the study's shares (0.50, 0.69, 0.87 of c at pool / W of 0.5, 1, 2 for software agents, 0.56,
0.66, 0.79 for the mix). A workload at the same pool / W and the same multiple of the KV-limited capacity presses alike,
to tens of per cent, which is what a range for training needs. Only ratios to the scenario are used. Host side.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxsched.errors import UserError
from jaxsched.foresight import with_foresight
from jaxsched.scenario import Scenario
from jaxsched.workloads import Preset

#: A turn's service besides its tool: so long for a step in a batch, and so long until its first token.
STEP_S, FIRST_TOKEN_S = 0.03, 0.5
EXPONENT = 0.3
SAMPLE_PROGRAMS, SAMPLE_SEEDS = 100, 4


@dataclasses.dataclass(frozen=True)
class Demand:
    """What a mean program of a workload asks for."""

    work_s: float  # engine time
    token_s: float  # context tokens times seconds, pauses included
    turns: float

    @property
    def working_set(self) -> float:
        """Tokens of the contexts that live at the capacity with unlimited memory, but for a constant."""
        return self.token_s / self.work_s


def alike(base: Demand, other: Demand, pool: float = 1.0, load: float = 1.0) -> tuple[float, float]:
    """Factors on the base's pool and arrival rate at which `other` presses as hard, times `pool` and `load`."""
    return pool * other.working_set / base.working_set, load * pool**EXPONENT * base.work_s / other.work_s


def demand(scenario: Scenario, knobs: dict[str, float]) -> Demand:
    """Of the scenario's preset with these factors, over a fixed sample of programs."""
    assert isinstance(scenario.workload, Preset)
    names = tuple(sorted(knobs))
    values = [jnp.float32(knobs[name]) for name in names]
    table = _sampler(scenario.workload, names)(jnp.arange(SAMPLE_SEEDS, dtype=jnp.uint32), values, scenario.timing)
    table = jax.tree.map(np.asarray, table)
    lanes = [_demand(jax.tree.map(lambda x, i=i: x[i], table)) for i in range(SAMPLE_SEEDS)]
    return Demand(*np.mean(lanes, axis=0))


def check_knobs(scenario: Scenario, names: list[str]) -> None:
    """Refuse ranges of factors that the scenario's workload does not have."""
    assert isinstance(scenario.workload, Preset)
    for name in names:
        if name not in scenario.workload.options:
            raise UserError(f"randomise.{name}: workload {scenario.workload.name} has no such factor",
                            expected=f"one of {', '.join(scenario.workload.options)}")  # fmt: skip


@functools.lru_cache(maxsize=4)
def _sampler(preset: Preset, names: tuple[str, ...]):
    def one(seed, values):
        knobs = dict(zip(names, values, strict=True))
        return preset.generate(jax.random.key(seed), SAMPLE_PROGRAMS, jnp.float32(1.0), **knobs)

    sample = jax.vmap(one, in_axes=(0, None))
    return jax.jit(lambda seeds, values, timing: with_foresight(sample(seeds, values), timing))


def _demand(table) -> tuple[float, float, float]:
    pause_s = (table.pause_epoch.astype(np.float64) * 2.0**30 + table.pause_us) * 1e-6
    row = np.arange(SAMPLE_PROGRAMS)
    token_s, turns, is_first = 0.0, 0, True
    while len(row):
        context = table.prompt_tokens[row] + 0.5 * table.output_tokens[row]
        service = FIRST_TOKEN_S + STEP_S * table.output_tokens[row]
        token_s += float((context * (service + (0.0 if is_first else pause_s[row]))).sum())
        turns, is_first = turns + len(row), False
        row = table.next_turn[row]
        row = row[row >= 0]
    work_s = float(table.foresight.remaining_us[:SAMPLE_PROGRAMS].mean()) * 1e-6
    return work_s, token_s / SAMPLE_PROGRAMS, turns / SAMPLE_PROGRAMS
