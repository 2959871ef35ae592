"""Imitation: behaviour cloning, and DAgger from any expert (docs/learning.md, section 5).

The learner (or, with probability `share`, the expert: one draw a lane and iteration) acts; the expert says what it
would have done in every state that is visited; the network is made to find that likely: Plackett-Luce likelihood of the
first `num_picks` of the expert's order, cross-entropy for choices. With a share of 1 throughout this is behaviour
cloning, which only knows the expert's states; DAgger (Ross, Gordon and Bagnell 2011) lets the share fall. Every
iteration meets fresh episodes, so no dataset is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool

from jaxsched.errors import UserError
from jaxsched.networks import evaluate, sample
from jaxsched.networks.heads import legal
from jaxsched.networks.plackett_luce import ranks
from train.algorithm import Algorithm
from train.rollout import Lanes, Policy, sequences, start_lanes, step_lanes
from train.running import clip_by_norm, nonfinite
from train.schedules import schedule

#: ``expert(key, obs, env_state, env_params) -> action``: any policy or bound; it may look into the state.
Expert = Callable[[Array, Any, Any, Any], dict[str, Array]]
OPTIMISER = optax.scale_by_adam(eps=1e-5)


@dataclass(frozen=True)
class BcStatic:
    """Sizes; a change compiles anew.

    Attributes:
        num_lanes, num_steps, num_minibatches, num_epochs, num_iterations, schedule: as PPO's.
        num_picks: picks of the expert's order that count; 0: all.
    """

    num_lanes: int = 64
    num_steps: int = 64
    num_minibatches: int = 4
    num_epochs: int = 1
    num_iterations: int = 100
    num_picks: int = 0
    schedule: str = "linear"

    def __post_init__(self) -> None:
        for name in ("num_lanes", "num_steps", "num_minibatches", "num_epochs", "num_iterations"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}", where="bc", expected="at least 1")
        if self.num_lanes % self.num_minibatches:
            raise UserError(f"{self.num_lanes} lanes cannot be split into {self.num_minibatches} minibatches",
                            where="bc", expected="num_lanes to be a multiple of num_minibatches")  # fmt: skip


class BcHyper(struct.PyTreeNode):
    """Traced settings.

    Attributes:
        env: parameters of the environment.
        lr: peak learning rate.
        share_start, share_end: probability that the expert acts, linear in between. 1 and 1: behaviour cloning.
        max_grad_norm: of the gradient.
    """

    env: Any
    lr: Array | float = 1e-3
    share_start: Array | float = 1.0
    share_end: Array | float = 0.0
    max_grad_norm: Array | float = 1.0


class BcState(struct.PyTreeNode):
    """The whole learner."""

    params: Any
    opt_state: Any
    lanes: Lanes
    key: Array
    iteration: Array


class Lesson(struct.PyTreeNode):
    """States and the expert's decisions there; leaves are [t, b, ...]."""

    obs: Any
    carry: Array
    start: Bool[Array, "*tb"]
    action: dict[str, Array]
    executed: Array


def init(env: Any, policy: Policy, static: BcStatic, key: Array, hyper: BcHyper) -> BcState:
    """A learner before its first lesson."""
    params_key, lanes_key, key = jax.random.split(key, 3)
    lanes = start_lanes(env, policy, jax.random.split(lanes_key, static.num_lanes), hyper.env)
    params = policy.init(params_key, lanes.obs)
    return BcState(params, OPTIMISER.init(params), lanes, key, jnp.zeros((), jnp.int32))


def first_picks(policy: Policy, obs: Any, action: dict[str, Array], num_picks: int) -> Array:
    """Ranks of the first picks of the order head's action, -1 beyond them; no order head: nothing is picked."""
    for head in policy.heads:
        if head.kind == "order":
            place = ranks(action[head.name], legal(head, obs, action[head.name]))
            return jnp.where(place < num_picks, place, -1) if num_picks else place
    return jnp.full(obs.item_mask.shape, -1, jnp.int32)


