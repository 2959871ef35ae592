"""The machine's run of a recorded workload, written down as a recording would: steps and requests.

One instance, one micro-step at a time (`max_run_steps` = 1) with the trace on: each micro-step yields what it decided,
and the host puts these notes together to one object per schedule() call.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import deque
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsched import policies
from jaxsched.policies.base import Policy
from jaxsched.sim.build import make_params, make_static
from jaxsched.sim.clock import EPOCH_US, join_us, split_us
from jaxsched.sim.event import apply_pending
from jaxsched.sim.machine import end_of_chunk, init_state, is_done, micro_step
from jaxsched.sim.params import SimParams
from jaxsched.sim.requests import Requests
from jaxsched.sim.state import Fate, Flag, State
from jaxsched.sim.static import SimStatic
from jaxsched.timing.step_time import affine
from jaxsched.verify.content import block_ids
from jaxsched.verify.recording import Recording, Step
from jaxsched.xla import quick_compiler_options

SCHEDULERS = {"fcfs": "vllm", "priority": "vllm-priority"}
#: Micro-steps per call of the compiled program: bounds the memory of the trace.
CHUNK = 1024
#: Sizes are rounded up to powers of two from here on, so that scenarios share compiled programs.
MIN_SLOTS, MIN_ROWS, MIN_CONTENT, MIN_BLOCKS = 128, 256, 8192, 128
#: Rows of the table up to which compiling quickly pays.
SHORT_ROWS = 1024

Trace = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Run:
    """What the machine did."""

    steps: list[Step]
    requests: dict[int, dict[str, int]]  # as in requests.csv, by request id
    notes: list[str]  # what kept it from serving everything


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least `number`."""
    return 1 << max(number - 1, 0).bit_length()


def policy_of(recording: Recording) -> Policy:
    """The recorded scheduler with its parameters."""
    config = recording.config
    policy = policies.compose(
        SCHEDULERS[config["policy"]],
        "round_robin",  # one instance: any router does
        token_budget=config["max_num_batched_tokens"],
        # More seats than requests are never taken; fewer slots make a smaller program.
        max_num_seqs=min(config["max_num_seqs"], len(recording.rows)),
        long_prefill_threshold=config["long_prefill_token_threshold"],
        adaptive_threshold=int(config["long_prefill_token_threshold_adaptive"]),
        chunked_prefill=int(config["enable_chunked_prefill"]),
        reserve_full_isl=int(config["scheduler_reserve_full_isl"]),
        watermark=config["watermark"],
        max_model_len=config["max_model_len"],
    )
    spec = dataclasses.replace(policy.scheduler.spec, asynchronous=config["async_scheduling"])
    return dataclasses.replace(policy, scheduler=dataclasses.replace(policy.scheduler, spec=spec))


def requests_of(recording: Recording) -> Requests:
    """The workload as the machine's table, padded.

    A request stops at `max_model_len` tokens (vLLM 0.33, v1/core/sched/utils.py, check_stop), so that caps its outputs.
    """
    rows = recording.rows
    size = power_of_two(max(len(rows), MIN_ROWS))
    epoch, us = split_us(np.asarray([row.arrival_us for row in rows]))
    prompt = np.asarray([row.prompt_tokens for row in rows])
    output = np.minimum([row.output_tokens for row in rows], recording.config["max_model_len"] - prompt)

    def column(values, fill: int = 0) -> jax.Array:
        return jnp.asarray(np.concatenate([values, np.full(size - len(rows), fill)]).astype(np.int32))

    zero = np.zeros(len(rows))
    content = starts = None
    if recording.config["enable_prefix_caching"]:
        ids, first = block_ids(rows, output, recording.config["block_size"])
        content = np.full(power_of_two(max(len(ids), MIN_CONTENT)), -1, np.int32)
        content[: len(ids)] = ids
        content, starts = jnp.asarray(content), column(first)
    return Requests(
        num_programs=jnp.int32(len(rows)),
        arrival_epoch=column(epoch),
        arrival_us=column(us),
        prompt_tokens=column(prompt, 1),
        output_tokens=column(output, 1),
        predicted_tokens=column(output, 1),
        klass=column(zero),
        priority=column([row.priority for row in rows]),
        program=column(np.arange(len(rows))),
        next_turn=column(zero - 1, -1),
        pause_epoch=column(zero),
        pause_us=column(zero),
        content=content,
        content_start=starts,
    )


