"""Critic-free policy gradients from groups that share their workload (docs/learning.md, section 4).

K members of a group meet the same arrivals, lengths and pauses (common random numbers) and differ only in the noise of
their actions, so the mean of the OTHERS is a baseline that knows the workload (RLOO: Kool, van Hoof and Welling 2019;
the same without the own reward left in, GRPO's form, is biased by (K - 1)/K, and divided by the group's deviation it
weighs groups wrongly: sheet 2a). Time-aligned, the baseline of a decision is the others' cost-to-go at the same
simulated time (input-dependent baselines: Mao et al. 2019). ReMax (Li et al. 2024) takes the greedy policy's run.

One iteration: every group begins a new episode, `num_steps` decisions, one or two clipped epochs. No critic: good for
objectives without a reward per step, and where a critic lags behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float

from jaxsched.errors import UserError
from jaxsched.networks import evaluate
from train.algorithm import Algorithm
from train.returns import cost_to_go
from train.rollout import Policy, Steps, collect, start_lanes
from train.running import Running, clip_by_norm, nonfinite, steer_entropy
from train.schedules import schedule

BASELINES = ("time_aligned", "episode", "remax", "none")
OPTIMISER = optax.scale_by_adam(eps=1e-5)


@dataclass(frozen=True)
class RlooStatic:
    """Sizes; a change compiles anew.

    Attributes:
        num_groups: workloads of an iteration.
        group_size: runs of each (K); at least 2, except for "remax" and "none".
        num_steps: decisions of each run; what comes after the end of its episode is not counted.
        num_epochs: updates of an iteration, each on everything.
        num_iterations: planned.
        baseline: one of `BASELINES`.
        shared_workload: members of a group share their workload. False only to measure what sharing brings.
        schedule: of the learning rate.
    """

    num_groups: int = 8
    group_size: int = 8
    num_steps: int = 512
    num_epochs: int = 1
    num_iterations: int = 100
    baseline: str = "time_aligned"
    shared_workload: bool = True
    schedule: str = "linear"

    def __post_init__(self) -> None:
        for name in ("num_groups", "group_size", "num_steps", "num_epochs", "num_iterations"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}", where="rloo", expected="at least 1")
        if self.baseline not in BASELINES:
            raise UserError(
                f"unknown baseline {self.baseline!r}", where="rloo", expected=f"one of {', '.join(BASELINES)}"
            )
        if self.group_size < 2 and self.baseline in ("time_aligned", "episode"):
            raise UserError("group_size is 1", where="rloo", expected="2 or more: the baseline is the others' mean")


class RlooHyper(struct.PyTreeNode):
    """Traced settings; those that PPO has too mean the same there (`train.ppo.PpoHyper`)."""

    env: Any
    lr: Array | float = 3e-4
    beta: Array | float = 0.0
    clip_low: Array | float = 0.2
    clip_high: Array | float = 0.2
    max_grad_norm: Array | float = 0.5
    entropy_start: Array | float = 0.5
    entropy_end: Array | float = 0.05
    entropy_rate: Array | float = 0.02
    temperature: Array | float = 0.1
    decay: Array | float = 0.9


class RlooState(struct.PyTreeNode):
    """The whole learner (`train.ppo.PpoState` says what the fields are)."""

    params: Any
    opt_state: Any
    log_temperature: dict[str, Array]
    advantage_square: Running
    tokens_per_s: Running
    key: Array
    iteration: Array


def others_mean(x: Float[Array, "*s k"]) -> Float[Array, "*s k"]:
    """For each member of a group (last axis) the mean of the others."""
    return (jnp.sum(x, axis=-1, keepdims=True) - x) / (x.shape[-1] - 1)


def at_time(clock: Float[Array, "t k"], values: Float[Array, "t k"], when: Float[Array, " s"]) -> Float[Array, "s k"]:
    """Each member's value at given times: linear between its decisions, 0 after its last one."""
    read = jax.vmap(lambda c, v: jnp.interp(when, c, v, right=0.0), in_axes=1, out_axes=1)
    return read(clock, values)


def group_advantages(
    to_go: Float[Array, "t g k"], clock_s: Float[Array, "t g k"], baseline: str, greedy_to_go: Any = None
) -> Float[Array, "t g k"]:
    """Cost-to-go (or the whole episode's) less its baseline.

    Args:
        to_go: discounted reward from each decision on.
        clock_s: simulated time of each decision since the episode's start.
        baseline: one of `BASELINES`.
        greedy_to_go: for "remax": (to_go, clock_s) f32[t, g] of the greedy policy on the same workloads.
    """
    if baseline == "none":
        return to_go
    if baseline == "episode":
        whole = jnp.broadcast_to(to_go[:1], to_go.shape)
        return whole - others_mean(whole)

    def of_group(q: Array, clock: Array, extra: Any) -> Array:
        if baseline == "remax":
            return q - jax.vmap(lambda c: at_time(extra[1][:, None], extra[0][:, None], c)[:, 0], 1, 1)(clock)
        seen = jax.vmap(lambda when: at_time(clock, q, when), in_axes=1, out_axes=1)(clock)  # [t, me, member]
        own = jnp.eye(q.shape[1], dtype=jnp.bool_)
        return q - jnp.sum(jnp.where(own, 0.0, seen), axis=-1) / (q.shape[1] - 1)

    extra = greedy_to_go if baseline == "remax" else (to_go[..., 0], clock_s[..., 0])
    return jax.vmap(of_group, in_axes=(1, 1, 1), out_axes=1)(to_go, clock_s, extra)


