"""Queueing-theory workloads: renewal arrivals and independent sizes, for runs whose answer is known in closed form.

Sizes are output tokens with a mean so large (10,000) that rounding to whole tokens changes no moment by 0.1 %.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxsched.errors import UserError
from jaxsched.workloads.arrivals import Renewal
from jaxsched.workloads.generate import RequestSpec
from jaxsched.workloads.laws import Constant, Exponential, Gamma, Hyperexponential, Law, Uniform
from jaxsched.workloads.names import nearest

INTERARRIVAL = ("exponential", "deterministic", "gamma")
SIZE = ("constant", "uniform", "exponential", "hyperexponential")  # uniform: from 2/3 to 4/3 of the mean


@dataclass(frozen=True)
class RenewalSpec:
    """Arrivals and sizes by the name of their law.

    Raises:
        UserError: unknown law, or a parameter outside its range.
    """

    interarrival: str = "exponential"
    cv: float = 1.0  # coefficient of variation of gamma gaps
    size: str = "exponential"
    scv: float = 4.0  # squared coefficient of variation of hyperexponential sizes
    mean_output_tokens: float = 10_000.0
    prompt_tokens: int = 1

    def __post_init__(self) -> None:
        for name, value, known in (("interarrival", self.interarrival, INTERARRIVAL), ("size", self.size, SIZE)):
            if value not in known:
                raise UserError(
                    f"{name} {value!r}", expected=f"one of {', '.join(known)}", hint=nearest(str(value), known)
                )
        if not self.cv > 0.0:
            raise UserError(f"cv {self.cv}", expected="a number > 0")
        if not self.scv > 1.0:
            raise UserError(f"scv {self.scv}", expected="a number > 1 (1 is the exponential law)")
        if not self.mean_output_tokens >= 1.0:
            raise UserError(f"mean_output_tokens {self.mean_output_tokens}", expected="a number >= 1")

    def requests(self) -> RequestSpec:
        """The specification the generator takes."""
        gaps: dict[str, Law] = {"exponential": Exponential(), "deterministic": Constant(), "gamma": Gamma(cv=self.cv)}
        sizes: dict[str, Law] = {
            "constant": Constant(self.mean_output_tokens),
            "uniform": Uniform(2.0 * self.mean_output_tokens / 3.0, 4.0 * self.mean_output_tokens / 3.0),
            "exponential": Exponential(self.mean_output_tokens),
            "hyperexponential": Hyperexponential(scv=self.scv, scale=self.mean_output_tokens),
        }
        return RequestSpec(
            arrivals=Renewal(gaps[self.interarrival]),
            prompt=Constant(float(self.prompt_tokens)),
            output=sizes[self.size],
        )
