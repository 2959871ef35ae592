"""The report of one simulation: summary, distributions, timeline."""

from __future__ import annotations

import numpy as np

from jaxsched.report import parts
from jaxsched.report.analysis import mean_interval
from jaxsched.report.data import FATES, SimulationData
from jaxsched.report.metrics import label, show, show_range
from jaxsched.report.svg import escape


def render_simulation(data: SimulationData) -> str:
    """The page as text. Everything a user named is escaped; nothing is loaded from elsewhere."""
    metrics = [m for m in data.summary if not m.startswith("fate_")]
    leading = [m for m in ("ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "e2e_mean_s", "throughput_per_s") if m in metrics]
    lead = ", ".join(f"{label(m)} {show(m, float(np.nanmean(data.summary[m])))}" for m in leading)
    facts = [("policy", data.policy), ("seeds", parts.seed_text(data.seeds))]
    fates = {f: float(np.sum(data.summary.get(f"fate_{f}", np.nan))) for f in FATES}
    body = [
        parts.header(data.title, f"{lead}." if lead else "", facts),
        parts.section("Summary", _summary_note(data), _summary_table(data, metrics)),
        parts.section(
            "What became of every request",
            "Counts over all seeds.",
            parts.fate_key() + parts.fate_table([(data.policy, fates)]),
        ),
    ]
    if data.cdfs:
        curves = {metric: [(1, data.policy, cdf)] for metric, cdf in data.cdfs.items()}
        say = "Share of requests (of gaps, for TBT) at or below each latency, all seeds together."
        body.append(parts.section("Latency distributions", say, parts.cdf_grid(curves)))
    if data.timeline is not None:
        say = "One recorded run, every instance. Long runs are averaged in 400 equal time bins."
        body.append(parts.section("The run over time", say, parts.timeline_rows(data.timeline)))
    body.append(parts.section("Definitions", "", parts.notes_list(data.notes) + parts.definitions(metrics)))
    provenance = parts.provenance(data.command, data.versions, data.seeds, data.config_yaml)
    body.append(parts.section("How to make this report again", "", provenance))
    return parts.page(data.title, body)


def _summary_note(data: SimulationData) -> str:
    if len(data.seeds) == 1:
        return "One seed: there is no interval."
    return (
        f"Mean over {len(data.seeds)} seeds with its {data.confidence:.0%} interval, and the lowest and highest seed."
    )


def _summary_table(data: SimulationData, metrics: list[str]) -> str:
    several = len(data.seeds) > 1
    head = "".join(f'<th scope="col">{name}</th>' for name in (("interval", "lowest", "highest") if several else ()))
    rows = []
    for metric in metrics:
        values = np.asarray(data.summary[metric], np.float64)
        mean = mean_interval(values, data.confidence)
        cells = f"<td><b>{show(metric, mean.estimate)}</b></td>"
        if several:
            finite = values[np.isfinite(values)]
            span = show_range(metric, mean.low, mean.high) if np.isfinite(mean.low) else "–"
            ends = (show(metric, float(finite.min())), show(metric, float(finite.max()))) if finite.size else ("–", "–")
            cells += "".join(f"<td>{text}</td>" for text in (span, *ends))
        rows.append(f'<tr><th scope="row">{escape(label(metric))}</th>{cells}</tr>')
    return (
        f'<div class="scroll"><table><thead><tr><th scope="col">metric</th><th scope="col">mean</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
