"""Runs of `algo.kind: es`: killed and resumed they end with the same bits; workloads are drawn as the ranges say."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxsched.scenario import from_config
from tests.shared_data import ROOT
from train.__main__ import main
from train.es_config import load
from train.index_policy import TRAIN_SEEDS, VALIDATION_SEEDS, as_good, draw_workloads, validation_lanes
from train.pressure import Demand, alike, demand

TINY = """
extends: SCENARIO
name: tiny
workload: {num_requests: 10}
cluster: {kv_blocks: 2500, num_slots: 16, max_paused_programs: 16}
policy: {params: {max_num_seqs: 16}}
algo: {kind: es, population: 4, generations: 6, seeds: 1, micro_steps_per_program: 100}
randomise: {load: [0.8, 1.2], default_share: 0.0}
validation: {seeds: 2, every: 2}
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.replace("SCENARIO", str(ROOT / "configs/scenarios/agents_mixed.yaml")))
    return path


def _start(config, folder) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "train", str(config), "--run.folder", str(folder)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _generations(folder) -> int:
    log = folder / "tiny" / "metrics.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


@pytest.mark.slow
def test_a_search_killed_at_any_moment_ends_with_the_same_bits(config, tmp_path, full_size) -> None:
    """Real SIGKILLs, a random time after a generation was logged: before, while or after its state is written."""
    whole = _start(config, tmp_path / "whole")
    output = whole.communicate()[0]
    assert whole.returncode == 0, output
    folder, draw = tmp_path / "killed", random.Random(1)
    for kill in range(4 if full_size else 2):
        process = _start(config, folder)
        before = _generations(folder)
        while process.poll() is None and _generations(folder) <= before:
            time.sleep(0.002)
        time.sleep(draw.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        output = process.communicate()[0]
        assert process.returncode == -signal.SIGKILL, f"{kill}: {output}"
    done = _start(config, folder)
    output = done.communicate()[0]
    assert done.returncode == 0, output
    one, other = tmp_path / "whole" / "tiny", folder / "tiny"
    for name in ("policy.msgpack", "state.msgpack"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    logs = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, other)]
    for log in logs:
        for row in log:
            row.pop("wall_s")
    assert logs[0] == logs[1] and [row["generation"] for row in logs[0]] == list(range(7))


def test_another_configuration_does_not_go_on_with_a_run(config, tmp_path, capsys) -> None:
    folder = tmp_path / "runs" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("name: tiny\n")
    assert main([str(config), "--run.folder", str(tmp_path / "runs")]) == 2
    assert "holds a run of another configuration" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "randomise.short_share=[0.2, 1.2]"], "short_share"),
        (["--set", "randomise.load=[2, 1]"], "load"),
        (["--set", "randomise.short_share=[0, 1]", "--workload.preset", "swe_agents"], "has no such factor"),
        (["--algo.population", "5"], "must be even"),
    ],
)
def test_bad_ranges_are_refused_before_the_search(config, tmp_path, capsys, arguments, said) -> None:
    assert main([str(config), "--run.folder", str(tmp_path / "runs"), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_the_latest_as_good_as_any_is_exported_and_not_a_winner_by_luck() -> None:
    """Differences 0.1, 0.1, -0.1, 0.0 by workload: mean 0.025, standard error 0.048. Always 0.1 more is worse."""
    lowest = np.array([4.0, 5.0, 3.0, 4.5])
    assert as_good(lowest, lowest)
    assert as_good(lowest + np.array([0.1, 0.1, -0.1, 0.0]), lowest)
    assert not as_good(lowest + np.array([0.1, 0.1, 0.1, 0.1001]), lowest)
    assert not as_good(lowest[:1] + 0.1, lowest[:1])


def test_workloads_are_drawn_from_the_ranges_and_press_alike(config) -> None:
    ranges = ["randomise.short_share=[0.0, 0.9]", "randomise.context_scale=[0.4, 1.3]", "randomise.turns=10"]
    found = load(config, [*ranges, "randomise.default_share=0.5", "randomise.pool=[1, 1]", "randomise.load=[1, 1]",
                          "algo.seeds=4", "workload.num_requests=100"])  # fmt: skip
    scenario, run = from_config(found), found.plan()
    lanes = draw_workloads(run, scenario, 3)
    assert list(lanes.seeds) == [TRAIN_SEEDS + 12 + i for i in range(4)]
    assert validation_lanes(run, scenario).seeds[0] == VALIDATION_SEEDS
    assert lanes.rates_per_s is not None and lanes.usable_blocks is not None
    np.testing.assert_allclose(lanes.rates_per_s[:2], scenario.rate_per_s)
    np.testing.assert_array_equal(lanes.usable_blocks[:2], scenario.usable_blocks)
    assert np.all((lanes.knobs["short_share"][2:] >= 0) & (lanes.knobs["short_share"][2:] <= 0.9))
    usual = {name: 1.0 for name in lanes.knobs} | {"short_share": 0.75}
    base = demand(scenario, usual)
    for i in (2, 3):
        other = demand(scenario, {name: float(values[i]) for name, values in lanes.knobs.items()})
        # Half as many turns are not exactly half the number of turns: they are whole, and at most the table's.
        assert other.turns == pytest.approx(10, rel=0.15)
        offered = lanes.rates_per_s[i] * other.work_s
        assert offered == pytest.approx(scenario.rate_per_s * base.work_s, rel=1e-4)
        kappa = lanes.usable_blocks[i] / other.working_set
        assert kappa == pytest.approx(scenario.usable_blocks / base.working_set, rel=1e-3)
    again = draw_workloads(run, scenario, 3)
    assert again.rates_per_s is not None
    np.testing.assert_array_equal(again.rates_per_s, lanes.rates_per_s)


def test_twice_the_work_is_half_the_rate() -> None:
    pool, rate = alike(Demand(2.0, 100.0, 10.0), Demand(4.0, 100.0, 10.0))
    assert pool == 0.5 and rate == 0.5
    pool, rate = alike(Demand(2.0, 100.0, 10.0), Demand(2.0, 100.0, 10.0), pool=2.0, load=1.1)
    assert pool == 2.0 and rate == pytest.approx(1.1 * 2**0.3)
