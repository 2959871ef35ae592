"""The numbers of the presets whose programs have several turns, with their sources.

Two families: *recorded* ones follow a public trace (KS distances as in `jaxsched/workloads/preset_specs.py`), *study*
ones have the set-up of the project's study of retention policies ("the study" below): means and quantiles are its
figures, and what it does not give (spreads, the split between answers and tool results) is chosen so that the time of
an unloaded program and the capacity of an engine with its step time come out as there (tests/workloads check both).
What no source gives is marked "judgement". Only Mooncake has arrival times of sessions: elsewhere arrivals are Poisson.

`new_tokens` are what a turn adds besides the previous answer. In the traces the growth of the prompt is correlated with
the length of that answer (0.36 in logs), the rest of it is not (0.09), so the rest is what the laws are fitted to.
"""

from __future__ import annotations

from jaxsched.workloads.arrivals import Renewal
from jaxsched.workloads.laws import Constant, Discrete, Exponential, LogNormalMixture, QuantileTable, zipf
from jaxsched.workloads.preset_specs import MOONCAKE_OUTPUT, MOONCAKE_PROMPT, SHAREGPT_OUTPUT, SHAREGPT_PROMPT
from jaxsched.workloads.presets import Preset
from jaxsched.workloads.sessions import MixedSessions, Pause, SessionSpec
from jaxsched.workloads.stages import PipelineSpec, Stage
from jaxsched.workloads.subagents import SubAgentSpec

_POISSON = Renewal(Exponential())


def _lognormal(log_mean: float, log_sd: float, low: float = 0.0, high: float = float("inf")) -> LogNormalMixture:
    return LogNormalMixture(((1.0, log_mean, log_sd),), low=low, high=high)


# -- Recorded ---------------------------------------------------------------------------------------------------------

