"""Presets of programs with several turns: what their turns share, and the figures of the study behind them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsched.errors import UserError
from jaxsched.workloads import Workload, get_preset, list_presets, stats
from tests.workloads.test_presets import columns, optimised

SESSIONS = [n for n in list_presets() if get_preset(n).max_turns > 1 and not get_preset(n).graphs]  # chains of turns


@functools.cache
def sample(preset: str, num: int = 3_000, **options) -> Workload:
    return Workload.from_requests(get_preset(preset).generate(jax.random.key(0), num, **options), preset)


def pauses_s(workload: Workload) -> np.ndarray:
    return workload.pause_us[workload.turn > 0] / 1e6


def last_turns(workload: Workload) -> np.ndarray:
    """Rows of the last turn of each program."""
    return np.flatnonzero(np.append(workload.turn[1:] == 0, True))


# -- sharing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", SESSIONS)
def test_each_turn_of_a_chain_holds_the_one_before_it_and_something_new(preset):
    """`Workload.build` refuses a chain that does not; here: how chains go on and where they end.

    What a split request goes on with is its own first token: nothing new."""
    w = sample(preset, 300)
    later = np.flatnonzero(w.turn > 0)
    same = w.chain[later] == w.chain[later - 1]
    new = w.prompt_tokens[later] - w.prompt_tokens[later - 1] - w.output_tokens[later - 1]
    assert same.mean() > 0.9
    assert (new[same] == 0).all() if preset == "sharegpt_split" else new[same].min() >= 1
    begun = np.flatnonzero(np.append(True, w.chain[1:] != w.chain[:-1]))
    assert len(np.unique(w.chain)) == len(begun)  # no two programs share one, none comes back
    if preset in ("swe_agents", "chat_sessions", "tau_agents"):
        assert same.all()  # they stay far below their context limit


def test_a_compaction_begins_a_chain_named_after_its_row():
    table = get_preset("coding_interactive").generate(jax.random.key(1), 40, max_context_tokens=20_000)
    t = {k: np.asarray(v) for k, v in vars(table).items() if v is not None}
    cut = 0
    for first in range(40):
        row, chain = first, first
        while (following := t["next_turn"][row]) >= 0:
            history = t["prompt_tokens"][row] + t["output_tokens"][row]
            row = following
            if t["chain"][row] != chain:
                cut, chain = cut + 1, t["chain"][row]
                assert chain == row and t["prompt_tokens"][row] <= 20_000
            else:
                assert history < t["prompt_tokens"][row] <= 20_000
    assert cut > 20


@pytest.mark.parametrize("preset", SESSIONS)
def test_pauses_have_the_kinds_that_the_preset_names(preset):
    w, spec = sample(preset, 300), get_preset(preset)
    assert len(spec.tool_names) == len(set(spec.tool_names)) > 0
    assert set(w.tool[w.turn > 0]) <= set(range(len(spec.tool_names)))
    assert not w.tool[w.turn == 0].any()


def test_each_tool_has_its_own_law():
    w = sample("swe_agents")
    shell, file = (pauses_s(w)[w.tool[w.turn > 0] == tool] for tool in (0, 1))
    assert get_preset("swe_agents").tool_names == ("shell", "file")
    assert len(shell) / (len(shell) + len(file)) == pytest.approx(0.42, abs=0.01)
    assert np.median(shell) == pytest.approx(np.exp(-0.18), rel=0.05)
    assert np.median(file) == pytest.approx(np.exp(-3.34), rel=0.05)
    assert shell.max() == 120.0


def test_tenants_of_shared_prompts_are_zipf_and_keep_their_system_prompt():
    w = sample("shared_prompts", 30_000)
    counts = np.bincount(w.group, minlength=64)
    assert np.polyfit(np.log(np.arange(1, 41)), np.log(counts[:40]), 1)[0] == pytest.approx(-1.1, abs=0.06)
    for group in range(64):
        tokens = w.group_tokens[w.group == group]
        assert (tokens == tokens[0]).all() and 512 <= tokens[0] <= 2048
    assert (w.prompt_tokens > w.group_tokens).all() and (w.turn == 0).all()
    question = w.prompt_tokens - w.group_tokens
    assert stats.ks_distance(question, sample("sharegpt", 30_000).prompt_tokens) < 0.02


def test_chats_begin_with_the_system_prompt_of_their_group():
    w = sample("chat_sessions")
    assert set(w.group) == set(range(12))
    for group in range(12):
        assert len(set(w.group_tokens[w.group == group])) == 1
    assert (w.prompt_tokens > w.group_tokens).all()
    first = w.turn == 0
    message = np.where(first, w.prompt_tokens - w.group_tokens, 0)
    message[1:] += np.where(~first[1:], w.prompt_tokens[1:] - w.prompt_tokens[:-1] - w.output_tokens[:-1], 0)
    same = sample("sharegpt", 30_000)
    assert stats.ks_distance(message, same.prompt_tokens) < 0.02
    assert stats.ks_distance(w.output_tokens, same.output_tokens) < 0.02


def test_a_common_prefix_is_cut_to_the_shortest_first_prompt_and_stays_along_the_chain():
    w = sample("coding_agent", 200, max_turns=24)
    first = w.turn == 0
    np.testing.assert_array_equal(w.group_tokens[first], np.minimum(12_400, w.prompt_tokens[first]))
    assert (w.group == 0).all()
    alone = sample("coding_agent", 200, max_turns=24, common_tokens=0)
    assert (alone.group == -1).all() and (alone.group_tokens == 0).all()
    np.testing.assert_array_equal(alone.prompt_tokens, w.prompt_tokens)


def test_each_call_of_a_pipeline_shares_its_stages_template_only():
    w, names = sample("text2sql", 400), get_preset("text2sql").tool_names
    assert len(np.unique(w.chain)) == len(w) and not w.pause_us.any()
    later = w.turn > 0
    np.testing.assert_array_equal(w.tool[later], w.group[later])
    assert (w.group[~later] == 0).all() and (np.diff(w.group)[later[1:]] >= 0).all()  # stages in order
    assert set(w.group) == set(range(len(names)))
    for stage in range(len(names)):
        chosen = w.group == stage
        assert (w.group_tokens[chosen] <= w.prompt_tokens[chosen]).all()
        assert len(set(w.group_tokens[chosen & (w.prompt_tokens > 2_000)])) <= 1


def _waits(w: Workload) -> list[set[int]]:
    """The rows that each row waits for, with their finish or (only calls that begin with the program) their arrival."""
    assert w.edges is not None
    waits: list[set[int]] = [set() for _ in range(len(w))]
    for row, before in zip(w.edges.row.tolist(), w.edges.before.tolist(), strict=True):
        waits[row].add(before)
    return waits


def test_calls_of_a_stage_run_together_and_wait_for_all_of_the_stage_before():
    w = sample("text2sql", 400)
    waits, first = _waits(w), np.flatnonzero(w.turn == 0)
    for begin, end in zip(first, np.append(first[1:], len(w)), strict=True):
        stage = w.group[begin:end]
        for row in range(begin + 1, end):
            before = np.flatnonzero(stage == w.group[row] - 1) if w.group[row] else [0]
            assert waits[row] == set((begin + np.asarray(before)).tolist())
    assert w.edges is not None
    assert set(w.group[w.edges.row[w.edges.on_arrival]]) == {0} and not w.edges.pause_us.any()


def test_agents_run_beside_each_other_and_their_answers_are_joined():
    w, waits = sample("sub_agents", 600), _waits(sample("sub_agents", 600))
    orchestrator, first = w.group == 0, np.flatnonzero(w.turn == 0)
    num_agents, num_calls = [], []
    for begin, end in zip(first, np.append(first[1:], len(w)), strict=True):
        last = begin
        for join in begin + 1 + np.flatnonzero(orchestrator[begin + 1 : end]):
            calls = [c for c in range(last + 1, join)]
            starts = [c for c in calls if waits[c] == {last}]
            assert calls[0] in starts and all(waits[c] == {c - 1} for c in calls if c not in starts)
            assert [w.chain[c] for c in calls] == list(np.repeat(w.chain[starts], np.diff([*starts, join])))
            ends = [c - 1 for c in starts[1:]] + [join - 1]
            assert waits[join] == set(ends)
            history = w.prompt_tokens[last] + w.output_tokens[last] + w.output_tokens[ends].sum()
            assert w.chain[join] == w.chain[begin] and w.prompt_tokens[join] > history
            num_agents.append(len(starts))
            num_calls += np.diff([*starts, join]).tolist()
            last = join
        assert last == end - 1
    assert max(num_agents) == 6 and max(num_calls) == 20
    # Claude Code: 63 sub-agents in 17 sessions, 676 requests.
    assert sum(num_agents) / 600 == pytest.approx(63 / 17, rel=0.05)
    assert np.mean(num_calls) == pytest.approx(676 / 63, rel=0.1)
    paused = w.pause_us > 0
    assert (w.tool[paused] == 0).all() and not (paused & orchestrator).any()


# -- figures of the study ----------------------------------------------------------------------------------------------


def step_time_ms(tokens, context_tokens, prefill, prefill_context):
    """The study's step: see docs/workloads.md. All but the first may be 0."""
    attention = 3.52e-6 * prefill * (prefill_context + prefill / 2)
    return np.maximum(10.75, 7.0 + 0.064 * tokens) + 8.58e-5 * context_tokens + attention


