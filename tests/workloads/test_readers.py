"""Readers of the public formats: the reference slices, small files of each dialect, and every kind of wrong file."""

from __future__ import annotations

import gzip
import json
import time

import numpy as np
import pytest

from jaxsched.errors import UserError
from jaxsched.workloads import Workload, list_formats, read, stats
from tests.shared_data import shared_path


def write(path, text: str):
    path.write_text(text)
    return path


def jsonl(path, rows):
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def seconds(workload: Workload) -> list[float]:
    return (workload.arrival_us / 1e6).tolist()


# -- reference slices: row counts and the statistics printed in their READMEs ------------------------------------------


@pytest.mark.parametrize(
    ("file", "options", "detected", "rows", "prompt", "output"),
    [
        ("azure_llm_2023/AzureLLMInferenceTrace_conv.csv", {}, "azure", 14176, (1195, 1015, 4085), (202, 115, 448)),
        ("azure_llm_2023/AzureLLMInferenceTrace_code.csv", {}, "azure", 5740, (2028, 1460, 7315), (27, 13, 85)),
        ("mooncake/conversation_trace.jsonl", {}, "mooncake", 7851, (12430, 7284, 40370), (347, 356, 712)),
        ("vidur_processed/splitwise_conv.csv", {}, "vidur", 14176, (1195, 1015, 4085), (202, 115, 448)),
        (
            "vidur_processed/sharegpt_val_10k_llama2.csv",
            {"rate_per_s": 2.0},
            "vidur",
            7000,
            (247, 36, 1423),
            (326, 286, 842),
        ),
        (
            "vidur_processed/arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv",
            {"rate_per_s": 2.0},
            "vidur",
            20000,
            (2582, 2720, 3813),
            (296, 167, 773),
        ),
    ],
)
def test_reference_slices_have_the_published_statistics(file, options, detected, rows, prompt, output):
    workload = read(shared_path("traces", file), **options)
    assert workload.format == detected and f"format {detected}, detected from" in workload.notes[0]
    assert len(workload) == workload.num_programs == rows
    for values, expected in ((workload.prompt_tokens, prompt), (workload.output_tokens, output)):
        found = stats.quantiles(values)
        for name, value in zip(("mean", "p50", "p95"), expected, strict=True):
            assert found[name] == pytest.approx(value, abs=0.6 if value < 5000 else 5)


def test_azure_keeps_the_clock_of_the_trace():
    workload = read(shared_path("traces", "azure_llm_2023", "AzureLLMInferenceTrace_conv.csv"))
    assert workload.arrival_us[:2].tolist() == [0, 4_314_579]  # 15:46.6805900 to 15:50.9951690
    assert workload.rate_per_s == pytest.approx(5.91, abs=0.01)
    assert stats.gap_cv(workload.arrival_us) == pytest.approx(1.08, abs=0.01)
    same = read(shared_path("traces", "vidur_processed", "splitwise_conv.csv"))
    assert np.abs(same.arrival_us - workload.arrival_us).max() <= 1  # the same trace in another format


def test_weka_sessions_and_their_pauses():
    path = shared_path("traces", "claude_code_weka")
    workload = read(path, rate_per_s=0.1, seed=3)
    assert workload.counts["sessions"] == workload.num_programs == 48
    assert workload.counts["subagents"] == 12 and workload.counts["subagent_requests"] == 158
    assert len(workload) + workload.counts["requests_without_output"] == 2119
    with_agents = read(path, rate_per_s=0.1, seed=3, subagents="independent")
    assert with_agents.num_programs == 60 and len(with_agents) == len(workload) + 158
    one = json.loads((path / "traces" / "trace_0008.json").read_text())
    alone = read(path / "traces" / "trace_0008.json")
    main = [r for r in one["requests"] if r["type"] != "subagent" and r["out"] > 0]
    assert alone.prompt_tokens.tolist() == [r["in"] for r in main]
    assert alone.pause_us[1:3].tolist() == [round(r["think_time"] * 1e6) for r in main[1:3]]
    assert alone.num_programs == 1


