"""Proximal policy optimisation for semi-Markov decisions, with masks and several heads (docs/learning.md, section 3).

Schulman et al. 2017, with what matters in practice (Andrychowicz et al. 2021; Huang et al. 2022). One iteration:

1. `collect`: every lane makes `num_steps` decisions.
2. `targets`: advantages over time; their standard deviation and the values' scale are running averages (dividing by a
   batch's own deviation makes nearly deterministic batches swing, sheet 2f).
3. `update`: epochs of minibatches of whole sequences. Every pick and every head is a token with its own ratio and clip,
   all with the advantage of their decision. The sum over tokens is divided by elapsed TIME (in units of the usual time
   per token), not by their number, which would favour policies that decide often. A minibatch whose KL divergence from
   the acting policy exceeds the limit ends the iteration's updates.

The whole iteration is one program without host calls. Everything in `PpoHyper` is traced.
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
from train.pid_lagrangian import Constraint, PidGains, PidState, combine, constraint_columns, pid_update
from train.returns import advantages
from train.rollout import Lanes, Policy, Steps, collect, sequences, start_lanes
from train.running import Running, clip_by_norm, mean_over, nonfinite, spread, steer_entropy
from train.schedules import schedule


@dataclass(frozen=True)
class PpoStatic:
    """Sizes; a change compiles anew.

    Attributes:
        num_lanes: environments side by side.
        num_steps: decisions of each lane between updates.
        num_minibatches: of each epoch; divides the number of sequences.
        num_epochs: passes over the data.
        sequence_length: decisions of a lane that stay together in a minibatch; 0: all of them. Divides `num_steps`.
        num_iterations: planned; the learning rate's schedule ends with it.
        schedule: of the learning rate (`train.schedules`).
        constraints: costs that are held below limits.
        axis: name of the device axis that lanes are split over (`shard_map`), if they are.
    """

    num_lanes: int = 64
    num_steps: int = 128
    num_minibatches: int = 4
    num_epochs: int = 3
    sequence_length: int = 0
    num_iterations: int = 100
    schedule: str = "linear"
    constraints: tuple[Constraint, ...] = ()
    axis: str | None = None

    def __post_init__(self) -> None:
        for name in ("num_lanes", "num_steps", "num_minibatches", "num_epochs", "num_iterations"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}", where="ppo", expected="at least 1")
        length = self.sequence_length or self.num_steps
        if self.num_steps % length:
            raise UserError(f"num_steps {self.num_steps} cannot be cut into sequences of {length}", where="ppo",
                            expected="a multiple of sequence_length")  # fmt: skip
        sequences = self.num_lanes * (self.num_steps // length)
        if sequences % self.num_minibatches:
            raise UserError(
                f"{sequences} sequences cannot be split into {self.num_minibatches} minibatches", where="ppo",
                expected="num_lanes x num_steps / sequence_length to be a multiple of num_minibatches",
            )  # fmt: skip

    @property
    def num_updates(self) -> int:
        """Planned updates of the parameters."""
        return self.num_iterations * self.num_epochs * self.num_minibatches


class PpoHyper(struct.PyTreeNode):
    """Traced settings.

    Attributes:
        env: parameters of the environment.
        lr: peak learning rate.
        beta: discount rate, 1/s.
        kappa: decay rate of GAE, 1/s.
        clip_low, clip_high: ratios are clipped to [1 - clip_low, 1 + clip_high].
        value_weight: of the value loss.
        kl_limit: mean KL divergence per token above which updates of the iteration stop.
        max_grad_norm: of the gradient.
        entropy_start, entropy_end: target of each head's relative entropy, linear in between.
        entropy_rate: step of its controller; 0 keeps the temperature where it is.
        temperature: first weight of the entropy bonus.
        decay: of the running averages, per iteration.
        gains: of the constraints' controller.
    """

    env: Any
    lr: Array | float = 3e-4
    beta: Array | float = 0.0116  # half-life 60 s
    kappa: Array | float = 0.05  # time constant 20 s
    clip_low: Array | float = 0.2
    clip_high: Array | float = 0.2
    value_weight: Array | float = 0.5
    kl_limit: Array | float = 0.02
    max_grad_norm: Array | float = 0.5
    entropy_start: Array | float = 0.5
    entropy_end: Array | float = 0.05
    entropy_rate: Array | float = 0.02
    temperature: Array | float = 0.1
    decay: Array | float = 0.9
    gains: PidGains = struct.field(default_factory=lambda: PidGains(limit=jnp.zeros(0, jnp.float32)))


class PpoState(struct.PyTreeNode):
    """The whole learner.

    Attributes:
        params, opt_state: of the network and of Adam.
        lanes: where the environments stand.
        log_temperature: head -> log weight of its entropy bonus.
        advantage_square: running mean of squared advantages.
        target_mean, target_square: [v] running moments of the value targets.
        tokens_per_s: running mean of tokens per second of simulated time.
        pid: the constraints' multipliers.
        key: of everything random that is still to come.
        iteration: i32 done so far.
    """

    params: Any
    opt_state: Any
    lanes: Lanes
    log_temperature: dict[str, Array]
    advantage_square: Running
    target_mean: Running
    target_square: Running
    tokens_per_s: Running
    pid: PidState
    key: Array
    iteration: Array

    def value_scale(self) -> tuple[Float[Array, " v"], Float[Array, " v"]]:
        """Mean and deviation that the network's values are relative to."""
        mean = self.target_mean.mean(0.0)
        deviation = spread(mean, self.target_square.mean(1.0))
        return mean, jnp.where(self.target_square.weight > 0, jnp.maximum(deviation, 1e-4), 1.0)


