"""ModelRouting: which model answers a request, when better ones are slower."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from jaxsched.envs.base import Observation
from jaxsched.envs.build import llama_on_a100, mixture, scenario_of
from jaxsched.envs.burst import Watch, program_ends
from jaxsched.envs.cache_routing import CacheRouting, make_cache_routing, next_request
from jaxsched.envs.cluster import ClusterEnv, ClusterParams, ClusterState
from jaxsched.envs.features import times
from jaxsched.errors import UserError
from jaxsched.policies import get as get_policy
from jaxsched.scenario import Scenario
from jaxsched.sim.state import State
from jaxsched.timing import StepTimeParams, describe


@dataclasses.dataclass(frozen=True)
class ServedModel:
    """What an instance serves."""

    name: str
    timing: StepTimeParams  # of its steps
    quality: tuple[float, ...]  # of an answer to a request of each class (one value: of all)


class ModelParams(struct.PyTreeNode):
    """What answers are worth."""

    quality: Float[Array, "c m"]  # of an answer, by class of the request and instance
    price: Float[Array, ""]  # of a request-second in the system


@dataclasses.dataclass(frozen=True)
class ModelRouting(CacheRouting):
    """Which instance, and so which model, answers the next request.

    Default scenario: two instances of Qwen2.5-7B, one of 14B, one of 32B on A100s (step times described from data
    sheets; KV pools of one size), 4 chats per second whose answers hardly differ between models, and 2 per second of
    which only a large one makes something (qualities are ours); an episode is 400 requests, run until all are done.

    - Observation: as `CacheRouting`; instances, besides: `quality` of the model for each class of requests, and the
      duration of its smallest step; globals, besides: the class of the arriving request, where there are several.
    - Action: "route": the instance of the request that arrives next.
    - Mask: all.
    - Reward: ``"latency"``: the quality of every answer that is finished, when it is, less `price` for every
      request-second in the system. ``"goodput"``: the quality of finished answers and 1 for each that met its limits,
      without the price. ``info["costs"]`` ends with the quality.
    - Termination, truncation and what a step is: as `CacheRouting`.
    """

    name: ClassVar[str] = "ModelRouting-v0"
    cost_names: ClassVar[tuple[str, ...]] = (*ClusterEnv.cost_names, "quality")

    def observe(self, state: ClusterState, params: ClusterParams) -> Observation:
        """What a policy sees of a state."""
        obs = super().observe(state, params)
        classes, m = self.static.num_classes, self.static.num_instances
        step_s = jnp.broadcast_to(params.sim.timing.base_us, (m,)).astype(jnp.float32) * 1e-6
        models = jnp.concatenate([params.own.quality.T, 10 * times(step_s)[:, None]], axis=1)
        obs = obs.replace(instances=jnp.concatenate([obs.instances, models], axis=1))
        if classes == 1:
            return obs
        _, requests = self._inputs(params, state.workload)
        row, _, _, arrives = next_request(self, requests, state.machine)
        mine = (jnp.arange(classes) == requests.klass[row]) & arrives
        return obs.replace(globals=jnp.concatenate([obs.globals, mine.astype(jnp.float32)]))

    def step_env(self, key, state, action, params):
        """See the class."""
        obs, after, reward, done, truncated, info = super().step_env(key, state, action, params)
        quality = jnp.sum(params.own.quality * info.pop("watched"))
        info["costs"] = jnp.concatenate([info["costs"], quality[None]])
        price = params.own.price if self.reward == "latency" else jnp.float32(1.0)
        return obs, after, quality + price * reward, done, truncated, info

    def _watch(self, state: ClusterState) -> Watch:
        static = self.static

        def answers(before: State, after: State) -> Float[Array, "c m"]:
            """Programs of each class that ended at each instance."""
            here = jnp.arange(static.num_instances) == after.pending_writes.event
            return program_ends(static, before, after)[:, None] * here.astype(jnp.float32)

        return answers


def default_scenario() -> Scenario:
    """Easy and hard questions."""
    kinds = ("easy", "lmsys", 4.0, 0.0, 1.0), ("hard", "sharegpt", 2.0, 0.0, 1.0)
    workload = mixture("two_kinds", "easy and hard questions", *kinds)
    return llama_on_a100("models", workload, 400, workload.rate_per_s, num_instances=4)


def default_models() -> tuple[ServedModel, ...]:
    """One per instance of the default scenario."""
    served = lambda name, *quality: ServedModel(name, describe(name, "a100").params, quality)
    small = served("qwen2.5-7b", 0.8, 0.3)
    return small, small, served("qwen2.5-14b", 0.85, 0.55), served("qwen2.5-32b", 0.9, 0.8)


def make_model_routing(
    *,
    models: Sequence[ServedModel] | None = None,
    price: float = 0.02,
    scenario: Scenario | str | None = None,
    num_programs: int | None = None,
    policy: str = "vllm",
    **others: Any,
) -> tuple[ModelRouting, ClusterParams]:
    """`ModelRouting` and its parameters; other arguments as those of `make_cache_routing`.

    `models`: what each instance serves (the scenario's own step times do not count); `price`: of a request-second.

    Raises:
        UserError: also for models that are not one per instance, or a quality or price that is not a finite number.
    """
    where = f"environment {ModelRouting.name}"
    scenario = scenario_of(scenario, default_scenario(), num_programs)
    models = default_models() if models is None else tuple(models)
    if len(models) != scenario.num_instances:
        raise UserError(
            f"{len(models)} models for {scenario.num_instances} instances", where=where, expected="one for each"
        )
    classes, inline = scenario.num_classes, get_policy(policy)
    inline = inline.with_params(**{name: value for name, value in others.items() if name in inline.settings()})
    for model in models:
        if len(model.quality) not in (1, classes) or not np.isfinite(model.quality).all():
            raise UserError(f"quality {model.quality} of model {model.name}", where=where,
                            expected=f"a finite number for each of the {classes} classes, or one for all")  # fmt: skip
        dataclasses.replace(scenario, timing=model.timing).check(inline)
    if scenario.max_turns > 1:
        raise UserError(
            f"scenario {scenario.name} has programs of up to {scenario.max_turns} turns", where=where,
            expected="programs of one turn: an answer has the quality of one model",
        )  # fmt: skip
    if not 0 <= price < np.inf:
        raise UserError(f"price {price}", where=where, expected="a number of at least 0")
    env, params = make_cache_routing(cls=ModelRouting, scenario=scenario, policy=policy, **others)
    quality = [np.broadcast_to(np.asarray(model.quality, np.float32), classes) for model in models]
    own = ModelParams(jnp.asarray(np.stack(quality, axis=1)), jnp.float32(price))
    timing = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(model.timing for model in models))
    return env, params.replace(sim=params.sim.replace(timing=timing), own=own)
