"""Loading: shipped files, bases, overrides, dumps."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from pathlib import Path

import pytest
import yaml

from jaxsched.config import (
    AffineTiming,
    DescriptionTiming,
    ScenarioConfig,
    from_dict,
    load,
    load_compare,
    split_overrides,
)
from jaxsched.errors import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

BASE = """\
name: base
workload:
  preset: chat_smooth
  num_requests: 100
  options: {clients: 3}
  rate_per_s: 5.0
cluster: {num_instances: 2, num_slots: 64}
timing:
  kind: description
  model: llama-3-8b
  device: a100
  tp: 2
slo:
  - {name: chat, ttft_ms: 500}
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


@pytest.mark.parametrize("path", sorted((CONFIGS / "scenarios").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_scenario_loads(path):
    config = load(path)
    assert config.name == path.stem and config.description


@pytest.mark.parametrize("path", sorted((CONFIGS / "compare").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_comparison_loads_and_names_its_baseline(path):
    config = load_compare(path)
    assert config.compare.baseline in config.policies() and config.compare.seeds >= 8


def test_the_shipped_set_is_complete():
    assert {p.stem for p in (CONFIGS / "scenarios").glob("*.yaml")} >= {
        "chat", "code", "reasoning", "mooncake", "sharegpt", "arxiv", "agents_swe"
    }  # fmt: skip
    assert {p.stem for p in (CONFIGS / "compare").glob("*.yaml")} >= {"chat", "demo", "code_bursty", "routers"}


def test_a_child_changes_what_it_names_and_keeps_the_rest(tmp_path):
    write(tmp_path, "base.yaml", BASE)
    child = write(
        tmp_path, "sub/child.yaml", "extends: ../base.yaml\ncluster: {num_instances: 8}\nslo: [{name: x, e2e_ms: 9}]\n"
    )
    config = load(child)
    assert (config.cluster.num_instances, config.cluster.num_slots) == (8, 64)
    assert [slo.name for slo in config.slo] == ["x"]  # lists replace
    assert config.name == "base"


def test_later_bases_win_over_earlier_ones(tmp_path):
    write(tmp_path, "base.yaml", BASE)
    write(tmp_path, "big.yaml", "cluster: {num_instances: 64, queue_capacity: 7}\n")
    write(tmp_path, "mid.yaml", "cluster: {num_instances: 16}\n")
    config = load(write(tmp_path, "child.yaml", "extends: [base.yaml, big.yaml, mid.yaml]\nname: c\n"))
    assert (config.cluster.num_instances, config.cluster.queue_capacity, config.name) == (16, 7, "c")


def test_one_base_may_be_reached_by_two_ways(tmp_path):
    write(tmp_path, "base.yaml", BASE)
    write(tmp_path, "a.yaml", "extends: base.yaml\nseed: 1\n")
    write(tmp_path, "b.yaml", "extends: base.yaml\nhorizon_s: 60.0\n")
    config = load(write(tmp_path, "c.yaml", "extends: [a.yaml, b.yaml]\n"))
    assert (config.seed, config.horizon_s) == (1, 60.0)


def test_bases_in_a_circle_are_refused_and_named(tmp_path):
    write(tmp_path, "a.yaml", "extends: b.yaml\n")
    write(tmp_path, "b.yaml", "\nextends: a.yaml\n")
    with pytest.raises(UserError, match=r"b\.yaml, line 2, field extends: .*circle: a\.yaml -> b\.yaml -> a\.yaml"):
        load(tmp_path / "a.yaml")


def test_a_timing_of_another_kind_replaces_the_section(tmp_path):
    write(tmp_path, "base.yaml", BASE)
    text = "extends: base.yaml\ncluster: {kv_blocks: 100}\ntiming: {kind: affine, a_us: 10, b_us_per_token: 1}\n"
    config = load(write(tmp_path, "child.yaml", text))
    assert config.timing == AffineTiming(kind="affine", a_us=10, b_us_per_token=1)


def test_a_timing_of_the_same_kind_is_merged(tmp_path):
    write(tmp_path, "base.yaml", BASE)
    config = load(write(tmp_path, "child.yaml", "extends: base.yaml\ntiming: {device: h100}\n"))
    assert isinstance(config.timing, DescriptionTiming)
    assert (config.timing.device, config.timing.model, config.timing.tp) == ("h100", "llama-3-8b", 2)


def test_a_trace_given_on_the_command_line_replaces_the_preset_and_its_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, "conf/base.yaml", BASE)
    config = load(path, ["workload.path=traces/x.csv", "workload.thin=0.5"])
    assert config.workload.path == str(tmp_path / "traces/x.csv")  # relative to the working directory
    assert config.workload.preset is None and config.workload.options == {} and config.workload.rate_per_s is None
    assert config.workload.num_requests == 100 and config.workload.thin == 0.5


def test_paths_in_a_file_are_relative_to_that_file(tmp_path):
    text = BASE.replace("  preset: chat_smooth\n", "  path: ../x.csv\n")
    assert load(write(tmp_path, "conf/base.yaml", text)).workload.path == str(tmp_path / "x.csv")


def test_overrides_win_in_order_and_reach_into_lists(tmp_path):
    path = write(tmp_path, "base.yaml", BASE)
    texts = ["seed=1", "--seed=2", "slo.0.ttft_ms=1e3", "policy.params.token_budget=512", "workload.slice_s=[0, 60]"]
    config = load(path, texts)
    assert config.seed == 2 and config.slo[0].ttft_ms == 1000.0 and config.workload.slice_s == [0, 60]
    assert config.policy.params == {"token_budget": 512}


def test_dict_overrides_dotted_or_nested_equal_text_overrides(tmp_path):
    path = write(tmp_path, "base.yaml", BASE)
    assert load(path, {"cluster.num_instances": 3}) == load(path, ["cluster.num_instances=3"])
    assert load(path, {"cluster": {"num_instances": 3}}) == load(path, ["cluster.num_instances=3"])


def test_overrides_do_not_change_the_data_they_came_from(tmp_path):
    value = {"clients": [1, 2]}
    path = write(tmp_path, "base.yaml", BASE)
    load(path, {"workload.options": value, "workload.options.clients.0": 9})
    assert value == {"clients": [1, 2]}


def test_overrides_are_told_from_other_arguments():
    line = [
        "x.yaml",
        "--workload.path",
        "a.csv",
        "--json",
        "--set",
        "seed=3",
        "--set=a.b=c=d",
        "--cluster.num_slots=5",
        "--out",
        "o",
    ]
    taken, rest = split_overrides(line)
    assert taken == ["workload.path=a.csv", "seed=3", "a.b=c=d", "cluster.num_slots=5"]
    assert rest == ["x.yaml", "--json", "--out", "o"]


def test_the_alias_of_num_slots_is_the_same_field_across_layers(tmp_path):
    write(tmp_path, "base.yaml", BASE)
    config = load(write(tmp_path, "child.yaml", "extends: base.yaml\ncluster: {max_num_seqs_slots: 7}\n"))
    assert config.cluster.num_slots == 7


def test_yaml_scalars_mean_what_they_look_like(tmp_path):
    path = write(tmp_path, "base.yaml", BASE + "policy:\n  params: {a: 1e3, b: on, c: 1:30, d: true, e: -2, f: .5}\n")
    assert load(path).policy.params == {"a": 1000.0, "b": "on", "c": "1:30", "d": True, "e": -2, "f": 0.5}


def test_a_dumped_configuration_loads_to_an_equal_one(tmp_path):
    config = load(write(tmp_path, "base.yaml", BASE))
    again = load(write(tmp_path, "dump.yaml", config.to_yaml()))
    assert again == config and again.config_hash() == config.config_hash()
    assert json.loads(config.to_json()) == yaml.safe_load(config.to_yaml()) == config.to_dict()


def test_the_hash_names_settings_not_layout(tmp_path):
    config = load(write(tmp_path, "base.yaml", BASE))
    reordered = from_dict(dict(reversed(list(yaml.safe_load(BASE).items()))))
    assert reordered.config_hash() == config.config_hash()
    assert load(tmp_path / "base.yaml", {"name": "other"}).config_hash() == config.config_hash()
    assert load(tmp_path / "base.yaml", {"seed": 1}).config_hash() != config.config_hash()


def test_competitors_inherit_what_they_do_not_say():
    config = load_compare(CONFIGS / "compare" / "demo.yaml", ["policy.params.token_budget=256"])
    variants = load_compare(
        CONFIGS / "compare" / "demo.yaml",
        {
            "compare.policies": ["vllm", "sarathi+random", {"name": "w", "params": {"token_budget": 9}}],
            "policy.router_delay_ms": 5.0,
        },
    ).policies()
    assert config.policies()["sarathi"].params["token_budget"] == 256
    assert (variants["sarathi+random"].scheduler, variants["sarathi+random"].router) == ("sarathi", "random")
    assert variants["w"].params == {"max_num_seqs": 128, "token_budget": 9} and variants["w"].scheduler == "vllm"
    assert {v.router_delay_ms for v in variants.values()} == {5.0}


def test_a_configuration_knows_where_each_field_was_written(tmp_path):
    write(tmp_path, "base.yaml", BASE)
    config = load(write(tmp_path, "child.yaml", "extends: base.yaml\n\npolicy:\n  scheduler: vllm\n"), ["seed=4"])
    assert config.where("policy.scheduler") == f"{tmp_path}/child.yaml, line 4, field policy.scheduler"
    assert config.where("workload.preset") == f"{tmp_path}/base.yaml, line 3, field workload.preset"
    assert config.where("slo.0.ttft_ms") == f"{tmp_path}/base.yaml, line 14, field slo.0.ttft_ms"
    assert config.where("seed") == "override seed, field seed"


def test_configurations_are_immutable():
    config = load(CONFIGS / "scenarios" / "chat.yaml")
    assert isinstance(config, ScenarioConfig) and not dataclasses.is_dataclass(config)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 5  # type: ignore[misc]
