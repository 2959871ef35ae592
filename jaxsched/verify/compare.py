"""Comparing the machine's run with a recording, field by field, up to the first difference."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

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
    """The outcome of one scenario. `unsupported`: not checked, for the reason given."""

    name: str
    status: Status
    steps: int  # recorded
    steps_compared: int  # compared and, up to the difference, equal
    requests_compared: int
    difference: Difference | None = None
    reason: str = ""
    seconds: float = 0.0


def first_step_difference(recorded: list[Step], machine: list[Step]) -> Difference | None:
    """The first differing field of a step; what comes after it is a consequence."""
    for i in range(max(len(recorded), len(machine))):
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
    difference = first_step_difference(recording.steps, run.steps)
    compared, requests_compared = len(recording.steps), 0
    if difference is None:
        difference = first_request_difference(recording.requests, run.requests)
        requests_compared = len(recording.requests)
    elif difference.step is not None:
        compared = difference.step
    status: Status = "equal" if difference is None else "differs"
    reason = "" if difference is None else "; ".join(run.notes)
    return ScenarioReport(recording.name, status, len(recording.steps), compared, requests_compared, difference, reason)
