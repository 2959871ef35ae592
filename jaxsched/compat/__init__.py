"""The same environments through other libraries' interfaces. Each is imported only where it is used.

`gymnax5(env)`: the five-value interface that rejax and purejaxrl train on. `GymnasiumVector(env, ...)`: a Gymnasium
vector environment with numpy in and out. `TimeStepView(env)`: reset and step that return a `TimeStep`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "FlatView": "jaxsched.compat.flat",
    "GymnasiumVector": "jaxsched.compat.gymnasium_vector",
    "TimeStep": "jaxsched.compat.timestep",
    "TimeStepView": "jaxsched.compat.timestep",
    "gymnax5": "jaxsched.compat.gymnax5",
}

if TYPE_CHECKING:
    from jaxsched.compat.flat import FlatView
    from jaxsched.compat.gymnasium_vector import GymnasiumVector
    from jaxsched.compat.gymnax5 import gymnax5
    from jaxsched.compat.timestep import TimeStep, TimeStepView

__all__ = ["FlatView", "GymnasiumVector", "TimeStep", "TimeStepView", "gymnax5"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'jaxsched.compat' has no attribute {name!r}")
