"""From a checked configuration to an algorithm: environment, network and settings put together."""

from __future__ import annotations

import importlib
import math
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from jaxsched.envs import make, registered_envs
from jaxsched.errors import UserError
from jaxsched.networks import SetNetworkConfig, SetPolicy
from jaxsched.networks.heads import HeadSpec
from train.algorithm import Algorithm
from train.devices import over_devices
from train.pid_lagrangian import Constraint, PidGains, constraint_columns
from train.rollout import heads_of

if TYPE_CHECKING:
    from train.config import BcConfig, PpoConfig, RlooConfig, TrainConfig


def build(config: TrainConfig) -> Algorithm:
    """The algorithm of a configuration, ready to run.

    Raises:
        UserError: an environment, head, cost or expert that does not exist, or sizes that do not fit, with the field.
    """
    algo = config.algo
    env, env_params = make_env(config)
    try:
        heads = heads_of(env, config.network.head_kinds)
    except UserError as error:
        raise UserError(error.problem, where=config.where("network.head_kinds"), expected=error.expected) from None
    builders: dict[str, Any] = {"ppo": _ppo, "rloo": _rloo, "bc": _bc}
    return builders[algo.kind](config, algo, env, env_params, heads)


def make_env(config: TrainConfig) -> tuple[Any, Any]:
    """The environment and its parameters."""
    from jaxsched.config import check_name

    name = config.env.id
    check_name(config, "env.id", name, registered_envs(), "environment")
    return make(name, **config.env.options)


def network_of(config: TrainConfig, heads: tuple[HeadSpec, ...], num_values: int) -> SetNetworkConfig:
    """The network of a configuration."""
    net = config.network
    return SetNetworkConfig(
        heads=heads, width=net.width, num_layers=net.num_layers, num_attention=net.num_attention,
        num_attention_heads=net.num_attention_heads, recurrent=net.recurrent, num_values=num_values,
    )  # fmt: skip


def sizes_of(env: Any, env_params: Any) -> dict[str, Any]:
    """Slots, instances and features of the environment's observations."""
    obs = env.observation_space(env_params)
    return {
        "num_items": obs.items.shape[0], "item_features": obs.items.shape[1], "num_instances": obs.instances.shape[0],
        "instance_features": obs.instances.shape[1], "global_features": obs.globals.shape[0],
    }  # fmt: skip


def _entropy(algo: PpoConfig | RlooConfig) -> dict[str, float]:
    entropy = algo.entropy
    return {
        "entropy_start": entropy.start, "entropy_end": entropy.end, "entropy_rate": entropy.rate,
        "temperature": entropy.temperature,
    }  # fmt: skip


def _traced(**values: float) -> dict[str, Any]:
    """Settings as float32 scalars, so that changing one never compiles anew."""
    return {name: jnp.asarray(value, jnp.float32) for name, value in values.items()}


def _ppo(config: TrainConfig, algo: PpoConfig, env: Any, env_params: Any, heads: tuple[HeadSpec, ...]) -> Algorithm:
    from train.ppo import PpoHyper, PpoStatic, ppo

    constraints = tuple(Constraint(c.cost, c.per) for c in algo.constraints)
    try:
        constraint_columns(constraints, env.cost_names)
    except UserError as error:
        raise UserError(error.problem, where=config.where("algo.constraints"), expected=error.expected) from None
    devices = config.run.num_devices
    static = PpoStatic(
        num_lanes=algo.num_lanes // devices, num_steps=algo.num_steps, num_minibatches=algo.num_minibatches,
        num_epochs=algo.num_epochs, sequence_length=algo.sequence_length, num_iterations=config.run.num_iterations,
        schedule=algo.schedule, constraints=constraints, axis="lanes" if devices > 1 else None,
    )  # fmt: skip
    gains = PidGains(
        limit=jnp.asarray([c.limit for c in algo.constraints], jnp.float32), warmup=jnp.int32(algo.pid.warmup),
        **_traced(kp=algo.pid.kp, ki=algo.pid.ki, kd=algo.pid.kd, cap=algo.pid.cap, decay=algo.pid.decay),
    )  # fmt: skip
    hyper = PpoHyper(
        env=env_params, gains=gains,
        **_traced(
            lr=algo.lr, beta=algo.beta(), kappa=1.0 / algo.lambda_s, clip_low=algo.clip_low, clip_high=algo.clip_high,
            value_weight=algo.value_weight, kl_limit=algo.kl_limit, max_grad_norm=algo.max_grad_norm, decay=0.9,
            **_entropy(algo),
        ),
    )  # fmt: skip
    network = network_of(config, heads, 1 + len(constraints))
    algorithm = ppo(env, SetPolicy(network), network.to_dict(), static, hyper, sizes_of(env, env_params))
    return over_devices(algorithm, devices) if devices > 1 else algorithm


def _rloo(config: TrainConfig, algo: RlooConfig, env: Any, env_params: Any, heads: tuple[HeadSpec, ...]) -> Algorithm:
    from train.rloo import RlooHyper, RlooStatic, rloo

    static = RlooStatic(
        num_groups=algo.num_groups, group_size=algo.group_size, num_steps=algo.num_steps, num_epochs=algo.num_epochs,
        num_iterations=config.run.num_iterations, baseline=algo.baseline, schedule=algo.schedule,
    )  # fmt: skip
    beta = math.log(2.0) / algo.half_life_s if algo.half_life_s else 0.0
    hyper = RlooHyper(
        env=env_params,
        **_traced(
            lr=algo.lr, beta=beta, clip_low=algo.clip_low, clip_high=algo.clip_high, max_grad_norm=algo.max_grad_norm,
            decay=0.9, **_entropy(algo),
        ),
    )  # fmt: skip
    network = network_of(config, heads, 1)
    return rloo(env, SetPolicy(network), network.to_dict(), static, hyper, sizes_of(env, env_params))


def _bc(config: TrainConfig, algo: BcConfig, env: Any, env_params: Any, heads: tuple[HeadSpec, ...]) -> Algorithm:
    from train.bc import BcHyper, BcStatic, bc

    static = BcStatic(
        num_lanes=algo.num_lanes, num_steps=algo.num_steps, num_minibatches=algo.num_minibatches,
        num_epochs=algo.num_epochs, num_iterations=config.run.num_iterations, num_picks=algo.num_picks,
        schedule=algo.schedule,
    )  # fmt: skip
    hyper = BcHyper(
        env=env_params,
        **_traced(lr=algo.lr, share_start=algo.share_start, share_end=algo.share_end, max_grad_norm=algo.max_grad_norm),
    )
    network = network_of(config, heads, 1)
    expert = find_expert(algo.expert, config.where("algo.expert"))
    return bc(env, SetPolicy(network), expert, network.to_dict(), static, hyper, sizes_of(env, env_params))


def find_expert(name: str, where: str) -> Any:
    """A function by ``module:function``.

    Raises:
        UserError: there is none.
    """
    module, colon, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function) if colon else None
    except (ImportError, AttributeError):
        found = None
    if not callable(found):
        raise UserError(
            f"no expert {name!r}", where=where, expected="MODULE:FUNCTION, e.g. train.experts:shortest_first"
        )
    return found