def unloaded_and_engine_s(w: Workload) -> tuple[float, float]:
    """Mean time of a program alone on the engine, and engine time that it costs among 128 running ones, with all KV
    kept."""
    prompt, output = w.prompt_tokens.astype(float), w.output_tokens.astype(float)
    held = np.where(w.turn > 0, np.append(0.0, (prompt + output)[:-1]) - 1, 0.0)
    new = prompt - np.minimum(held, prompt)
    chunks = np.ceil(new / 2048)
    attention = 3.52e-6 * new * (prompt - new / 2)
    context = prompt + output / 2
    alone = np.maximum(10.75 * chunks, 7.0 * chunks + 0.064 * new) + attention
    alone = alone + (output - 1) * (10.75 + 8.58e-5 * context) + w.pause_us / 1e3
    shared = 0.064 * new + attention + (output - 1) * (7.0 / 128 + 0.064 + 8.58e-5 * context)
    return alone.sum() / w.num_programs / 1e3, shared.sum() / w.num_programs / 1e3


@pytest.mark.parametrize(
    ("preset", "turns", "context", "alone_s", "capacity"),
    [  # headroom study, sections 1 and 5: turns, final context, unloaded JCT, programs/s with unlimited KV
        ("swe_agents", 22, 22_000, 82, 0.154),
        ("tau_agents", 12, 4_000, 67, 1.22),
        ("coding_interactive", 21, 43_000, 2_622, 0.032),
        ("mixed_agents", None, None, 39, 0.279),
    ],
)
def test_study_presets_cost_what_they_cost_in_the_study(preset, turns, context, alone_s, capacity):
    w = sample(preset)
    if turns is not None:
        assert len(w) / w.num_programs == pytest.approx(turns, rel=0.05)
        final = (w.prompt_tokens + w.output_tokens)[last_turns(w)]
        assert final.mean() == pytest.approx(context, rel=0.08)
    alone, engine = unloaded_and_engine_s(w)
    assert alone == pytest.approx(alone_s, rel=0.10)
    assert 1 / engine == pytest.approx(capacity, rel=0.10)


