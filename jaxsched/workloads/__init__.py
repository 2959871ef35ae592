"""Workloads: readers of public trace formats, and calibrated synthetic presets generated on device."""

from jaxsched.workloads.presets import Preset, get_preset, list_presets
from jaxsched.workloads.readers import list_formats, read
from jaxsched.workloads.table import Workload, stack

__all__ = ["Preset", "Workload", "get_preset", "list_formats", "list_presets", "read", "stack"]
