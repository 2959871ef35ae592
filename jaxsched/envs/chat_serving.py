"""ChatServing: single requests whose answers' lengths are known imperfectly, on one instance at 90 % load."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

from jaxsched.envs.build import SEEDS, build, llama_on_a100, scenario_of
from jaxsched.envs.cluster import ClusterEnv, ClusterParams
from jaxsched.envs.pool import Ranges
from jaxsched.scenario import Scenario
from jaxsched.speculation import DraftModel
from jaxsched.workloads import get_preset

HEADS = ("order", "batch", "draft", "ratio")
DEFAULT_HEADS = ("order", "batch")


@dataclasses.dataclass(frozen=True)
class ChatServing(ClusterEnv):
    """Which request goes next, and how many tokens a step of the engine may have.

    Default scenario: Azure 2023 conversation lengths and arrivals, Llama-3-8B on an A100 with at most 64 requests at a
    time, 6.7 requests per second (0.9 of the 7.4 that 64 at a time are served at); an episode is 600 requests, run
    until all are done. First token within 1 s, 50 ms per token.

    - Observation: items are requests that run or wait (`features.ITEM_FEATURES`; "predicted_output" is off by a
      lognormal factor of log-sd `length_error`); one instance; globals as in `features.GLOBAL_FEATURES`, then the
      budget, drafts and ratio in force if they are learned.
    - Action: "order": a score per item, the highest of those that wait is admitted first; requests that arrive during
      the step come behind all scored ones. "batch": token budget of the engine's steps, index into
      `controls.TOKEN_BUDGETS`. Not by default: "draft" (with a policy that speculates, ``policy="vllm+spec"``): tokens
      that a request drafts in a step, at most where the policy stops earlier, index into `controls.DRAFTS`. "ratio"
      (with one that compresses, ``policy="vllm+h2o"``): share of the context that requests keep whose prompt is done
      while it is in force, index into `controls.RATIOS`; the rest of the method stays as it is.
    - Mask: order: items that wait; batch, draft, ratio: all.
    - Reward: ``"goodput"``: requests finished during the step within all their limits; ``"latency"``: minus
      request-seconds in the system. With "ratio", less `loss_cost` times the quality that the finished requests lost.
    - Termination: all requests are done, or `horizon_s` is reached; then every request that has arrived and is not done
      costs `residual_s`. Truncation: `max_steps`.
    - A step: `burst` micro-steps of the machine, ``info["dt_s"]`` seconds.
    - State: about 65 KB (`benchmarks/environments.py` prints it).
    """

    name: ClassVar[str] = "ChatServing-v0"


def default_scenario() -> Scenario:
    """Chat on one A100."""
    drafts = DraftModel(acceptance=0.7, draft_pass_us=2400, draft_token_us=8)  # 1 B parameters; read by +spec only
    return llama_on_a100("chat_one_instance", get_preset("chat_smooth"), 600, 6.7, speculation=drafts)


def make_chat_serving(
    *,
    heads: Iterable[str] = DEFAULT_HEADS,
    scenario: Scenario | str | None = None,
    policy: str = "vllm",
    num_programs: int | None = None,
    seeds: int | Iterable[int] = SEEDS,
    randomise: Ranges | None = None,
    reward: str = "goodput",
    burst: int = 8,
    tick_ms: float | None = None,
    num_items: int = 128,
    num_slots: int = 192,
    horizon_s: float | None = None,
    residual_s: float = 0.0,
    length_error: float | None = 0.5,
    loss_cost: float = 1.0,
    max_steps: int = 20_000,
    **settings: float,
) -> tuple[ChatServing, ClusterParams]:
    """`ChatServing` and its parameters; arguments as those of `AgentSessions`.

    `loss_cost`: with head "ratio", what an answer wholly lost to compression costs, in units of the reward.
    """
    return build(
        ChatServing, HEADS, scenario_of(scenario, default_scenario(), num_programs),
        heads=heads, policy=policy, settings={"max_num_seqs": 64, "token_budget": 2048, **settings}, seeds=seeds,
        ranges=randomise, reward=reward, burst=burst, tick_ms=tick_ms, num_items=num_items, num_slots=num_slots,
        cache_runs=96, horizon_s=horizon_s, residual_s=residual_s, length_error=length_error, work_error=None,
        max_steps=max_steps, loss_cost=loss_cost,
    )  # fmt: skip
