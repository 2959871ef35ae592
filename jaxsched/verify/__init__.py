"""`jaxsched verify DIR`: run the machine on recorded engine decisions and compare every step (docs/verify.md)."""

from __future__ import annotations

from jaxsched.verify.check import main, verify_folder
from jaxsched.verify.compare import Difference, ScenarioReport

__all__ = ["Difference", "ScenarioReport", "main", "verify_folder"]
