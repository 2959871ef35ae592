"""What an evaluation may say (`python -m train.evaluate`): regimes, rules, and learned policies with their runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, PositiveFloat, PositiveInt, PrivateAttr, model_validator

from jaxsched.config import CompareConfig, Overrides, load_as, load_compare
from jaxsched.config.schema import PolicyChoice, RootConfig, Section


class RegimeSection(Section):
    """A scenario on which every policy runs."""

    name: str
    scenario: str  # a scenario's file, relative to this one
    role: Literal["default", "held-out", "control"] = "held-out"  # control: all should tie here
    note: str = ""  # what is particular about it, for the report
    set: dict[str, JsonValue] = Field(default_factory=dict)  # fields of the scenario by dotted path
    rate_per_s: PositiveFloat | None = None  # programs per second; None: the scenario's
    seeds: PositiveInt = 12  # evaluation seeds, from the scenario's seed on
    policies: list[str] | None = None  # which of the rules; None: all
    trace: str | None = None  # the workload: a folder or file among the public traces (option --traces)
    part: str = ""  # added to every scheduler's name, e.g. "offload" where there is a host tier


class EvaluateConfig(RootConfig):
    """Regimes x rules x learned policies."""

    policies: Annotated[list[PolicyChoice], Field(min_length=1)]
    learned: dict[str, list[str]]  # name -> run folders of one training with different seeds, relative to this file
    regimes: Annotated[list[RegimeSection], Field(min_length=1)]
    reference: str  # the rule at 0 of the normalised score
    bound: str  # the policy at 1 of it
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    tie: Annotated[float, Field(gt=0, lt=1)] = 0.02  # a control ties if the interval contains 0 or the gain is smaller

    _folder: Path = PrivateAttr(default=Path())

    @model_validator(mode="after")
    def _check(self) -> EvaluateConfig:
        names = [policy.name for policy in self.policies]
        if len(set(names)) < len(names) or set(names) & set(self.learned):
            raise ValueError(f"policies of the same name: {[*names, *self.learned]}")
        regimes = [regime.name for regime in self.regimes]
        if len(set(regimes)) < len(regimes):
            raise ValueError(f"`regimes` has two entries of the same name: {regimes}")
        if strange := [name for name in regimes if "," in name]:
            raise ValueError(f"regime {strange[0]!r}: a name has no comma, `--regimes` separates names by them")
        for field in ("reference", "bound"):
            if getattr(self, field) not in names:
                raise ValueError(f"`{field}` must be one of the policies {names}, found {getattr(self, field)!r}")
        for regime in self.regimes:
            if strange := [name for name in regime.policies or [] if name not in names]:
                raise ValueError(f"regime {regime.name!r}: {strange[0]!r} is not one of the policies {names}")
        if not all(self.learned.values()):
            raise ValueError("every entry of `learned` needs at least one run folder")
        return self

    def runs(self) -> dict[str, list[Path]]:
        """The learned policies' run folders."""
        return {name: [self._folder / path for path in paths] for name, paths in self.learned.items()}

    def with_runs(self, learned: dict[str, list[Path]]) -> EvaluateConfig:
        """The same evaluation of other learned policies."""
        changed = self.model_copy(update={"learned": {k: [str(p.absolute()) for p in v] for k, v in learned.items()}})
        changed._folder = self._folder
        return changed

    def comparison(self, regime: RegimeSection, traces: Path) -> CompareConfig:
        """The regime as a comparison of the rules in it; `traces` is where public traces lie."""
        chosen = [p for p in self.policies if regime.policies is None or p.name in regime.policies]
        fields: dict[str, Any] = {}
        if regime.trace is not None:
            fields["workload.path"] = str(traces / regime.trace)
        fields |= regime.set
        if regime.rate_per_s is not None:
            fields["workload.rate_per_s"] = regime.rate_per_s
        fields["compare"] = {
            "policies": [p.model_dump(exclude_none=True) for p in chosen],
            "loads": [1.0], "seeds": regime.seeds, "baseline": chosen[0].name, "metric": "jct_mean_s",
        }  # fmt: skip
        return load_compare(self._folder / regime.scenario, fields)


def load(path: str | Path, overrides: Overrides | Sequence[str] = ()) -> EvaluateConfig:
    """Read an evaluation.

    Raises:
        UserError: anything in the file or the overrides that is not usable, with file, line and field.
    """
    config = load_as(path, overrides, EvaluateConfig)
    config._folder = Path(path).expanduser().absolute().parent
    return config