def collect(
    env: Any, policy: Policy, expert: Expert, static: BcStatic, state: BcState, hyper: BcHyper, key: Array
) -> tuple[Lanes, Lesson, Array]:
    """Lessons of `num_steps` decisions in every lane, and the reward per second met on the way."""
    share_key, act_key, expert_key, env_key = jax.random.split(key, 4)
    progress = state.iteration.astype(jnp.float32) / static.num_iterations
    share = hyper.share_start + (hyper.share_end - hyper.share_start) * progress
    expert_acts = jax.random.bernoulli(share_key, share, (static.num_lanes,))

    def step(lanes: Lanes, index: Array) -> tuple[Lanes, tuple[Lesson, Array, Array]]:
        keys = [
            jax.random.split(jax.random.fold_in(k, index), static.num_lanes) for k in (act_key, expert_key, env_key)
        ]
        outputs, _, carry = policy.apply(state.params, lanes.obs, lanes.carry)
        own = jax.vmap(sample, (0, None, 0, 0))(keys[0], policy.heads, outputs, lanes.obs)
        right = jax.vmap(expert, (0, 0, 0, None))(keys[1], lanes.obs, lanes.env_state, hyper.env)
        action = {
            name: jnp.where(expert_acts.reshape(-1, *[1] * (own[name].ndim - 1)), right[name], own[name])
            for name in own
        }
        lesson = Lesson(
            lanes.obs, lanes.carry, lanes.start, right, first_picks(policy, lanes.obs, right, static.num_picks)
        )  # fmt: skip
        obs, env_state, reward, terminated, truncated, info = step_lanes(
            env, keys[2], lanes.env_state, action, hyper.env
        )
        done = terminated | truncated
        return Lanes(env_state, obs, jnp.where(done[:, None], 0.0, carry), done), (lesson, reward, info["dt_s"])

    lanes, (lessons, reward, dt) = jax.lax.scan(step, state.lanes, jnp.arange(static.num_steps, dtype=jnp.int32))
    return lanes, lessons, jnp.sum(reward) / jnp.sum(dt)


def loss(policy: Policy, params: Any, lesson: Lesson) -> tuple[Array, dict[str, Array]]:
    """Mean negative log-likelihood per decision of the expert, summed over heads."""
    outputs, _, _ = policy.unroll(params, lesson.obs, lesson.carry[0], lesson.start)
    tokens = evaluate(policy.heads, outputs, lesson.obs, lesson.action, lesson.executed)
    total, report = jnp.float32(0.0), {}
    for name, token in tokens.items():
        count = jnp.maximum(jnp.sum(token.mask), 1)
        head_loss = -jnp.sum(jnp.where(token.mask, token.log_prob, 0.0)) / count
        report[f"loss/{name}"] = head_loss
        total += head_loss
    return total, jax.lax.stop_gradient(report)


def update(
    env: Any, policy: Policy, expert: Expert, static: BcStatic, state: BcState, hyper: BcHyper
) -> tuple[BcState, dict[str, Array]]:
    """One iteration: fresh lessons, then epochs of minibatches of lanes."""
    key, lesson_key, shuffle_key = jax.random.split(state.key, 3)
    lanes, lessons, reward = collect(env, policy, expert, static, state, hyper, lesson_key)
    data = jax.tree.map(lambda x: sequences(x, static.num_steps), lessons)
    per_epoch = static.num_minibatches
    rate_of = schedule(static.schedule, hyper.lr, static.num_iterations * static.num_epochs * per_epoch)
    order = jax.vmap(lambda k: jax.random.permutation(k, static.num_lanes))(
        jax.random.split(shuffle_key, static.num_epochs)
    )
    rows = order.reshape(static.num_epochs * per_epoch, -1)

    def minibatch(carry: tuple, now: tuple[Array, Array]) -> tuple[tuple, dict[str, Array]]:
        params, opt_state = carry
        index, lanes_of = now
        batch = jax.tree.map(lambda x: x[:, lanes_of], data)
        (total, report), grads = jax.value_and_grad(lambda p: loss(policy, p, batch), has_aux=True)(params)
        grads, norm = clip_by_norm(grads, hyper.max_grad_norm)
        move, opt_state = OPTIMISER.update(grads, opt_state)
        rate = rate_of(state.iteration * rows.shape[0] + index)
        params = jax.tree.map(lambda p, m: p - rate * m, params, move)
        report = {**report, "loss": total, "gradient_norm": norm, "learning_rate": rate}
        return (params, opt_state), report | {"nonfinite/loss": nonfinite([total])}

    index = jnp.arange(rows.shape[0], dtype=jnp.int32)
    (params, opt_state), reports = jax.lax.scan(minibatch, (state.params, state.opt_state), (index, rows))
    metrics = {name: jnp.mean(x) for name, x in reports.items()}
    metrics |= {"reward_per_s": reward, "learning_rate": reports["learning_rate"][-1]}
    metrics["nonfinite/parameters"] = nonfinite(jax.tree.leaves(params))
    return BcState(params, opt_state, lanes, key, state.iteration + 1), metrics


def bc(
    env: Any,
    policy: Policy,
    expert: Expert,
    network: dict[str, Any],
    static: BcStatic,
    hyper: BcHyper,
    sizes: dict[str, Any],
) -> Algorithm:
    """Imitation as the training loop wants it."""
    return Algorithm(
        name="bc",
        init=lambda key, hyper: init(env, policy, static, key, hyper),
        update=lambda state, hyper: update(env, policy, expert, static, state, hyper),
        hyper=hyper,
        params=lambda state: state.params,
        network=network,
        sizes=sizes,
        decisions=static.num_lanes * static.num_steps,
        headline="loss",
    )
