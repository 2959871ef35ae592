"""The reference takes every decision of the real vLLM scheduler, in all recorded scenarios."""

from __future__ import annotations

import pytest

from tests.oracle.recordings import (
    STEP_FIELDS,
    Recording,
    first_difference,
    first_request_difference,
    load,
    named_requests,
    named_steps,
    replay,
)
from tests.shared_data import shared_path

SCENARIOS = [
    "a_light",
    "b_chunk512",
    "c_kv_preempt",
    "d_prefix",
    "e_longprefill",
    "f_priority",
    "g_multi_turn",
    "h_async",
    "i_watermark",
    "j_no_chunking",
]


def recording_of(scenario: str) -> Recording:
    return load(shared_path("oracle", "vllm", scenario))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_step_and_every_request_equals_the_recording(scenario: str) -> None:
    recording = recording_of(scenario)
    result = replay(recording)
    assert len(recording.steps) > 0 and set(recording.steps[0]) == set(STEP_FIELDS)
    assert first_difference(recording.steps, named_steps(recording, result.steps[0])) is None
    assert first_request_difference(recording.requests, named_requests(recording, result)) is None
    assert all(r.fate == "finished" for r in result.records)


def test_the_comparison_finds_a_change_in_any_field_and_a_missing_step() -> None:
    recorded = recording_of("c_kv_preempt").steps
    for name in STEP_FIELDS:
        changed = list(recorded)
        changed[7] = recorded[7] | {name: "changed"}
        difference = first_difference(recorded, changed)
        assert difference is not None and (difference.at, difference.field) == (7, name)
    assert first_difference(recorded, recorded[:-1]) is not None
    assert first_difference(recorded[:-1], recorded) is not None
