"""Reports: verdicts in words, and one self-contained HTML page, from plain data."""

from __future__ import annotations

from jaxsched.report.analysis import comparison_table, explain_winners
from jaxsched.report.comparison import render_comparison
from jaxsched.report.data import FATES, ComparisonData, SimulationData, Timeline
from jaxsched.report.simulation import render_simulation
from jaxsched.report.write import write_html

__all__ = [
    "FATES",
    "ComparisonData",
    "SimulationData",
    "Timeline",
    "comparison_table",
    "explain_winners",
    "render_comparison",
    "render_simulation",
    "write_html",
]