def collect_groups(
    env: Any, policy: Policy, static: RlooStatic, params: Any, key: Array, hyper: RlooHyper
) -> tuple[Steps, Float[Array, "t g k"], Float[Array, "*tb"], Array]:
    """Runs of all groups from their beginning: the record, advantages, which decisions count, and cost-to-go."""
    groups, size = static.num_groups, static.group_size
    act_key, world_key, greedy_key = jax.random.split(key, 3)
    act_keys = jax.random.split(act_key, groups * size)
    if static.shared_workload:
        worlds = jax.random.split(world_key, groups)
        world_keys = jnp.repeat(worlds, size)
    else:
        world_keys = jax.random.split(world_key, groups * size)
        worlds = world_keys[::size]
    lanes = start_lanes(env, policy, world_keys, hyper.env)
    _, steps = collect(env, policy, params, lanes, static.num_steps, hyper.env, act_keys, world_keys)
    to_go, counts, clock = _first_episode(steps, hyper.beta)
    shape = (static.num_steps, groups, size)
    greedy_to_go = None
    if static.baseline == "remax":
        lanes = start_lanes(env, policy, worlds, hyper.env)
        keys = jax.random.split(greedy_key, groups)
        _, best = collect(
            env, policy, params, lanes, static.num_steps, hyper.env, keys, worlds, is_greedy=True
        )  # fmt: skip
        best_to_go, _, best_clock = _first_episode(best, hyper.beta)
        greedy_to_go = (best_to_go, best_clock)
    advantage = group_advantages(to_go.reshape(shape), clock.reshape(shape), static.baseline, greedy_to_go)
    return steps, advantage, counts, to_go


def _first_episode(steps: Steps, beta: Array | float) -> tuple[Array, Array, Array]:
    """Cost-to-go within the lane's first episode (0 after it), which steps are in it, and the clock."""
    done = steps.terminated | steps.truncated
    over = jnp.cumsum(done.astype(jnp.int32), axis=0) - done.astype(jnp.int32)
    counts = over == 0
    dt = jnp.where(counts, steps.dt_s, 0.0)
    clock = jnp.cumsum(dt, axis=0) - dt
    to_go = cost_to_go(jnp.where(counts, steps.reward, 0.0), dt, done, beta)
    return to_go, counts, clock


def init(env: Any, policy: Policy, static: RlooStatic, key: Array, hyper: RlooHyper) -> RlooState:
    """A learner before its first decision."""
    params_key, obs_key, key = jax.random.split(key, 3)
    params = policy.init(params_key, env.reset(obs_key, hyper.env)[0])
    return RlooState(
        params=params,
        opt_state=OPTIMISER.init(params),
        log_temperature={head.name: jnp.log(jnp.asarray(hyper.temperature, jnp.float32)) for head in policy.heads},
        advantage_square=Running.zeros(),
        tokens_per_s=Running.zeros(),
        key=key,
        iteration=jnp.zeros((), jnp.int32),
    )


def loss(
    policy: Policy,
    params: Any,
    steps: Steps,
    weight: Float[Array, "*tb"],
    state: RlooState,
    hyper: RlooHyper,
    usual: Array,
) -> tuple[Array, dict[str, Any]]:
    """Clipped surrogate and entropy bonus, as PPO's; `weight` is each decision's advantage, 0 where none counts."""
    outputs, _, _ = policy.unroll(params, steps.obs, steps.carry[0], steps.start)
    tokens = evaluate(policy.heads, outputs, steps.obs, steps.action, steps.executed)
    gain_sum, bonus, divergence, count = (jnp.float32(0.0),) * 4
    relative = {}
    for name, token in tokens.items():
        mask = token.mask & steps.decided[..., None]
        log_ratio = jnp.where(mask, token.log_prob - steps.log_prob[name], 0.0)
        ratio = jnp.exp(log_ratio)
        clipped = jnp.clip(ratio, 1.0 - hyper.clip_low, 1.0 + hyper.clip_high)
        gain_sum += jnp.sum(jnp.where(mask, jnp.minimum(ratio * weight[..., None], clipped * weight[..., None]), 0.0))
        bonus += jnp.exp(state.log_temperature[name]) * jnp.sum(jnp.where(mask, token.entropy, 0.0))
        divergence += jnp.sum(ratio - 1.0 - log_ratio)
        count += jnp.sum(mask)
        share = jnp.where(mask, token.entropy / jnp.where(mask, token.log_choices, 1.0), 0.0)
        relative[name] = jnp.sum(share) / jnp.sum(mask).astype(jnp.float32)  # NaN where there was no choice
    extra = {"kl": divergence / jnp.maximum(count, 1), "relative": relative, "tokens": count.astype(jnp.float32)}
    return -(gain_sum + bonus) * usual, jax.lax.stop_gradient(extra)


