"""The charts of a report, each a function from data to one SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from jaxsched.report import svg
from jaxsched.report.analysis import contrast, mean_interval
from jaxsched.report.data import Cdf, ComparisonData, Timeline
from jaxsched.report.metrics import (
    change,
    change_range,
    higher_is_better,
    label,
    plain,
    seconds,
    show,
    show_range,
    unit,
)

#: How many colours the page defines; further series reuse them with dashes.
NUM_COLOURS = 12
#: Above this many instances a timeline shows their spread instead of a line each.
MAX_INSTANCE_LINES = 8
_TIMELINE_POINTS = 400


def series_class(index: int, kind: str) -> str:
    """CSS classes of a series: its role, its own number (for highlighting) and its colour."""
    return f"{kind} s{index} c{index % NUM_COLOURS}" + (" dashed" if index >= NUM_COLOURS else "")


def clip(name: str, width: int) -> str:
    """A name cut to so many characters."""
    return name if len(name) <= width else name[: width - 1] + "…"


def _axis_label(metric: str, value: float) -> str:
    """A tick label: seconds in their best unit, shares in percent."""
    if unit(metric) == "s":
        return seconds(value, 2, plain)
    if unit(metric) == "%":
        return f"{100 * value:.0f}%"
    return plain(value)


def load_curve(data: ComparisonData, metric: str) -> str:
    """Mean of a metric over load, one curve per policy with its interval as a band; dashed line: the capacity."""
    width, height = 372, 250
    order = sorted(range(len(data.loads)), key=lambda i: data.loads[i])
    loads = [data.loads[i] for i in order]
    intervals = {
        p: [mean_interval(data.values(p, load, metric), data.confidence) for load in loads] for p in data.policies
    }
    means = [i.estimate for row in intervals.values() for i in row]
    log = unit(metric) == "s"
    if log:
        low, high = svg.log_range(means)
        y_ticks = svg.log_ticks(low, high)
    else:
        low, high = svg.linear_range(means, cap=1.0 if unit(metric) == "%" else None)
        y_ticks = svg.linear_ticks(low, high)
    air = 0.04 * (max(loads) - min(loads)) if len(loads) > 1 else 0.1
    plot = svg.Plot(
        svg.Scale(min(loads) - air, max(loads) + air, 58, width - 12), svg.Scale(low, high, height - 46, 12, log)
    )
    parts = plot.axes(
        loads, y_ticks, lambda v: f"{v:g}", lambda v: _axis_label(metric, v), "load, as a multiple of capacity"
    )
    if min(loads) <= 1.0 <= max(loads):
        x = plot.x(1.0)
        parts.append(svg.element("line", x1=x, y1=12.0, x2=x, y2=float(height - 46), class_="capacity"))
    for index, policy in enumerate(data.policies):
        row = intervals[policy]
        band = plot.band(loads, [i.low for i in row], [i.high for i in row])
        if band:
            parts.append(svg.element("path", d=band, class_=series_class(index, "band")))
    for index, policy in enumerate(data.policies):
        row = intervals[policy]
        line = plot.path(loads, [i.estimate for i in row])
        parts.append(svg.element("path", d=line, class_=series_class(index, "line")))
        for load, interval in zip(loads, row, strict=True):
            if math.isfinite(interval.estimate):
                tip = f"{policy} at {load:g}×: {label(metric)} {show(metric, interval.estimate)}"
                if math.isfinite(interval.low):
                    tip += f" ({show_range(metric, interval.low, interval.high)})"
                x, y = plot.x(load), plot.y(interval.estimate)
                parts.append(svg.marker(index, x, y, series_class(index, "mark"), tip))
    return svg.document(width, height, parts, f"{label(metric)} over load")


def heat_map(data: ComparisonData, metric: str) -> str:
    """Policy x load: each cell the change of the mean against the baseline; pale cells are ties."""
    left, top, cell_width, cell_height = 148, 8, 74, 30
    width = left + cell_width * len(data.loads) + 4
    height = top + cell_height * len(data.policies) + 40
    parts = []
    for row, policy in enumerate(data.policies):
        y = top + row * cell_height
        is_base = policy == data.baseline
        name = svg.element("title", svg.escape(policy)) + svg.escape(clip(policy, 21))
        kind = "row-label strong" if is_base else "row-label"
        parts.append(svg.element("text", name, x=left - 10, y=y + 19.5, class_=kind, text_anchor="end"))
        for column, load in enumerate(data.loads):
            x = left + column * cell_width
            box = {"x": x + 1.5, "y": y + 1.5, "width": cell_width - 3, "height": cell_height - 3, "rx": 4}
            if is_base:
                value = mean_interval(data.values(policy, load, metric), data.confidence).estimate
                parts.append(svg.element("rect", **box, class_="cell base"))
                parts.append(svg.text(x + cell_width / 2, y + 19.5, show(metric, value), "cell-text muted", "middle"))
                continue
            found = contrast(data, policy, data.baseline, load, metric)
            ratio = found.ratio.estimate
            strength = min(1.0, abs(math.log2(ratio))) if ratio > 0 and math.isfinite(ratio) else 0.0
            opacity = 0.04 if found.verdict == "tie" else round(0.14 + 0.5 * strength, 3)
            tip = (
                f"{policy} at {load:g}×: {label(metric)} {change(ratio)} against {data.baseline} "
                f"({change_range(found.ratio.low, found.ratio.high)}), {found.verdict}"
            )
            style = "muted" if found.verdict == "tie" else ""
            parts.append(
                svg.element(
                    "rect", svg.element("title", svg.escape(tip)), **box, class_=f"cell {found.verdict}",
                    fill_opacity=f"{opacity:g}",
                )
            )  # fmt: skip
            parts.append(svg.text(x + cell_width / 2, y + 19.5, change(ratio), f"cell-text {style}".strip(), "middle"))
    bottom = top + cell_height * len(data.policies)
    for column, load in enumerate(data.loads):
        parts.append(svg.text(left + (column + 0.5) * cell_width, bottom + 16, f"{load:g}×", "tick", "middle"))
    direction = "higher is better" if higher_is_better(metric, data.higher_is_better) else "lower is better"
    parts.append(
        svg.text(left + cell_width * len(data.loads) / 2, bottom + 33, f"load ({direction})", "axis-title", "middle")
    )
    return svg.document(width, height, parts, f"{label(metric)} relative to {data.baseline}")


def cdf_chart(curves: Sequence[tuple[int, str, Cdf]], metric: str) -> str:
    """Cumulative distributions over logarithmic time; curves are (colour index, name, (edges, fraction))."""
    width, height = 372, 232
    shown = []
    for index, name, (edges, fraction) in curves:
        edges, fraction = np.asarray(edges, np.float64), np.asarray(fraction, np.float64)
        usable_mask = np.isfinite(edges) & np.isfinite(fraction) & (edges > 0)
        if usable_mask.any() and fraction[usable_mask].max() > 0:
            shown.append((index, name, edges[usable_mask], fraction[usable_mask]))
    if not shown:
        return svg.document(
            width, height, [svg.text(width / 2, height / 2, "nothing recorded", "tick", "middle")], metric
        )
    inner = [edge for _, _, edges, fraction in shown for edge in edges[(fraction >= 0.002) & (fraction <= 0.999)]]
    low, high = svg.log_range(inner or [float(e) for _, _, edges, _ in shown for e in edges])
    plot = svg.Plot(svg.Scale(low, high, 58, width - 12, log=True), svg.Scale(0, 1, height - 28, 12))
    x_ticks = svg.log_ticks(low, high)
    quarters = [0.0, 0.25, 0.5, 0.75, 1.0]
    parts = plot.axes(x_ticks, quarters, lambda v: seconds(v, 2, plain), lambda v: f"{100 * v:.0f}%")
    for index, name, edges, fraction in shown:
        xs, ys = svg.thin_curve(np.concatenate([[low], edges]), np.concatenate([[0.0], fraction]), 0.002)
        median = edges[min(int(np.searchsorted(fraction, 0.5)), edges.size - 1)]
        tip = svg.element("title", svg.escape(f"{name}: median {seconds(float(median))}"))
        line = plot.path([float(x) for x in xs], [float(y) for y in ys])
        parts.append(svg.element("path", tip, d=line, class_=series_class(index, "line")))
    return svg.document(width, height, parts, f"distribution of {label(metric)}")


def resample(t_s: np.ndarray, values: np.ndarray, num_points: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean of `values` ``[n, instances]`` in equal time bins; an empty bin repeats the last sample before it."""
    if t_s.size <= num_points:
        return t_s, values
    edges = np.linspace(t_s[0], t_s[-1], num_points + 1)
    first = np.searchsorted(t_s, edges[:-1], side="left")
    last = np.searchsorted(t_s, edges[1:], side="left")
    last[-1] = t_s.size
    rows = [values[a:b].mean(0) if b > a else values[max(a - 1, 0)] for a, b in zip(first, last, strict=True)]
    return edges[:-1], np.array(rows)


