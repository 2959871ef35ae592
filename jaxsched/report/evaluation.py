"""Tables of an evaluation of learned policies, as Markdown and as one self-contained HTML page.

A table is data (`Table`), written out in either form, so both say the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from jaxsched.evaluation import Evaluation, improvement, mean_improvement, normalised_interval
from jaxsched.report import parts
from jaxsched.report.svg import escape
from jaxsched.stats import Interval

METRIC = "jct_mean_s"
_SHOWN = (METRIC, "jct_p50_s", "jct_p99_s", "jct_max_s", "slowdown_mean", "slowdown_p99")
_HEAD = ("mean JCT, s", "p50 JCT", "p99 JCT", "longest", "mean slowdown", "p99 slowdown")


@dataclass(frozen=True)
class Regime:
    """One regime's results and what is to be said about them."""

    name: str
    role: str  # "default", "held-out" or "control"
    found: Evaluation
    learned: tuple[str, ...]
    bounds: tuple[str, ...] = ()
    note: str = ""

    @property
    def rules(self) -> list[str]:
        """What a learned policy is compared with: neither learned nor a bound."""
        return [name for name in self.found.metrics if name not in (*self.learned, *self.bounds)]


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column is left-aligned."""

    title: str
    say: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """Title, sentence and table."""
        lines = [f"## {self.title}", self.say, "", f"| {' | '.join(self.head)} |"]
        lines.append("| --- |" + " ---: |" * (len(self.head) - 1))
        lines += [f"| {' | '.join(row)} |" for row in self.rows]
        return "\n".join(lines) + "\n"

    def html(self) -> str:
        """A section of the page."""
        head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in self.head)
        rows = "".join(
            f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
            for row in self.rows
        )
        table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        return parts.section(self.title, self.say, table)


def gain(costs: np.ndarray, rival: np.ndarray, confidence: float = 0.95) -> Interval:
    """`improvement` on the rival's mean over its rows."""
    return improvement(costs, rival.mean(0), confidence=confidence)


def verdict(found: Interval, role: str, tie: float) -> str:
    """In a word: "better" or "worse" where the interval excludes 0, else "even"; of a control "ties" or "differs"."""
    if role == "control":
        return "ties" if not found.excludes(0.0) or abs(found.estimate) <= tie else "differs"
    return "better" if found.low > 0 else "worse" if found.high < 0 else "even"


def tables(regimes: Sequence[Regime], reference: str, bound: str, *, confidence: float, tie: float) -> list[Table]:
    """The summary, then a table of every regime."""
    return [_summary(regimes, reference, bound, confidence, tie), *(_regime(r, confidence) for r in regimes)]


def _summary(regimes: Sequence[Regime], reference: str, bound: str, confidence: float, tie: float) -> Table:
    rows = []
    for regime in regimes:
        found = regime.found
        best = found.best(regime.rules)
        for name in regime.learned:
            costs = found.costs(name)
            against = gain(costs, found.costs(best), confidence)
            slow = {rule: float(found.costs(rule, "slowdown_p99").mean()) for rule in regime.rules}
            rows.append((
                regime.name, regime.role, name, f"{costs.shape[0]} x {costs.shape[1]}", best, _percent(against),
                verdict(against, regime.role, tie), _score(found, name, reference, bound, confidence),
                f"{found.costs(name, 'slowdown_p99').mean():.3g}", f"{slow[best]:.3g}",
            ))  # fmt: skip
    head = ("regime", "role", "policy", "seeds", "best rule there", "better by", "verdict",
            "share of the gap to the bound", "p99 slowdown", "of that rule")  # fmt: skip
    say = (
        "Best rule: lowest geometric mean of the mean job completion time among the rules that ran, chosen on these "
        f"seeds, which favours it. Better by: 1 - ratio of geometric means, paired by seed; {confidence:.0%} "
        "interval over training and evaluation seeds. Even: the interval contains 0. A control ties where it contains "
        f"0 or the difference is at most {tie:.0%}. Share of the gap: 0 is {reference}, 1 is {bound} (a heuristic with "
        "hindsight); 1 minus it is the normalised regret."
    )
    return Table("Summary", say, head, tuple(rows))


