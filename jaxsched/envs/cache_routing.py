"""CacheRouting: which instance a request goes to, when some of them hold its system prompt and some have less to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import ClassVar, TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxsched.envs.base import Observation
from jaxsched.envs.build import SEEDS, build, llama_on_a100, scenario_of
from jaxsched.envs.cluster import ClusterEnv, ClusterParams, ClusterState
from jaxsched.envs.features import counts
from jaxsched.envs.pool import Ranges
from jaxsched.scenario import Scenario
from jaxsched.sim.arrivals import live_caches, live_view, next_input_time
from jaxsched.sim.clock import NEVER_US, relative_us
from jaxsched.sim.kv.seen import matched_blocks
from jaxsched.sim.requests import Requests
from jaxsched.sim.state import State
from jaxsched.workloads import get_preset

HEADS = ("route",)
#: Columns added to `features.INSTANCE_FEATURES`: what a router sees, live or as late as the scenario says.
ROUTER_FEATURES = ("seen_waiting", "seen_running", "seen_used", "seen_prefill", "matched", "matched_share", "home")
#: Added to `features.GLOBAL_FEATURES`, of the arriving request.
ARRIVAL_FEATURES = ("arrives", "prompt", "predicted_output", "turn")


@dataclasses.dataclass(frozen=True)
class CacheRouting(ClusterEnv):
    """Where the next request goes.

    Default scenario: 64 tenants, each with a system prompt of 512-2,048 tokens, Zipf popularity; four instances of
    Llama-3-8B on A100s, 16 requests per second, least recently used prefix caches; an episode is 400 requests.

    - Observation: instances: `features.INSTANCE_FEATURES`, then `ROUTER_FEATURES`: queue, KV use and prompt tokens to
      compute as the router sees them (`router_delay_us` late), leading tokens of the arriving prompt that are cached
      there (`cache_delay_us` late), whether the program's last turn ran there. Items as in the other environments.
      Globals: `features.GLOBAL_FEATURES`, then `ARRIVAL_FEATURES`.
    - Action: "route": the instance of the request that arrives next.
    - Mask: all.
    - Reward: minus request-seconds in the system (``"latency"``), or requests finished within their limits.
    - Termination: all requests are done, or `horizon_s` is reached. Truncation: `max_steps`.
    - A step: from one arrival to the moment before the next, at most `burst` micro-steps; where those do not suffice,
      the next step decides nothing (``info["decision_valid"]``, and "arrives" of the globals is 0 before it).
    - State: `benchmarks/environments.py` prints it.
    """

    name: ClassVar[str] = "CacheRouting-v0"

    def observe(self, state: ClusterState, params: ClusterParams) -> Observation:
        """What a policy sees of a state."""
        obs = super().observe(state, params)
        sim, requests = self._inputs(params, state.workload)
        machine, static = state.machine, self.static
        row, home, now, arrives = next_request(self, requests, machine)
        view = machine.view if static.delayed_view else live_view(static, sim, machine, now)
        if static.delayed_cache:
            caches = machine.routing.seen
        else:
            caches = live_caches(static, sim, requests, machine, now, jnp.bool_(True))
        matched = matched_blocks(static, requests, caches, row) * static.block_size
        prompt = requests.prompt_tokens[row]
        blocks = sim.usable_blocks.astype(jnp.float32)
        seen = [
            counts(view[0]), counts(view[1]), view[2].astype(jnp.float32) / blocks, counts(view[5] + view[6]),
            counts(matched), matched.astype(jnp.float32) / prompt.astype(jnp.float32),
            (jnp.arange(static.num_instances) == home).astype(jnp.float32),
        ]  # fmt: skip
        arrival = [
            arrives.astype(jnp.float32),
            counts(prompt),
            _predicted(params, requests, row),
            counts(params.pool.turn[row]),
        ]
        known = jnp.where(arrives, 1.0, 0.0)  # nothing is known of a request before it arrives
        shown = jnp.stack(seen, axis=1).at[:, 4:].multiply(known)
        return obs.replace(
            instances=jnp.concatenate([obs.instances, shown], axis=1),
            globals=jnp.concatenate([obs.globals, jnp.stack(arrival) * known]),
        )


def _predicted(params: ClusterParams, requests: Requests, row: Int[Array, ""]) -> Float[Array, ""]:
    sigma = params.length_error
    guess = requests.output_tokens[row] * jnp.exp(jnp.maximum(sigma, 0.0) * params.pool.error[row])
    return jnp.where(sigma < 0.0, 0.0, counts(guess))


def next_request(env: ClusterEnv, requests: Requests, machine: State) -> tuple[Array, Array, Array, Array]:
    """Row of the request that arrives next, where its program's last turn ran (-1), when, and whether that is now."""
    arrival, _, returning = next_input_time(env.static, requests, machine)
    now = jnp.minimum(arrival, returning)
    row, home = jnp.minimum(machine.arrivals, requests.num_programs - 1), jnp.int32(-1)
    if env.static.num_paused:
        paused = machine.paused
        times = relative_us(paused.epoch, paused.us, machine.epoch)
        due = (times == returning) & (paused.request >= 0)
        back = jnp.min(jnp.where(due, paused.request, NEVER_US))
        first = arrival <= returning
        row = jnp.where(first, row, jnp.minimum(back, requests.num_rows - 1))
        mine = due & (paused.request == back)
        home = jnp.where(first, -1, jnp.sum(jnp.where(mine, paused.instance, 0)))
    arrives = (machine.locked < 0) & (now <= jnp.min(machine.next_event)) & (now != NEVER_US)
    return row, home, jnp.where(arrives, now, machine.now), arrives


R = TypeVar("R", bound=CacheRouting)


def default_scenario() -> Scenario:
    """Tenants behind long system prompts, on four instances."""
    return llama_on_a100("shared_prompts", get_preset("shared_prompts"), 400, 16.0, num_instances=4)


def make_cache_routing(
    *,
    heads: Iterable[str] = HEADS,
    scenario: Scenario | str | None = None,
    policy: str = "vllm",
    num_programs: int | None = None,
    seeds: int | Iterable[int] = SEEDS,
    randomise: Ranges | None = None,
    reward: str = "latency",
    burst: int = 12,
    num_items: int = 64,
    num_slots: int = 64,
    cache_runs: int = 128,
    horizon_s: float | None = None,
    residual_s: float = 100.0,
    length_error: float | None = None,
    max_steps: int = 20_000,
    cls: type[R] = CacheRouting,
    **settings: float,
) -> tuple[R, ClusterParams]:
    """`CacheRouting`, or another `cls` of its kind, and its parameters; arguments as those of `AgentSessions`."""
    return build(
        cls, HEADS, scenario_of(scenario, default_scenario(), num_programs),
        heads=heads, policy=policy, settings={"max_num_seqs": 48, "token_budget": 2048, **settings}, seeds=seeds,
        ranges=randomise, reward=reward, burst=burst, tick_ms=None, num_items=num_items, num_slots=num_slots,
        cache_runs=cache_runs, horizon_s=horizon_s, residual_s=residual_s, length_error=length_error, work_error=None,
        max_steps=max_steps, to_arrival=True,
    )  # fmt: skip
