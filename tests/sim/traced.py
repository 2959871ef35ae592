"""`simulate` with the machine inside: the reference's arguments and its `Result`, steps included.

So that tests written for the reference can be run on the machine as they stand.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsched import policies
from jaxsched.sim import arrivals
from jaxsched.sim.build import make_params, make_static
from jaxsched.sim.clock import EPOCH_US, NEVER_US
from jaxsched.sim.event import apply_pending
from jaxsched.sim.machine import end_of_chunk, init_state, is_done, micro_step
from jaxsched.sim.params import SimParams
from jaxsched.sim.requests import Requests
from jaxsched.sim.state import Instance as Scalars
from jaxsched.sim.state import State
from jaxsched.sim.static import SimStatic
from jaxsched.timing.step_time import StepTimeParams, affine
from jaxsched.verify.replay import StepBuilder
from jaxsched.xla import quick_compiler_options
from tests.oracle.cluster import Result
from tests.oracle.data import EngineConfig, RouterConfig, StepFeatures, StepTime, Uniform, Workload
from tests.oracle.engine import Instance
from tests.sim.clusters import ENGINES
from tests.sim.harness import machine_records, stack, to_requests

#: Sizes of every traced program, so that episodes share them.
NUM_SLOTS, NUM_ROWS, NUM_CLASSES, CHUNK = 8, 8, 2, 64
SCHEDULERS = {engine: name for name, engine in ENGINES.items()}
_NEVER_FITS = Instance.never_fits


def simulate(
    workload: Workload,
    engine: EngineConfig,
    step_time: StepTime,
    *,
    num_instances: int = 1,
    router: RouterConfig | None = None,
    uniform: Uniform | None = None,
    until_us: int | None = None,
) -> Result:
    """As `tests.oracle.cluster.simulate`, for step times of the form a + b T, up to 8 rows and 8 sequences.

    If a test has taken the size test out of the reference (`Instance.never_fits`), it is taken out here too.
    """
    assert not engine.prefix_caching
    router = router or RouterConfig()
    static = _static(engine, router, num_instances)
    params = _params(engine, router, _affine(step_time), num_instances, until_us)
    start = init_state(static, params, NUM_ROWS)
    if Instance.never_fits is not _NEVER_FITS:
        params = params.replace(usable_blocks=params.usable_blocks + 1000)  # read by the size test, not by the pool
    with pytest.MonkeyPatch.context() as patch:
        compiled = _compiled
        if uniform is not None:
            draws = [[uniform(row, draw) for draw in (0, 1)] for row in range(len(workload.prompt_tokens))]
            patch.setattr(arrivals, "hash_bits", lambda seed, row, draw: jnp.asarray(draws, jnp.int32)[row, draw])
            compiled = _compiled.__wrapped__  # traced anew, with these draws
        requests = jax.tree.map(jnp.asarray, to_requests(workload, NUM_ROWS))
        run = compiled(static, _Arguments(params, requests, start))
        state, steps = _run(run, static, params, requests, start)
    idle = np.asarray(state.next_event) == NEVER_US
    waiting = np.asarray(_waiting(state))
    return Result(
        records=machine_records(stack([state]), 0, len(workload.prompt_tokens)),
        steps=steps,
        stuck=(idle & (waiting > 0)).tolist(),
        smallest_gap=1.0,  # the machine does not say
        end_us=int(state.epoch) * EPOCH_US + int(state.now),
    )


def _static(engine: EngineConfig, router: RouterConfig, num_instances: int) -> SimStatic:
    scheduler = SCHEDULERS[engine.kind, engine.order, engine.asynchronous]
    budget = {"token_budget": engine.token_budget, "long_prefill_threshold": engine.long_prefill_threshold}
    num_seqs = max(min(engine.max_num_seqs, NUM_SLOTS), 1)
    ordered = policies.compose(scheduler, max_num_seqs=num_seqs, **budget).needs_ordered_budget()
    policy = policies.compose(
        scheduler, router.kind, max_num_seqs=NUM_SLOTS, long_prefill_threshold=int(ordered and engine.kind == "vllm")
    )
    return make_static(
        policy,
        num_instances=num_instances,
        num_slots=NUM_SLOTS,
        queue_capacity=4 * NUM_SLOTS,
        max_run_steps=1,
        block_size=engine.block_size,
        num_paused=NUM_ROWS,
        num_classes=NUM_CLASSES,
        timeouts=True,
        delayed_view=router.delay_us > 0,
        record=True,
        trace=True,
    )


def _params(
    engine: EngineConfig, router: RouterConfig, timing: StepTimeParams, num_instances: int, until_us: int | None
) -> SimParams:
    order: dict[str, Any] = {
        "mlfq": {"quantum_tokens": engine.mlfq_quantum, "num_levels": engine.mlfq_levels},
        "ewsjf": {
            "step_tokens": engine.ewsjf_step,
            "num_queues": engine.ewsjf_num_queues,
            "weight_milli": round(engine.ewsjf_w * 1000),
        },
    }.get(engine.order, {})
    policy = policies.compose(
        SCHEDULERS[engine.kind, engine.order, engine.asynchronous],
        token_budget=engine.token_budget,
        max_num_seqs=NUM_SLOTS,  # (the engine's own number is put in below)
        long_prefill_threshold=engine.long_prefill_threshold,
        adaptive_threshold=int(engine.adaptive),
        chunked_prefill=int(engine.chunked_prefill),
        reserve_full_isl=int(engine.reserve_full_isl),
        max_model_len=engine.max_model_len,
        **order,
    )
    timeouts = tuple(engine.timeouts_us) + (0,) * (NUM_CLASSES - len(engine.timeouts_us))
    params = make_params(
        policy,
        timing,
        engine.usable_blocks,
        num_instances=num_instances,
        view_delay_us=router.delay_us,
        max_queue=engine.max_queue,
        seed=router.seed,
        timeout_us=timeouts,
        horizon_us=until_us,
    )
    # Blocks, where a policy would give a fraction of the pool; and an engine without seats, which no policy may be.
    watermark, seats = jnp.int32(engine.watermark_blocks), jnp.int32(min(engine.max_num_seqs, NUM_SLOTS))
    return params.replace(scheduler=params.scheduler.replace(watermark_blocks=watermark, max_num_seqs=seats))


def _affine(step_time: StepTime) -> StepTimeParams:
    """The step-time parameters of a reference's a + b T."""

    def of_total(total: int) -> int:
        return step_time(StepFeatures(total, total, 0, 0, 1, total, total, 0))

    base, slope = of_total(0), of_total(1) - of_total(0)
    assert of_total(100) == base + 100 * slope
    return affine(base, slope, 0)


