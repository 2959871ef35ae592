"""Named synthetic workloads and the object that generates them.

The numbers live in `jaxsched/workloads/preset_specs.py` and `session_specs.py`; this module is the interface:
`get_preset`, `list_presets`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxsched.errors import UserError
from jaxsched.sim.requests import Requests
from jaxsched.workloads.arrivals import AtOnce, Renewal
from jaxsched.workloads.generate import Knobs, RequestSpec, generate_requests
from jaxsched.workloads.laws import Exponential, Gamma
from jaxsched.workloads.names import nearest
from jaxsched.workloads.renewal import RenewalSpec
from jaxsched.workloads.rollouts import RolloutSpec, generate_rollouts
from jaxsched.workloads.sessions import MixedSessions, SessionSpec, generate_sessions
from jaxsched.workloads.split import SplitSpec, generate_split
from jaxsched.workloads.stages import PipelineSpec, generate_pipelines
from jaxsched.workloads.subagents import SubAgentSpec, generate_subagents
from jaxsched.workloads.tenants import TenantMix, generate_tenants

Spec = RequestSpec | SessionSpec | MixedSessions | PipelineSpec | SubAgentSpec | RenewalSpec | TenantMix | RolloutSpec
#: Specifications of programs with more than one turn.
Sessions = SessionSpec | MixedSessions | PipelineSpec | SubAgentSpec | RolloutSpec | SplitSpec

#: Options that may be traced, so that lanes of one program can differ in them.
TRACED = ("tool_tail", "turns_factor", "context_scale", "short_share", "growth_scale", "pause_scale")

#: Programs in the sample that the means are taken from.
_SAMPLE_REQUESTS, _SAMPLE_SESSIONS = 1 << 17, 1 << 11


@dataclass(frozen=True)
class Preset:
    """A calibrated synthetic workload. Hashable: it can be a static argument of a jitted function."""

    name: str
    summary: str
    source: str  # where its numbers come from
    spec: Spec
    rate_per_s: float  # programs per second in the source; the default load

    @property
    def options(self) -> tuple[str, ...]:
        """Names that `generate` accepts as overrides."""
        if isinstance(self.spec, TenantMix):
            return ("prediction_sigma",)
        scalars = int | float | str
        fields = [f.name for f in dataclasses.fields(self.spec) if isinstance(getattr(self.spec, f.name), scalars)]
        if getattr(self.spec, "paired_prompt", None) is None:
            fields = [name for name in fields if name != "paired"]
        if not isinstance(self.spec, RenewalSpec):
            fields += ["drift_sigma"] if self.spec.arrivals.drifts else []
            fields += ["arrival_cv"] if isinstance(self.spec.arrivals, Renewal) else []
        return ("prediction_sigma", *fields)

    @property
    def max_turns(self) -> int:
        """Most turns a program can have (1 for plain requests)."""
        return self.spec.max_turns if isinstance(self.spec, Sessions | TenantMix) else 1

    @property
    def graphs(self) -> bool:
        """Whether programs are graphs: several of their turns can be live at once."""
        return isinstance(self.spec, PipelineSpec | SubAgentSpec | RolloutSpec) and self.max_turns > 1

    @property
    def rounds(self) -> tuple[int, int] | None:
        """Programs that end a round of rollouts, and us until the next begins; None = programs arrive by a clock."""
        if not isinstance(self.spec, RolloutSpec):
            return None
        return self.spec.round_programs, max(round(self.spec.update_s * 1e6), 1)

    @property
    def is_job_list(self) -> bool:
        """Whether all programs are there at time 0."""
        return isinstance(getattr(self.spec, "arrivals", None), AtOnce)

    def as_job_list(self) -> Preset:
        """The same programs, all there at time 0. Raises UserError for mixtures of tenants and queueing theory."""
        if isinstance(self.spec, TenantMix | RenewalSpec):
            raise UserError(
                f"preset {self.name} cannot be a list of jobs: its arrivals are what it is about",
                expected="a preset of requests or programs, e.g. batch_jobs, sharegpt, arxiv_sum",
            )
        return dataclasses.replace(self, spec=dataclasses.replace(self.spec, arrivals=AtOnce()))

    @property
    def num_classes(self) -> int:
        """Number of values `klass` takes."""
        if isinstance(self.spec, TenantMix):
            return len(self.spec.parts)
        tenants = getattr(self.spec, "tenants", None)
        return 1 if tenants is None else len(tenants.probabilities)

    @property
    def tool_names(self) -> tuple[str, ...]:
        """Names of the values of the table's `tool` column; empty for plain requests."""
        return self.spec.tool_names if isinstance(self.spec, Sessions | TenantMix) else ()

    def num_rows(self, num_programs: int) -> int:
        """Rows of the table that `generate` returns."""
        if isinstance(self.spec, TenantMix):
            return self.spec.num_rows(num_programs)
        return num_programs * self.max_turns

    def with_options(self, **overrides) -> Preset:
        """The preset with other constants. Raises UserError for an unknown option, naming the nearest."""
        return dataclasses.replace(self, spec=_apply(self, overrides)) if overrides else self

    def generate(self, key: Array, num_programs: int, rate_per_s: float | Array | None = None, **overrides) -> Requests:
        """One seed's workload; `vmap` over `key` for many.

        Args:
            key: the seed (`jax.random.key(seed)`).
            num_programs: how many programs arrive (static).
            rate_per_s: programs per second, may be traced; the preset's own rate when None. Another rate is the same
                workload at another speed: every arrival time is divided by the ratio.
            **overrides: `prediction_sigma` (log-sd of the multiplicative error of `predicted_tokens`, 0 = the truth),
                `tool_tail`, `turns_factor`, `context_scale`, `growth_scale`, `pause_scale` and `short_share`, all of
                which may be traced, and the static constants named in `options`.

        Raises:
            UserError: unknown override, or a count or rate that is not positive.
        """
        if num_programs < 1:
            raise UserError(f"num_programs {num_programs}", where=f"preset {self.name}", expected="at least 1")
        rate = self.rate_per_s if rate_per_s is None else rate_per_s
        if not isinstance(rate, jax.Array) and not (np.isfinite(rate) and rate > 0.0):
            raise UserError(f"rate_per_s {rate}", where=f"preset {self.name}", expected="a finite number > 0")
        traced = {k: overrides.pop(k) for k in TRACED if isinstance(overrides.get(k), jax.Array) and k in self.options}
        sigma = overrides.pop("prediction_sigma", 0.0)
        spec = _apply(self, overrides)
        knobs = _knobs(spec, sigma, traced)
        return _generate(spec, key, num_programs, jnp.asarray(rate, jnp.float32), knobs)

    @property
    def mean_prompt_tokens(self) -> float:
        """Mean prompt length per turn (of a large fixed sample: limits and rounding included)."""
        return self._means[0]

    @property
    def mean_output_tokens(self) -> float:
        """Mean output length per turn (of a large fixed sample)."""
        return self._means[1]

    @property
    def mean_turns(self) -> float:
        """Mean number of turns per program (of a large fixed sample)."""
        return self._means[2]

    @functools.cached_property
    def _means(self) -> tuple[float, float, float]:
        num = _SAMPLE_SESSIONS if self.max_turns > 1 else _SAMPLE_REQUESTS
        table = _generate(self.spec, jax.random.key(0), num, jnp.float32(self.rate_per_s), _knobs(self.spec))
        used = np.zeros(self.num_rows(num), bool)
        following = np.asarray(table.next_turn)
        row = np.arange(num)
        while len(row):
            used[row] = True
            row = following[row]
            row = row[row >= 0]
        prompt, output = np.asarray(table.prompt_tokens)[used], np.asarray(table.output_tokens)[used]
        return float(prompt.mean()), float(output.mean()), float(used.sum() / num)

    def describe(self) -> dict[str, object]:
        """Name, summary, source, load and means as plain values, for tables and JSON."""
        return {
            "name": self.name,
            "summary": self.summary,
            "source": self.source,
            "rate_per_s": self.rate_per_s,
            "mean_prompt_tokens": self.mean_prompt_tokens,
            "mean_output_tokens": self.mean_output_tokens,
            "mean_turns": self.mean_turns,
            "max_turns": self.max_turns,
            "num_classes": self.num_classes,
            "tools": self.tool_names,
            "options": self.options,
        }