OPTIMISER = optax.scale_by_adam(eps=1e-5)


def init(env: Any, policy: Policy, static: PpoStatic, key: Array, hyper: PpoHyper) -> PpoState:
    """A learner before its first decision."""
    params_key, lanes_key, key = jax.random.split(key, 3)
    if static.axis is not None:  # equal parameters and keys on all devices, other workloads
        lanes_key = jax.random.fold_in(lanes_key, jax.lax.axis_index(static.axis))
    lanes = start_lanes(env, policy, jax.random.split(lanes_key, static.num_lanes), hyper.env)
    params = policy.init(params_key, lanes.obs)
    num_values = 1 + len(static.constraints)
    return PpoState(
        params=params,
        opt_state=OPTIMISER.init(params),
        lanes=lanes,
        log_temperature={head.name: jnp.log(jnp.asarray(hyper.temperature, jnp.float32)) for head in policy.heads},
        advantage_square=Running.zeros(),
        target_mean=Running.zeros(num_values),
        target_square=Running.zeros(num_values),
        tokens_per_s=Running.zeros(),
        pid=PidState.zeros(len(static.constraints)),
        key=key,
        iteration=jnp.zeros((), jnp.int32),
    )


def act(
    env: Any, policy: Policy, static: PpoStatic, state: PpoState, hyper: PpoHyper
) -> tuple[PpoState, tuple[Steps, Array]]:
    """The first half of an iteration: `num_steps` decisions of every lane, and a key for the second half."""
    key, act_key, env_key, shuffle_key = jax.random.split(state.key, 4)
    if static.axis is not None:
        device = jax.lax.axis_index(static.axis)
        act_key, env_key = (jax.random.fold_in(k, device) for k in (act_key, env_key))
    act_keys, env_keys = (jax.random.split(k, static.num_lanes) for k in (act_key, env_key))
    lanes, steps = collect(env, policy, state.params, state.lanes, static.num_steps, hyper.env, act_keys, env_keys)
    return state.replace(key=key, lanes=lanes), (steps, shuffle_key)


def learn(
    env: Any, policy: Policy, static: PpoStatic, state: PpoState, hyper: PpoHyper, data: tuple[Steps, Array]
) -> tuple[PpoState, dict[str, Array]]:
    """The second half: advantages, then epochs of minibatches."""
    steps, shuffle_key = data
    advantage, target, state, metrics = targets(env, policy, static, state, steps, hyper)
    batch = (steps, advantage, target)
    batch = jax.tree.map(lambda x: sequences(x, static.sequence_length or static.num_steps), batch)
    state, more = _improve(policy, static, state, batch, hyper, shuffle_key)
    return state.replace(iteration=state.iteration + 1), {**metrics, **more}