def test_servegen_requests_follow_rates_and_length_distributions():
    path = shared_path("traces", "servegen", "data", "reason", "deepseek-r1")
    workload = read(path, start_s=43_200.0, end_s=46_800.0, seed=1, tenants=True)
    expected, total = {}, 0
    for position, number in enumerate(sorted(int(f.name.split("-")[1]) for f in path.glob("*-trace.csv"))):
        rows = [line.split(",") for line in (path / f"chunk-{number}-trace.csv").read_text().split()]
        count = sum(round(float(r[1]) * 600) for r in rows if 43_200 <= float(r[0]) < 46_800)
        expected[position] = count
        total += count
    assert len(workload) == total > 10_000
    counts = np.bincount(workload.klass, minlength=len(expected))
    assert counts.tolist() == [expected[k] for k in sorted(expected)]
    # lengths of the busiest client against its own distribution
    busiest = int(np.argmax(counts))
    number = sorted(int(f.name.split("-")[1]) for f in path.glob("*-trace.csv"))[busiest]
    pdf = json.loads((path / f"chunk-{number}-dataset.json").read_text())["43200"]["output_tokens"]
    pairs = [pair.split(":") for pair in pdf.strip("{} ").split(",")]
    mean = sum(float(v) * float(p) for v, p in pairs)
    made = workload.output_tokens[workload.klass == busiest]
    assert made.mean() == pytest.approx(mean, abs=4 * made.std() / np.sqrt(len(made)))
    part = read(path, start_s=43_200.0, end_s=43_800.0, seed=1, tenants=True)  # a window does not depend on the others
    np.testing.assert_array_equal(part.prompt_tokens, workload.prompt_tokens[: len(part)])


# -- dialects ----------------------------------------------------------------------------------------------------------


def test_azure_2024_zones_and_short_fractions(tmp_path):
    rows = ("2024-02-29 23:59:59+00:00,10,2", "2024-03-01 00:00:00.5+00:00,11,3", "2024-03-01 00:00:01.1234567,12,4")
    path = write(tmp_path / "a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\r\n" + "\r\n".join(rows))
    assert read(path).arrival_us.tolist() == [0, 1_500_000, 2_123_456]
    packed = tmp_path / "a.csv.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read(packed).prompt_tokens.tolist() == [10, 11, 12]


def test_azure_rows_without_tokens_are_refused_or_counted(tmp_path):
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-12 00:00:00,10,0\n2024-05-12 00:00:01,10,2\n"
    path = write(tmp_path / "a.csv", text)
    with pytest.raises(UserError, match=r"a\.csv, line 2, column GeneratedTokens: 0"):
        read(path)
    assert read(path, skip_empty=True).counts == {"empty_requests_skipped": 1}


def test_burstgpt_failed_requests_are_left_out_and_counted(tmp_path):
    text = (
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,Conversation log\n"
        "45,ChatGPT,1087,0,1087,Conversation log\n"
        "118.5,GPT-4,417,276,693,API log\n"
    )
    path = write(tmp_path / "b.csv", text)
    workload = read(path)
    assert seconds(workload) == [5.0, 118.5] and workload.counts == {"failed_requests_skipped": 1}
    assert read(path, model="GPT-4").prompt_tokens.tolist() == [417]
    assert read(path, log_type="Conversation log").counts["other_log_type_skipped"] == 1
    with pytest.raises(UserError, match=r"no row has Model 'GPT-5'; expected one of ChatGPT, GPT-4"):
        read(path, model="GPT-5")


def test_vidur_lengths_need_a_rate_and_timed_traces_refuse_one(tmp_path):
    lengths = write(tmp_path / "v.csv", "num_prefill_tokens,num_decode_tokens\n5,6\n7,8\n9,1\n")
    with pytest.raises(UserError, match="Give rate_per_s"):
        read(lengths)
    a, b = read(lengths, rate_per_s=2.0, seed=1), read(lengths, rate_per_s=4.0, seed=1)
    assert np.abs(a.arrival_us - 2 * b.arrival_us).max() <= 3 and a.arrival_us[0] > 0
    assert a.arrival_us.tolist() != read(lengths, rate_per_s=2.0, seed=2).arrival_us.tolist()
    timed = write(tmp_path / "t.csv", "arrived_at,num_prefill_tokens,num_decode_tokens\n0.25,5,6\n")
    assert read(timed).arrival_us.tolist() == [250_000]
    with pytest.raises(UserError, match="Use the workload's to_rate"):
        read(timed, rate_per_s=2.0)


