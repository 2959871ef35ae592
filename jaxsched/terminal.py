"""What the command line shows on a terminal: one line of progress, the tables of a comparison, nested reports.

rich is imported where it is used: `jaxsched --help` does not wait for it.
"""

from __future__ import annotations

from typing import Any


class Status:
    """One progress line on stderr, only where a person can see it."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)
        self.live: Any = None

    def __enter__(self) -> Status:
        if self.console.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            self.live = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                console=self.console, transient=True,
            )  # fmt: skip
            self.live.start()
            self.task = self.live.add_task("starting", total=None)
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def say(self, what: str, done: int, of: int) -> None:
        if self.live is not None:
            self.live.update(self.task, description=what, completed=done, total=of)


def print_comparison(data: Any, winners: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from jaxsched.report import comparison_table
    from jaxsched.report.metrics import label, show

    console = Console(soft_wrap=True)
    for note in data.notes:
        console.print(note, style="dim", highlight=False)
    console.print(
        f"capacity {data.capacity_per_s:.4g} programs/s ({data.capacity_note}); {len(data.seeds)} seeds; "
        f"{data.confidence:.0%} intervals; +/- against {data.baseline}, paired",
        highlight=False,
    )
    shown = [
        data.primary_metric,
        *(
            m
            for m in ("jct_max_s", "slowdown_p99", "ttft_p99_s", "tpot_p99_s", "goodput_per_s")
            if m != data.primary_metric
        ),
    ]
    rows = {
        (r["policy"], r["load"], r["metric"]): r
        for r in comparison_table(data, [m for m in shown if m in data.metrics()])
    }
    for metric in shown:
        if metric not in data.metrics():
            continue
        table = Table(title=label(metric), title_justify="left", box=None, padding=(0, 2, 0, 0))
        table.add_column("policy")
        for load in data.loads:
            table.add_column(f"load {load:g}", justify="right")
        for policy in data.policies:
            cells = []
            for load in data.loads:
                row = rows[policy, load, metric]
                mark = {"better": " +", "worse": " -"}.get(row["verdict"], "")
                value = row["mean"]
                cells.append("n/a" if value is None else f"{show(metric, value)}{mark}")
            table.add_row(policy, *cells)
        console.print(table, soft_wrap=False, width=max(console.width, 120))
    for sentence in winners:
        console.print(sentence, highlight=False)


def print_nested(value: Any, indent: int = 0) -> None:
    """Plain, aligned text of a JSON-able report."""
    pad = "  " * indent
    for key, entry in value.items():
        if isinstance(entry, dict):
            print(f"{pad}{key}:")
            print_nested(entry, indent + 1)
        elif isinstance(entry, list):
            print(f"{pad}{key}:")
            for item in entry:
                text = (
                    ", ".join(f"{k} {_short(v)}" for k, v in item.items()) if isinstance(item, dict) else _short(item)
                )
                print(f"{pad}  - {text}")
        else:
            print(f"{pad}{key}: {_short(entry)}")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