def timeline_chart(timeline: Timeline, field: str, *, share: bool = False) -> str:
    """One quantity of every instance over time: a line each, or median and spread when there are many instances."""
    width, height = 1120, 138
    values = getattr(timeline, field)
    t_s, values = resample(timeline.t_s, values, _TIMELINE_POINTS)
    if t_s.size == 0:
        return svg.document(
            width, height, [svg.text(width / 2, height / 2, "nothing recorded", "tick", "middle")], field
        )
    times = [float(t) for t in t_s]
    low, high = (0.0, 1.0) if share else svg.linear_range([float(values.max())])
    plot = svg.Plot(
        svg.Scale(times[0], max(times[-1], times[0] + 1e-9), 58, width - 12), svg.Scale(low, high, height - 26, 8)
    )
    y_ticks = [0.0, 0.5, 1.0] if share else svg.linear_ticks(low, high, 3)
    parts = plot.axes(
        svg.linear_ticks(times[0], times[-1], 10),
        y_ticks,
        lambda v: f"{plain(v)} s",
        lambda v: f"{100 * v:.0f}%" if share else plain(v),
    )
    num_instances = values.shape[1]
    if num_instances <= MAX_INSTANCE_LINES:
        for index in range(num_instances):
            tip = svg.element("title", f"instance {index}")
            line = plot.steps(times, [float(v) for v in values[:, index]])
            parts.append(svg.element("path", tip, d=line, class_=f"trace i{index}"))
    else:
        for outer, inner, kind in ((0, 100, "spread"), (25, 75, "spread inner")):
            bounds = np.percentile(values, [outer, inner], axis=1)
            area = plot.band(times, [float(v) for v in bounds[0]], [float(v) for v in bounds[1]])
            parts.append(svg.element("path", d=area, class_=kind))
        middle = [float(v) for v in np.median(values, axis=1)]
        parts.append(svg.element("path", d=plot.steps(times, middle), class_="trace median"))
    return svg.document(width, height, parts, f"{field.replace('_', ' ')} over time")