def update(
    env: Any, policy: Policy, static: RlooStatic, state: RlooState, hyper: RlooHyper
) -> tuple[RlooState, dict[str, Array]]:
    """One iteration: new workloads, runs, advantages, epochs."""
    key, here = jax.random.split(state.key)
    steps, advantage, counts, to_go = collect_groups(env, policy, static, state.params, here, hyper)
    advantage = jnp.where(counts, advantage.reshape(counts.shape), 0.0)
    decided = steps.decided & counts
    steps = steps.replace(decided=decided)
    square = jnp.sum(jnp.where(decided, advantage**2, 0.0)) / jnp.maximum(jnp.sum(decided), 1)
    elapsed = jnp.sum(jnp.where(counts, steps.dt_s, 0.0))
    tokens = sum(jnp.sum((steps.log_prob[h.name] < 0) & decided[..., None]) for h in policy.heads)
    state = state.replace(
        key=key,
        advantage_square=state.advantage_square.push(square, hyper.decay),
        tokens_per_s=state.tokens_per_s.push(tokens / elapsed, hyper.decay),
    )
    deviation = jnp.sqrt(jnp.maximum(state.advantage_square.mean(1.0), 1e-12))  # one for all groups, never one each
    usual = 1.0 / jnp.maximum(elapsed * state.tokens_per_s.mean(1.0), 1e-6)
    rate_of = schedule(static.schedule, hyper.lr, static.num_iterations * static.num_epochs)
    progress = state.iteration.astype(jnp.float32) / static.num_iterations
    target = hyper.entropy_start + (hyper.entropy_end - hyper.entropy_start) * progress

    def epoch(carry: tuple, index: Array) -> tuple[tuple, dict[str, Any]]:
        params, opt_state, log_temperature = carry
        now = state.replace(log_temperature=log_temperature)
        (total, extra), grads = jax.value_and_grad(
            lambda p: loss(policy, p, steps, advantage / deviation, now, hyper, usual), has_aux=True
        )(params)
        grads, norm = clip_by_norm(grads, hyper.max_grad_norm)
        move, opt_state = OPTIMISER.update(grads, opt_state)
        rate = rate_of(state.iteration * static.num_epochs + index)
        params = jax.tree.map(lambda p, m: p - rate * m, params, move)
        log_temperature = steer_entropy(log_temperature, extra["relative"], target, hyper.entropy_rate)
        bad = {"nonfinite/loss": nonfinite([total]), "nonfinite/gradient": nonfinite(jax.tree.leaves(grads))}
        return (params, opt_state, log_temperature), {
            **extra, "loss": total, "gradient_norm": norm, "learning_rate": rate, **bad,
        }  # fmt: skip

    carry = (state.params, state.opt_state, state.log_temperature)
    carry, reports = jax.lax.scan(epoch, carry, jnp.arange(static.num_epochs, dtype=jnp.int32))
    relative = reports.pop("relative")
    state = state.replace(
        params=carry[0], opt_state=carry[1], log_temperature=carry[2], iteration=state.iteration + 1
    )  # fmt: skip
    reward = jnp.sum(jnp.where(counts, steps.reward, 0.0))
    metrics = {
        "reward_per_s": reward / elapsed,
        "simulated_s": elapsed,
        "return_mean": jnp.mean(to_go[0]),
        "advantage_deviation": deviation,
        **{name: jnp.max(x) if "/" in name else x[-1] for name, x in reports.items()},
    }
    for name in relative:
        metrics[f"entropy/{name}"] = jnp.nan_to_num(relative[name][-1])
        metrics[f"temperature/{name}"] = jnp.exp(carry[2][name])
    metrics["nonfinite/reward"] = nonfinite([steps.reward])
    metrics["nonfinite/parameters"] = nonfinite(jax.tree.leaves(carry[0]))
    return state, metrics


def rloo(
    env: Any, policy: Policy, network: dict[str, Any], static: RlooStatic, hyper: RlooHyper, sizes: dict[str, Any]
) -> Algorithm:
    """Critic-free groups as the training loop wants them."""
    return Algorithm(
        name="rloo",
        init=lambda key, hyper: init(env, policy, static, key, hyper),
        update=lambda state, hyper: update(env, policy, static, state, hyper),
        hyper=hyper,
        params=lambda state: state.params,
        network=network,
        sizes=sizes,
        decisions=static.num_groups * (static.group_size + (static.baseline == "remax")) * static.num_steps,
    )
