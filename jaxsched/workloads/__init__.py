"""Workloads: readers of public trace formats, and calibrated synthetic presets generated on device."""

from jaxsched.workloads.presets import Preset, get_preset, list_presets
from jaxsched.workloads.readers import list_formats, read
from jaxsched.workloads.reuse import lru_hit_curve, session_hit_rate
from jaxsched.workloads.table import Workload, stack

__all__ = [
    "Preset",
    "Workload",
    "get_preset",
    "list_formats",
    "list_presets",
    "lru_hit_curve",
    "read",
    "session_hit_rate",
    "stack",
]
