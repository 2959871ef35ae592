"""The report of a comparison: one self-contained HTML page."""

from __future__ import annotations

from jaxsched.report import charts, parts
from jaxsched.report.analysis import comparison_table, judge, overall
from jaxsched.report.data import FATES, ComparisonData
from jaxsched.report.metrics import change, change_range, higher_is_better, label, show, show_range, significant
from jaxsched.report.svg import escape

_CURVES = ("ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "e2e_mean_s", "e2e_p99_s", "goodput_per_s")
_MAPS = ("ttft_p99_s", "tpot_p50_s", "goodput_per_s")


def render_comparison(data: ComparisonData) -> str:
    """The page as text. Everything a user named is escaped; nothing is loaded from elsewhere."""
    verdicts = judge(data)
    measured = data.metrics()
    facts = [
        ("decided by", f"{label(data.primary_metric)}, {_direction(data, data.primary_metric)}"),
        ("baseline", data.baseline),
        ("capacity", f"{significant(data.capacity_per_s)} requests/s"),
        ("seeds", parts.seed_text(data.seeds)),
        ("intervals", f"{data.confidence:.0%}, paired over seeds"),
    ]
    body = [
        parts.header(data.title, overall(data, verdicts), facts),
        _verdict_section(data, verdicts),
        _table_section(data, measured),
        _heat_section(data, measured),
        _curve_section(data, measured),
    ]
    if data.cdfs:
        body.append(_cdf_section(data))
    if data.timelines:
        body.append(_timeline_section(data))
    body += [_fate_section(data), _method_section(data, measured)]
    provenance = parts.provenance(data.command, data.versions, data.seeds, data.config_yaml)
    body.append(parts.section("How to make this report again", "", provenance))
    return parts.page(data.title, body)


def _direction(data: ComparisonData, metric: str) -> str:
    return "higher is better" if higher_is_better(metric, data.higher_is_better) else "lower is better"


def _verdict_section(data: ComparisonData, verdicts) -> str:
    rows = []
    for verdict in verdicts:
        kind = "win" if len(verdict.winners) == 1 else "tie"
        caution = f'<p class="caution">{escape(verdict.caution)}</p>' if verdict.caution else ""
        rows.append(
            f'<div class="verdict {kind}"><div class="at">{verdict.load:g}×'
            f"<small>{significant(verdict.rate_per_s)} requests/s</small></div>"
            f'<div class="who">{escape(verdict.headline)}</div>'
            f"<div><p>{escape(verdict.story)}</p>{caution}</div></div>"
        )
    say = (
        f"The best policy at each load by {label(data.primary_metric)}. "
        "A policy wins when it beats every other one on the same seeds; bounds do not compete."
    )
    return parts.section("Who wins", say, "".join(rows))


def _table_section(data: ComparisonData, measured: list[str]) -> str:
    metrics = [data.primary_metric, *(m for m in measured if m != data.primary_metric)]
    panels = [(label(metric), _table(data, metric)) for metric in metrics]
    first, rest = panels[0], panels[1:]
    body = first[1]
    if rest:
        body += f"<details><summary>The other metrics ({len(rest)})</summary>{parts.tabs('table', rest)}</details>"
    say = (
        f"{label(data.primary_metric)}: mean over seeds with its {data.confidence:.0%} interval; below it the "
        f"change against {data.baseline} with its paired interval. Coloured changes are beyond chance, "
        "shaded cells are the best of their load."
    )
    return parts.section("Policies by load", say, body)


def _table(data: ComparisonData, metric: str) -> str:
    cells = {(row["policy"], row["load"]): row for row in comparison_table(data, [metric])}
    head = "".join(
        f'<th scope="col">{load:g}×<small>{significant(rate)}/s</small></th>'
        for load, rate in zip(data.loads, data.rates_per_s, strict=True)
    )
    sign = -1 if higher_is_better(metric, data.higher_is_better) else 1
    best = {}
    for load in data.loads:
        known = [p for p in data.contenders() if cells[p, load]["mean"] is not None]
        best[load] = min(known, key=lambda p, at=load: sign * cells[p, at]["mean"], default=None)
    body = []
    for policy in data.policies:
        tag = f'<span class="base-tag">{data.role(policy)}</span>' if data.role(policy) else ""
        row = "".join(_table_cell(data, cells[policy, load], policy == best[load]) for load in data.loads)
        body.append(f'<tr><th scope="row">{escape(policy)}{tag}</th>{row}</tr>')
    return (
        f'<div class="scroll"><table><thead><tr><th scope="col">policy</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _table_cell(data: ComparisonData, row: dict, is_best: bool) -> str:
    metric, mean = row["metric"], row["mean"]
    if mean is None:
        return '<td class="zero">–</td>'
    text = f"<b>{show(metric, mean)}</b>"
    if row["ci_low"] is not None:
        text += f'<span class="ci">{show_range(metric, row["ci_low"], row["ci_high"])}</span>'
    if row["policy"] != data.baseline and row["ratio"] is not None:
        span = "" if row["ratio_low"] is None else f" ({change_range(row['ratio_low'], row['ratio_high'])})"
        text += f'<span class="vs {row["verdict"]}">{change(row["ratio"])}{span}</span>'
    return f"<td{' class=best' if is_best else ''}>{text}</td>"


def _heat_section(data: ComparisonData, measured: list[str]) -> str:
    metrics = list(dict.fromkeys([data.primary_metric, *(m for m in _MAPS if m in measured)]))
    maps = "".join(parts.figure(label(m), charts.heat_map(data, m)) for m in metrics)
    say = (
        f"Change of the mean against {data.baseline} (its own row shows its values). Blue is better, orange is worse; "
        "the colour is full at a factor of two. Grey cells are ties: their paired interval includes no change."
    )
    return parts.section("Where each policy stands", say, f'<div class="grid2">{maps}</div>')


def _curve_section(data: ComparisonData, measured: list[str]) -> str:
    metrics = list(dict.fromkeys([m for m in _CURVES if m in measured]))
    if data.primary_metric not in metrics:
        metrics.insert(0, data.primary_metric)
    figures = "".join(parts.figure(label(m), charts.load_curve(data, m)) for m in metrics)
    say = (
        f"Mean over seeds; bands are {data.confidence:.0%} intervals. The dashed line is the capacity, "
        f"{significant(data.capacity_per_s)} requests/s: {data.capacity_note}. Times are on a logarithmic axis."
    )
    body = parts.legend({p: data.role(p) for p in data.policies}) + f'<div class="grid3">{figures}</div>'
    return parts.section("Through the knee", say, body)


def _cdf_section(data: ComparisonData) -> str:
    loads = [load for load in data.loads if any((p, load) in data.cdfs for p in data.policies)]
    panels = []
    for load in loads:
        metrics = list(dict.fromkeys(m for p in data.policies for m in data.cdfs.get((p, load), {})))
        curves = {
            metric: [
                (index, policy, data.cdfs[policy, load][metric])
                for index, policy in enumerate(data.policies)
                if metric in data.cdfs.get((policy, load), {})
            ]
            for metric in metrics
        }
        panels.append((f"{load:g}×", parts.cdf_grid(curves)))
    below = [i for i, load in enumerate(loads) if load <= 1.0]
    body = parts.legend({p: data.role(p) for p in data.policies}) + parts.tabs("cdf", panels, below[-1] if below else 0)
    say = "Share of requests (of gaps, for TBT) at or below each latency, all seeds together. Choose a load."
    return parts.section("Latency distributions", say, body)


def _timeline_section(data: ComparisonData) -> str:
    panels = [(p, parts.timeline_rows(t)) for p, t in data.timelines.items()]
    say = "One recorded run per policy, every instance. Long runs are averaged in 400 equal time bins."
    return parts.section("One run over time", say, parts.tabs("timeline", panels))


def _fate_section(data: ComparisonData) -> str:
    panels = []
    for load in data.loads:
        rows = [(p, {f: float(data.values(p, load, f"fate_{f}").sum()) for f in FATES}) for p in data.policies]
        panels.append((f"{load:g}×", parts.fate_table(rows)))
    body = parts.fate_key() + parts.tabs("fates", panels, len(panels) - 1)
    return parts.section("What became of every request", "Counts over all seeds; nothing is left out.", body)


def _method_section(data: ComparisonData, measured: list[str]) -> str:
    method = (
        "Every policy meets the same requests at the same times in each seed, so policies are compared seed by seed. "
        f"Intervals of changes come from a studentized paired bootstrap ({data.num_bootstrap} resamples), those of "
        "means from Student's t. “Better” and “worse” mean that the intervals of the difference and of the ratio both "
        f"exclude no effect. Each interval stands for itself: at {data.confidence:.0%}, "
        f"{1 - data.confidence:.0%} of comparisons between equal policies show a change."
    )
    body = f'<p class="say">{escape(method)}</p>' + parts.notes_list(data.notes) + parts.definitions(measured)
    return parts.section("Definitions and method", "", body)
