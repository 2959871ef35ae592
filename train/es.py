"""OpenES: evolution strategies over a small policy that runs inside the machine (`jaxsched/networks/index.py`).

No environment loop and no gradients: a population of weight vectors is the lane axis of the compiled machine, every
member on the same workloads (common random numbers), and what is minimised is the mean log of the mean job completion
time of drained episodes (no censoring). Salimans et al., "Evolution strategies as a scalable alternative to RL",
2017: the gradient of the smoothed objective is ``1 / (n sigma) sum u_i eps_i`` over antithetic pairs ``+-eps``, u the
centred ranks of the members. Steps go along its running mean and have a fixed length, or are Adam's. A new set of
workloads is drawn in every generation, with load, pool and tails from the configured ranges. What is kept is an
average of the means (Polyak and Juditsky, 1992, with exponential weights), of the last generation that validation
workloads (other seeds) cannot tell from the best.

    python -m train configs/train/quickstart.yaml
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Float, Int

from jaxsched.errors import UserError

# --- The algorithm ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class EsConfig:
    """Settings of the search."""

    population: int = 16  # members of a generation, even: antithetic pairs
    generations: int = 40
    sigma: float = 0.2  # standard deviation of the noise, in the units of the features' weights
    learning_rate: float = 0.1  # length of a step, over all weights together (Adam: of each weight, about)
    final_rate: float = 0.1  # share of it that is left at the end; falls exponentially
    seeds: int = 2  # workloads of a generation, the same for all members
    steps: str = "fixed"  # "fixed": of that length, along the averaged gradient; "adam"
    momentum: float = 0.6  # of fixed steps: share of the averaged gradient that a generation leaves
    decay: float = 0.0  # share of the mean that a generation takes away: weights that costs say nothing about go to 0
    average: float = 0.8  # how much of the running average of means a generation leaves; 0: the average is the mean

    def __post_init__(self) -> None:
        if self.population < 2 or self.population % 2:
            raise UserError(f"algo.population {self.population}", expected="an even number, 2 or more")
        for name in ("generations", "sigma", "learning_rate", "final_rate", "seeds"):
            if not getattr(self, name) > 0:
                raise UserError(f"algo.{name} {getattr(self, name)}", expected="a number above 0")
        for name in ("average", "momentum", "decay"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"algo.{name} {getattr(self, name)}", expected="a number in [0, 1)")
        if self.steps not in ("fixed", "adam"):
            raise UserError(f"algo.steps {self.steps!r}", expected="fixed or adam")


class EsState(struct.PyTreeNode):
    """State of the search."""

    mean: Float[Array, " w"]
    average: Float[Array, " w"]  # of the means so far, exponentially weighted: what is kept of a noisy search
    opt_state: Any
    key: Array
    generation: Int[Array, ""]


def optimiser(config: EsConfig) -> optax.GradientTransformation:
    """Steps that get shorter exponentially.

    Of fixed length by default: Adam divides every weight's gradient by its own spread, so weights that the costs say
    nothing about walk as far as those that matter (docs/results/agents.md).
    """
    rate = optax.exponential_decay(config.learning_rate, config.generations, config.final_rate)
    if config.steps == "adam":
        return optax.adam(rate)
    return optax.chain(optax.trace(config.momentum), unit_length(), optax.scale_by_learning_rate(rate))


def unit_length() -> optax.GradientTransformation:
    """The direction of the update; an update of 0 stays 0."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        length = jnp.sqrt(sum(jnp.sum(jnp.square(part)) for part in jax.tree.leaves(updates)))
        return jax.tree.map(lambda part: part / jnp.where(length > 0, length, 1.0), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def init(config: EsConfig, mean: Float[Array, " w"], key: Array) -> EsState:
    """A search that starts at `mean`."""
    mean = jnp.asarray(mean, jnp.float32)
    return EsState(mean, mean, optimiser(config).init(mean), key, jnp.int32(0))


def ask(config: EsConfig, state: EsState) -> tuple[Float[Array, "n w"], Float[Array, "n w"]]:
    """Members of the next generation and their noise: n / 2 draws, then their negatives."""
    key = jax.random.fold_in(state.key, state.generation)
    half = jax.random.normal(key, (config.population // 2, state.mean.shape[0]), jnp.float32)
    noise = jnp.concatenate([half, -half])
    return state.mean + config.sigma * noise, noise


def tell(config: EsConfig, state: EsState, noise: Float[Array, "n w"], cost: Float[Array, " n"]) -> EsState:
    """One step against the estimated gradient of the cost's ranks."""
    gradient = noise.T @ centred_ranks(cost) / (config.population * config.sigma)
    updates, opt_state = optimiser(config).update(gradient, state.opt_state, state.mean)
    mean = jnp.asarray(optax.apply_updates((1.0 - config.decay) * state.mean, updates))
    average = config.average * state.average + (1.0 - config.average) * mean
    return state.replace(mean=mean, average=average, opt_state=opt_state, generation=state.generation + 1)


def centred_ranks(cost: Float[Array, " n"]) -> Float[Array, " n"]:
    """Ranks scaled to [-0.5, 0.5], the dearest highest; equal costs share their mean rank."""
    less = jnp.sum(cost[None, :] < cost[:, None], axis=1)
    equal = jnp.sum(cost[None, :] == cost[:, None], axis=1)
    rank = less.astype(jnp.float32) + 0.5 * (equal - 1).astype(jnp.float32)
    return rank / max(cost.shape[0] - 1, 1) - 0.5


def minimise(
    config: EsConfig,
    cost: Callable[[np.ndarray, int], np.ndarray],
    start: EsState,
    after: Callable[[EsState, np.ndarray], bool] | None = None,
) -> EsState:
    """Run the search.

    Args:
        cost: (members ``[n, w]``, generation) -> cost of each; the same workloads for all members.
        start: where it starts (`init`), or goes on.
        after: called with the state and the costs after each generation; False ends the search.

    Raises:
        UserError: costs that are not numbers.
    """
    state = start
    asked, told = jax.jit(ask, static_argnums=0), jax.jit(tell, static_argnums=0)
    for generation in range(int(start.generation), config.generations):
        members, noise = asked(config, state)
        costs = np.asarray(cost(np.asarray(members), generation), np.float32)
        if not np.all(np.isfinite(costs)):
            raise UserError(
                f"generation {generation}: {int(np.sum(~np.isfinite(costs)))} of {len(costs)} costs are not numbers",
                where="algorithm es",
                expected="episodes in which programs finish",
                hint="The last kept policy stays; a shorter warm-up or a lower load may help.",
            )
        state = told(config, state, noise, jnp.asarray(costs))
        if after is not None and not after(state, costs):
            break
    return state