def update(
    env: Any, policy: Policy, static: PpoStatic, state: PpoState, hyper: PpoHyper
) -> tuple[PpoState, dict[str, Array]]:
    """One iteration; see the module's docstring."""
    state, data = act(env, policy, static, state, hyper)
    return learn(env, policy, static, state, hyper, data)


def targets(
    env: Any, policy: Policy, static: PpoStatic, state: PpoState, steps: Steps, hyper: PpoHyper
) -> tuple[Float[Array, "*tb"], Float[Array, "*tb v"], PpoState, dict[str, Array]]:
    """Advantage of each decision (unit variance), value targets in the network's scale, and the running averages."""
    mean_of = mean_over(static.axis)
    shift, scale = state.value_scale()
    end = policy.apply(state.params, state.lanes.obs, state.lanes.carry)[1]
    value = shift + scale * steps.value
    following = jnp.concatenate([steps.value[1:], end[None]])
    following = shift + scale * jnp.where(steps.truncated[..., None], steps.last_value, following)
    following = jnp.where(steps.terminated[..., None], 0.0, following)
    reward, totals, pers = _streams(env, static, steps, hyper)
    done = steps.terminated | steps.truncated
    every = advantages(reward, steps.dt_s, value, following, done, hyper.beta, hyper.kappa)
    goal = every + value

    pid = pid_update(state.pid, hyper.gains, mean_of(totals), mean_of(pers)) if static.constraints else state.pid
    advantage = combine(every, pid.multiplier)
    drawn = [_drawn(steps, head.name) for head in policy.heads]
    decided = jnp.any(jnp.stack([jnp.any(mask, axis=-1) for mask in drawn]), axis=0)
    num_decided = jnp.maximum(mean_of(jnp.sum(decided)), 1e-6)
    centre = mean_of(jnp.sum(jnp.where(decided, advantage, 0.0))) / num_decided
    advantage = jnp.where(decided, advantage - centre, 0.0)
    tokens = jnp.sum(jnp.stack([jnp.sum(mask) for mask in drawn]))
    elapsed = mean_of(jnp.sum(steps.dt_s))
    state = state.replace(
        advantage_square=state.advantage_square.push(mean_of(jnp.sum(advantage**2)) / num_decided, hyper.decay),
        target_mean=state.target_mean.push(mean_of(jnp.mean(goal, (0, 1))), hyper.decay),
        target_square=state.target_square.push(mean_of(jnp.mean(goal**2, (0, 1))), hyper.decay),
        tokens_per_s=state.tokens_per_s.push(mean_of(tokens.astype(jnp.float32)) / elapsed, hyper.decay),
        pid=pid,
    )
    shift, scale = state.value_scale()
    deviation = jnp.sqrt(jnp.maximum(state.advantage_square.mean(1.0), 1e-12))
    error = mean_of(jnp.mean((goal[..., 0] - value[..., 0]) ** 2))
    about_goal = mean_of(jnp.mean((goal[..., 0] - mean_of(jnp.mean(goal[..., 0]))) ** 2))
    episodes = mean_of(jnp.sum(done).astype(jnp.float32))
    metrics = {
        "reward_per_s": mean_of(jnp.sum(steps.reward)) / elapsed,
        "simulated_s": elapsed,
        "episodes_ended": episodes,
        "decided_share": mean_of(jnp.mean(decided)),
        "advantage_deviation": deviation,
        "explained_variance": 1.0 - error / jnp.maximum(about_goal, 1e-12),
        "value_target_mean": shift[0],
        "value_target_deviation": scale[0],
    }
    if steps.costs.shape[-1]:
        rates = mean_of(jnp.sum(steps.costs, (0, 1))) / elapsed
        metrics |= {f"cost_per_s/{name}": rates[i] for i, name in enumerate(env.cost_names)}
    for index, constraint in enumerate(static.constraints):
        metrics[f"constraint/{constraint.cost}/rate"] = pid.rate()[index]
        metrics[f"constraint/{constraint.cost}/multiplier"] = pid.multiplier[index]
    floats = [x for x in jax.tree.leaves(steps.obs) if jnp.issubdtype(x.dtype, jnp.floating)]
    watched = {
        "observation": floats, "values": [steps.value, steps.last_value], "reward": [steps.reward],
        "costs": [steps.costs], "dt_s": [steps.dt_s], "log_probabilities": [*steps.log_prob.values()],
        "advantages": [every],
    }  # fmt: skip
    metrics |= {f"nonfinite/{name}": mean_of(nonfinite(leaves)) for name, leaves in watched.items()}
    return advantage / deviation, (goal - shift) / scale, state, metrics


