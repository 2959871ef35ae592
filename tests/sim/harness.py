"""Run the machine and the plain-Python reference on the same workloads, and bring both to the same records."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxsched.sim.clock import join_us, split_us
from jaxsched.sim.event import apply_pending
from jaxsched.sim.invariants import violations
from jaxsched.sim.machine import advance, end_of_chunk, init_state, is_done, micro_step
from jaxsched.sim.params import SimParams
from jaxsched.sim.requests import Foresight, Requests
from jaxsched.sim.state import Fate, State
from jaxsched.sim.static import SimStatic
from jaxsched.xla import optimised_compiler_options, quick_compiler_options
from tests.oracle.data import Record, Workload

CHUNK = 64  # micro-steps between epoch rebases
#: Lanes x rows of the table from which on optimising pays.
LONG_RUN = 10_000
FATES = {int(fate): fate.name.lower() for fate in Fate}


def block_ids(workload: Workload, block_size: int) -> tuple[list[int], list[int]]:
    """Ids of the full blocks of every row's prompt and outputs but the last, and where each row's begin."""
    assert workload.prompt_content is not None
    ids: dict[tuple, int] = {}
    content, starts = [], []
    for row, prompt in enumerate(workload.prompt_content):
        tokens = [*prompt, *((("o", row), k) for k in range(workload.output_tokens[row] - 1))]
        starts.append(len(content))
        before = -1
        for i in range(len(tokens) // block_size):
            before = ids.setdefault((before, *tokens[i * block_size : (i + 1) * block_size]), len(ids))
            content.append(before)
    return content, starts


def to_requests(workload: Workload, pad_to: int, blocks: tuple[int, int] | None = None) -> Requests:
    """A reference workload as the machine's table, padded. `blocks` = (block size, most of a turn): with content."""
    num = len(workload.prompt_tokens)
    arrival = np.zeros(num, np.int64)
    arrival[: workload.num_programs] = workload.arrival_us[: workload.num_programs]
    program = np.arange(num)
    for row in range(num):
        if workload.next_turn[row] >= 0:
            program[workload.next_turn[row]] = program[row]
    epoch, us = split_us(arrival)
    pause_epoch, pause_us = split_us(np.asarray(workload.pause_us, np.int64))

    def column(values, fill=0):
        return np.concatenate([np.asarray(values, np.int32), np.full(pad_to - num, fill, np.int32)])

    shared = {}
    if blocks is not None:
        ids, starts = block_ids(workload, blocks[0])
        content = np.full(pad_to * blocks[1], -1, np.int32)
        content[: len(ids)] = ids
        shared = {"content": content, "content_start": column(starts)}
        shared |= {name: column(getattr(workload, name), -1) for name in ("chain", "group", "group_tokens")}
    if workload.remaining_us is not None:
        names = ("remaining_us", "history_us", "final_tokens")
        shared["foresight"] = Foresight(**{name: column(getattr(workload, name)) for name in names})
    if workload.waits is not None:
        shared |= _graph_columns(workload, pad_to, program)
    return Requests(
        num_programs=np.int32(workload.num_programs),
        arrival_epoch=column(epoch),
        arrival_us=column(us),
        prompt_tokens=column(workload.prompt_tokens, 1),
        output_tokens=column(workload.output_tokens, 1),
        predicted_tokens=column(workload.predicted_tokens, 1),
        klass=column(workload.klass),
        priority=column(workload.priority),
        program=column(program),
        next_turn=column(workload.next_turn, -1),
        pause_epoch=column(pause_epoch),
        pause_us=column(pause_us),
        **shared,
    )


#: Edges of a turn that the tables of tests have room for.
MAX_EDGES = 4


