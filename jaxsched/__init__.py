"""jaxsched: exact, vectorised simulation of LLM-serving clusters in JAX.

>>> import jaxsched as js
>>> scenario = js.load("configs/scenarios/chat.yaml")
>>> result = js.rollout(scenario, js.policies.get("vllm"), seeds=16)
>>> print(result.summary())
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

#: Public name -> module. Loaded on first use: `jaxsched --help` must not wait for JAX.
_PUBLIC = {
    "Scenario": "jaxsched.scenario",
    "SloClass": "jaxsched.scenario",
    "UserError": "jaxsched.errors",
    "check_env": "jaxsched.envs.check",
    "compare": "jaxsched.comparison",
    "load": "jaxsched.scenario",
    "make": "jaxsched.envs",
    "register": "jaxsched.envs",
    "registered_envs": "jaxsched.envs",
    "rollout": "jaxsched.simulation",
    "rollouts": "jaxsched.simulation",
}
_MODULES = ("compat", "envs", "policies", "timing", "workloads", "sim", "metrics", "stats")

if TYPE_CHECKING:
    from jaxsched import compat, envs, policies, timing, workloads
    from jaxsched.comparison import compare
    from jaxsched.envs import make, register, registered_envs
    from jaxsched.envs.check import check_env
    from jaxsched.errors import UserError
    from jaxsched.scenario import Scenario, SloClass, load
    from jaxsched.simulation import rollout, rollouts

__all__ = [
    "Scenario",
    "SloClass",
    "UserError",
    "__version__",
    "check_env",
    "compare",
    "compat",
    "envs",
    "load",
    "make",
    "policies",
    "register",
    "registered_envs",
    "rollout",
    "rollouts",
    "timing",
    "workloads",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f"jaxsched.{name}")
    raise AttributeError(f"module 'jaxsched' has no attribute {name!r}")