def run(recording: Recording) -> Run:
    """Run the machine on the recorded workload and configuration."""
    config, policy, requests = recording.config, policy_of(recording), requests_of(recording)
    timing = affine(config["time_a_us"], config["time_b_us_per_token"], config["time_c_ns_per_ctx"])
    params = make_params(policy, timing, recording.usable_blocks, num_instances=1)
    num_slots = power_of_two(max(int(policy.settings()["max_num_seqs"]), MIN_SLOTS))
    while True:
        num_rows = requests.prompt_tokens.shape[0]
        static = make_static(
            policy,
            num_instances=1,
            num_slots=num_slots,
            queue_capacity=power_of_two(num_rows + num_slots),
            max_run_steps=1,
            block_size=config["block_size"],
            **_cache(recording, requests),
            record=True,
            trace=True,
            # All requests may arrive, be admitted and preempt each other at one instant.
            stall_limit=4096 + 64 * num_rows,
        )
        steps, state = _steps(static, params, requests, recording)
        if not int(state.flags) & Flag.WINDOW_OVERFLOW:
            break
        num_slots *= 2  # an ordered queue that held more requests than slots: again, with all of them in view
    return Run(steps, _requests(state, recording), _notes(state, recording))


def _cache(recording: Recording, requests: Requests) -> dict[str, Any]:
    """Sizes of the prefix cache, if the recording has one."""
    if requests.content is None:
        return {}
    longest = int((requests.prompt_tokens + requests.output_tokens).max()) // recording.config["block_size"]
    return {
        "prefix_cache": "blocks",
        "usable_blocks": power_of_two(max(recording.usable_blocks, MIN_BLOCKS)),
        "max_blocks": power_of_two(max(longest + 1, MIN_BLOCKS)),
    }


@functools.partial(jax.jit, static_argnums=0)
def _start(static: SimStatic, params: SimParams, requests: Requests) -> State:
    return init_state(static, params, requests.prompt_tokens.shape[0])


def _chunk(static: SimStatic, params: SimParams, requests: Requests, state: State) -> tuple[State, Trace, jax.Array]:
    """`CHUNK` micro-steps: the state after them, their notes ``[CHUNK, ...]``, and whether the run is over."""
    state, trace = jax.lax.scan(lambda carry, _: micro_step(static, params, requests, carry), state, None, length=CHUNK)
    state = end_of_chunk(static, params, requests, apply_pending(state))
    return state, trace, is_done(static, params, requests, state)


@functools.cache
def _compiled_chunk(quick: bool):
    """`_chunk` jitted; its compilation takes longer than the run unless the recording is long."""
    return jax.jit(_chunk, static_argnums=0, compiler_options=quick_compiler_options() if quick else None)


def _steps(static: SimStatic, params: SimParams, requests: Requests, recording: Recording) -> tuple[list[Step], State]:
    builder = StepBuilder([row.request_id for row in recording.rows])
    state, done = _start(static, params, requests), False
    chunk = _compiled_chunk(requests.prompt_tokens.shape[0] <= SHORT_ROWS)
    while not done:
        epoch = int(state.epoch)  # moves only between chunks
        state, trace, done = chunk(static, params, requests, state)
        trace = {name: np.asarray(values) for name, values in trace.items()}
        for i in np.nonzero(trace["active"])[0]:
            builder.take({name: values[i] for name, values in trace.items()}, epoch * EPOCH_US)
    return builder.steps, state