def test_swe_agents_have_the_tools_of_the_study():
    pause = pauses_s(sample("swe_agents"))
    assert np.median(pause) == pytest.approx(0.08, rel=0.08)
    assert np.quantile(pause, 0.95) == pytest.approx(7.0, rel=0.1)
    assert pause.max() == 120.0


def test_coding_interactive_has_the_pauses_of_the_study():
    w = sample("coding_interactive")
    pause = pauses_s(w)
    assert np.median(pause) == pytest.approx(13, rel=0.08)
    assert np.quantile(pause, 0.95) == pytest.approx(650, rel=0.08)
    assert pause.max() == pytest.approx(3600.0) and w.prompt_tokens.max() <= 60_000


def test_tau_agents_have_three_percent_of_slow_users():
    w = sample("tau_agents")
    slow = w.tool[w.turn > 0] == get_preset("tau_agents").tool_names.index("slow_user")
    assert slow.mean() == pytest.approx(0.03, abs=0.004)
    assert pauses_s(w)[slow].max() == pytest.approx(600.0) and np.median(pauses_s(w)[slow]) > 40


def test_mixed_agents_are_three_quarters_short():
    w = sample("mixed_agents")
    turns = np.bincount(w.program)
    first = w.prompt_tokens[w.turn == 0]
    short = turns <= 4  # and a few long ones that end early
    assert short.mean() == pytest.approx(0.75, abs=0.03)
    assert turns[~short].mean() == pytest.approx(30, rel=0.05) and set(turns[short]) >= {3, 4}
    assert first[short].mean() == pytest.approx(1_000, rel=0.1) and first[~short].mean() == pytest.approx(
        8_000, rel=0.05
    )