def _graph_columns(workload: Workload, pad_to: int, program: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of `Requests` for programs that are graphs."""
    assert workload.waits is not None and workload.not_before is not None
    tables = {name: np.tile(np.array([-1, 0, 0], np.int32), (pad_to, MAX_EDGES, 1)) for name in ("finish", "arrival")}
    needed, used = np.zeros(pad_to, np.int32), Counter()
    np.add.at(needed, program, 1)
    for row in range(workload.num_programs, len(workload.waits)):
        needed[row] = len(workload.waits[row])
        for before, what, pause_us in workload.waits[row]:
            epoch, us = split_us(np.int64(pause_us))
            tables[what][before, used[before, what]] = row, epoch, us
            used[before, what] += 1
    floors = np.zeros(pad_to, np.int64)
    floors[: len(workload.not_before)] = workload.not_before
    heir = np.full(pad_to, -1, np.int32)
    if workload.chain is not None:
        last: dict[int, int] = {}
        for row, chain in enumerate(workload.chain):
            if chain in last:
                heir[last[chain]] = row
            last[chain] = row
    return {
        "heir": heir,
        "edges": tables["finish"],
        "spawns": tables["arrival"],
        "needed": needed,
        "not_before": np.stack(split_us(floors), axis=-1),
    }


def stack(trees):
    """Trees of equal shapes with a leading lane axis."""
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack([np.asarray(x) for x in leaves])), *trees)


def _compiled_for_its_length(function: Callable) -> Callable:
    """`function` (static, params, requests) jitted: in a hurry for small batches, optimised for large ones."""
    jitted = functools.partial(jax.jit, function, static_argnums=0)
    quick = jitted(compiler_options=quick_compiler_options())
    optimised = jitted(compiler_options=optimised_compiler_options())

    @functools.wraps(function)
    def run(static: SimStatic, params: SimParams, requests: Requests):
        lanes, rows = requests.prompt_tokens.shape
        compiled = quick if lanes * rows < LONG_RUN else optimised
        return compiled(static, params, requests)

    return run


@_compiled_for_its_length
def run_lanes(static: SimStatic, params: SimParams, requests: Requests) -> State:
    """Run every lane to its end (all arguments carry a leading lane axis)."""
    num_rows = requests.prompt_tokens.shape[-1]

    def start(p):
        return init_state(static, p, num_rows)

    def more(state):
        return ~jnp.all(jax.vmap(functools.partial(is_done, static))(params, requests, state))

    def chunk(state):
        return jax.vmap(lambda p, r, s: advance(static, p, r, s, CHUNK))(params, requests, state)

    return jax.lax.while_loop(more, chunk, jax.vmap(start)(params))


#: How often `advance_lanes` was traced, by static.
TRACES: Counter[SimStatic] = Counter()


@functools.partial(jax.jit, static_argnums=0)
def advance_lanes(static: SimStatic, params: SimParams, requests: Requests, state: State) -> tuple[State, jax.Array]:
    """One chunk of micro-steps of every lane, and whether all are done. For tests that stop in between."""
    TRACES[static] += 1
    state = jax.vmap(lambda p, r, s: advance(static, p, r, s, CHUNK))(params, requests, state)
    return state, jnp.all(jax.vmap(functools.partial(is_done, static))(params, requests, state))


def start_lanes(static: SimStatic, params: SimParams, requests: Requests) -> State:
    """Every lane's first state."""
    num_rows = requests.prompt_tokens.shape[-1]
    return jax.vmap(lambda p: init_state(static, p, num_rows))(jax.tree.map(jnp.asarray, params))


def finish_lanes(static: SimStatic, params: SimParams, requests: Requests, state: State | None = None) -> State:
    """Run lanes from `state` (default: from the start) to their end, chunk by chunk."""
    state = start_lanes(static, params, requests) if state is None else state
    done = False
    while not done:
        state, done = advance_lanes(static, params, requests, state)
    return state


def assert_same_trees(ours, theirs) -> None:
    """Every leaf is equal, bit for bit."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes(), jax.tree_util.keystr(path)


@_compiled_for_its_length
def run_lanes_checked(static: SimStatic, params: SimParams, requests: Requests) -> tuple[State, jax.Array]:
    """`run_lanes`, and every `Violation` seen after any micro-step ``[lanes]``."""
    num_rows = requests.prompt_tokens.shape[-1]

    def chunk(p, r, carry):
        def body(carry, _):
            state, _ = micro_step(static, p, r, carry[0])
            return (state, carry[1] | violations(static, p, r, state)), None

        (state, found), _ = jax.lax.scan(body, carry, None, length=CHUNK)
        state = end_of_chunk(static, p, r, apply_pending(state))
        return state, found | violations(static, p, r, state)

    def more(carry):
        return ~jnp.all(jax.vmap(functools.partial(is_done, static))(params, requests, carry[0]))

    start = jax.vmap(lambda p: (init_state(static, p, num_rows), jnp.int32(0)))(params)
    return jax.lax.while_loop(more, lambda carry: jax.vmap(chunk)(params, requests, carry), start)


def machine_records(state: State, lane: int, num: int) -> list[Record]:
    """Records of the first `num` rows of one lane in the reference's form."""
    rec = jax.tree.map(lambda x: np.asarray(x[lane])[:num], state.record)

    def times(pairs):
        return np.where(pairs[:, 0] >= 0, join_us(pairs[:, 0], pairs[:, 1]), -1).tolist()

    columns = zip(
        range(num), rec.instance.tolist(), times(rec.arrival), times(rec.first_scheduled), times(rec.first_token),
        times(rec.finish), rec.preemptions.tolist(), rec.scheduled_tokens.tolist(), rec.fate.tolist(),
        rec.cached_first.tolist(), rec.cached_total.tolist(), strict=True,
    )  # fmt: skip
    return [
        Record(
            row=row, instance=instance, arrival_us=arrival, first_scheduled_us=first_scheduled,
            first_token_us=first_token, finish_us=finish, preemptions=preemptions,
            scheduled_tokens_total=scheduled_tokens, fate=FATES[fate], cached_tokens_first=cached_first,
            cached_tokens_total=cached_total,
        )
        for row, instance, arrival, first_scheduled, first_token, finish, preemptions, scheduled_tokens, fate,
            cached_first, cached_total in columns
    ]  # fmt: skip


def first_difference(reference: list[Record], machine: list[Record]) -> str:
    """Empty if equal, else the first differing record (the machine books preemptions and tokens when a turn leaves)."""
    for theirs, ours in zip(reference, machine, strict=True):
        if theirs.fate == "unfinished":
            ours = dataclasses.replace(
                ours, preemptions=theirs.preemptions, scheduled_tokens_total=theirs.scheduled_tokens_total
            )
        if theirs != ours:
            return f"\nreference {theirs}\nmachine   {ours}"
    return ""


def _mix(x: int) -> int:
    x = (x ^ (x >> 16)) * 0x85EBCA6B & 0xFFFFFFFF
    x = (x ^ (x >> 13)) * 0xC2B2AE35 & 0xFFFFFFFF
    return x ^ (x >> 16)


def machine_uniform(seed: int):
    """The machine's routing hash (`jaxsched.sim.arrivals.hash_bits`) on Python integers, for the reference."""

    def uniform(row: int, draw: int) -> int:
        return _mix(_mix((seed * 0x9E3779B9 + draw) & 0xFFFFFFFF) ^ row) & 0x7FFFFFFF

    return uniform
