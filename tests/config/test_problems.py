"""Bad configurations get a message with file, line, field, what was found and what is expected."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from jaxsched.config import check_name, load, load_compare
from jaxsched.errors import UserError

GOOD = """\
name: good
workload:
  preset: chat_smooth
  num_requests: 100
cluster:
  num_instances: 2
  num_slots: 64
timing:
  kind: description
  model: llama-3-8b
  device: a100
policy:
  scheduler: vllm
  params: {token_budget: 512}
slo:
  - name: chat
    ttft_ms: 500
metrics:
  warmup_fraction: 0.1
seed: 0
"""

COMPARE = """\
compare:
  policies:
    - vllm
    - name: other
      scheduler: sarathi
  loads: [0.5, 0.9]
  seeds: 4
  baseline: vllm
"""


def message(tmp_path: Path, text: str, overrides=(), loader=load) -> str:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        loader(path, overrides)
    text = str(caught.value)
    assert "\n" not in text
    return text.replace(str(tmp_path) + "/", "")


def test_the_good_configurations_used_below_load(tmp_path):
    (tmp_path / "c.yaml").write_text(GOOD + COMPARE)
    assert load_compare(tmp_path / "c.yaml").compare.policies[1].scheduler == "sarathi"


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        (
            "num_requests:",
            "num_request:",
            r"c\.yaml, line 4, field workload\.num_request: unknown key 'num_request'.*Did you mean 'num_requests'\?",
        ),
        ("seed: 0", "sead: 0", r"line 20, field sead: unknown key 'sead'.*Did you mean 'seed'\?"),
        ("  device:", "  devise:", r"line 11, field timing\.devise: unknown key 'devise'.*Did you mean 'device'\?"),
        ("    ttft_ms:", "    ttft:", r"line 17, field slo\.0\.ttft: unknown key 'ttft'.*Did you mean 'ttft_ms'\?"),
        (
            "seed: 0",
            "num_instances: 3",
            r"line 20, .*unknown key 'num_instances'.*Did you mean cluster\.num_instances\?",
        ),
        (
            "num_requests: 100",
            'num_requests: "100"',
            r"line 4, field workload\.num_requests: found a text \('100'\); expected a whole number",
        ),
        (
            "num_instances: 2",
            "num_instances: 2.5",
            r"line 6, field cluster\.num_instances: found a number \(2\.5\); expected a whole number",
        ),
        ("num_instances: 2", "num_instances: true", r"line 6, .*found a boolean \(true\); expected a whole number"),
        (
            "num_instances: 2",
            "num_instances: 0",
            r"line 6, field cluster\.num_instances: found 0; expected a number above 0",
        ),
        (
            "ttft_ms: 500",
            "ttft_ms: .nan",
            r"line 17, field slo\.0\.ttft_ms: found a number \(nan\); expected a finite number",
        ),
        ("warmup_fraction: 0.1", "warmup_fraction: 1.5", r"line 19, .*found 1\.5; expected a number below 1"),
        (
            "kind: description",
            "kind: descriptive",
            r"line 8, field timing: unknown kind 'descriptive'; expected kind to be one of 'description'",
        ),
        ("  kind: description\n", "", r"line 8, field timing: key 'kind' is missing; expected kind to be one of"),
        ("  num_instances: 2\n", "", r"c\.yaml, line 5: key 'cluster\.num_instances' is missing"),
        (
            "  num_requests: 100",
            "  path: x.csv",
            r"line 2, field workload: exactly one of `preset` and `path` must be given, found both",
        ),
        ("  preset: chat_smooth\n", "", r"line 2, field workload: exactly one of .* found neither"),
        (
            "  num_requests: 100",
            "  num_requests: 9\n  slice_s: [9, 3]",
            r"line 2, field workload: `slice_s` must be .*found \[9\.0, 3\.0\]",
        ),
        (
            "  num_requests: 100",
            "  num_requests: 9\n  slice_s: [9]",
            r"line 5, field workload\.slice_s: found 1 item\(s\); expected at least 2",
        ),
        (
            "seed: 0",
            "speculation: {acceptance: 1.2, draft_pass_us: 100}",
            r"line 20, field speculation\.acceptance: found 1\.2; expected a number .*1",
        ),
        ("seed: 0", "speculation: {acceptance: 0.7}", r"line 20: key 'speculation\.draft_pass_us' is missing"),
        (
            "seed: 0",
            "speculation: {acceptance: 0.7, draft_pass_us: -1}",
            r"line 20, field speculation\.draft_pass_us: found -1; expected a number",
        ),
        (
            "seed: 0",
            "speculation: {acceptance: 0.7, draft_pass_us: 9, token_spread: 1}",
            r"line 20, field speculation\.token_spread: found 1; expected a number below 1",
        ),
        (
            "seed: 0",
            "speculation: {acceptance: 0.7, draft_pass_us: 9, request_spread: -0.1}",
            r"line 20, field speculation\.request_spread: found -0\.1; expected a number",
        ),
        (
            "seed: 0",
            "speculation: {acceptance: 0.7, draft_pass_us: 9, head_accuracy: 2}",
            r"line 20, field speculation\.head_accuracy: found 2; expected a number",
        ),
        (
            "seed: 0",
            "speculation: {acceptance: 0.7, draft_pass_us: 9, draft_token_us: 5000}",
            r"line 20, field speculation\.draft_token_us: found 5000; expected a number",
        ),
        (
            "seed: 0",
            "semantic_cache: {search_us: 9, categories: []}",
            r"line 20, field semantic_cache\.categories: found 0 item\(s\); expected at least 1",
        ),
        (
            "seed: 0",
            "semantic_cache: {search_us: -9, categories: [{threshold: 0.5, ttl_s: 1, quota: 1}]}",
            r"line 20, field semantic_cache\.search_us: found -9; expected a number",
        ),
        *(
            (
                "seed: 0",
                f"semantic_cache: {{search_us: 1, categories: [{{threshold: 1, ttl_s: 1, quota: 1, {knob}: {value}}}]}}",  # noqa: E501
                rf"line 20, .*semantic_cache\.categories\.0\.{knob}: found {value}; expected",
            )
            for knob, value in (
                ("similarity", 1.5),
                ("unique", -1),
                ("topics", 0),
                ("zipf", 9),
                ("similarity_spread", 1),
                ("false_slope", 2),
            )
        ),
        (
            "seed: 0",
            "semantic_cache: {search_us: 9, categories: [{threshold: 2, ttl_s: 1, quota: 1}]}",
            r"line 20, .*semantic_cache\.categories\.0\.threshold: found 2; expected",
        ),
        (
            "seed: 0",
            "semantic_cache: {search_us: 9, categories: [{threshold: 0.5, ttl_s: 1, quota: 9999}]}",
            r"line 20, .*semantic_cache\.categories\.0\.quota: found 9999; expected",
        ),
        ("seed: 0", "seed: 0\nseed: 1", r"line 21: key 'seed' is given twice"),
        ("seed: 0", "seed: [0", r"c\.yaml, line 2\d: not valid YAML"),
        ("scheduler: vllm", "scheduler:", r"line 13, field policy\.scheduler: found nothing \(null\); expected a text"),
        (
            "  params: {token_budget: 512}",
            "  params: 3",
            r"line 14, field policy\.params: found a number \(3\); expected a mapping",
        ),
        (
            "cluster:\n  num_instances: 2\n  num_slots: 64",
            "cluster: 4",
            r"line 5, field cluster: found a number \(4\); expected a section",
        ),
        ("seed: 0", "seed: 0\nhorizon_s: -1", r"line 21, field horizon_s: found -1; expected a number above 0"),
        (
            "num_slots: 64",
            "num_slots: 64\n  max_num_seqs_slots: 3",
            r"line 8: both 'max_num_seqs_slots' and 'num_slots' are given",
        ),
    ],
)
def test_a_bad_scenario_names_line_field_found_and_expected(tmp_path, old, new, wanted):
    assert GOOD.count(old) == 1
    assert re.search(wanted, text := message(tmp_path, GOOD.replace(old, new))), text


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        (
            "      scheduler:",
            "      schedular:",
            r"field compare\.policies\.1\.schedular: unknown key.*Did you mean 'scheduler'\?",
        ),
        ("    - vllm\n", "    - 3\n", r"line 23, field compare\.policies\.0: found a number \(3\); expected a section"),
        (
            "baseline: vllm",
            "baseline: fifo",
            r"line 21, field compare: `baseline` must be one of the policies \['vllm', 'other'\], found 'fifo'",
        ),
        (
            "loads: [0.5, 0.9]",
            "loads: [0.5, fast]",
            r"line 26, field compare\.loads\.1: found a text \('fast'\); expected a number",
        ),
        ("loads: [0.5, 0.9]", "loads: []", r"line 26, field compare\.loads: found 0 item\(s\); expected at least 1"),
        (
            "seeds: 4",
            "seeds: 4\n  capacity: lots",
            r"line 28, field compare\.capacity: found a text \('lots'\); expected 'auto'",
        ),
        ("name: other", "name: vllm", r"two entries of the same name"),
    ],
)
def test_a_bad_comparison_names_line_field_found_and_expected(tmp_path, old, new, wanted):
    assert COMPARE.count(old) == 1
    text = message(tmp_path, GOOD + COMPARE.replace(old, new), loader=load_compare)
    assert re.search(wanted, text), text


def test_a_comparison_given_as_scenario_says_which_command_to_use(tmp_path):
    assert "jaxsched compare" in message(tmp_path, GOOD + COMPARE)


def test_a_scenario_given_as_comparison_says_what_is_missing(tmp_path):
    text = message(tmp_path, GOOD, loader=load_compare)
    assert "key 'compare' is missing" in text and "jaxsched simulate" in text


def test_a_bad_override_is_named_as_such(tmp_path):
    assert re.search(
        r"override workload\.lode: unknown key 'lode'.*'load'", message(tmp_path, GOOD, ["workload.lode=1"])
    )
    assert "override seed: found a text ('x'); expected a whole number" in message(tmp_path, GOOD, ["seed=x"])
    assert "override seed.x: seed is a value (0), not a section" in message(tmp_path, GOOD, ["seed.x=1"])
    assert "override slo.3.ttft_ms: no item '3' in slo; expected 0 to 0" in message(tmp_path, GOOD, ["slo.3.ttft_ms=1"])
    assert "expected KEY=VALUE" in message(tmp_path, GOOD, ["seed"])


def test_a_bad_key_in_a_base_names_the_base(tmp_path):
    (tmp_path / "base.yaml").write_text(GOOD.replace("seed: 0", "sead: 0"))
    assert message(tmp_path, "extends: base.yaml\n").startswith("base.yaml, line 20, field sead")


def test_a_missing_base_is_blamed_on_the_line_that_names_it(tmp_path):
    text = message(tmp_path, "name: x\nextends: nosuch.yaml\n")
    assert text.startswith("c.yaml, line 2, field extends: no such file: nosuch.yaml")


def test_a_missing_file_suggests_a_neighbour(tmp_path):
    (tmp_path / "chat.yaml").write_text(GOOD)
    with pytest.raises(UserError, match=r"chatt\.yaml: no such file.*Did you mean .*/chat\.yaml\?"):
        load(tmp_path / "chatt.yaml")


def test_folders_binary_files_and_lists_are_refused_with_a_reason(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        load(tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        load(tmp_path / "b.yaml")
    assert "found an empty file" in message(tmp_path, "")
    assert "found a sequence" in message(tmp_path, "- 1\n")


def test_several_problems_are_named_together(tmp_path):
    text = message(tmp_path, GOOD.replace("seed: 0", "sead: 0").replace("num_instances: 2", "num_instances: x"))
    assert "'sead'" in text and "Also: " in text and "field cluster.num_instances: found a text ('x')" in text


def test_affine_timing_needs_the_kv_capacity(tmp_path):
    affine = GOOD.replace(
        "  kind: description\n  model: llama-3-8b\n  device: a100\n", "  {kind: affine, a_us: 1, b_us_per_token: 1}\n"
    )
    assert "`cluster.kv_blocks` is needed" in message(tmp_path, affine)


def test_an_unknown_name_is_refused_where_it_was_written(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(GOOD)
    with pytest.raises(
        UserError, match=r"line 13, field policy\.scheduler: unknown scheduler 'vlm'.*Did you mean 'vllm'\?"
    ):
        check_name(load(path), "policy.scheduler", "vlm", ["vllm", "sarathi"], "scheduler")
