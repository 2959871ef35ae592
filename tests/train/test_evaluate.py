"""`python -m train.evaluate`: from a file to tables, with a learned policy whose numbers are known: those of a rule."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jaxsched.checkpoint import save_policy
from jaxsched.evaluation import Evaluation, normalised_interval
from jaxsched.policies.learned import describe
from jaxsched.report.evaluation import Regime, curves, tables, verdict
from jaxsched.stats import Interval
from tests.networks.test_index import LIKE_GITTINS, weights
from tests.shared_data import ROOT, SHARED
from train.evaluate import main
from train.evaluate_config import load
from train.evaluate_regimes import prepare

CONFIG = """
name: tiny
description: Two policies.
policies: [gittins+gate, srpt_program+clair+peak]
reference: gittins+gate
bound: srpt_program+clair+peak
learned: {mine: [a, b]}
regimes:
  - name: default
    role: default
    scenario: SCENARIO
    set: &small
      workload.num_requests: 14
      cluster: {kv_blocks: 2500, num_slots: 24, max_paused_programs: 20}
      policy.params: {max_num_seqs: 16, token_budget: 2048}
    seeds: 2
  - name: recorded
    scenario: SCENARIO
    set: *small
    trace: nowhere
"""


@pytest.fixture
def folder(tmp_path):
    """An evaluation whose learned policy decides as `gittins+gate` in one run, and otherwise in the other."""
    text = CONFIG.replace("SCENARIO", str(ROOT / "configs/scenarios/agents_mixed.yaml"))
    (tmp_path / "tiny.yaml").write_text(text)
    for name, values in (("a", LIKE_GITTINS), ("b", weights(gate__one=-3.0))):
        save_policy(tmp_path / name, {"weights": values}, network=describe(0), training={"generation": 4})
        rows = [{"generation": g, "validation": 5.0 - g / 10} for g in (0, 4)] + [{"generation": 5}]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.mark.slow
def test_an_evaluation_from_a_file_to_tables(folder, capsys) -> None:
    arguments = [str(folder / "tiny.yaml"), "--out", str(folder / "out"), "--traces", str(folder)]
    assert main([*arguments, "--seeds", "1"]) == 0
    capsys.readouterr()
    assert main(arguments) == 0  # the first seed is there already
    said = capsys.readouterr().out
    assert "default: mine, mean JCT" in said
    data = json.loads((folder / "out" / "evaluation.json").read_text())
    found = data["regimes"]["default"]["metrics"]
    assert np.shape(found["mine"]["jct_mean_s"]) == (2, 2)
    np.testing.assert_array_equal(found["mine"]["jct_mean_s"][0], found["gittins+gate"]["jct_mean_s"][0])
    assert found["mine"]["jct_mean_s"][1] != found["gittins+gate"]["jct_mean_s"][0]
    assert data["notes"] == [f"recorded was not run: no {folder / 'nowhere'} (option --traces)"]
    text, page = ((folder / "out" / f"evaluation.{kind}").read_text() for kind in ("md", "html"))
    for name in ("mine, a", "srpt_program+clair+peak (bound)", "default", "2 x 2"):
        assert name in text and name in page
    assert "| mine, a | 5.000 | 4.600 | 4 |" in text
    assert main(arguments) == 0
    assert "mean JCT" not in capsys.readouterr().out.split("#")[0]  # nothing was simulated again
    assert (folder / "out" / "evaluation.md").read_text() == text
    for part in (folder / "out" / "parts").glob("srpt_program*"):  # what was not run is left out, and said
        part.unlink()
    assert main([*arguments, "--only-done"]) == 0
    said = capsys.readouterr().out
    assert "default: srpt_program+clair+peak was not run" in said and "mean JCT" not in said.split("#")[0]
    assert "| gittins+gate |" in said and "mine, a" in said


@pytest.mark.parametrize(
    ("change", "arguments", "said"),
    [
        (("mine: [a, b]", "mine: [a, c]"), [], "no policy.json here"),
        (("bound: srpt_program", "bound: srpt_progam"), [], "`bound` must be one of the policies"),
        (("seeds: 2", "seeds: 0"), [], "seeds"),
        (("mine: [a, b]", "mine: []"), [], "at least one run folder"),
        (("", ""), ["--regimes", "defualt"], "unknown regime 'defualt'"),
        (("", ""), ["--seeds", "0"], "0 seeds"),
        (
            ("policies: [gittins+gate", "policies: [{name: gittins+gate, scheduler: gitins}"),
            [],
            "Did you mean 'gittins'",
        ),
        (("  - name: ", "  - name: swe, "), [], "a name has no comma"),
    ],
)
def test_a_mistake_is_named_before_anything_runs(folder, capsys, change, arguments, said) -> None:
    path = folder / "tiny.yaml"
    path.write_text(path.read_text().replace(*change))
    assert main([str(path), "--out", str(folder / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert not (folder / "out" / "parts").exists()


@pytest.mark.parametrize("name", ["agents", "agents_catalogue"])
def test_the_shipped_evaluations_resolve_regime_by_regime(name) -> None:
    """Scenarios, rules and published checkpoints; those of recorded traces only where these are."""
    config = load(ROOT / f"configs/evaluate/{name}.yaml")
    for regime in config.regimes:
        if regime.trace is not None and not (SHARED / "traces" / regime.trace).exists():
            continue
        scenario, policies = prepare(config, regime, SHARED / "traces")
        assert (scenario.num_slots or 0) * scenario.num_instances >= scenario.num_programs, regime.name
        assert len(policies["quickstart"]) == 5
        chosen = regime.policies or [policy.name for policy in config.policies]
        assert set(policies) == {*chosen, *config.learned}


def _regime(role: str, mine: np.ndarray) -> Regime:
    costs = {
        "mine": mine,
        "rule": np.full((1, 4), 100.0),
        "poor": np.full((1, 4), 150.0),
        "oracle": np.full((1, 4), 60.0),
    }
    metrics = {name: {"jct_mean_s": values, "slowdown_p99": values / 10} for name, values in costs.items()}
    return Regime("here", role, Evaluation((0, 1, 2, 3), metrics), ("mine",), ("oracle",))


def test_the_summary_names_the_best_rule_and_how_far_the_bound_is() -> None:
    mine = 80.0 + np.arange(8.0).reshape(2, 4) * 0.01
    row = tables([_regime("held-out", mine)], "rule", "oracle", confidence=0.95, tie=0.02)[0].rows[0]
    assert row[:5] == ("here", "held-out", "mine", "2 x 4", "rule")
    assert row[5].startswith("20.0%") and row[6] == "better" and row[7].startswith("0.50") and row[9] == "10"
    assert tables([_regime("held-out", 2 * mine)], "rule", "oracle", confidence=0.95, tie=0.02)[0].rows[0][6] == "worse"
    assert tables([_regime("control", mine)], "rule", "oracle", confidence=0.95, tie=0.02)[0].rows[0][6] == "differs"


def test_what_a_verdict_says() -> None:
    interval = lambda low, high: Interval((low + high) / 2, low, high, 0.95)
    assert [verdict(interval(*x), "held-out", 0.02) for x in ((0.1, 0.2), (-0.1, 0.2), (-0.2, -0.1))] == [
        "better", "even", "worse",
    ]  # fmt: skip
    assert [verdict(interval(*x), "control", 0.02) for x in ((0.01, 0.02), (-0.1, 0.2), (-0.2, -0.1))] == [
        "ties", "ties", "differs",
    ]  # fmt: skip


def test_the_interval_of_the_normalised_score_covers_its_truth() -> None:
    """Costs half-way between the reference and the bound on the mean; training seeds differ, levels are common."""
    key, hits = np.random.default_rng(5), 0
    for _ in range(400):
        level = np.exp(0.4 * key.normal(size=20))
        mine = 75.0 * level * np.exp(0.05 * key.normal(size=(5, 1)) + 0.05 * key.normal(size=(5, 20)))
        found = normalised_interval(mine / np.exp(0.0025), 100.0 * level, 50.0 * level, num_bootstrap=300)
        hits += found.low <= 0.5 <= found.high
    assert 0.91 <= hits / 400 <= 0.99


def test_curves_of_runs_without_a_log_are_no_table() -> None:
    assert curves({}, {}) is None
