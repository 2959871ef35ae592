"""AgentSessions: programs of many turns with tools in between, on one instance whose KV cache cannot hold them all."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

from jaxsched.envs.build import SEEDS, build, scenario_of
from jaxsched.envs.cluster import ClusterEnv, ClusterParams
from jaxsched.envs.pool import Ranges
from jaxsched.scenario import Scenario, SloClass
from jaxsched.timing import describe
from jaxsched.workloads import get_preset

HEADS = ("order", "retain", "gate", "evict")
DEFAULT_HEADS = ("order", "retain", "gate")
#: Training ranges of the regime study, section 6: load 0.9-1.3 (the default rate is load 1.1), pool 0.4-1 of the
#: working set (the default is 0.5), tails of tools, burstiness, share of short programs.
RANDOMISED = Ranges(
    load=(0.9 / 1.1, 1.3 / 1.1), pool=(0.8, 2.0), tool_tail=(0.3, 1.4), arrival_cv=(1.0, 3.0), short_share=(0.5, 0.9)
)


@dataclasses.dataclass(frozen=True)
class AgentSessions(ClusterEnv):
    """Who goes next, whose context is kept during a pause, and whether new programs may begin.

    Default scenario (regime study, section 6): three short programs (3-4 turns) to one software agent of 30 turns,
    Poisson arrivals at 1.1 times what a KV pool of 175,000 tokens sustains, Llama-3-8B on an A100; an episode is 300
    programs, run until all are done.

    - Observation: items are turns that run or wait, and programs between two turns (`features.ITEM_FEATURES`, then one
      column per tool); one instance; globals as in `features.GLOBAL_FEATURES`, then the gate in force if it is learned.
      How long a tool takes is never shown; predictions of outputs and of what is left of a program only if asked for.
    - Action: "order": a score per item, the highest of those that wait is admitted first; turns that arrive during the
      step come behind all scored ones, in order of arrival. "retain": per item, how long the context is kept from the
      start of its program's next (or present) pause, index into `controls.TTL_S`. "gate": share of the pool that
      contexts of begun programs may fill before new programs wait, index into `controls.GATE_FRACTIONS`; whatever it
      is, a program begins when nothing runs. "evict" (not by default): per item, a level; where blocks are taken
      from contexts that are not pinned, and then where pins must yield, the lowest level goes first, of equal ones the
      context released first; contexts whose next turn waits go last. Programs that nothing was decided about have level
      `controls.DEFAULT_LEVEL`. What belongs to no program that goes on is evicted before all contexts. Heads that are
      not learned are those of `policy`.
    - Mask: order: items that wait; retain, evict: items that run or pause take a decision, the others keep what they
      have; gate: all.
    - Reward: minus program-seconds in the system during the step (a program counts from its first arrival to its last
      output), so that the return of an episode is minus the number of programs times their mean completion time.
      ``reward="goodput"``: turns finished within their limits.
    - Termination: all programs are done, or `horizon_s` is reached: then every program that has arrived and is not done
      costs `residual_s` more. Truncation: `max_steps`.
    - A step: `burst` micro-steps of the machine (about 40 ms of simulated time each), ``info["dt_s"]`` seconds.
    - State: about 45 KB (`benchmarks/environments.py` prints it).
    """

    name: ClassVar[str] = "AgentSessions-v0"


def default_scenario() -> Scenario:
    """The study's mixed agents at kappa 0.5."""
    return Scenario(
        name="agents_mixed",
        workload=get_preset("mixed_agents"),
        num_programs=300,
        rate_per_s=0.172,
        num_instances=1,
        usable_blocks=10_938,
        timing=describe("llama-3-8b", "a100").params,
        max_paused_programs=128,
        max_model_len=131_072,
        slo=(SloClass("agent_turn", ttft_us=5_000_000, tpot_us=75_000),),
    )


def make_agent_sessions(
    *,
    heads: Iterable[str] = DEFAULT_HEADS,
    scenario: Scenario | str | None = None,
    policy: str = "gittins+gate",
    num_programs: int | None = None,
    seeds: int | Iterable[int] = SEEDS,
    randomise: bool | Ranges = False,
    reward: str = "latency",
    burst: int = 8,
    tick_ms: float | None = None,
    num_items: int = 128,
    num_slots: int = 128,
    cache_runs: int = 96,
    horizon_s: float | None = None,
    residual_s: float = 1000.0,
    length_error: float | None = None,
    work_error: float | None = None,
    max_steps: int = 20_000,
    **settings: float,
) -> tuple[AgentSessions, ClusterParams]:
    """`AgentSessions` and its parameters.

    Args:
        heads: those that are learned, some of `HEADS`.
        scenario: another one: a `Scenario`, or its file.
        policy: whose heads run inline where they are not learned.
        num_programs: of an episode, instead of the scenario's.
        seeds: workloads that episodes draw from: which, or how many.
        randomise: True = workloads differ in load, pool, tails, burstiness and mix (`RANDOMISED`); or other ranges.
        reward: "latency" or "goodput".
        burst: micro-steps of the machine per decision.
        tick_ms: decisions at fixed times instead, this many milliseconds apart, with at most `burst` micro-steps each.
        num_items: places of the observation. Where more are in the system, those that run or pause come first, then
            those that wait in order of arrival.
        num_slots: turns that the scheduler compares; more wait in line outside.
        cache_runs: idle contexts that the prefix cache can tell apart.
        horizon_s: end of an episode in simulated seconds; None = when all programs are done.
        residual_s: what a program that is not done at the end costs, in seconds in the system.
        length_error: log-sd of predicted output lengths in the observation; None = not shown.
        work_error: log-sd of the predicted tokens left of a program; None = not shown.
        max_steps: decisions after which an episode is truncated.
        settings: parameters of the policy, e.g. ``token_budget=1024``.
    """
    ranges = RANDOMISED if randomise is True else randomise or None
    return build(
        AgentSessions, HEADS, scenario_of(scenario, default_scenario(), num_programs),
        heads=heads, policy=policy, settings={"max_num_seqs": 128, "token_budget": 2048, **settings}, seeds=seeds,
        ranges=ranges, reward=reward, burst=burst, tick_ms=tick_ms, num_items=num_items, num_slots=num_slots,
        cache_runs=cache_runs, horizon_s=horizon_s, residual_s=residual_s, length_error=length_error,
        work_error=work_error, max_steps=max_steps,
    )  # fmt: skip
