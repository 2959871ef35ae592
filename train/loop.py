"""The host's part of training: iterate, log, watch for NaNs, save, go on after a stop. The same for every algorithm."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxsched.checkpoint import save_policy
from jaxsched.errors import UserError
from jaxsched.xla import COMPILE_VARIABLE, compiler_options, quick_compiler_options
from train.algorithm import Algorithm
from train.checkpoints import Checkpoints, flatten
from train.tracking import Jsonl, LiveLine, Tracker

#: Prefix of the metrics that are 1 where something is NaN or infinite.
WATCHED = "nonfinite/"


@dataclass(frozen=True)
class RunPlan:
    """How long and how a run goes on (nothing here changes what is learned, except `num_iterations` and `seed`).

    Attributes:
        folder: run folder; metrics, checkpoints and the exported policy go there.
        num_iterations: in all.
        seed: of everything random.
        checkpoint_every: iterations between checkpoints; 0: only at the end.
        keep: checkpoints kept.
        about: plain data naming the run; a checkpoint with other data is refused.
        scenario: plain data for the exported policy.
        is_quiet: no live line, even on a terminal.
        native_loops: compile loops on a CPU to native functions where XLA can (docs/decisions/0002): for environments
            that run the machine.
    """

    folder: Path
    num_iterations: int
    seed: int = 0
    checkpoint_every: int = 10
    keep: int = 2
    about: dict[str, Any] = field(default_factory=dict)
    scenario: dict[str, Any] = field(default_factory=dict)
    is_quiet: bool = False
    native_loops: bool = False

    def __post_init__(self) -> None:
        if self.num_iterations < 1:
            raise UserError(f"num_iterations is {self.num_iterations}", where="run", expected="at least 1")


@dataclass(frozen=True)
class RunResult:
    """What a run ended with: the learner, the last iteration's metrics, the hash of the exported policy."""

    state: Any
    metrics: dict[str, float]
    content_hash: str


def run(algorithm: Algorithm, plan: RunPlan, *, resume: bool = False, trackers: Sequence[Tracker] = ()) -> RunResult:
    """Train to the end, from the beginning or from the latest checkpoint.

    A run that is killed (at any moment) and resumed ends with the same bits as one that was left alone.

    Raises:
        UserError: the folder holds a run already (without `resume`) or none (with it), its checkpoint is damaged or of
            another run, or something became NaN: the error names it, and the last good checkpoint is kept.
    """
    checkpoints = Checkpoints(plan.folder / "checkpoints", plan.keep, plan.about)
    logs: dict[str, Jsonl] = {}
    try:
        if checkpoints.iterations() and not resume:
            raise UserError("holds a run already", where=str(plan.folder), expected="a new folder",
                            hint=f"To go on with it: --resume {plan.folder}")  # fmt: skip
        init = jax.jit(algorithm.init, compiler_options=quick_compiler_options())  # runs once
        key = jax.random.key(plan.seed)
        cursor: dict[str, int] = {}
        done = 0
        if resume:
            done, state, cursor = checkpoints.restore(jax.eval_shape(algorithm.init, key, algorithm.hyper))
        else:
            state = init(key, algorithm.hyper)
        logs = {name: Jsonl(plan.folder / name, cursor.get(name, 0)) for name in ("metrics.jsonl", "timing.jsonl")}
        return _iterate(algorithm, plan, checkpoints, logs, trackers, state, done)
    finally:
        for log in logs.values():
            log.close()
        checkpoints.close()