class _Arguments:
    """Arrays for which a program is compiled. All are of the same shapes for a given static, so they are all equal."""

    def __init__(self, *arrays: Any):
        self.arrays = arrays

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Arguments)


@functools.cache
def _compiled(static: SimStatic, arguments: _Arguments):
    """`CHUNK` micro-steps: the state, the notes of each ``[CHUNK, ...]``, and whether the run is over.

    Compiled without much optimisation: each program runs for some milliseconds.
    """

    def run(params: SimParams, requests: Requests, state: State):
        body = lambda carry, _: micro_step(static, params, requests, carry)
        state, notes = jax.lax.scan(body, state, None, length=CHUNK)
        state = end_of_chunk(static, params, requests, apply_pending(state))
        return state, notes, is_done(static, params, requests, state)

    return jax.jit(run).lower(*arguments.arrays).compile(compiler_options=quick_compiler_options())


def _run(run, static: SimStatic, params: SimParams, requests: Requests, state: State):
    builders = [StepBuilder(list(range(NUM_ROWS))) for _ in range(static.num_instances)]
    done = False
    while not done:
        epoch_start_us = int(state.epoch) * EPOCH_US
        state, notes, done = run(params, requests, state)
        nobody = np.full(CHUNK, -1, np.int32)  # engines that never preempt say nothing of it
        notes = {"preempted": nobody} | {name: np.asarray(values) for name, values in notes.items()}
        for i in np.nonzero(notes["active"])[0]:
            builder = builders[notes["instance"][i]]
            builder.take({name: values[i] for name, values in notes.items()}, epoch_start_us)
    return state, [builder.steps for builder in builders]


def _waiting(state: State) -> jax.Array:
    return Scalars(*state.instance).waiting
