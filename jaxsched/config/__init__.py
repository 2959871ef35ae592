"""Configuration files: scenarios and comparisons in YAML, checked with file, line and field in every message."""

from __future__ import annotations

from jaxsched.config.load import check_name, from_dict, load, load_as, load_compare
from jaxsched.config.overrides import Overrides, split_overrides
from jaxsched.config.schema import (
    AffineTiming,
    ClusterConfig,
    CoefficientsTiming,
    CompareConfig,
    CompareSection,
    DescriptionTiming,
    MetricsConfig,
    PolicyChoice,
    PolicyConfig,
    RootConfig,
    ScenarioConfig,
    Section,
    SloConfig,
    TimingConfig,
    WorkloadConfig,
)

__all__ = [
    "AffineTiming",
    "ClusterConfig",
    "CoefficientsTiming",
    "CompareConfig",
    "CompareSection",
    "DescriptionTiming",
    "MetricsConfig",
    "Overrides",
    "PolicyChoice",
    "PolicyConfig",
    "RootConfig",
    "ScenarioConfig",
    "Section",
    "SloConfig",
    "TimingConfig",
    "WorkloadConfig",
    "check_name",
    "from_dict",
    "load",
    "load_as",
    "load_compare",
    "split_overrides",
]
