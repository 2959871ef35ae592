"""FleetScaling: how many instances of a fleet take new requests, when instances cost money and need time to start."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxsched.envs.base import Observation
from jaxsched.envs.build import SEEDS, build, llama_on_a100, mixture, scenario_of
from jaxsched.envs.burst import Watch, between_s, held_work, where_pair
from jaxsched.envs.cluster import ClusterEnv, ClusterParams, ClusterState
from jaxsched.envs.features import times
from jaxsched.envs.pool import Ranges
from jaxsched.errors import UserError
from jaxsched.scenario import Scenario
from jaxsched.sim.clock import add_us, relative_us
from jaxsched.sim.state import State

HEADS = ("scale",)
#: Columns added to `features.INSTANCE_FEATURES`: takes new requests; starts; seconds until then (`features.times`).
FLEET_FEATURES = ("takes", "starts", "until_started")


class FleetParams(struct.PyTreeNode):
    """What instances cost."""

    startup_us: Int[Array, ""]  # from the decision that turns an instance on until it takes requests, below 2^29
    price: Float[Array, ""]  # of an instance-second, in units of the reward


class FleetState(struct.PyTreeNode):
    """When each instance takes (or took) requests after it was last turned on: (epoch, us)."""

    ready_epoch: Int[Array, " m"]
    ready_us: Int[Array, " m"]


@dataclasses.dataclass(frozen=True)
class FleetScaling(ClusterEnv):
    """How many of the instances take new requests; the others finish what they hold and are then off.

    Default scenario: four instances of Llama-3-8B on A100s, at most 64 requests at a time each; 3 chats per second, and
    20 more between 40 % and 65 % of the episode (one instance serves about 7); an episode is 2,000 requests, run until
    all are done. Starting takes 10 s, an instance-second costs 4.

    - Observation: items are requests that run or wait; instances: `features.INSTANCE_FEATURES`, then `FLEET_FEATURES`;
      globals: `features.GLOBAL_FEATURES`, then the share of instances that are on.
    - Action: "scale": instances that are on, less one. These are the first so many; at least one is always on. One that
      is turned on takes requests from the first decision at which `startup_s` are over; at once if it still holds
      requests from before it was turned off. A new request goes to the instance with fewest requests of those that take
      any (ties to the lowest index), whatever router `policy` has.
    - Mask: all.
    - Reward: minus request-seconds in the system (``"latency"``), or requests finished within all their limits
      (``"goodput"``), less `price` for every instance-second, exactly: an instance costs from the decision that turns
      it on until it is off and holds nothing. ``info["costs"]`` ends with the instance-seconds.
    - Termination: all requests are done, or `horizon_s` is reached; then every request that has arrived and is not done
      costs `residual_s`. Truncation: `max_steps`. At the start all instances are on and ready.
    - A step: `burst` micro-steps of the machine, ``info["dt_s"]`` seconds; or ticks (`tick_ms`).
    - State: `benchmarks/environments.py` prints it.
    """

    name: ClassVar[str] = "FleetScaling-v0"
    cost_names: ClassVar[tuple[str, ...]] = (*ClusterEnv.cost_names, "instance_s")

    def _own_start(self) -> FleetState:
        never_off = jnp.zeros(self.static.num_instances, jnp.int32)
        return FleetState(ready_epoch=never_off, ready_us=never_off)

    def observe(self, state: ClusterState, params: ClusterParams) -> Observation:
        """What a policy sees of a state."""
        obs = super().observe(state, params)
        on, left_s = self._on(state.controls.scale), -between_s((state.clock_epoch, state.clock_us), _ready(state.own))
        starts = on & (left_s > 0)
        columns = [on & ~starts, starts, jnp.where(starts, times(left_s), 0.0)]
        fleet = jnp.stack([jnp.asarray(column, jnp.float32) for column in columns], axis=1)
        share = jnp.sum(on.astype(jnp.float32)) / self.static.num_instances
        return obs.replace(
            instances=jnp.concatenate([obs.instances, fleet], axis=1),
            globals=jnp.concatenate([obs.globals, share[None]]),
        )

    def step_env(self, key, state, action, params):
        """See the class."""
        clock = state.clock_epoch, state.clock_us
        on = self._on(action["scale"])
        fresh, holds = on & ~self._on(state.controls.scale), held_work(state.machine)
        wait = jnp.where(holds, 0, params.own.startup_us)
        ready = where_pair(fresh, add_us(*clock, jnp.zeros_like(wait), wait), _ready(state.own))
        takes = on & (between_s(clock, ready) >= 0)
        state = state.replace(own=FleetState(*ready))
        routed = params.replace(sim=params.sim.replace(route=takes.astype(jnp.float32)))
        obs, after, reward, done, truncated, info = super().step_env(key, state, action, routed)
        # Behind the last event of the step nothing changes until its end.
        rest = between_s((after.clock_epoch, after.clock_us), (after.machine.epoch, after.machine.now))
        rest = jnp.clip(rest, 0.0, info["dt_s"])
        held_s = info.pop("watched") + jnp.where(held_work(after.machine), rest, 0.0)
        instance_s = jnp.sum(jnp.where(on, info["dt_s"], held_s))
        info["costs"] = jnp.concatenate([info["costs"], instance_s[None]])
        return obs, after, reward - params.own.price * instance_s, done, truncated, info

    def _on(self, scale: Int[Array, ""] | None) -> Bool[Array, " m"]:
        assert scale is not None
        return jnp.arange(self.static.num_instances, dtype=jnp.int32) <= scale

    def _watch(self, state: ClusterState) -> Watch:
        def held_s(before: State, after: State) -> Float[Array, " m"]:
            """Seconds, since costs were last charged, during which each instance held requests."""
            begin = jnp.maximum(before.now, relative_us(state.clock_epoch, state.clock_us, before.epoch))
            passed = jnp.maximum(after.now - begin, 0).astype(jnp.float32) * 1e-6
            return jnp.where(held_work(before), passed, 0.0)

        return held_s


def _ready(own: FleetState) -> tuple[Array, Array]:
    return own.ready_epoch, own.ready_us


def default_scenario() -> Scenario:
    """Chat with a surge, on four instances."""
    surge = ("surge", "sharegpt", 20.0, 0.4, 0.65)
    workload = mixture("surge", "chat with a surge", ("always", "sharegpt", 3.0, 0.0, 1.0), surge)
    return llama_on_a100("fleet", workload, 2000, workload.rate_per_s, num_instances=4)


def make_fleet_scaling(
    *,
    heads: Iterable[str] = HEADS,
    scenario: Scenario | str | None = None,
    policy: str = "vllm",
    num_programs: int | None = None,
    seeds: int | Iterable[int] = SEEDS,
    randomise: Ranges | None = None,
    reward: str = "latency",
    startup_s: float = 10.0,
    price: float = 4.0,
    burst: int = 32,
    tick_ms: float | None = None,
    num_items: int = 64,
    num_slots: int = 128,
    horizon_s: float | None = None,
    residual_s: float = 100.0,
    length_error: float | None = None,
    max_steps: int = 20_000,
    **settings: float,
) -> tuple[FleetScaling, ClusterParams]:
    """`FleetScaling` and its parameters; arguments as those of `AgentSessions`.

    `startup_s`: seconds that an instance needs to start; `price`: of an instance-second, in units of the reward.

    Raises:
        UserError: also for a fleet of one, and a price or time that is negative or not finite.
    """
    where = f"environment {FleetScaling.name}"
    scenario = scenario_of(scenario, default_scenario(), num_programs)
    if scenario.num_instances < 2:
        raise UserError(f"{scenario.num_instances} instance", where=where, expected="a scenario with two or more")
    for name, value, most in (("startup_s", startup_s, 500.0), ("price", price, 1e6)):
        if not 0 <= value <= most:
            raise UserError(f"{name} {value}", where=where, expected=f"a number from 0 to {most:g}")
    env, params = build(
        FleetScaling, HEADS, scenario,
        heads=heads, policy=policy, settings={"max_num_seqs": 64, "token_budget": 2048, **settings}, seeds=seeds,
        ranges=randomise, reward=reward, burst=burst, tick_ms=tick_ms, num_items=num_items, num_slots=num_slots,
        cache_runs=96, horizon_s=horizon_s, residual_s=residual_s, length_error=length_error, work_error=None,
        max_steps=max_steps,
    )  # fmt: skip
    return env, params.replace(own=FleetParams(jnp.int32(round(startup_s * 1e6)), jnp.float32(price)))