def test_chats_have_two_to_six_turns():
    turns = np.bincount(sample("chat_sessions").program)
    np.testing.assert_allclose(np.bincount(turns, minlength=7)[2:] / len(turns), 0.2, atol=0.03)


def test_text_to_sql_has_the_calls_and_lengths_of_the_traces():
    """HexGen-Text2SQL: calls and mean lengths per stage (systems sheet 8), totals over all calls (traces sheet 5.4)."""
    w, names = sample("text2sql"), get_preset("text2sql").tool_names
    calls = np.bincount(w.program)
    assert 19 <= calls.mean() <= 21 and calls.max() <= 28
    stages = {  # calls, mean input and output
        "retrieval": ((4, 4), (306, 306), (7, 7)),
        "keywords": ((1, 1), (669, 669), (44, 44)),
        "candidate": ((2, 2), (10_000, 12_000), (700, 700)),
        "revise": ((3.7, 5), (6_000, 8_000), (82, 155)),
        "unit_test": ((3, 3), (274, 274), (4, 4)),
        "unit_test_set": ((1, 1), (1_100, 1_300), (100, 100)),
        "evaluate": ((5, 5), (1_000, 1_000), (30, 30)),
    }
    assert tuple(stages) == names
    for stage, expected in enumerate(stages.values()):
        chosen = w.group == stage
        found = chosen.sum() / w.num_programs, w.prompt_tokens[chosen].mean(), w.output_tokens[chosen].mean()
        for value, (low, high) in zip(found, expected, strict=True):
            assert 0.94 * low <= value <= 1.06 * high, (names[stage], found)
    prompt, output = stats.quantiles(w.prompt_tokens), stats.quantiles(w.output_tokens)
    assert 900 <= prompt["p50"] <= 1_200 and prompt["p95"] == pytest.approx(11_000, rel=0.1)
    assert output["p50"] == pytest.approx(22, rel=0.15) and output["p95"] == pytest.approx(700, rel=0.1)


# -- options -----------------------------------------------------------------------------------------------------------


def test_the_tool_tail_stretches_around_the_medians():
    thin, usual, heavy = (sample("swe_agents", tool_tail=tail) for tail in (0.3, 1.0, 1.4))
    for tool, (mu, sigma) in enumerate(((-0.18, 1.8), (-3.34, 1.0))):
        for w, tail in ((thin, 0.3), (usual, 1.0), (heavy, 1.4)):
            log = np.log(np.maximum(pauses_s(w), 1e-6))[w.tool[w.turn > 0] == tool]
            assert np.median(log) == pytest.approx(mu, abs=0.05)
            low, high = np.quantile(log, [0.1, 0.5])
            assert high - low == pytest.approx(1.2816 * sigma * tail, rel=0.05)
    np.testing.assert_array_equal(thin.prompt_tokens, heavy.prompt_tokens)


