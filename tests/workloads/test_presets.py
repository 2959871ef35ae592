"""Presets against the statistics of the traces they are calibrated to, and the promises every preset makes."""

from __future__ import annotations

import csv
import functools
import gzip

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsched.errors import UserError
from jaxsched.sim.clock import join_us
from jaxsched.workloads import Workload, get_preset, list_presets, read, stats
from tests.shared_data import shared_path

_APEX = {"arrival_s": "StartTimeOffset", "prompt_tokens": "ContextTokens", "output_tokens": "GeneratedTokens"}
_ARENA = {"arrival_s": "req_time", "prompt_tokens": "prompt_len", "output_tokens": "output_len"}
#: preset -> (file under traces/, reader options)
TRACES = {
    "chat_smooth": ("azure_llm_2023/AzureLLMInferenceTrace_conv.csv", {}),
    "code_bursty": ("azure_llm_2023/AzureLLMInferenceTrace_code.csv", {}),
    "mooncake_conv": ("mooncake/conversation_trace.jsonl", {}),
    "sharegpt": ("vidur_processed/sharegpt_val_10k_llama2.csv", {"rate_per_s": 1.0}),
    "arxiv_sum": ("vidur_processed/arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv", {"rate_per_s": 1.0}),
    "lmsys": ("apex_plus_lengths/lmsys_05_lengths.csv", {"format": "lengths_csv", "time_unit": "ns", "columns": _APEX}),
    "creation": (
        "apex_plus_lengths/creation_05_lengths.csv",
        {"format": "lengths_csv", "time_unit": "ns", "columns": _APEX},
    ),
    "arena": ("vtc_arena/real_trace.csv", {"format": "lengths_csv", "columns": _ARENA}),
}
#: One preset of each kind of generator, small enough to compile many times.
KINDS = {
    "chat_smooth": {},
    "code_bursty": {},
    "mooncake_conv": {},
    "arena": {},
    "arxiv_sum": {},
    "mh1": {},
    "coding_agent": {"max_turns": 7},
}


def trace(preset: str) -> Workload:
    file, options = TRACES[preset]
    return read(shared_path("traces", file), **options)


@functools.cache
def sample(preset: str, num: int = 60_000) -> Workload:
    return Workload.from_requests(get_preset(preset).generate(jax.random.key(0), num), preset)


def arrivals(preset: str, num: int, lanes: int = 64) -> np.ndarray:
    """int64 [lanes, num] arrival times of many seeds."""
    make = lambda key: get_preset(preset).generate(key, num)
    table = jax.vmap(make)(jax.random.split(jax.random.key(0), lanes))
    return join_us(table.arrival_epoch, table.arrival_us)


# -- calibration -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "prompt", "output"),
    [  # the study's own fits reach .13/.06, .035/.046, .046/.036, .030/.029, .09/.033, .034/.036, -, .026/.10
        ("chat_smooth", 0.02, 0.02),
        ("code_bursty", 0.03, 0.015),
        ("mooncake_conv", 0.015, 0.015),
        ("sharegpt", 0.02, 0.015),
        ("arxiv_sum", 0.02, 0.015),
        ("lmsys", 0.02, 0.02),
        ("creation", 0.02, 0.02),
        ("arena", 0.02, 0.02),
    ],
)
def test_lengths_follow_the_trace(preset, prompt, output):
    real, made = trace(preset), sample(preset)
    assert stats.ks_distance(real.prompt_tokens, made.prompt_tokens) < prompt
    assert stats.ks_distance(real.output_tokens, made.output_tokens) < output