CODING_AGENT = Preset(
    "coding_agent",
    "Interactive coding agent: 58 requests a session over a context of about 130,000 tokens, tool and user pauses",
    "450 Claude Code sessions (kv-cache-tester)",
    SessionSpec(
        arrivals=_POISSON,
        turns=_lognormal(3.46, 1.18),  # KS 0.038; mean 58, p50 35, p95 213
        first_prompt=LogNormalMixture(((0.37, 9.76, 0.30), (0.48, 11.41, 0.59), (0.14, 12.76, 0.52))),
        new_tokens=QuantileTable(  # KS 0.024; 8 % of turns add nothing (answers shortened in the history)
            (-1.669, -0.815, -0.505, 0.0, 0.893, 1.645, 2.326, 3.3),
            (0.0, 4.06, 4.942, 5.858, 7.348, 8.672, 9.688, 11.86),
        ),
        output=LogNormalMixture(((0.75, 5.36, 0.64), (0.25, 6.47, 1.02)), high=20_000.0),
        pauses=(
            Pause("tool", 0.82, LogNormalMixture(((0.76, 2.15, 0.62), (0.24, 4.07, 1.63)))),  # p50 10 s, p95 163 s
            Pause("user", 0.18, LogNormalMixture(((0.72, 4.35, 1.17), (0.28, 6.73, 1.32)))),  # p50 133 s
        ),
        compacted=_lognormal(10.58, 0.40),  # p50 39,000 after a compaction
        common_tokens=12_400,  # definitions of the tools, p50; that sessions share them is a judgement (ids are local)
        compact_tokens=180_000,
        max_context_tokens=500_000,
        max_output_tokens=20_000,
        max_turns=256,
    ),
    rate_per_s=0.02,
)
SWE_TOOL = Preset(
    "swe_tool",
    "Autonomous software-engineering agent: 25 calls a task, most tools instant, shell commands up to 120 s",
    "AgentCgroup statistics (tools), mini-swe-agent (outputs); contexts fitted to LN(10.26, 0.52)",
    SessionSpec(
        arrivals=_POISSON,
        turns=_lognormal(3.0, 0.70),  # p50 20, mean 25.6 calls a task
        first_prompt=_lognormal(9.6, 0.25),
        new_tokens=_lognormal(6.17, 1.0),
        output=_lognormal(4.6, 0.6),  # mean about 114 tokens; the spread is a judgement
        pauses=(
            Pause("shell", 0.36, _lognormal(-0.62, 1.80, high=120.0)),
            Pause("file", 0.625, _lognormal(-3.2, 1.0)),  # read, edit, search
            Pause("subagent", 0.015, _lognormal(4.52, 0.5)),  # around 92 s
        ),
        compacted=_lognormal(9.6, 0.25),
        max_context_tokens=200_000,
        max_turns=100,
    ),
    rate_per_s=0.1,
)
TAU_LIKE = Preset(
    "tau_like",
    "Customer-service agent: 12 calls a conversation, alternating tool calls and user replies",
    "tau-bench airline trajectories (calls, text lengths); pauses and first prompt are judgement (no clock)",
    SessionSpec(
        arrivals=_POISSON,
        turns=_lognormal(2.37, 0.54),  # mean 12.3, p95 23
        first_prompt=_lognormal(8.5, 0.15),  # judgement: policy text and tool schemas
        new_tokens=_lognormal(5.12, 0.6),  # tool output 667 characters p50, / 4
        output=_lognormal(4.0, 0.6),  # 215 characters p50
        pauses=(
            Pause("api", 0.44, _lognormal(-1.5, 0.8)),  # 5.8 of 13.3 steps are tool calls
            Pause("user", 0.56, _lognormal(2.3, 0.7)),
        ),
        max_context_tokens=32_768,
        max_turns=40,
    ),
    rate_per_s=0.5,
)
MOONCAKE_SESSIONS = Preset(
    "mooncake_sessions",
    "Long-context chat as sessions: 1.4 turns on average, about 2 minutes between turns",
    "Mooncake FAST'25 conversation, turns reconstructed from prefix blocks",
    SessionSpec(
        arrivals=_POISSON,
        turns=Discrete(
            (0.759, 0.153, 0.042, 0.022, 0.009, 0.006, 0.003, 0.002, 0.001, 0.001, 0.001, 0.001)
        ),  # mean 1.44
        first_prompt=MOONCAKE_PROMPT,
        new_tokens=QuantileTable(  # KS 0.014; growth of the prompt p50 492
            (-1.436, -1.204, -1.126, -0.505, -0.427, 0.039, 0.116, 0.427, 1.048, 3.3),
            (0.0, 1.609, 1.792, 2.485, 2.565, 3.367, 3.555, 4.754, 8.045, 11.245),
        ),
        output=MOONCAKE_OUTPUT,
        pauses=(Pause("user", 1.0, _lognormal(4.86, 0.96)),),  # between arrivals in the source: service time included
        common_tokens=512,  # every request of the source shares its first block
        max_context_tokens=128_000,
        max_turns=12,
    ),
    rate_per_s=2.28,
)

# -- Study: agents on one instance with a small KV pool ---------------------------------------------------------------

