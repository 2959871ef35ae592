"""Pieces of a page: sections, tabs, legends, tables of fates, the block that says how to make the report again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from jaxsched.report import svg
from jaxsched.report.charts import MAX_INSTANCE_LINES, cdf_chart, clip, series_class, timeline_chart
from jaxsched.report.data import FATES, Cdf, Timeline
from jaxsched.report.metrics import count, definition, label
from jaxsched.report.style import MAX_TABS, SCRIPT, STYLE
from jaxsched.report.svg import escape

#: (field of `Timeline`, title, is a share)
_TIMELINE_ROWS = (
    ("batch", "Running requests", False),
    ("kv_used_fraction", "KV blocks in use", True),
    ("queue", "Waiting requests", False),
)


def page(title: str, body: Iterable[str]) -> str:
    """The whole document: nothing in it is loaded from elsewhere."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + f"\n</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def header(title: str, lead: str, facts: Sequence[tuple[str, str]]) -> str:
    """Title, the result in a line, and the facts of the run."""
    items = "".join(f"<li>{escape(name)} <b>{escape(value)}</b></li>" for name, value in facts)
    return f'<header><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p><ul class="facts">{items}</ul></header>'


def section(name: str, say: str, body: str) -> str:
    """A titled part of the page; `say` is the sentence that tells how to read it, `body` is markup."""
    identity = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    said = f'<p class="say">{escape(say)}</p>' if say else ""
    return f'<section id="{identity}"><h2>{escape(name)}</h2>{said}{body}</section>'


def tabs(group: str, panels: Sequence[tuple[str, str]], chosen: int = 0) -> str:
    """Panels of which one is shown, by radio buttons and CSS alone; one panel needs no bar."""
    if len(panels) == 1:
        return panels[0][1]
    if len(panels) > MAX_TABS:
        return "".join(f"<details><summary>{escape(name)}</summary>{body}</details>" for name, body in panels)
    inputs = "".join(
        f'<input type="radio" name="{group}" id="{group}-{i}"{" checked" if i == chosen else ""}>'
        for i in range(len(panels))
    )
    labels = "".join(f'<label for="{group}-{i}">{escape(name)}</label>' for i, (name, _) in enumerate(panels))
    # The bar is a nav, not a div: the style sheet counts panels among the divs.
    bodies = "".join(f'<div class="panel">{body}</div>' for _, body in panels)
    return f'<div class="tabs">{inputs}<nav class="tabbar">{labels}</nav>{bodies}</div>'


def figure(title: str, chart: str) -> str:
    """A chart under its title."""
    return f"<figure><h3>{escape(title)}</h3>{chart}</figure>"