@functools.partial(jax.jit, static_argnums=(0, 2))
def _generate(spec: Spec, key: Array, num_programs: int, rate_per_s: Array, knobs: Knobs) -> Requests:
    if isinstance(spec, TenantMix):
        return generate_tenants(spec, key, num_programs, rate_per_s, knobs)
    if isinstance(spec, SplitSpec):
        return generate_split(spec, key, num_programs, rate_per_s, knobs)
    if isinstance(spec, PipelineSpec):
        return generate_pipelines(spec, key, num_programs, rate_per_s, knobs)
    if isinstance(spec, RolloutSpec):
        return generate_rollouts(spec, key, num_programs, rate_per_s, knobs)
    if isinstance(spec, SubAgentSpec):
        return generate_subagents(spec, key, num_programs, rate_per_s, knobs)
    if isinstance(spec, SessionSpec | MixedSessions):
        return generate_sessions(spec, key, num_programs, rate_per_s, knobs)
    requests = spec.requests() if isinstance(spec, RenewalSpec) else spec
    return generate_requests(requests, key, num_programs, rate_per_s, knobs)


def _knobs(spec: Spec, sigma: float | Array = 0.0, traced: Mapping[str, Array] | None = None) -> dict[str, Array]:
    """What the generator takes as arrays: the specification's factors, or traced ones in their place."""
    values = {"prediction_sigma": sigma, **{name: getattr(spec, name, 1.0) for name in TRACED}, **(traced or {})}
    return {name: jnp.asarray(value, jnp.float32) for name, value in values.items()}


