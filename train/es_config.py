"""What a configuration for `algo.kind: es` may say: a scenario, as for a comparison, and how to search on it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from jaxsched.config import Overrides, ScenarioConfig, Section, load_as
from train.es import EsConfig
from train.index_policy import IndexRun, Ranges

Span = Annotated[list[PositiveFloat], Field(min_length=2, max_length=2)]


class EsSection(Section):
    """The search (`train.es.EsConfig`) and the network it searches in."""

    kind: Literal["es"]
    population: PositiveInt = 16  # even
    generations: PositiveInt = 40
    sigma: PositiveFloat = 0.2
    learning_rate: PositiveFloat = 0.1
    final_rate: Annotated[float, Field(gt=0, le=1)] = 0.1  # share of the learning rate that is left at the end
    seeds: PositiveInt = 2  # workloads of a generation
    steps: Literal["fixed", "adam"] = "fixed"  # of fixed length along the averaged gradient, or Adam's
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.6  # of fixed steps
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of the mean that a generation takes away
    average: Annotated[float, Field(ge=0, lt=1)] = 0.8  # of the running average that a generation leaves; 0 = none
    hidden: NonNegativeInt = 0  # tanh units of the order head
    #: Of programs (minimises completion times), of tenants (their service gap), or of deadlines (missed limits).
    network: Literal["index", "fair_index", "deadline_index"] = "index"
    micro_steps_per_program: PositiveInt = 400  # events that an episode may take (10 turns take about 200)

    @model_validator(mode="after")
    def _check(self) -> EsSection:
        if self.population % 2:
            raise ValueError(f"`algo.population` must be even (antithetic pairs), found {self.population}")
        return self


class RandomiseSection(Section):
    """From which the workloads of a generation are drawn; 1 = as the scenario says (`train.index_policy.Ranges`)."""

    load: Span = Field(default_factory=lambda: [1.0, 1.0])
    pool: Span = Field(default_factory=lambda: [1.0, 1.0])
    tool_tail: Span = Field(default_factory=lambda: [1.0, 1.0])
    context_scale: Span = Field(default_factory=lambda: [1.0, 1.0])
    growth_scale: Span = Field(default_factory=lambda: [1.0, 1.0])
    pause_scale: Span = Field(default_factory=lambda: [1.0, 1.0])
    short_share: Annotated[list[NonNegativeFloat], Field(min_length=2, max_length=2)] | None = None
    turns: PositiveFloat | None = None
    default_share: Annotated[float, Field(ge=0, le=1)] = 0.5

    @model_validator(mode="after")
    def _check(self) -> RandomiseSection:
        for name in ("load", "pool", "tool_tail", "context_scale", "growth_scale", "pause_scale", "short_share"):
            low, high = getattr(self, name) or (0, 0)
            if low > high:
                raise ValueError(f"`randomise.{name}` must be [low, high], found [{low}, {high}]")
        return self


class ValidationSection(Section):
    """How the policy that is kept is chosen: on seeds of its own, in the scenario as it stands."""

    seeds: PositiveInt = 8
    every: PositiveInt = 5  # generations


class RunSection(Section):
    """Where the run goes and when it ends."""

    seed: Annotated[int, Field(ge=0, lt=10_000)] = 0
    folder: str = "runs"  # the run goes to <folder>/<name>
    time_limit_s: PositiveFloat | None = None  # no further generation after that


class EsTrainConfig(ScenarioConfig):
    """A training run of an index policy."""

    algo: EsSection
    randomise: RandomiseSection = Field(default_factory=RandomiseSection)
    validation: ValidationSection = Field(default_factory=ValidationSection)
    run: RunSection = Field(default_factory=RunSection)

    @model_validator(mode="after")
    def _check_workload(self) -> EsTrainConfig:
        if self.workload.preset is None and not self.workload.tenants:
            raise ValueError("`workload.preset` is needed: workloads are drawn anew in every generation")
        if self.algo.network == "fair_index" and not self.workload.tenants:
            raise ValueError("`workload.tenants` is needed: algo.network fair_index learns their order")
        if self.algo.network == "deadline_index" and not self.slo:
            raise ValueError("`slo` is needed: algo.network deadline_index learns to meet its limits")
        return self

    def plan(self) -> IndexRun:
        """The run in the terms of the training program."""
        algo = self.algo
        span = lambda name: (getattr(self.randomise, name)[0], getattr(self.randomise, name)[1])
        return IndexRun(
            algo=EsConfig(
                population=algo.population,
                generations=algo.generations,
                sigma=algo.sigma,
                learning_rate=algo.learning_rate,
                final_rate=algo.final_rate,
                seeds=algo.seeds,
                steps=algo.steps,
                momentum=algo.momentum,
                decay=algo.decay,
                average=algo.average,
            ),
            hidden=algo.hidden,
            network=algo.network,
            randomise=Ranges(
                load=span("load"),
                pool=span("pool"),
                tool_tail=span("tool_tail"),
                context_scale=span("context_scale"),
                growth_scale=span("growth_scale"),
                pause_scale=span("pause_scale"),
                short_share=None if self.randomise.short_share is None else span("short_share"),
                turns=self.randomise.turns,
                default_share=self.randomise.default_share,
            ),
            validation_seeds=self.validation.seeds,
            validate_every=self.validation.every,
            seed=self.run.seed,
            micro_steps_per_program=algo.micro_steps_per_program,
            time_limit_s=self.run.time_limit_s or math.inf,
        )


def load(path: str | Path, overrides: Overrides = ()) -> EsTrainConfig:
    """Read a training configuration.

    Raises:
        UserError: anything in the file or the overrides that is not usable, with file, line and field.
    """
    return load_as(path, overrides, EsTrainConfig)