def legend(roles: Mapping[str, str]) -> str:
    """The policies with their colour and marker; pointing at one highlights it in the section.

    Args:
        roles: policy -> ``baseline``, ``bound`` or nothing.
    """
    items = []
    for index, (policy, role) in enumerate(roles.items()):
        dash = ' stroke-dasharray="5 3"' if "dashed" in series_class(index, "") else ""
        sample = f'<line x1="1" y1="7" x2="25" y2="7"{dash}/>' + svg.marker(index, 13, 7, "", policy)
        colour = f"c{series_class(index, '').split(' c')[1].split()[0]}"
        swatch = (
            f'<svg class="swatch {colour}" width="26" height="14" style="width:26px" viewBox="0 0 26 14">{sample}</svg>'
        )
        tag = f'<span class="base-tag">{role}</span>' if role else ""
        name = f'<span title="{escape(policy)}">{escape(clip(policy, 40))}{tag}</span>'
        items.append(f'<li tabindex="0" data-series="{index}">{swatch}{name}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>'


def cdf_grid(curves: Mapping[str, Sequence[tuple[int, str, Cdf]]]) -> str:
    """One distribution chart per metric."""
    charts = "".join(figure(label(metric), cdf_chart(rows, metric)) for metric, rows in curves.items())
    return f'<div class="grid3">{charts}</div>'


def timeline_rows(timeline: Timeline) -> str:
    """Batch, KV and queue over time, with the key of the instances."""
    num_instances = timeline.batch.shape[1]
    if num_instances <= MAX_INSTANCE_LINES:
        line = '<line x1="1" y1="7" x2="25" y2="7"/>'
        key = "".join(
            f'<li><svg class="swatch i{i}" width="26" height="14" style="width:26px" viewBox="0 0 26 14">{line}</svg>'
            f"instance {i}</li>"
            for i in range(num_instances)
        )
        key = f'<ul class="legend">{key}</ul>'
    else:
        key = (
            f'<p class="say">{num_instances} instances: line = median, dark band = middle half, '
            "light band = lowest to highest.</p>"
        )
    rows = "".join(figure(title, timeline_chart(timeline, f, share=share)) for f, title, share in _TIMELINE_ROWS)
    return key + rows


def fate_key() -> str:
    """What the colours of the fate bars mean."""
    items = "".join(
        f'<li><span class="fatekey f-{name}"></span><span>{name.replace("_", " ")}: {escape(meaning)}</span></li>'
        for name, meaning in FATES.items()
    )
    return f'<ul class="legend">{items}</ul>'


def fate_table(rows: Sequence[tuple[str, Mapping[str, float]]], what: str = "policy") -> str:
    """Counts of every fate, one row each, with a bar of their shares; a fate that was not counted shows a dash."""
    names = list(FATES)
    head = "".join(f'<th scope="col">{name.replace("_", " ")}</th>' for name in names)
    body = []
    for row_name, counts in rows:
        total = sum(c for c in counts.values() if np.isfinite(c))
        cells = "".join(_count(counts.get(name, float("nan"))) for name in names)
        bar = "".join(
            f'<i class="f-{name}" style="width:{100 * counts[name] / total:.3f}%" '
            f'title="{name}: {100 * counts[name] / total:.2f}%"></i>'
            for name in names
            if total and counts.get(name, 0) > 0
        )
        body.append(
            f'<tr><th scope="row">{escape(row_name)}</th><td><div class="bar">{bar}</div></td>{cells}'
            f"<td>{count(total)}</td></tr>"
        )
    return (
        f'<div class="scroll"><table><thead><tr><th scope="col">{escape(what)}</th><th scope="col"></th>{head}'
        f'<th scope="col">all</th></tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    )


def _count(value: float) -> str:
    if not np.isfinite(value):
        return '<td class="zero">–</td>'
    return f"<td{' class=zero' if value == 0 else ''}>{count(float(value))}</td>"


def definitions(metrics: Iterable[str]) -> str:
    """What the metrics on the page mean, each family once."""
    known = dict(found for found in map(definition, metrics) if found)
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(meaning)}</dd>" for name, meaning in known.items())
    return f"<dl>{items}</dl>" if items else ""


def provenance(command: str, versions: Mapping[str, str], seeds: Sequence[int], config_yaml: str) -> str:
    """Command, versions, seeds and configuration."""
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in versions.items())
    return (
        f'<h3>Command</h3><pre class="command">{escape(command)}</pre><h3>Versions and seeds</h3><dl>{facts}'
        f"<dt>seeds</dt><dd>{escape(seed_text(seeds))}</dd></dl>"
        f"<details><summary>Configuration, every default filled in</summary><pre>{escape(config_yaml)}</pre></details>"
    )


def seed_text(seeds: Sequence[int]) -> str:
    """``0 to 15 (16)`` for a run of seeds, else the list."""
    seeds = list(seeds)
    if len(seeds) > 2 and seeds == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]} to {seeds[-1]} ({len(seeds)})"
    return ", ".join(map(str, seeds))


def notes_list(notes: Sequence[str]) -> str:
    """The notes as a list, or nothing."""
    return f'<ul class="notes">{"".join(f"<li>{escape(note)}</li>" for note in notes)}</ul>' if notes else ""