def loss(
    policy: Policy, params: Any, batch: tuple[Steps, Array, Array], state: PpoState, hyper: PpoHyper, mean_of: Any
) -> tuple[Array, dict[str, Any]]:
    """Clipped surrogate of every token, value error and entropy bonus of a batch of sequences (time first)."""
    steps, advantage, target = batch
    outputs, value, _ = policy.unroll(params, steps.obs, steps.carry[0], steps.start)
    tokens = evaluate(policy.heads, outputs, steps.obs, steps.action, steps.executed)
    elapsed = mean_of(jnp.sum(steps.dt_s))
    usual = 1.0 / jnp.maximum(
        elapsed * state.tokens_per_s.mean(1.0), 1e-6
    )  # 1 / tokens that such a time usually brings
    actor, bonus, divergence, clipped, count = (jnp.float32(0.0),) * 5
    relative = {}
    low, high = 1.0 - hyper.clip_low, 1.0 + hyper.clip_high
    for name, token in tokens.items():
        mask = token.mask & steps.decided[..., None]
        log_ratio = jnp.where(mask, token.log_prob - steps.log_prob[name], 0.0)
        ratio = jnp.exp(log_ratio)
        gain = jnp.minimum(ratio * advantage[..., None], jnp.clip(ratio, low, high) * advantage[..., None])
        actor += jnp.sum(jnp.where(mask, gain, 0.0))
        bonus += jnp.exp(state.log_temperature[name]) * jnp.sum(jnp.where(mask, token.entropy, 0.0))
        divergence += jnp.sum(ratio - 1.0 - log_ratio)
        clipped += jnp.sum(mask & ((ratio < low) | (ratio > high)))
        count += jnp.sum(mask)
        share = jnp.where(mask, token.entropy / jnp.where(mask, token.log_choices, 1.0), 0.0)
        # NaN where no such choice was made: then there is nothing to steer.
        relative[name] = mean_of(jnp.sum(share)) / mean_of(jnp.sum(mask).astype(jnp.float32))
    value_loss = jnp.mean(jnp.sum((value - target) ** 2, axis=-1))
    total = -(actor + bonus) * usual + hyper.value_weight * value_loss
    num = jnp.maximum(mean_of(count), 1.0)
    extra = {
        "kl": mean_of(divergence) / num, "clipped_share": mean_of(clipped) / num, "value_loss": mean_of(value_loss),
        "relative": relative,
    }  # fmt: skip
    return total, jax.lax.stop_gradient(extra)


