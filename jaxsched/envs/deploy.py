"""A trained network as a policy of a comparison: it decides between bursts of the machine, as where it was trained.

The export of a run on a cluster environment (`policy.json`, network kind "set") says the environment, its heads and the
policy whose heads run inline. Here the same environment is built on the scenario and the seeds of the comparison; the
network takes its most likely action at every decision; what comes out is a `RolloutResult` like any other. Every lane
runs to the end of its workload: `horizon_s` and `max_steps` of the training do not hold.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsched.envs.base import select
from jaxsched.envs.cluster import ClusterEnv, ClusterParams
from jaxsched.errors import UserError
from jaxsched.metrics.result import RolloutResult, Trajectory
from jaxsched.networks import greedy
from jaxsched.networks.policy import policy_from_dict
from jaxsched.policies.base import Policy
from jaxsched.scenario import Scenario
from jaxsched.sim.state import Flag
from jaxsched.simulation import snapshot

#: Options of a training environment that a comparison sets itself.
OF_TRAINING = ("scenario", "num_programs", "seeds", "randomise", "horizon_s", "max_steps", "reward", "residual_s")
#: Decisions between two snapshots, snapshots per call, and decisions after which a lane is said to hang.
DECISIONS, SNAPSHOTS, MOST_DECISIONS = 16, 16, 1_000_000
#: Idle contexts that the prefix cache can tell apart at first, and at most.
FIRST_RUNS, MOST_RUNS = 128, 8192


def deployed(export: Any, name: str) -> Policy:
    """The policy of an exported set network: the inline policy's parts, with the learned heads left to the network.

    Raises:
        UserError: the environment it was trained on does not run on a cluster, or is not this version's.
    """
    from jaxsched.envs.build import inline_policy

    where = str(export.path / "policy.json")
    about, options = export.scenario, dict(export.scenario.get("options") or {})
    if not str(about.get("id", "")).startswith("AgentSessions-"):
        raise UserError(f"was trained on environment {about.get('id')!r}", where=where,
                        expected="AgentSessions: only its networks run in comparisons yet")  # fmt: skip
    from jaxsched.envs.agent_sessions import DEFAULT_HEADS, HEADS

    learned = tuple(head for head in HEADS if head in (options.get("heads") or DEFAULT_HEADS))
    base = inline_policy(options.get("policy", "gittins+gate"), {}, learned, where)
    return dataclasses.replace(base, name=name, network=export)


def rollouts(
    scenario: Scenario,
    policy: Policy,
    seeds: Sequence[int],
    rates_per_s: Sequence[float],
    *,
    record: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[RolloutResult]:
    """`jaxsched.simulation.rollouts` for a policy with a network."""
    return [_rollout(scenario, policy, seeds, rate, record, progress) for rate in rates_per_s]


def _rollout(scenario, policy, seeds, rate, record, progress) -> RolloutResult:
    export, runs = policy.network, FIRST_RUNS
    scenario = dataclasses.replace(scenario, rate_per_s=rate)
    while True:
        env, params = _environment(scenario, policy, seeds, runs)
        env = dataclasses.replace(
            env,
            static=dataclasses.replace(env.static, record=record, histograms=True),
            warmup_fraction=scenario.warmup_fraction,
            cooldown_fraction=scenario.cooldown_fraction,
        )
        state, trajectory = _run(env, params, export, len(seeds), progress)
        flags = np.bitwise_or.reduce(np.asarray(state.flags))
        if not flags & Flag.CACHE_ENTRIES or runs >= MOST_RUNS:
            break
        runs *= 2  # all lanes again, with room for all idle contexts
    first = np.asarray(params.pool.first)
    stop = np.asarray(first + scenario.num_programs, np.int32)
    requests = jax.tree.map(np.asarray, params.pool.requests.replace(num_programs=jnp.asarray(stop)))
    return RolloutResult.collect(
        scenario, policy, list(seeds), rate, env.static, requests, first, state, trajectory, from_zero=True
    )


def _environment(
    scenario: Scenario, policy: Policy, seeds: Sequence[int], runs: int
) -> tuple[ClusterEnv, ClusterParams]:
    from jaxsched.envs import make

    about = policy.network.scenario
    options = {k: v for k, v in (about.get("options") or {}).items() if k not in OF_TRAINING}
    sizes = {
        "num_slots": max(int(options.get("num_slots", 0)), scenario.num_slots or scenario.num_programs),
        "cache_runs": runs,
    }
    settings = {k: v for k, v in policy.overrides if k != "max_model_len"}
    env, params = make(about["id"], **{**options, **sizes, **settings, "scenario": scenario, "seeds": list(seeds),
                                       "max_steps": MOST_DECISIONS})  # fmt: skip
    assert isinstance(env, ClusterEnv)
    return env, params


def _run(env: ClusterEnv, params: ClusterParams, export: Any, num: int, progress) -> tuple[Any, Trajectory]:
    network = policy_from_dict(export.network)
    start, chunk = _programs(env, network)
    obs, state = start(jnp.arange(num, dtype=jnp.int32), params)
    like = jax.eval_shape(network.init, jax.random.key(0), jax.tree.map(lambda x: x[0], obs))
    weights = jax.tree.map(jnp.asarray, export.params_like(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)))
    carry = (obs, state, network.initial_carry((num,)), jnp.zeros(num, bool))
    pieces: list[dict[str, np.ndarray]] = []
    most = MOST_DECISIONS // (DECISIONS * SNAPSHOTS)
    while len(pieces) < most:
        carry, snapshots = chunk(params, weights, carry)
        pieces.append({k: np.asarray(v) for k, v in snapshots.items()})
        if progress is not None:
            progress(int(pieces[-1]["finished"][:, -1].sum()), 0)
        if bool(np.all(np.asarray(carry[3]))):
            break
    else:
        raise UserError(f"is not done after {MOST_DECISIONS} decisions", where=f"policy {export.path}")
    trajectory = Trajectory.join(pieces, np.zeros(num, np.int64))
    return jax.tree.map(np.asarray, carry[1].machine), trajectory


@functools.lru_cache(maxsize=8)
def _programs(env: ClusterEnv, network: Any):
    """Compiled start and chunk of decisions; lanes first."""
    start = jax.jit(jax.vmap(env.reset_to, (0, None)))
    step = jax.vmap(env.step_env, (None, 0, 0, None))

    def chunk(params: ClusterParams, weights: Any, carry: Any):
        def decide(carry, _):
            obs, state, memory, done = carry
            outputs, _, memory = network.apply(weights, obs, memory)
            action = greedy(network.heads, outputs, obs)
            new_obs, new_state, _, terminated, truncated, _ = step(jax.random.key(0), state, action, params)
            keep = jax.vmap(select)
            obs, state = keep(done, obs, new_obs), keep(done, state, new_state)
            return (obs, state, memory, done | terminated | truncated), None

        def stretch(carry, _):
            carry, _ = jax.lax.scan(decide, carry, None, length=DECISIONS)
            return carry, jax.vmap(snapshot)(carry[1].machine)

        carry, snapshots = jax.lax.scan(stretch, carry, None, length=SNAPSHOTS)
        return carry, jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), snapshots)

    return start, jax.jit(chunk)