@functools.cache
def all_presets() -> dict[str, Preset]:
    """Every preset by name."""
    from jaxsched.workloads.preset_specs import REQUEST_PRESETS  # they import this module
    from jaxsched.workloads.session_specs import SESSION_PRESETS

    return {preset.name: preset for preset in (*REQUEST_PRESETS, *SESSION_PRESETS)}


def list_presets() -> tuple[str, ...]:
    """Names of all presets."""
    return tuple(all_presets())


def get_preset(name: str) -> Preset:
    """The preset of that name. Raises UserError, naming the nearest, when there is none."""
    known = all_presets()
    if name not in known:
        raise UserError(
            f"unknown workload preset {name!r}", expected=f"one of {', '.join(known)}", hint=nearest(name, known)
        )
    return known[name]


def _apply(preset: Preset, overrides: Mapping[str, Any]) -> Spec:
    """The preset's specification with overrides put in."""
    for name, value in overrides.items():
        if name not in preset.options:
            raise UserError(
                f"unknown option {name!r}",
                where=f"preset {preset.name}",
                expected=f"one of {', '.join(preset.options)}",
                hint=nearest(name, preset.options),
            )
        _check_option(preset, name, value)
    changes = dict(overrides)
    spec = preset.spec
    if "drift_sigma" in changes and not isinstance(spec, RenewalSpec | TenantMix):
        spec = dataclasses.replace(spec, arrivals=spec.arrivals.with_drift(float(changes.pop("drift_sigma"))))
    if "arrival_cv" in changes and not isinstance(spec, RenewalSpec | TenantMix):
        spec = dataclasses.replace(spec, arrivals=_renewal(preset, changes.pop("arrival_cv")))
    return dataclasses.replace(spec, **changes)


def _renewal(preset: Preset, cv: float) -> Renewal:
    """Renewal arrivals with that coefficient of variation of the gaps."""
    if not cv > 0.0:
        raise UserError(f"arrival_cv {cv}", where=f"preset {preset.name}", expected="a number > 0 (1 is Poisson)")
    return Renewal(Exponential() if cv == 1.0 else Gamma(cv=float(cv)))


def _check_option(preset: Preset, name: str, value: Any) -> None:
    """Refuse a value of another kind than the option's default."""
    current = getattr(preset.spec, name, 0.0)
    if isinstance(current, str):
        fits, kind = isinstance(value, str), "a name"
    elif isinstance(current, int):
        low = 0 if name == "common_tokens" else 1
        fits = isinstance(value, int) and not isinstance(value, bool) and value >= low
        kind = f"a whole number >= {low}"
    else:
        high = 1.0 if name in ("short_share", "paired") else float(np.finfo(np.float32).max)
        fits = isinstance(value, int | float) and not isinstance(value, bool) and 0.0 <= value <= high
        kind = "a number in [0, 1]" if high == 1.0 else "a finite number >= 0"
    if not fits:
        raise UserError(f"{name} {value!r}", where=f"preset {preset.name}", expected=kind)
