"""The command: find the scenarios, run and compare each, say what came out."""

from __future__ import annotations

import dataclasses
import json as json_module
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxsched.verify.compare import ScenarioReport, compare
from jaxsched.verify.recording import Recording, load, scenario_folders
from jaxsched.verify.replay import run

#: Longest value of a difference in the text output; `--json` has it whole.
MAX_SHOWN = 160


def verify_folder(path: str | Path, on_report: Callable[[ScenarioReport], None] | None = None) -> list[ScenarioReport]:
    """Compare the machine with every recording in a folder.

    Args:
        path: a scenario folder, or a folder of them.
        on_report: called with each report as soon as it is there (long work shows progress).

    Returns:
        One report per scenario, by name.

    Raises:
        UserError: a recording is missing something or malformed. All are read before any is run.
    """
    recordings = [load(folder) for folder in scenario_folders(Path(path))[0]]
    reports = []
    for recording in recordings:
        report = _verify(recording)
        reports.append(report)
        if on_report is not None:
            on_report(report)
    return reports


def _verify(recording: Recording) -> ScenarioReport:
    start = time.perf_counter()
    if recording.unknown:
        names = ", ".join(recording.unknown)
        return ScenarioReport(
            recording.name, "unsupported", len(recording.steps), 0, 0,
            reason=f"the machine does not know the settings {names} of config.json",
        )  # fmt: skip
    report = compare(recording, run(recording))
    return dataclasses.replace(report, seconds=round(time.perf_counter() - start, 3))


def main(path: str | Path, json: bool = False) -> int:
    """Print the outcome of every scenario: lines of text, or one JSON document.

    Returns:
        0 if every scenario was compared whole and is equal, else 1.

    Raises:
        UserError: bad input (its `exit_code` is 2); the command line prints it.
    """
    skipped = scenario_folders(Path(path))[1]
    if json:
        reports = verify_folder(path)
        print(json_module.dumps(_document(reports, skipped), indent=2))
    else:
        reports = verify_folder(path, lambda report: print(describe(report), flush=True))
        for folder in skipped:
            print(f"{folder.name}: skipped, holds no recording")
        print(_summary(reports))
    return 0 if all(report.status == "equal" for report in reports) else 1


def _counts(reports: list[ScenarioReport]) -> dict[str, int]:
    return {status: sum(r.status == status for r in reports) for status in ("equal", "differs", "unsupported")}


def _summary(reports: list[ScenarioReport]) -> str:
    counts = _counts(reports)
    line = f"{len(reports)} scenarios: {counts['equal']} equal, {counts['differs']} differ"
    return line + (f", {counts['unsupported']} not checked" if counts["unsupported"] else "")


def _document(reports: list[ScenarioReport], skipped: list[Path]) -> dict[str, Any]:
    return {
        "equal": all(report.status == "equal" for report in reports),
        "counts": _counts(reports),
        "scenarios": [dataclasses.asdict(report) for report in reports],
        "skipped": [folder.name for folder in skipped],
    }


def describe(report: ScenarioReport) -> str:
    """One line on a scenario that is equal, a few on one that is not."""
    size = f"{report.steps_compared} steps, {report.requests_compared} requests, {report.seconds:.1f} s"
    if report.status == "equal":
        return f"{report.name}: equal ({size})"
    if report.difference is None:
        compared = (
            f"; the first {report.steps_compared} of {report.steps} steps are equal" if report.steps_compared else ""
        )
        return f"{report.name}: NOT CHECKED: {report.reason}{compared}"
    d = report.difference
    place = f"step {d.step}" if d.step is not None else f"requests.csv, request {d.request}"
    lines = [f"{report.name}: differs at {place}, field {d.field} (first {report.steps_compared} steps equal)"]
    lines += [f"  recorded {_shown(d.recorded)}", f"  machine  {_shown(d.machine)}"]
    if report.reason:
        lines.append(f"  note: {report.reason}")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if value is None:
        return "no such step"
    text = json_module.dumps(value, separators=(",", ":"))
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}... ({len(text)} characters; --json shows all)"