def _score(found: Evaluation, name: str, reference: str, bound: str, confidence: float) -> str:
    if reference not in found.metrics or bound not in found.metrics:
        return ""
    top, floor = found.costs(reference).mean(0), found.costs(bound).mean(0)
    if not floor.mean() < top.mean():
        return "nothing to win"
    score = normalised_interval(found.costs(name), top, floor, confidence=confidence)
    return f"{score.estimate:.2f} [{score.low:.2f}, {score.high:.2f}]"


def _regime(regime: Regime, confidence: float) -> Table:
    found = regime.found
    rows = []
    order = [*regime.learned, *sorted(regime.rules, key=lambda n: found.costs(n).mean()), *regime.bounds]
    for name in order:
        shown = f"{name} (bound)" if name in regime.bounds else name
        metrics = found.metrics[name]
        cells = [f"{np.mean(metrics[m]):.4g}" if m in metrics else "" for m in _SHOWN]
        gains = []
        for mine in regime.learned:
            if mine == name:
                gains.append("")
                continue
            own = f"{_percent(gain(found.costs(mine), metrics[METRIC], confidence))}"
            gains.append(f"{own}; means {mean_improvement(found.costs(mine), metrics[METRIC].mean(0)):.1%}")
        rows.append((shown, *cells, *gains))
    head = ("policy", *_HEAD, *(f"{name} is better by" for name in regime.learned))
    num = len(found.seeds)
    say = " ".join(filter(None, [regime.note, f"{num} evaluation seeds ({found.seeds[0]} to {found.seeds[-1]})."]))
    return Table(f"{regime.name} ({regime.role})", say, head, tuple(rows))


def curves(runs: Mapping[str, Sequence[tuple[int, float]]], exported: Mapping[str, int]) -> Table | None:
    """Validation cost by generation of every training run; None if none has a log."""
    generations = sorted({generation for points in runs.values() for generation, _ in points})
    if not generations:
        return None
    rows = []
    for name, points in runs.items():
        known = dict(points)
        cells = [f"{known[g]:.3f}" if g in known else "" for g in generations]
        rows.append((name, *cells, str(exported.get(name, ""))))
    say = "Mean log of the mean job completion time (s) on the validation workloads, by generation; lower is better."
    head = ("run", *(str(g) for g in generations), "exported")
    return Table("Training", say, head, tuple(rows))


def _percent(found: Interval) -> str:
    return f"{found.estimate:.1%} [{found.low:.1%}, {found.high:.1%}]"


@dataclass(frozen=True)
class Page:
    """What stands around the tables."""

    title: str
    lead: str
    command: str
    versions: Mapping[str, str]
    config_yaml: str
    notes: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = field(default=())


def to_markdown(page: Page, shown: Sequence[Table]) -> str:
    """The whole report."""
    about = ", ".join(f"{name} {value}" for name, value in page.versions.items())
    notes = [f"- {note}" for note in page.notes]
    head = [f"# {page.title}", page.lead, "", f"`{page.command}`", "", about, *([""] if notes else []), *notes, ""]
    return "\n".join(head) + "\n" + "\n".join(table.markdown() for table in shown)


def to_html(page: Page, shown: Sequence[Table]) -> str:
    """The whole report as a page."""
    body = [parts.header(page.title, page.lead, list(page.facts)), *(table.html() for table in shown)]
    if page.notes:
        body.append(parts.section("Notes", "", parts.notes_list(list(page.notes))))
    made = parts.provenance(page.command, dict(page.versions), [], page.config_yaml)
    body.append(parts.section("How to make this report again", "", made))
    return parts.page(page.title, body)