#: Tools of software agents: p50 0.08 s, p95 7 s, clip 120 s together (the study); the two kinds as in `swe_tool`.
_SWE_TOOLS = (
    Pause("shell", 0.42, _lognormal(-0.18, 1.8, high=120.0)),
    Pause("file", 0.58, _lognormal(-3.34, 1.0)),
)
SWE_AGENTS = Preset(
    "swe_agents",
    "Software-engineering agents: 22 turns up to a context of 22,000 tokens, tools from milliseconds to 2 minutes",
    "study of retention policies, `swe`",
    SessionSpec(
        arrivals=_POISSON,
        turns=_lognormal(2.966, 0.5),  # mean 22
        first_prompt=_lognormal(8.25, 0.3),  # mean 4,000
        new_tokens=_lognormal(6.04, 1.0),
        output=_lognormal(4.83, 0.6),
        pauses=_SWE_TOOLS,
        max_context_tokens=120_000,
        max_turns=64,
    ),
    rate_per_s=0.1,
)
MIXED_AGENTS = Preset(
    "mixed_agents",
    "Three short programs of 3-4 turns to one software agent of 30 turns",
    "study of retention policies, `mixed`",
    MixedSessions(
        arrivals=_POISSON,
        short=SessionSpec(
            arrivals=_POISSON,
            turns=Discrete((0.0, 0.0, 0.5, 0.5)),
            first_prompt=_lognormal(6.86, 0.3),  # mean 1,000
            new_tokens=_lognormal(5.2, 1.0),
            output=_lognormal(4.95, 0.6),
            pauses=_SWE_TOOLS,
            max_context_tokens=120_000,
        ),
        long=SessionSpec(
            arrivals=_POISSON,
            turns=_lognormal(3.28, 0.5),  # mean 30
            first_prompt=_lognormal(8.94, 0.3),  # mean 8,000
            new_tokens=_lognormal(6.04, 1.0),
            output=_lognormal(4.95, 0.6),
            pauses=_SWE_TOOLS,
            max_context_tokens=120_000,
        ),
        short_share=0.75,
        max_turns=80,
    ),
    rate_per_s=0.172,
)
TAU_AGENTS = Preset(
    "tau_agents",
    "Customer-service agents: 12 turns up to a context of 4,000 tokens; API calls, simulated users, 3 % slow users",
    "study of retention policies, `tau`",
    SessionSpec(
        arrivals=_POISSON,
        turns=_lognormal(2.37, 0.54),
        first_prompt=_lognormal(7.6, 0.2),
        new_tokens=_lognormal(3.95, 0.6),
        output=_lognormal(4.6, 0.6),
        pauses=(
            Pause("api", 0.44, _lognormal(-1.5, 0.8)),
            Pause("user", 0.53, _lognormal(0.92, 0.6)),
            Pause("slow_user", 0.03, _lognormal(4.1, 1.0, high=600.0)),
        ),
        max_context_tokens=32_768,
        max_turns=40,
    ),
    rate_per_s=0.6,
)
CODING_INTERACTIVE = Preset(
    "coding_interactive",
    "Coding with a human in the loop: 21 turns up to a context of 43,000 tokens, pauses from seconds to an hour",
    "study of retention policies, `code`: `coding_agent` scaled down to a context of at most 60,000 tokens",
    SessionSpec(
        arrivals=_POISSON,
        turns=_lognormal(3.02, 0.2),
        first_prompt=_lognormal(9.0, 0.4),
        new_tokens=_lognormal(6.9, 0.8),
        output=LogNormalMixture(((0.75, 5.36, 0.64), (0.25, 6.47, 1.02)), high=20_000.0),
        pauses=(  # p50 13 s, p95 650 s, clip 1 h together (the study); that there are two kinds is a judgement
            Pause("approval", 0.7, _lognormal(2.0, 1.0)),
            Pause("message", 0.3, _lognormal(5.1, 1.4, high=3_600.0)),
        ),
        max_context_tokens=60_000,
        max_turns=64,
    ),
    rate_per_s=0.02,
)

# -- Chat -------------------------------------------------------------------------------------------------------------

CHAT_SESSIONS = Preset(
    "chat_sessions",
    "Chats of 2-6 turns under one of 12 system prompts, with a user who reads and types between the turns",
    "messages and answers as ShareGPT (Vidur experiments); turns, system prompts and think times are judgement",
    SessionSpec(
        arrivals=_POISSON,
        turns=Discrete((0.0, 0.2, 0.2, 0.2, 0.2, 0.2)),
        first_prompt=SHAREGPT_PROMPT,  # behind the system prompt
        new_tokens=SHAREGPT_PROMPT,
        output=SHAREGPT_OUTPUT,
        pauses=(Pause("user", 1.0, _lognormal(2.7, 1.0, high=600.0)),),  # p50 15 s, p95 77 s
        groups=zipf(12, 1.0),
        prefix=_lognormal(5.5, 0.6, low=64.0, high=1_024.0),
        max_context_tokens=16_384,
        max_turns=6,
    ),
    rate_per_s=2.0,
)