def test_turns_and_contexts_scale():
    one = sample("swe_agents", 1000, max_turns=256)
    more = sample("swe_agents", 1000, max_turns=256, turns_factor=3.0)
    assert len(more) == pytest.approx(3 * len(one), rel=0.01)
    half = sample("swe_agents", 1000, max_turns=256, context_scale=0.5)
    np.testing.assert_array_equal(half.output_tokens, one.output_tokens)
    np.testing.assert_allclose(half.prompt_tokens[half.turn == 0], one.prompt_tokens[one.turn == 0] / 2, atol=1)


def test_growth_and_pauses_scale():
    one = sample("swe_agents", 500)
    less = sample("swe_agents", 500, growth_scale=0.25, pause_scale=2.0)
    first, second = one.turn == 0, np.flatnonzero(one.turn == 1)
    np.testing.assert_array_equal(less.prompt_tokens[first], one.prompt_tokens[first])
    added = lambda w: w.prompt_tokens[second] - (w.prompt_tokens + w.output_tokens)[second - 1]
    np.testing.assert_allclose(added(less), added(one) / 4, atol=1)
    np.testing.assert_allclose(pauses_s(less), 2 * pauses_s(one), rtol=1e-5, atol=2e-6)


def test_more_turns_of_both_kinds_need_a_wider_table():
    one = sample("mixed_agents", 400, max_turns=200)
    twice = sample("mixed_agents", 400, max_turns=200, turns_factor=2.0)
    assert len(twice) == pytest.approx(2 * len(one), rel=0.02)
    assert set(np.bincount(twice.program)) >= {6, 8}
    assert np.bincount(sample("mixed_agents", 400, max_turns=10).program).max() == 10


def test_a_share_is_at_most_one():
    with pytest.raises(UserError, match=r"short_share 1\.5; expected a number in \[0, 1\]"):
        get_preset("mixed_agents").with_options(short_share=1.5)
    assert np.bincount(sample("mixed_agents", 400, short_share=1.0).program).max() == 4


def test_factors_can_differ_between_lanes_of_one_program():
    spec, compiled = get_preset("mixed_agents").with_options(max_turns=16), []

    def one(key, share, tail):
        compiled.append(1)
        return spec.generate(key, 64, short_share=share, tool_tail=tail, turns_factor=tail, context_scale=share)

    keys = jax.random.split(jax.random.key(3), 3)
    share, tail = jnp.asarray([0.5, 0.75, 0.9]), jnp.asarray([0.3, 1.0, 1.4])
    together = optimised(jax.vmap(one))(keys, share, tail)
    assert len(compiled) == 1
    alone = optimised(lambda key: spec.generate(key, 64, short_share=0.75, context_scale=0.75))(keys[1])
    for name, value in columns(alone).items():
        np.testing.assert_array_equal(getattr(together, name)[1], value, err_msg=name)


def test_arrivals_can_be_burstier_than_poisson():
    for cv in (1.0, 3.0):
        w = sample("tau_agents", 4_000, arrival_cv=cv, max_turns=2)
        assert stats.gap_cv(w.program_arrival_us) == pytest.approx(cv, rel=0.1)
        assert w.rate_per_s == pytest.approx(0.6, rel=0.1 * cv)
    with pytest.raises(UserError, match="arrival_cv 0"):
        get_preset("tau_agents").with_options(arrival_cv=0)
    with pytest.raises(UserError, match="unknown option 'arrival_cv'"):
        get_preset("chat_smooth").with_options(arrival_cv=2.0)


@pytest.mark.parametrize("preset", ["mixed_agents", "chat_sessions", "shared_prompts", "text2sql", "sub_agents"])
def test_a_program_does_not_depend_on_how_many_are_generated(preset):
    make = functools.partial(get_preset(preset).generate, jax.random.key(4))
    tables = (optimised(functools.partial(make, num))() for num in (90, 131))
    few, many = (Workload.from_requests(table).head(90) for table in tables)
    for name in ("arrival_us", "turn", "prompt_tokens", "output_tokens", "pause_us", "group", "group_tokens", "tool"):
        np.testing.assert_array_equal(getattr(few, name), getattr(many, name), err_msg=name)
    for name in vars(few.edges) if few.edges is not None else ():
        np.testing.assert_array_equal(getattr(few.edges, name), getattr(many.edges, name), err_msg=name)