def _iterate(
    algorithm: Algorithm, plan: RunPlan, checkpoints: Checkpoints, logs: dict[str, Jsonl], trackers: Sequence[Tracker],
    state: Any, done: int,
) -> RunResult:  # fmt: skip
    update = compiled_update(algorithm, plan.native_loops)
    line = LiveLine(plan.num_iterations, done, algorithm.headline, algorithm.decisions, is_quiet=plan.is_quiet)
    metrics: dict[str, float] = {}
    try:
        for iteration in range(done + 1, plan.num_iterations + 1):
            begun = time.monotonic()
            state, device_metrics = update(state, algorithm.hyper)
            metrics = {name: float(value) for name, value in jax.device_get(device_metrics).items()}
            check_finite(metrics, state, iteration, checkpoints)
            metrics = {name: value for name, value in metrics.items() if not name.startswith(WATCHED)}
            passed = time.monotonic() - begun
            decisions = iteration * algorithm.decisions
            logs["metrics.jsonl"].write({"iteration": iteration, "decisions": decisions, **metrics})
            logs["timing.jsonl"].write(
                {"iteration": iteration, "seconds": passed, "decisions_per_s": algorithm.decisions / passed}
            )
            for tracker in trackers:
                tracker.log(iteration, metrics | {"decisions_per_s": algorithm.decisions / passed})
            line.show(iteration, metrics)
            last = iteration == plan.num_iterations
            if last or (plan.checkpoint_every and iteration % plan.checkpoint_every == 0):
                checkpoints.save(iteration, state, {name: log.sync() for name, log in logs.items()})
    finally:
        line.close()
    content_hash = save_policy(
        plan.folder, algorithm.params(state), network=algorithm.network, sizes=algorithm.sizes, scenario=plan.scenario,
        training={"algorithm": algorithm.name, "iterations": plan.num_iterations, "seed": plan.seed,
                  "decisions": plan.num_iterations * algorithm.decisions, **plan.about},
    )  # fmt: skip
    return RunResult(state, metrics, content_hash)


def compiled_update(algorithm: Algorithm, native_loops: bool) -> Any:
    """`algorithm.update` as one program, or with native loops as two of which the one that acts has them.

    XLA's options for native loops suit the machine; matrix products inside such a loop become naive ones.
    """
    in_a_hurry = quick_compiler_options() if os.environ.get(COMPILE_VARIABLE) == "quick" else None
    if not native_loops or algorithm.act is None or algorithm.learn is None:
        return jax.jit(algorithm.update, donate_argnums=0, compiler_options=in_a_hurry)
    act = jax.jit(algorithm.act, donate_argnums=0, compiler_options=compiler_options())
    learn = jax.jit(algorithm.learn, donate_argnums=0, compiler_options=in_a_hurry)

    def update(state: Any, hyper: Any) -> tuple[Any, dict[str, Any]]:
        state, data = act(state, hyper)
        return learn(state, hyper, data)

    return update


def check_finite(metrics: dict[str, float], state: Any, iteration: int, checkpoints: Checkpoints) -> None:
    """Stop a run in which something is no longer a number; names what came first in the flow of data."""
    bad = [name.removeprefix(WATCHED) for name, value in metrics.items() if name.startswith(WATCHED) and value != 0]
    if not bad:
        return
    order = ("observation", "reward", "costs", "dt_s", "values", "log_probabilities", "advantages", "loss", "gradient")
    first = min(bad, key=lambda name: order.index(name) if name in order else len(order))
    arrays = flatten(state)
    inside = [n for n, a in arrays.items() if np.issubdtype(a.dtype, np.floating) and not np.all(np.isfinite(a))]
    also = f" (also in {', '.join(name for name in bad if name != first)})" if len(bad) > 1 else ""
    of_learner = f"; in the learner: {', '.join(inside[:3])}{', ...' if inside[3:] else ''}" if inside else ""
    saved = checkpoints.iterations()
    kept = f"The last good checkpoint, of iteration {saved[-1]}, is kept in {checkpoints.folder}." if saved else ""
    cause = "The environment returned it." if first in ("observation", "reward", "costs", "dt_s") else (
        "A smaller learning rate or gradient norm may help.")  # fmt: skip
    raise UserError(f"NaN or infinity in {first}{also}{of_learner}", where=f"iteration {iteration}",
                    expected="finite numbers", hint=f"{cause} {kept}".strip())  # fmt: skip