@pytest.mark.parametrize(
    ("preset", "prompt", "output"),
    [  # (mean, p50, p95) of the study's table
        ("chat_smooth", (1195, 1015, 4085), (202, 115, 448)),
        ("code_bursty", (2028, 1460, 7315), (27, 13, 85)),
        ("mooncake_conv", (12430, 7284, 40370), (347, 356, 712)),
        ("sharegpt", (247, 36, 1423), (326, 286, 842)),
        ("arxiv_sum", (2582, 2720, 3813), (296, 167, 773)),
        ("lmsys", (62, 17, 308), (162, 117, 436)),
        ("creation", (308, 309, 423), (1144, 1106, 1807)),
        ("arena", (140, 44, 652), (252, 197, 513)),
        ("reasoning_r1", (1508, 210, 8425), (2131, 1048, 7610)),
        ("m_large", (1055, 696, 2398), (216, 83, 580)),
    ],
)
def test_length_quantiles_are_those_of_the_study(preset, prompt, output):
    made = sample(preset)
    for values, (mean, p50, p95) in ((made.prompt_tokens, prompt), (made.output_tokens, output)):
        found = stats.quantiles(values)
        assert found["mean"] == pytest.approx(mean, rel=0.05)
        assert found["p50"] == pytest.approx(p50, rel=0.05, abs=1.5)
        assert found["p95"] == pytest.approx(p95, rel=0.13 if preset == "arxiv_sum" else 0.05)


@pytest.mark.parametrize(
    ("preset", "windows_s", "lags"),
    [("chat_smooth", (1, 10, 60), (1, 5, 30)), ("code_bursty", (10, 60), (5, 10, 30)), ("arena", (1, 10, 60), (1, 5))],
)
def test_burstiness_of_the_trace_is_an_ordinary_value_of_the_preset(preset, windows_s, lags):
    """Index of dispersion at each window and autocorrelation of 1-s counts lie in the central 90 % over seeds."""
    real = trace(preset)
    made = arrivals(preset, real.num_programs)
    for window in windows_s:
        values = [stats.dispersion(a, window) for a in made]
        low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
        target = stats.dispersion(real.arrival_us, window)
        assert low <= target <= high, (window, low, middle, high, target)
        assert 0.6 < middle / target < 1.5, (window, middle, target)
    for lag in lags:
        values = [stats.count_autocorrelation(a, 1.0, lag) for a in made]
        low, high = np.quantile(values, [0.05, 0.95])
        assert low <= stats.count_autocorrelation(real.arrival_us, 1.0, lag) <= high, lag


@pytest.mark.parametrize(("preset", "cv"), [("chat_smooth", 1.08), ("code_bursty", 13.5), ("arena", 1.10)])
def test_gap_variation_is_that_of_the_study(preset, cv):
    made = arrivals(preset, trace(preset).num_programs)
    assert np.median([stats.gap_cv(a) for a in made]) == pytest.approx(cv, rel=0.07)


def test_code_bursts_reach_the_dispersion_of_the_study():
    values = [[stats.dispersion(a, w) for w in (1, 10, 60)] for a in arrivals("code_bursty", 5740)]
    low, high = np.quantile(values, [0.05, 0.95], axis=0)
    assert (low <= [14, 75, 185]).all() and (high >= [14, 75, 185]).all()
    assert np.median(values, axis=0)[0] == pytest.approx(14, rel=0.1)


def test_without_its_drift_chat_would_miss_the_one_minute_dispersion():
    make = lambda key: get_preset("chat_smooth").generate(key, 14_176, drift_sigma=0.0)
    table = jax.vmap(make)(jax.random.split(jax.random.key(0), 32))
    steady = [stats.dispersion(a, 60) for a in join_us(table.arrival_epoch, table.arrival_us)]
    assert np.max(steady) < 4.0 < 15.0 / 2


