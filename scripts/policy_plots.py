"""The plots of docs/policies.md: one small SVG per policy, from docs/policies/results.json, without simulating.

Where the results have several arrival rates: means over rates with 95 % intervals. Where they have one (or the workload
is a list of jobs): a line per seed from the rival to the policy, and the means.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxsched.report import svg
from jaxsched.report.analysis import mean_interval
from jaxsched.report.metrics import higher_is_better, label, plain, seconds, show, unit

WIDTH, HEIGHT = 460, 230
TOP, BOTTOM, LEFT, RIGHT = 46, 40, 62, 14
STYLE = (
    "text{font:11.5px system-ui,sans-serif;fill:#5b6672}.key{font-size:12.5px;fill:#2f3640}"
    ".grid{stroke:#e6eaee}.axis{stroke:#a9b3bd}.p{stroke:#0b6bcb}.r{stroke:#2f3640}.line{fill:none;stroke-width:2}"
    ".band{opacity:.13;stroke:none}.band.p,.mark.p{fill:#0b6bcb}.band.r,.mark.r{fill:#2f3640}.mark{stroke:#fff}"
    ".seed{stroke:#8ea1b5;stroke-width:1;opacity:.6}"
)
#: (class, shape of the marker) of the policy and of its rival.
SERIES = (("p", 0), ("r", 1))


def file_name(name: str) -> str:
    """Of a policy's plot; parts apart from schedulers of the same name."""
    return f"part-{name[1:]}.svg" if name.startswith("+") else f"{name}.svg"


def _tick(metric: str, value: float) -> str:
    if unit(metric) == "s":
        return seconds(value, 2, plain)
    return f"{100 * value:.0f}%" if unit(metric) == "%" else plain(value)


def _y_scale(metric: str, values: Sequence[float]) -> tuple[svg.Scale, list[float]]:
    """Logarithmic for times that span more than a factor of four, else from 0."""
    log = min(values) > 0 and max(values) > 4 * min(values) and not higher_is_better(metric, {})
    low, high = svg.log_range(values) if log else svg.linear_range(values)
    ticks = svg.log_ticks(low, high, 5) if log else svg.linear_ticks(low, high, 4)
    return svg.Scale(low, high, HEIGHT - BOTTOM, TOP, log), ticks


def plot(name: str, entry: dict[str, Any]) -> str:
    """The SVG of one policy. `entry`: its results (scripts/policy_results.py)."""
    metric, rates = entry["metric"], entry["rates_per_s"]
    both = {"p": np.asarray(entry["values"], float), "r": np.asarray(entry["rival_values"], float)}
    draw = _over_rates if len(rates) > 1 else _over_seeds
    better = "higher is better" if higher_is_better(metric, {}) else "lower is better"
    parts = [
        svg.element("rect", width=WIDTH, height=HEIGHT, fill="#fff"),
        svg.text(LEFT, 17, f"{label(metric)} ({better})", "key"),
        *(
            svg.marker(shape, x, 32.0, f"mark {role}", text) + svg.text(x + 8, 36, text, "key")
            for (role, shape), x, text in zip(
                SERIES, (LEFT + 4.0, LEFT + 204.0), (_short(entry["row"]), _short(entry["rival"])), strict=True
            )
        ),
        *draw(metric, rates, both),
    ]
    drawn = svg.document(WIDTH, HEIGHT, [f"<style>{STYLE}</style>", *parts], f"{name}: {label(metric)}")
    return drawn.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def _short(text: str) -> str:
    return text if len(text) <= 28 else text[:27] + "…"


def _over_rates(metric: str, rates: list[float], both: dict[str, np.ndarray]) -> list[str]:
    intervals = {role: [mean_interval(row, 0.95) for row in values] for role, values in both.items()}
    scale, ticks = _y_scale(metric, [i.estimate for row in intervals.values() for i in row])
    air = 0.05 * (max(rates) - min(rates))
    area = svg.Plot(svg.Scale(min(rates) - air, max(rates) + air, LEFT, WIDTH - RIGHT), scale)
    parts = area.axes(rates, ticks, lambda v: f"{v:g}", lambda v: _tick(metric, v), "arrivals, programs per second")
    for role, row in intervals.items():
        band = area.band(rates, [i.low for i in row], [i.high for i in row])
        parts += [svg.element("path", d=band, class_=f"band {role}")] if band else []
    for role, shape in reversed(SERIES):
        means = [i.estimate for i in intervals[role]]
        parts.append(svg.element("path", d=area.path(rates, means), class_=f"line {role}"))
        for rate, mean in zip(rates, means, strict=True):
            tip = f"{rate:g} per second: {show(metric, mean)}"
            parts.append(svg.marker(shape, area.x(rate), area.y(mean), f"mark {role}", tip))
    return parts


def _over_seeds(metric: str, rates: list[float], both: dict[str, np.ndarray]) -> list[str]:
    del rates
    own, rival = both["p"][0], both["r"][0]
    scale, ticks = _y_scale(metric, [float(v) for v in (*own, *rival)])
    area = svg.Plot(svg.Scale(0.0, 1.0, LEFT, WIDTH - RIGHT), scale)
    names = {0.25: "rival", 0.75: "policy"}
    parts = area.axes(list(names), ticks, lambda x: names[x], lambda v: _tick(metric, v), f"{len(own)} seeds, paired")
    for a, b in zip(rival, own, strict=True):
        parts.append(svg.element("line", x1=area.x(0.25), y1=area.y(a), x2=area.x(0.75), y2=area.y(b), class_="seed"))
    for (role, shape), x, values in zip(SERIES, (0.75, 0.25), (own, rival), strict=True):
        mean = float(np.mean(values))
        parts.append(svg.marker(shape, area.x(x), area.y(mean), f"mark {role}", show(metric, mean)))
        side = ("start", 12) if role == "p" else ("end", -12)
        parts.append(svg.text(area.x(x) + side[1], area.y(mean) + 4, show(metric, mean), "key", side[0]))
    return parts
