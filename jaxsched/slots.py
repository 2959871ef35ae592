"""How many slots rows begin with: enough for what a load needs, far fewer than the engine's limit when it is low.

An estimate from means, and no more than that: a row that turns out too short is noticed and the batch is run again
(`simulation.run_lanes`), so it decides how long a simulation takes and nothing else.
"""

from __future__ import annotations

import math

import numpy as np

from jaxsched.sim.requests import Requests
from jaxsched.timing.reference import StepFeatures, prefill_quad, step_time_us_reference
from jaxsched.timing.step_time import StepTimeParams

#: The shortest row. Shorter ones are not faster: the fixed cost of a micro-step rules there.
MIN_SLOTS = 32


def mean_turn(requests: Requests) -> tuple[float, float, float]:
    """Mean prompt tokens, mean output tokens and turns per program of a table (of the first, if each lane has one)."""
    prompt, output, following = (
        np.asarray(x[0] if x.ndim > 1 else x)
        for x in (requests.prompt_tokens, requests.output_tokens, requests.next_turn)
    )
    num_programs = int(np.max(np.asarray(requests.num_programs)))
    row = np.arange(min(num_programs, len(prompt)))
    rows = [row]
    while len(row):
        row = following[row]
        row = row[row >= 0]
        rows.append(row)
    used = np.concatenate(rows)
    return float(prompt[used].mean()), float(output[used].mean()), len(used) / num_programs


def served_per_s(timing: StepTimeParams, num_running: int, prompt: float, output: float) -> float:
    """Turns per second that an instance finishes while it runs `num_running` of them, each at the mean lengths.

    Every step gives each a token, so a step ends ``num_running / output`` turns, and as many begin with their prompt.
    """
    begin = num_running / max(output, 1.0)
    chunk = round(begin * prompt)
    features = StepFeatures(
        total_tokens=num_running + chunk,
        num_prefill=math.ceil(begin),
        prefill_tokens=chunk,
        prefill_quad=round(begin * prefill_quad(round(prompt), 0)),
        num_decode=num_running,
        decode_ctx=round(num_running * (prompt + 0.5 * output)),
        prefill_ctx=chunk,
    )
    return begin * 1e6 / step_time_us_reference(timing, features)


def first_slots(full: int, timing: StepTimeParams, requests: Requests, programs_per_s: float) -> int:
    """Slots to begin with, at most `full`: a power of two, half of which keep up with the arrivals.

    Args:
        full: slots of a full row.
        programs_per_s: arrivals at one instance.
    """
    if full <= MIN_SLOTS:
        return full
    prompt, output, turns = mean_turn(requests)
    slots = MIN_SLOTS
    while slots < full and served_per_s(timing, slots // 2, prompt, output) < turns * programs_per_s:
        slots *= 2
    return min(slots, full)