CHAT_MULTIROUND = Preset(
    "chat_multiround",
    "Chats of 2-9 turns that share nothing with one another, with a user who reads and types between the turns",
    "messages and answers as ShareGPT (Vidur experiments), 5.5 turns as FastSwitch's; think times are judgement",
    SessionSpec(
        arrivals=_POISSON,
        turns=Discrete((0.0, *[0.125] * 8)),  # mean 5.5
        first_prompt=SHAREGPT_PROMPT,
        new_tokens=SHAREGPT_PROMPT,
        output=SHAREGPT_OUTPUT,
        pauses=(Pause("user", 1.0, _lognormal(2.7, 1.0, high=600.0)),),
        max_context_tokens=16_384,
        max_turns=9,
    ),
    rate_per_s=1.0,
)

# -- Staged pipeline --------------------------------------------------------------------------------------------------

TEXT2SQL = Preset(
    "text2sql",
    "Text-to-SQL pipeline: about 20 calls a query in seven stages, those of a stage together; prompts of 300 to 12,000",
    "HexGen-Text2SQL traces (calls and mean lengths of each stage); spreads and templates are judgement",
    PipelineSpec(
        arrivals=_POISSON,
        # Means of the source, input / output: 306/7 four times, 669/44, 10-12k/700 twice, 6-8k/82-155 3.7-5 times,
        # 274/4 three times, 1.1-1.3k/100, about 1k/30 five times.
        stages=(
            Stage("retrieval", Constant(4.0), _lognormal(5.70, 0.2), _lognormal(1.8, 0.5), 200),
            Stage("keywords", Constant(1.0), _lognormal(6.50, 0.1), _lognormal(3.7, 0.4), 500),
            Stage("candidate", Constant(2.0), _lognormal(9.27, 0.25), _lognormal(6.47, 0.4), 1_500, per_program=True),
            Stage(
                "revise", Discrete((0.0, 0.0, 0.2, 0.3, 0.5)), _lognormal(8.82, 0.25), _lognormal(4.6, 0.6), 1_000, True
            ),
            Stage("unit_test", Constant(3.0), _lognormal(5.60, 0.15), _lognormal(1.3, 0.4), 150),
            Stage("unit_test_set", Constant(1.0), _lognormal(7.08, 0.2), _lognormal(4.5, 0.4), 600),
            Stage("evaluate", Constant(5.0), _lognormal(6.88, 0.2), _lognormal(2.8, 1.1), 600),
        ),
        max_turns=24,
    ),
    rate_per_s=0.5,
)

# -- Fan-out and join -------------------------------------------------------------------------------------------------

SUB_AGENTS = Preset(
    "sub_agents",
    "Orchestrators that fan out to about 3 agents of 10 calls each, with tools between them, and join their answers",
    "450 Claude Code sessions (kv-cache-tester): 63 sub-agents with 676 requests in 17 sessions; tools as swe_tool",
    SubAgentSpec(
        arrivals=_POISSON,
        rounds=Discrete((0.85, 0.15)),
        agents=Discrete((0.15, 0.2, 0.25, 0.2, 0.1, 0.1)),  # 3.2 a round, 3.7 a program: spread is judgement
        calls=_lognormal(2.2, 0.65),  # mean 10.7 before the limit
        first_prompt=_lognormal(7.5, 0.8),  # judgement, as all lengths but the common tokens of the orchestrator
        task=_lognormal(5.5, 0.6),
        new_tokens=QuantileTable((-1.645, 0.0, 1.645, 2.326, 3.3), (3.5, 6.0, 8.7, 9.2, 9.9)),
        plan=_lognormal(6.0, 0.6, high=4_000.0),
        output=_lognormal(5.0, 0.7, high=4_000.0),
        pause_s=LogNormalMixture(((0.45, -0.6, 1.8), (0.55, -3.2, 1.0)), high=120.0),
        common_tokens=12_400,
        agent_common_tokens=3_000,
    ),
    rate_per_s=0.1,
)

SESSION_PRESETS: tuple[Preset, ...] = (
    CODING_AGENT,
    SWE_TOOL,
    TAU_LIKE,
    MOONCAKE_SESSIONS,
    SWE_AGENTS,
    MIXED_AGENTS,
    TAU_AGENTS,
    CODING_INTERACTIVE,
    CHAT_SESSIONS,
    CHAT_MULTIROUND,
    TEXT2SQL,
    SUB_AGENTS,
)
