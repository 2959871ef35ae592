"""Comparing the machine's run with a recording, field by field, up to the first difference."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from jaxsched.verify.content import steps_without_hits
from jaxsched.verify.recording import REQUEST_FIELDS, STEP_FIELDS, Recording, Step
from jaxsched.verify.replay import Run

Status = Literal["equal", "differs", "unsupported"]


@dataclasses.dataclass(frozen=True)
class Difference:
    """The first thing that differs: a field of a step, or (`step` is None) of a request's row in requests.csv."""

    field: str
    recorded: Any  # None: only the machine has this step
    machine: Any  # None: only the recording has it
    step: int | None = None
    request: int | None = None


@dataclasses.dataclass(frozen=True)
class ScenarioReport:
    """The outcome of one scenario. `unsupported`: not checked, or only in part, for the reason given."""

    name: str
    status: Status
    steps: int  # recorded
    steps_compared: int  # compared and, up to the difference, equal
    requests_compared: int
    difference: Difference | None = None
    reason: str = ""
    seconds: float = 0.0


def first_step_difference(recorded: list[Step], machine: list[Step], limit: int) -> Difference | None:
    """The first differing field among the first `limit` steps; what comes after it is a consequence."""
    for i in range(min(limit, max(len(recorded), len(machine)))):
        if i >= len(recorded):
            return Difference("step", None, machine[i], step=i)
        if i >= len(machine):
            return Difference("step", recorded[i], None, step=i)
        for name in STEP_FIELDS:
            if recorded[i][name] != machine[i][name]:
                return Difference(name, recorded[i][name], machine[i][name], step=i)
    return None


def first_request_difference(
    recorded: dict[int, dict[str, int]], machine: dict[int, dict[str, int]]
) -> Difference | None:
    """The first differing field of requests.csv, lowest request id first."""
    for request in sorted(recorded):
        for name in REQUEST_FIELDS:
            if recorded[request][name] != machine[request][name]:
                return Difference(name, recorded[request][name], machine[request][name], request=request)
    return None


def compare(recording: Recording, run: Run) -> ScenarioReport:
    """The verdict on one scenario."""
    limit, why_not = steps_without_hits(recording, run.steps)
    difference = first_step_difference(recording.steps, run.steps, limit)
    requests_compared = 0
    if difference is None and not why_not:
        difference = first_request_difference(recording.requests, run.requests)
        requests_compared = len(recording.requests)
    compared = min(limit, len(recording.steps))
    if difference is not None:
        status, reason = "differs", "; ".join(run.notes)
        if difference.step is not None:
            compared = difference.step
    elif why_not:
        status = "unsupported"
        reason = f"prefix-cache hits decide here; the machine has no prefix cache yet (from step {limit} on: {why_not})"
    else:
        status, reason = "equal", ""
    return ScenarioReport(recording.name, status, len(recording.steps), compared, requests_compared, difference, reason)