class StepBuilder:
    """Puts the notes of micro-steps together to steps as recorded: one per schedule() call that scheduled or preempted.

    `request_ids[row]` is the recording's name of a row of the request table.
    """

    def __init__(self, request_ids: list[int]):
        self.steps: list[Step] = []
        self._ids = request_ids
        self._in_flight: deque[Step] = deque()
        self._ended: Step | None = None  # the step whose outputs are being processed
        self._out: set[int] = set()  # preempted and not admitted again
        self._admitted: list[list[int]] = []  # by the call under way
        self._preempted: list[int] = []

    def take(self, note: Trace, epoch_start_us: int) -> None:
        """One micro-step of an instance event: outputs of the step that ended, then (part of) a schedule() call."""
        if note["ended"]:
            self._ended = self._in_flight.popleft()
        if note["leaving"] and self._ended is not None:
            if note["finished"] >= 0:
                self._finish(self._ids[note["finished"]], self._ended)
            self._ended["free_blocks_after"] = int(note["free_left"])
        if note["preempted"] >= 0:
            self._preempted.append(self._ids[note["preempted"]])
            self._out.add(self._preempted[-1])
        if note["admitted"] >= 0:
            self._admitted.append([self._ids[note["admitted"]], int(note["cached"]), int(note["resumed"])])
            self._out.discard(self._admitted[-1][0])
        if note["closed"]:
            self._ended = None
            if note["formed"] or self._preempted:
                self._close(note, epoch_start_us)
            self._admitted, self._preempted = [], []

    def _finish(self, request: int, step: Step) -> None:
        finished = step["finished"]
        finished.append(request)
        # One step ahead, a request can be preempted while its last token is in flight. The machine, which has forgotten
        # such a request's place in the batch, lets it leave before those that still run. All leave at one instant,
        # before anything is decided, so no decision depends on it; engines list them in batch order.
        if not self._out.isdisjoint(finished):
            place = {entry[0]: i for i, entry in enumerate(step["tokens"])}
            finished.sort(key=lambda who: place.get(who, len(place)))

    def _close(self, note: Trace, epoch_start_us: int) -> None:
        scheduled = np.nonzero(note["tokens"])[0]
        # Batch order = order of admission: the running list, then this call's admissions.
        scheduled = scheduled[np.argsort(note["order"][scheduled])]
        start_us = epoch_start_us + int(note["start"])
        formed = bool(note["formed"])
        step = {
            "step": len(self.steps),
            "t_sched_us": epoch_start_us + int(note["now"]),
            "t_start_us": start_us,
            "t_end_us": epoch_start_us + int(note["end"]) if formed else start_us,
            "tokens": [[self._ids[note["requests"][slot]], int(note["tokens"][slot])] for slot in scheduled],
            "total": int(note["total"]),
            "ctx": int(note["ctx"]),
            "admitted": self._admitted,
            "preempted": self._preempted,
            "running": int(note["running"]),
            "waiting": int(note["waiting"]),
            "free_blocks": int(note["free"]),
            "finished": [],
            "free_blocks_after": int(note["free"]),
        }
        self.steps.append(step)
        if formed:
            self._in_flight.append(step)


def _requests(state: State, recording: Recording) -> dict[int, dict[str, int]]:
    num = len(recording.rows)
    rec = jax.tree.map(lambda x: np.asarray(x)[:num], state.record)

    def times(pairs: np.ndarray) -> list[int]:
        return np.where(pairs[:, 0] >= 0, join_us(pairs[:, 0], pairs[:, 1]), -1).tolist()

    columns = {
        "arrival_us": times(rec.arrival),
        "first_scheduled_us": times(rec.first_scheduled),
        "first_token_us": times(rec.first_token),
        "finish_us": times(rec.finish),
        "preemptions": rec.preemptions.tolist(),
        "cached_tokens_first": rec.cached_first.tolist(),
        "cached_tokens_total": rec.cached_total.tolist(),
        "scheduled_tokens_total": rec.scheduled_tokens.tolist(),
    }
    return {row.request_id: {k: v[i] for k, v in columns.items()} for i, row in enumerate(recording.rows)}


def _notes(state: State, recording: Recording) -> list[str]:
    flags = int(state.flags)
    notes = [f"flag {flag.name}" for flag in Flag if flags & flag]
    fates = np.asarray(state.record.fate)[: len(recording.rows)]
    for fate in (Fate.REJECTED_SIZE, Fate.REJECTED_QUEUE, Fate.UNFINISHED):
        which = np.nonzero(fates == fate)[0]
        if len(which):
            first = recording.rows[which[0]].request_id
            notes.append(f"{len(which)} requests {fate.name.lower()}, the first is {first}")
    return notes