def test_mooncake_sessions_use_delay_or_the_difference_of_timestamps(tmp_path):
    row = {"input_length": 10, "output_length": 2, "hash_ids": [1]}
    path = jsonl(
        tmp_path / "m.jsonl",
        [
            {"timestamp": 0, "session_id": "a", **row},
            {"timestamp": 1500, "session_id": "b", **row, "priority": 3},
            {"session_id": "a", "delay": 250.5, **row},
            {"timestamp": 4000, "session_id": "b", **row},
            {"timestamp": 5000, **row},
        ],
    )
    workload = read(path)
    assert workload.format == "mooncake" and workload.num_programs == 3
    assert workload.turn.tolist() == [0, 1, 0, 1, 0]
    assert workload.pause_us.tolist() == [0, 250_500, 0, 2_500_000, 0]
    assert seconds(workload) == [0.0, 0.0, 1.5, 1.5, 5.0]
    assert workload.priority.tolist() == [0, 0, 3, 0, 0]
    assert workload.counts == {"pauses_from_timestamps": 1}


def test_mooncake_ticks_are_kept_unless_jittered(tmp_path):
    rows = [{"timestamp": 3000 * (i // 10), "input_length": 5, "output_length": 5} for i in range(2000)]
    path = jsonl(tmp_path / "m.jsonl", rows)
    assert set(read(path).arrival_us % 3_000_000) == {0}
    spread = read(path, jitter_s=3.0)
    offset = spread.arrival_us % 3_000_000
    assert np.abs(np.sort(offset) / 3e6 - (np.arange(2000) + 0.5) / 2000).max() < 1.63 / np.sqrt(2000)
    assert (np.diff(spread.arrival_us) >= 0).all()


def chat(number, parent, timestamp, turn):
    row = {"chat_id": number, "parent_chat_id": parent, "timestamp": timestamp, "input_length": 9, "output_length": 4}
    return {**row, "type": "text", "turn": turn, "hash_ids": [1]}


def test_bailian_chats_become_sessions_or_stay_open_loop(tmp_path):
    rows = [chat(1, -1, 0.0, 1), chat(2, 1, 10.0, 2), chat(3, 1, 12.5, 2), chat(4, 77, 13.0, 3), chat(5, 2, 20.0, 3)]
    path = jsonl(tmp_path / "q.jsonl", rows)
    closed = read(path, service_s=1.0, service_s_per_token=0.25)
    assert closed.format == "bailian"
    assert closed.turn.tolist() == [0, 1, 2, 0, 0]
    assert closed.pause_us.tolist() == [0, 8_000_000, 8_000_000, 0, 0]
    assert closed.counts == {"branches": 1, "parents_outside_the_file": 1}
    assert read(path).pause_us.tolist() == [0, 10_000_000, 10_000_000, 0, 0]
    opened = read(path, arrivals="open")
    assert seconds(opened) == [0.0, 10.0, 12.5, 13.0, 20.0] and opened.num_programs == 5


def test_weka_missing_think_times_and_empty_answers(tmp_path):
    requests = [
        {"t": 0.0, "type": "n", "in": 10, "out": 2, "api_time": 1.5, "think_time": 0.0},
        {"t": 5.0, "type": "s", "in": 20, "out": 3, "api_time": 2.0},
        {"t": 9.0, "type": "n", "in": 30, "out": 0, "api_time": 1.0, "think_time": 2.0},
        {"t": 12.0, "type": "n", "in": 40, "out": 4, "api_time": 1.0, "think_time": 2.0},
        {"t": 13.0, "type": "subagent", "requests": [{"t": 0.0, "type": "n", "in": 5, "out": 1}]},
    ]
    for number in (1, 2):
        write(tmp_path / f"trace_000{number}.json", json.dumps({"id": f"trace_{number}", "requests": requests}))
    with pytest.raises(UserError, match="Give rate_per_s"):
        read(tmp_path)
    one = read(tmp_path / "trace_0001.json", subagents="independent")
    assert one.prompt_tokens.tolist() == [10, 20, 40, 5]
    assert one.pause_us.tolist() == [0, 3_500_000, 5_000_000, 0]
    assert seconds(one) == [0.0, 0.0, 0.0, 13.0]
    assert one.counts["requests_without_output"] == 1 and one.counts["pauses_derived"] == 2
    assert read(tmp_path, rate_per_s=1.0).num_programs == 2


def test_servegen_folder_of_a_test(tmp_path):
    write(tmp_path / "chunk-0-trace.csv", "0,0.05,1,Gamma,1,20\n600,0,0,,0,0\n1200,0.1,2,Weibull,0.6,7\n")
    pdfs = {"0": {"input_tokens": "{7: 1.0}", "output_tokens": "{3: 0.5, 5: 0.5}"}}
    write(tmp_path / "chunk-0-dataset.json", json.dumps(pdfs))
    workload = read(tmp_path)
    assert len(workload) == 30 + 60 and set(workload.prompt_tokens) == {7} and set(workload.output_tokens) == {3, 5}
    assert (workload.arrival_us[:30] < 600e6).all() and (workload.arrival_us[30:] > 1200e6).all()
    assert read(tmp_path).arrival_us.tolist() == workload.arrival_us.tolist()
    assert read(tmp_path, seed=1).arrival_us.tolist() != workload.arrival_us.tolist()
    write(
        tmp_path / "chunk-0-dataset.json",
        json.dumps({"0": {"input_tokens": "__import__('os')", "output_tokens": "{1: 1}"}}),
    )
    with pytest.raises(UserError, match=r"field input_tokens: \"__import__"):
        read(tmp_path)
    write(tmp_path / "chunk-0-trace.csv", "0,0.05,1,Gama,1,20\n")
    write(tmp_path / "chunk-0-dataset.json", json.dumps(pdfs))
    with pytest.raises(UserError, match=r"line 1: pattern 'Gama'.*Did you mean 'Gamma'"):
        read(tmp_path)


def test_plain_csv_takes_other_names_and_units(tmp_path):
    path = write(tmp_path / "l.csv", "t,prompt_tokens,output_tokens,klass\n1500,3,4,1\n2500,5,6,0\n")
    workload = read(path, format="lengths_csv", columns={"arrival_s": "t"}, time_unit="ms")
    assert seconds(workload) == [1.5, 2.5] and workload.klass.tolist() == [1, 0] and workload.num_classes == 2


# -- wrong files -------------------------------------------------------------------------------------------------------

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n"
MOONCAKE = '{"timestamp": 0, "input_length": 5, "output_length": 5}\n'


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", AZURE + "2023-11-16 18:15:45.0,5,5\n", r"a\.csv, line 3, column TIMESTAMP: .* time goes backwards"),
        ("a.csv", AZURE + "2023-13-16 18:15:47.0,5,5\n", r"line 3, column TIMESTAMP: '2023-13-16.*expected YYYY-MM-DD"),
        ("a.csv", AZURE + "2023-11-16 18:15:47.0+02:00,5,5\n", r"line 3, column TIMESTAMP: '.*\+02:00'"),
        ("a.csv", AZURE + "yesterday,5,5\n", r"line 3, column TIMESTAMP: 'yesterday'"),
        ("a.csv", AZURE + "2023-11-16 18:15:47.0,-5,5\n", r"line 3, column ContextTokens: -5; expected a number >= 1"),
        (
            "a.csv",
            AZURE + "2023-11-16 18:15:47.0,5.5,5\n",
            r"line 3, column ContextTokens: '5\.5'; expected an integer",
        ),
        ("a.csv", AZURE + "2023-11-16 18:15:47.0,5\n", r"line 3: 2 fields .*expected 3 fields.*truncated"),
        ("a.csv", AZURE + "\n2023-11-16 18:15:47.0,5,5\n", r"line 3: 1 fields"),
        (
            "a.csv",
            "TIMESTAMP,ContextToken,GeneratedTokens\n",
            r"no column 'ContextTokens'.*Did you mean 'ContextToken'",
        ),
        ("a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n", r"a\.csv: the file is empty"),
        ("a.csv", "", r"a\.csv: the file is empty"),
        ("v.csv", "arrived_at,num_prefill_tokens,num_decode_tokens\nnan,5,5\n", r"line 2, column arrived_at: 'nan'"),
        ("v.csv", "arrived_at,num_prefill_tokens,num_decode_tokens\n-1,5,5\n", r"line 2, column arrived_at: -1\.0"),
        ("m.jsonl", MOONCAKE + '{"timestamp": 3000, "input_le', r"m\.jsonl, line 2: the line is cut off .*truncated"),
        ("m.jsonl", MOONCAKE + "[1]\n", r"line 2: a JSON list"),
        (
            "m.jsonl",
            MOONCAKE + MOONCAKE.replace("5,", "-5,"),
            r"line 2, field input_length: -5; expected an integer >= 1",
        ),
        ("m.jsonl", MOONCAKE + MOONCAKE.replace("0,", "NaN,"), r"line 2, field timestamp: NaN"),
        ("m.jsonl", MOONCAKE + MOONCAKE.replace("0,", "true,"), r"line 2, field timestamp: true"),
        ("m.jsonl", MOONCAKE + MOONCAKE.replace("input_", "inptu_"), r"field input_length is missing.*'inptu_length'"),
        (
            "m.jsonl",
            MOONCAKE.replace("0,", "9,") + MOONCAKE,
            r"line 2, field timestamp: 0 ms after 9 ms: time goes backwards",
        ),
        ("m.jsonl", MOONCAKE + '{"timestamp": 1, "wait_for": ["a"]}\n', r"line 2: the row has dependencies"),
        ("x.csv", "a,b,c\n1,2,3\n", r"unknown trace format.*expected one of azure, mooncake.*lengths_csv"),
        ("x.json", '{"a": 1}\n', r"unknown trace format: a JSON object with a"),
        ("trace_0001.json", '{"id": "x", "requests": [{"t": 0.0, "in": 5', r"line 1: not valid JSON.*truncated"),
        ("trace_0001.json", '{"requests": [{"t": 0, "in": -1, "out": 5}]}', r"request 1, field in: -1"),
    ],
)
def test_wrong_files_are_refused_with_file_place_and_expectation(tmp_path, name, text, message):
    with pytest.raises(UserError, match=message):
        read(write(tmp_path / name, text))


def test_missing_files_formats_and_options_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        read(tmp_path / "nothing.csv")
    path = write(tmp_path / "a.csv", AZURE)
    with pytest.raises(UserError, match=r"unknown trace format 'azur'.*Did you mean 'azure'"):
        read(path, format="azur")
    with pytest.raises(UserError, match=r"unknown option 'skip_emtpy'.*Did you mean 'skip_empty'"):
        read(path, skip_emtpy=True)
    with pytest.raises(UserError, match=r"a folder with a.csv"):
        read(tmp_path)
    packed = tmp_path / "b.csv.gz"
    packed.write_bytes(gzip.compress(AZURE.encode() * 100)[:-9])
    with pytest.raises(UserError, match="cannot be unpacked"):
        read(packed, format="azure")


def test_a_million_row_csv_is_read_in_seconds_with_exact_times(tmp_path):
    n = 1_000_000
    micros = np.sort(np.random.default_rng(0).integers(0, 14 * 86_400 * 10**6, n))
    stamps = np.datetime_as_string(np.datetime64("2024-05-10T00:00:00", "us") + micros)
    path = tmp_path / "big.csv"
    with path.open("w") as file:
        file.write("TIMESTAMP,ContextTokens,GeneratedTokens\n")
        file.writelines(f"{s.replace('T', ' ')}+00:00,{100 + i % 7},{1 + i % 5}\n" for i, s in enumerate(stamps))
    started = time.perf_counter()
    workload = read(path)
    assert time.perf_counter() - started < 30.0
    np.testing.assert_array_equal(workload.arrival_us, micros - micros[0])
    assert workload.line[-1] == n + 1


def test_formats_are_listed():
    assert set(list_formats()) == {
        "azure",
        "mooncake",
        "agentic_v2",
        "burstgpt",
        "vidur",
        "servegen",
        "bailian",
        "weka",
        "lengths_csv",
        "jobs",
    }