def test_mooncake_arrives_in_poisson_batches_at_ticks_of_three_seconds():
    real = trace("mooncake_conv")
    ticks = np.bincount(np.rint(real.arrival_us / 3e6).astype(int))
    made = arrivals("mooncake_conv", real.num_programs)
    assert (made % 3_000_000 == 0).all()
    batches = [np.bincount(a // 3_000_000)[:-1] for a in made]
    assert np.mean([b.mean() for b in batches]) == pytest.approx(ticks.mean(), rel=0.03)
    low, high = np.quantile([b.var() / b.mean() for b in batches], [0.05, 0.95])
    assert low <= ticks.var() / ticks.mean() <= high
    low, high = np.quantile([stats.dispersion(a, 60) for a in made], [0.05, 0.95])
    assert low <= 3.0 <= high


def test_arxiv_keeps_the_negative_correlation_and_the_total_limit():
    made = sample("arxiv_sum")
    correlation = np.corrcoef(np.log(made.prompt_tokens), np.log(made.output_tokens))[0, 1]
    assert correlation == pytest.approx(-0.49, abs=0.03)
    assert (made.prompt_tokens + made.output_tokens).max() <= 4096


def test_arena_tenants_are_zipf():
    counts = np.sort(np.bincount(sample("arena").klass, minlength=27))[::-1]
    slope = np.polyfit(np.log(np.arange(1, 21)), np.log(counts[:20]), 1)[0]
    assert slope == pytest.approx(-1.5, abs=0.1)
    assert get_preset("arena").num_classes == 27


def test_coding_agent_sessions_follow_the_recorded_ones():
    with gzip.open(shared_path("traces", "claude_code_weka", "requests_nohash.csv.gz"), "rt") as file:
        rows = list(csv.DictReader(file))
    session, place = np.array([r["trace"] for r in rows]), np.array([int(r["i"]) for r in rows])
    prompt, output = np.array([int(r["in"]) for r in rows]), np.array([int(r["out"]) for r in rows])
    think = np.array([float(r["think_time"] or "nan") for r in rows])
    made = sample("coding_agent", 2000)
    later = made.turn > 0
    real_turns = np.unique(session, return_counts=True)[1]
    growth = np.diff(prompt)[session[1:] == session[:-1]]
    # the study's fits: turns 0.038 before they are cut at 256
    assert stats.ks_distance(real_turns, np.bincount(made.program)) < 0.06
    assert stats.ks_distance(output, made.output_tokens) < 0.05
    assert stats.ks_distance(prompt[place == 0], made.prompt_tokens[~later]) < 0.07
    assert stats.ks_distance(growth, np.diff(made.prompt_tokens)[later[1:]]) < 0.04
    assert stats.ks_distance(think[(place > 0) & ~np.isnan(think)], made.pause_us[later] / 1e6) < 0.07
    assert (
        stats.ks_distance(prompt, made.prompt_tokens) < 0.10
    )  # growth of one session is not independent of its length
    found = stats.quantiles(made.prompt_tokens)
    assert found["mean"] == pytest.approx(133_700, rel=0.05)
    assert found["p50"] == pytest.approx(110_300, rel=0.10)
    assert found["p95"] == pytest.approx(347_100, rel=0.15)


def test_swe_tool_has_the_recorded_tool_times_calls_and_contexts():
    made = sample("swe_tool", 3000)
    pause = stats.quantiles(made.pause_us[made.turn > 0] / 1e6)
    assert pause["p50"] == pytest.approx(0.064, rel=0.25)  # between the two sets: 0.064 and 0.035
    assert pause["mean"] == pytest.approx(3.1, rel=0.25)
    assert 4.0 <= pause["p95"] <= 10.9  # the two sets
    assert 19.2 <= pause["p99"] <= 120.0
    turns = np.bincount(made.program)
    assert np.median(turns) == pytest.approx(20, abs=1) and turns.mean() == pytest.approx(25.6, rel=0.05)
    log_prompt = np.log(made.prompt_tokens)
    assert log_prompt.mean() == pytest.approx(10.26, abs=0.05) and log_prompt.std() == pytest.approx(0.52, abs=0.05)


def test_mooncake_sessions_have_the_reconstructed_turns_and_gaps():
    made = sample("mooncake_sessions", 20_000)
    turns = np.bincount(np.bincount(made.program), minlength=7)[1:7] / made.num_programs
    np.testing.assert_allclose(turns, [0.759, 0.153, 0.042, 0.022, 0.009, 0.006], atol=0.012)
    pause = stats.quantiles(made.pause_us[made.turn > 0] / 1e6)
    assert pause["p50"] == pytest.approx(123, rel=0.07) and pause["mean"] == pytest.approx(194, rel=0.08)


def test_tau_like_has_the_recorded_number_of_calls():
    turns = np.bincount(sample("tau_like", 3000).program)
    assert turns.mean() == pytest.approx(12.3, rel=0.03) and np.quantile(turns, 0.95) == pytest.approx(26, abs=3)


# -- queueing-theory family --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "gap_cv", "size_scv"),
    [
        ({"interarrival": "exponential", "size": "exponential"}, 1.0, 1.0),
        ({"interarrival": "deterministic", "size": "constant"}, 0.0, 0.0),
        ({"interarrival": "gamma", "cv": 2.0, "size": "hyperexponential", "scv": 4.0}, 2.0, 4.0),
    ],
)
def test_renewal_laws_have_their_moments(options, gap_cv, size_scv):
    num = 100_000
    table = get_preset("renewal").generate(jax.random.key(1), num, 50.0, **options)
    made = Workload.from_requests(table)
    assert made.rate_per_s == pytest.approx(50.0, rel=4 * max(gap_cv, 1e-6) / np.sqrt(num) + 1e-6)
    assert stats.gap_cv(made.arrival_us) == pytest.approx(gap_cv, rel=0.03, abs=1e-6)
    size = made.output_tokens.astype(float)
    assert size.mean() == pytest.approx(10_000, rel=4 * np.sqrt(size_scv / num) + 1e-9)
    assert size.var() / size.mean() ** 2 == pytest.approx(size_scv, rel=0.1, abs=1e-9)
    assert (made.prompt_tokens == 1).all()


def test_mean_size_of_a_renewal_preset_can_be_set():
    table = get_preset("md1").generate(jax.random.key(0), 10, mean_output_tokens=777.0)
    assert table.output_tokens.tolist() == [777] * 10


# -- promises of every preset ------------------------------------------------------------------------------------------


def programs(table, count: int) -> Workload:
    return Workload.from_requests(table).head(count)


#: Of graphs: a few numbers per row.
GRAPH_COLUMNS = ("edges", "spawns", "not_before")


def columns(table) -> dict[str, jax.Array]:
    """The columns that the table has."""
    return {name: value for name, value in vars(table).items() if value is not None}


def optimised(make):
    """`make` compiled as users have it.

    The other tests compile without LLVM's optimisation (tests/conftest.py), and there the logarithms of one lane and of
    several may be rounded differently.
    """
    options = {"xla_backend_optimization_level": 3} if jax.default_backend() == "cpu" else None
    return jax.jit(make, compiler_options=options)


def assert_same(a: Workload, b: Workload) -> None:
    for name in ("arrival_us", "turn", "prompt_tokens", "output_tokens", "predicted_tokens", "klass", "pause_us"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


@pytest.mark.parametrize("preset", KINDS)
def test_a_request_does_not_depend_on_how_many_are_generated(preset):
    make = functools.partial(get_preset(preset).generate, jax.random.key(4), prediction_sigma=0.3, **KINDS[preset])
    few, many = (optimised(functools.partial(make, num))() for num in (150, 331))
    assert_same(programs(few, 150), programs(many, 150))


@pytest.mark.parametrize("preset", KINDS)
def test_vmap_over_seeds_equals_a_loop_over_seeds(preset):
    make = lambda key: get_preset(preset).generate(key, 150, prediction_sigma=0.3, **KINDS[preset])
    keys = jax.random.split(jax.random.key(9), 3)
    together, one = optimised(jax.vmap(make))(keys), optimised(make)
    for lane in range(3):
        alone = one(keys[lane])
        for name, value in columns(alone).items():
            np.testing.assert_array_equal(getattr(together, name)[lane], value, err_msg=name)
    assert not np.array_equal(together.output_tokens[0], together.output_tokens[1])


@pytest.mark.parametrize("preset", KINDS)
def test_twice_the_rate_is_the_same_workload_in_half_the_time(preset):
    spec = get_preset(preset)
    slow = Workload.from_requests(spec.generate(jax.random.key(2), 150, spec.rate_per_s, **KINDS[preset]))
    fast = Workload.from_requests(spec.generate(jax.random.key(2), 150, 2 * spec.rate_per_s, **KINDS[preset]))
    error_us = np.abs(slow.program_arrival_us - 2 * fast.program_arrival_us)
    assert (error_us <= 1 + np.arange(150)).all()  # every gap is rounded to a microsecond
    for name in ("prompt_tokens", "output_tokens", "pause_us", "klass"):
        np.testing.assert_array_equal(getattr(slow, name), getattr(fast, name))


def test_the_ticks_of_mooncake_scale_with_the_load():
    fast = get_preset("mooncake_conv").generate(jax.random.key(2), 500, 2 * 3.27)
    assert (np.asarray(fast.arrival_us) % 1_500_000 == 0).all()


@pytest.mark.parametrize("preset", list_presets())
def test_every_preset_makes_a_valid_table_and_describes_itself(preset):
    spec = get_preset(preset)
    table = spec.generate(jax.random.key(0), 64)
    for name, value in columns(table).items():
        assert value.dtype == jnp.int32 and not value.weak_type, name
        rows = () if name == "num_programs" else (spec.num_rows(64),)
        assert value.shape[: len(rows)] == rows and (value.ndim == len(rows) or name in GRAPH_COLUMNS), name
    made = Workload.from_requests(table, preset)
    assert made.num_programs == 64 and made.klass.max() < spec.num_classes
    assert made.turn.max() < spec.max_turns
    np.testing.assert_array_equal(made.predicted_tokens, made.output_tokens)  # an oracle unless asked otherwise
    described = spec.describe()
    assert described["name"] == preset and described["summary"] and described["source"]


def test_means_are_those_of_large_samples_of_reachable_turns():
    spec, made = get_preset("coding_agent"), sample("coding_agent", 2000)
    assert spec.mean_turns == pytest.approx(len(made) / 2000, rel=0.05)
    assert spec.mean_prompt_tokens == pytest.approx(made.prompt_tokens.mean(), rel=0.05)
    chat = get_preset("chat_smooth")
    assert chat.mean_output_tokens == pytest.approx(202, rel=0.02) and chat.mean_turns == 1.0


def test_the_rate_is_traced_and_does_not_recompile():
    traces = []

    @jax.jit
    def make(key, rate):
        traces.append(1)
        return get_preset("chat_smooth").generate(key, 100, rate).arrival_us

    slow, fast = make(jax.random.key(0), 1.0), make(jax.random.key(0), 8.0)
    assert len(traces) == 1 and int(slow[-1]) > int(fast[-1])


def test_arrivals_stay_exact_over_many_epochs():
    made = Workload.from_requests(get_preset("mm1").generate(jax.random.key(0), 20_000, 1e-3))
    assert made.rate_per_s == pytest.approx(1e-3, rel=4 / np.sqrt(20_000))
    assert made.arrival_us[-1] > 17_000 * 2**30


def test_prediction_errors_are_lognormal():
    table = get_preset("sharegpt").generate(jax.random.key(0), 20_000, prediction_sigma=0.4)
    long = np.asarray(table.output_tokens) > 200  # rounding does not matter there
    error = np.log(np.asarray(table.predicted_tokens)[long] / np.asarray(table.output_tokens)[long])
    assert error.std() == pytest.approx(0.4, rel=0.03) and abs(error.mean()) < 0.02


def test_contexts_never_pass_their_limit():
    made = Workload.from_requests(
        get_preset("coding_agent").generate(jax.random.key(0), 200, max_turns=64, max_context_tokens=60_000)
    )
    assert made.prompt_tokens.max() <= 60_000
    assert made.prompt_tokens[made.turn > 0].min() >= 1


def test_lengths_can_be_limited():
    table = get_preset("chat_smooth").generate(jax.random.key(0), 2000, max_prompt_tokens=512, max_total_tokens=600)
    assert int(table.prompt_tokens.max()) == 512
    assert int((table.prompt_tokens + table.output_tokens).max()) == 600
    assert int(table.output_tokens.min()) >= 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: get_preset("chat_smoth"), "Did you mean 'chat_smooth'"),
        (
            lambda: get_preset("arena").generate(jax.random.key(0), 5, max_promt_tokens=4),
            "Did you mean 'max_prompt_tokens'",
        ),
        (lambda: get_preset("arena").generate(jax.random.key(0), 0), "num_programs 0"),
        (lambda: get_preset("arena").generate(jax.random.key(0), 5, -1.0), "rate_per_s -1.0"),
        (lambda: get_preset("arena").generate(jax.random.key(0), 5, max_prompt_tokens=0), "a whole number >= 1"),
        (lambda: get_preset("renewal").generate(jax.random.key(0), 5, size="expnential"), "Did you mean 'exponential'"),
        (lambda: get_preset("renewal").generate(jax.random.key(0), 5, size="hyperexponential", scv=0.5), "scv 0.5"),
    ],
)
def test_mistakes_are_user_errors(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_presets_are_listed_by_name():
    assert {"chat_smooth", "code_bursty", "swe_tool", "renewal"} <= set(list_presets())