def _improve(
    policy: Policy, static: PpoStatic, state: PpoState, data: Any, hyper: PpoHyper, key: Array
) -> tuple[PpoState, dict[str, Array]]:
    """Epochs of minibatches; stops, for this iteration, at the first one that is too far from the acting policy."""
    mean_of = mean_over(static.axis)
    learning_rate = schedule(static.schedule, hyper.lr, static.num_updates)
    per_epoch, num_sequences = static.num_minibatches, jax.tree.leaves(data)[0].shape[1]
    progress = state.iteration.astype(jnp.float32) / static.num_iterations
    entropy_target = hyper.entropy_start + (hyper.entropy_end - hyper.entropy_start) * progress

    def minibatch(carry: tuple, now: tuple[Array, Array]) -> tuple[tuple, dict[str, Any]]:
        params, opt_state, log_temperature, stopped = carry
        index, rows = now
        batch = jax.tree.map(lambda x: x[:, rows], data)
        here = state.replace(log_temperature=log_temperature)
        (total, extra), grads = jax.value_and_grad(
            lambda p: loss(policy, p, batch, here, hyper, mean_of), has_aux=True
        )(params)
        grads, norm = clip_by_norm(mean_of(grads), hyper.max_grad_norm)
        stopped = stopped | (extra["kl"] > hyper.kl_limit)
        steps, new_opt_state = OPTIMISER.update(grads, opt_state)
        rate = learning_rate(index)
        new_params = jax.tree.map(lambda p, s: p - rate * s, params, steps)
        new_log = steer_entropy(log_temperature, extra["relative"], entropy_target, hyper.entropy_rate)
        old, new = (params, opt_state, log_temperature), (new_params, new_opt_state, new_log)
        kept = jax.tree.map(lambda x, y: jnp.where(stopped, x, y), old, new)
        report = {**extra, "loss": mean_of(total), "gradient_norm": norm, "applied": ~stopped, "learning_rate": rate}
        report["nonfinite/loss"] = nonfinite([report["loss"]])
        report["nonfinite/gradient"] = nonfinite(jax.tree.leaves(grads))
        return (*kept, stopped), report

    def epoch(carry: tuple, now: tuple[Array, Array]) -> tuple[tuple, dict[str, Any]]:
        number, epoch_key = now
        rows = jax.random.permutation(epoch_key, num_sequences).reshape(per_epoch, -1)
        first = (state.iteration * static.num_epochs + number) * per_epoch
        return jax.lax.scan(minibatch, carry, (first + jnp.arange(per_epoch, dtype=jnp.int32), rows))

    carry = (state.params, state.opt_state, state.log_temperature, jnp.bool_(False))
    keys = jax.random.split(key, static.num_epochs)
    carry, reports = jax.lax.scan(epoch, carry, (jnp.arange(static.num_epochs, dtype=jnp.int32), keys))
    state = state.replace(params=carry[0], opt_state=carry[1], log_temperature=carry[2])
    relative = reports.pop("relative")
    health = {name: jnp.max(reports.pop(name)) for name in ("nonfinite/loss", "nonfinite/gradient")}
    metrics = {name: jnp.mean(x.astype(jnp.float32)) for name, x in reports.items()}
    metrics |= {"learning_rate": reports["learning_rate"][-1, -1], "kl": jnp.max(reports["kl"])}
    for name in relative:
        metrics[f"entropy/{name}"] = jnp.nan_to_num(jnp.nanmean(relative[name]))
        metrics[f"temperature/{name}"] = jnp.exp(state.log_temperature[name])
    health["nonfinite/parameters"] = nonfinite(jax.tree.leaves(state.params))
    return state, {**metrics, **health}


def _streams(env: Any, static: PpoStatic, steps: Steps, hyper: PpoHyper) -> tuple[Array, Array, Array]:
    """The reward and each constraint's excess ``cost - limit x per`` as streams, and the totals of cost and per."""
    if not static.constraints:
        none = jnp.zeros(0, jnp.float32)
        return steps.reward[..., None], none, none
    columns = constraint_columns(static.constraints, env.cost_names)
    costs = jnp.stack([steps.costs[..., cost] for cost, _ in columns], axis=-1)
    pers = jnp.stack([steps.costs[..., per] if per >= 0 else steps.dt_s for _, per in columns], axis=-1)
    excess = costs - hyper.gains.limit * pers
    return jnp.concatenate([steps.reward[..., None], excess], -1), jnp.sum(costs, (0, 1)), jnp.sum(pers, (0, 1))


def _drawn(steps: Steps, name: str) -> Array:
    """Tokens that were really drawn. (Log-probability 0 means that there was nothing to choose.)"""
    return (steps.log_prob[name] < 0) & steps.decided[..., None]


def ppo(
    env: Any, policy: Policy, network: dict[str, Any], static: PpoStatic, hyper: PpoHyper, sizes: dict[str, Any]
) -> Algorithm:
    """PPO as the training loop wants it."""
    if static.constraints:
        constraint_columns(static.constraints, env.cost_names)
    return Algorithm(
        name="ppo",
        init=lambda key, hyper: init(env, policy, static, key, hyper),
        update=lambda state, hyper: update(env, policy, static, state, hyper),
        act=lambda state, hyper: act(env, policy, static, state, hyper),
        learn=lambda state, hyper, data: learn(env, policy, static, state, hyper, data),
        hyper=hyper,
        params=lambda state: state.params,
        network=network,
        sizes=sizes,
        decisions=static.num_lanes * static.num_steps,
    )
