"""Named synthetic workloads and the object that generates them.

The numbers live in `jaxsched/workloads/preset_specs.py`; this module is the interface: `get_preset`, `list_presets`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxsched.errors import UserError
from jaxsched.sim.requests import Requests
from jaxsched.workloads.arrivals import DriftingRenewal, Renewal
from jaxsched.workloads.generate import RequestSpec, SessionSpec, generate_requests, generate_sessions
from jaxsched.workloads.laws import Constant, Exponential, Gamma, Hyperexponential, Law

#: Options every preset takes besides the fields of its specification.
_TRACED = ("prediction_sigma",)
_SAMPLE_PROGRAMS = {RequestSpec: 1 << 17, SessionSpec: 1 << 11}
_INTERARRIVAL = ("exponential", "deterministic", "gamma")
_SIZES = ("constant", "exponential", "hyperexponential")
_RENEWAL_OPTIONS = ("interarrival", "cv", "size", "scv", "mean_output_tokens", "prompt_tokens")


@dataclass(frozen=True)
class Preset:
    """A calibrated synthetic workload. Hashable: it can be a static argument of a jitted function."""

    name: str
    summary: str
    source: str  # where its numbers come from
    spec: RequestSpec | SessionSpec
    rate_per_s: float  # programs per second in the source; the default load

    @property
    def options(self) -> tuple[str, ...]:
        """Names that `generate` accepts as overrides."""
        fields = [f.name for f in dataclasses.fields(self.spec) if isinstance(getattr(self.spec, f.name), int | float)]
        extra = ["drift_sigma"] if isinstance(self.spec.arrivals, DriftingRenewal) else []
        extra += list(_RENEWAL_OPTIONS) if self.name in _RENEWAL_FAMILY else []
        return (*_TRACED, *fields, *extra)

    @property
    def max_turns(self) -> int:
        """Most turns a program can have (1 for plain requests)."""
        return self.spec.max_turns if isinstance(self.spec, SessionSpec) else 1

    @property
    def num_classes(self) -> int:
        """Number of values `klass` takes."""
        tenants = getattr(self.spec, "tenants", None)
        return 1 if tenants is None else len(tenants.probabilities)

    def num_rows(self, num_programs: int) -> int:
        """Rows of the table that `generate` returns."""
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
            **overrides: `prediction_sigma` (may be traced; log-sd of the multiplicative error of `predicted_tokens`, 0
                = the truth) and the static constants named in `options`.

        Raises:
            UserError: unknown override, or a count or rate that is not positive.
        """
        if num_programs < 1:
            raise UserError(f"num_programs {num_programs}", where=f"preset {self.name}", expected="at least 1")
        rate = self.rate_per_s if rate_per_s is None else rate_per_s
        if not isinstance(rate, jax.Array) and not (np.isfinite(rate) and rate > 0.0):
            raise UserError(f"rate_per_s {rate}", where=f"preset {self.name}", expected="a finite number > 0")
        sigma = overrides.pop("prediction_sigma", 0.0)
        spec = _apply(self, overrides)
        return _generate(spec, key, num_programs, jnp.asarray(rate, jnp.float32), jnp.asarray(sigma, jnp.float32))

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
        num = _SAMPLE_PROGRAMS[type(self.spec)]
        table = _generate(self.spec, jax.random.key(0), num, jnp.float32(self.rate_per_s), jnp.float32(0.0))
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
            "options": self.options,
        }


@functools.partial(jax.jit, static_argnums=(0, 2))
def _generate(
    spec: RequestSpec | SessionSpec, key: Array, num_programs: int, rate_per_s: Array, sigma: Array
) -> Requests:
    make = generate_sessions if isinstance(spec, SessionSpec) else generate_requests
    return make(spec, key, num_programs, rate_per_s, sigma)


def list_presets() -> tuple[str, ...]:
    """Names of all presets."""
    from jaxsched.workloads.preset_specs import PRESETS

    return tuple(PRESETS)


def get_preset(name: str) -> Preset:
    """The preset of that name. Raises UserError, naming the nearest, when there is none."""
    from jaxsched.workloads.preset_specs import PRESETS

    if name not in PRESETS:
        raise UserError(
            f"unknown workload preset {name!r}", expected=f"one of {', '.join(PRESETS)}", hint=_nearest(name, PRESETS)
        )
    return PRESETS[name]


_RENEWAL_FAMILY = ("renewal", "mm1", "md1", "mh1")


def _apply(preset: Preset, overrides: dict) -> RequestSpec | SessionSpec:
    """The preset's specification with overrides put in."""
    unknown = [k for k in overrides if k not in preset.options]
    if unknown:
        raise UserError(
            f"unknown option {unknown[0]!r}",
            where=f"preset {preset.name}",
            expected=f"one of {', '.join(preset.options)}",
            hint=_nearest(unknown[0], preset.options),
        )
    overrides = dict(overrides)
    spec = preset.spec
    if "drift_sigma" in overrides:
        spec = dataclasses.replace(
            spec, arrivals=dataclasses.replace(spec.arrivals, sigma=overrides.pop("drift_sigma"))
        )
    if preset.name in _RENEWAL_FAMILY:
        spec = _renewal(spec, {k: overrides.pop(k) for k in _RENEWAL_OPTIONS if k in overrides}, preset.name)
    return dataclasses.replace(spec, **overrides)


def _renewal(spec: RequestSpec, options: dict, name: str) -> RequestSpec:
    """Put the laws of a queueing-theory experiment into a request specification."""
    scale = float(options.get("mean_output_tokens", spec.output.mean))
    interarrival: dict[str, Law] = {"exponential": Exponential(), "deterministic": Constant()}
    if options.get("interarrival") == "gamma" or "cv" in options:
        interarrival["gamma"] = Gamma(cv=float(options.get("cv", 1.0)))
        options.setdefault("interarrival", "gamma")
    sizes: dict[str, Law] = {
        "constant": Constant(scale),
        "exponential": Exponential(scale),
        "hyperexponential": Hyperexponential(scv=float(options.get("scv", 4.0)), scale=scale),
    }
    for option, known in (("interarrival", _INTERARRIVAL), ("size", _SIZES)):
        if option in options and options[option] not in known:
            raise UserError(
                f"{option} {options[option]!r}",
                where=f"preset {name}",
                expected=f"one of {', '.join(known)}",
                hint=_nearest(str(options[option]), known),
            )
    arrivals = Renewal(interarrival[options["interarrival"]]) if "interarrival" in options else spec.arrivals
    output = (
        sizes[options["size"]]
        if "size" in options
        else dataclasses.replace(spec.output, **_scaled(spec.output, scale, options))
    )
    prompt = Constant(float(options["prompt_tokens"])) if "prompt_tokens" in options else spec.prompt
    return dataclasses.replace(spec, arrivals=arrivals, output=output, prompt=prompt)


def _scaled(law: Law, scale: float, options: dict) -> dict[str, float]:
    """Field changes that give `law` another mean (and another scv where it has one)."""
    if isinstance(law, Constant):
        return {"value": scale}
    changes = {"scale": scale}
    if isinstance(law, Hyperexponential) and "scv" in options:
        changes["scv"] = float(options["scv"])
    return changes


def _nearest(name: str, known) -> str:
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"Did you mean {match[0]!r}?" if match else ""
