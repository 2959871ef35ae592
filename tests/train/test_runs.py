"""Runs: killed and resumed they end with the same bits; what is not theirs is refused; NaNs stop them by name."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from flax import struct

from jaxsched.checkpoint import load_policy
from jaxsched.errors import UserError
from tests.shared_data import ROOT
from train.__main__ import main
from train.algorithm import Algorithm
from train.loop import RunPlan, run

TINY = """
name: tiny
env: {id: TwoClassQueue-v0}
network: {width: 4, recurrent: true}
algo: {kind: ppo, num_lanes: 4, num_steps: 8, num_minibatches: 2, num_epochs: 1, sequence_length: 4}
run: {num_iterations: 40, checkpoint_every: 1, native_loops: true}
"""


@struct.dataclass
class Walk:
    """A learner that adds noise to a number."""

    params: dict
    key: jax.Array
    nothing: jax.Array


def walk(width=3, poison=None):
    """An algorithm of two lines; `poison` (iteration, what) makes something NaN."""

    def init(key, hyper):
        return Walk({"x": jnp.zeros(width)}, key, jnp.zeros((2, 0)))

    def update(state, hyper):
        key, here = jax.random.split(state.key)
        x = state.params["x"] + hyper * jax.random.normal(here, (width,))
        count = jnp.float32(0.0)
        metrics = {"mean": jnp.mean(x), "nonfinite/reward": count, "nonfinite/parameters": count}
        if poison:
            metrics[f"nonfinite/{poison}"] = count + 1
            x = x.at[0].set(jnp.nan) if poison == "parameters" else x
        return Walk({"x": x}, key, state.nothing), metrics

    return Algorithm("walk", init, update, jnp.float32(0.1), lambda s: s.params, {"kind": "walk"}, decisions=7)


def plan(folder, num_iterations=6, **settings):
    return RunPlan(
        folder=folder, num_iterations=num_iterations, checkpoint_every=2, about={"network": "walk"}, **settings
    )


def test_a_run_that_goes_on_is_the_run_that_never_stopped(tmp_path):
    whole = run(walk(), plan(tmp_path / "a"))
    run(walk(), plan(tmp_path / "b", num_iterations=4))
    rows = (tmp_path / "b" / "metrics.jsonl").read_bytes()
    (tmp_path / "b" / "metrics.jsonl").write_bytes(rows + b'{"iteration": 5, "half a ro')  # killed while writing
    parts = run(walk(), plan(tmp_path / "b"), resume=True)
    for one, other in zip(jax.tree.leaves(whole.state), jax.tree.leaves(parts.state), strict=True):
        assert np.array_equal(_bits(one), _bits(other))
    for name in ("metrics.jsonl", "policy.msgpack"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [1, 2, 3, 4, 5, 6] and rows[-1]["decisions"] == 42
    assert set(rows[0]) == {"iteration", "decisions", "mean"}


def _bits(leaf):
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def _truncate(folder):
    data = [f for f in (folder / "checkpoints" / "6" / "state").rglob("*") if f.is_file() and f.parent.name == "d"]
    assert data
    for file in data:
        file.write_bytes(file.read_bytes()[:-20])


def _empty(folder):
    for file in (folder / "checkpoints" / "6" / "about").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "algorithm", "changes", "said"),
    [
        (_truncate, walk(), {}, "6: is damaged.*remove the folder to go on from iteration 4"),
        (_empty, walk(), {}, "6: is damaged"),
        (None, walk(width=4), {}, r"params/x is float32\[3\]; expected float32\[4\].*another network"),
        (None, walk(), {"about": {"network": "run"}}, "was written with network 'walk'; expected 'run'"),
        (lambda f: (f / "metrics.jsonl").write_bytes(b""), walk(), {}, "has 0 bytes.*changed after the run stopped"),
    ],
)
def test_a_checkpoint_that_is_damaged_or_of_another_run_is_refused(tmp_path, damage, algorithm, changes, said):
    run(walk(), plan(tmp_path))
    if damage:
        damage(tmp_path)
    settings = plan(tmp_path, num_iterations=8)
    with pytest.raises(UserError, match=said):
        run(algorithm, RunPlan(**{**settings.__dict__, **changes}), resume=True)


def test_a_folder_that_holds_a_run_is_not_overwritten_and_an_empty_one_not_resumed(tmp_path):
    run(walk(), plan(tmp_path))
    with pytest.raises(UserError, match="holds a run already"):
        run(walk(), plan(tmp_path))
    with pytest.raises(UserError, match="no checkpoint here"):
        run(walk(), plan(tmp_path / "new"), resume=True)


@pytest.mark.parametrize(
    ("poison", "said"),
    [
        (
            "reward",
            "iteration 5: NaN or infinity in reward; .*The environment returned it. The last good checkpoint, of",
        ),
        ("parameters", "NaN or infinity in parameters; in the learner: params/x"),
    ],
)
def test_a_nan_stops_the_run_by_name_and_keeps_the_last_good_checkpoint(tmp_path, poison, said):
    run(walk(), plan(tmp_path, num_iterations=4))
    with pytest.raises(UserError, match=said):
        run(walk(poison=poison), plan(tmp_path), resume=True)
    state = run(walk(), plan(tmp_path), resume=True).state  # the checkpoint is as good as ever
    assert np.all(np.isfinite(state.params["x"]))


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    config = folder / "tiny.yaml"
    config.write_text(TINY)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-m", "train", *arguments], cwd=ROOT, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_killed_at_any_moment_also_while_saving_and_resumed_it_ends_with_the_same_bits(tmp_path, full_size):
    """Real SIGKILLs: the first while a checkpoint is being written, the others a random time after one appeared."""
    whole = start(tmp_path, str(tmp_path / "tiny.yaml"), "--run.folder", str(tmp_path / "whole"))
    folder = tmp_path / "killed" / "tiny"
    begun, kills, while_saving = False, 0, 0
    rng = random.Random(0)
    for attempt in range(8 if full_size else 2):
        last = max((int(p.name) for p in (folder / "checkpoints").glob("*") if p.name.isdigit()), default=0)
        arguments = (
            ["--resume", str(folder)]
            if begun
            else [str(tmp_path / "tiny.yaml"), "--run.folder", str(tmp_path / "killed")]
        )
        process = start(tmp_path, *arguments)
        while process.poll() is None:
            names = [p.name for p in (folder / "checkpoints").glob("*")]
            newest = max((int(name) for name in names if name.isdigit()), default=0)
            saving = any("tmp" in name for name in names)
            if newest >= last + 2 and (saving or attempt % 2):
                if attempt % 2:
                    time.sleep(rng.random() * 0.3)
                process.send_signal(signal.SIGKILL)
                while_saving += saving
                break
        output = process.communicate()[0]
        assert process.returncode == -signal.SIGKILL, output
        begun, kills = True, kills + 1
    assert kills >= 2 and while_saving >= 1
    done = start(tmp_path, "--resume", str(folder))
    output = done.communicate()[0]
    assert done.returncode == 0, output
    assert output.startswith("tiny: 40 iterations") and output.count("\n") == 1  # quiet when piped
    output = whole.communicate()[0]
    assert whole.returncode == 0, output
    one = tmp_path / "whole" / "tiny"
    for name in ("metrics.jsonl", "policy.msgpack", "policy.json"):
        assert (one / name).read_bytes() == (folder / name).read_bytes(), name
    abouts = [next((f / "checkpoints" / "40" / "about").glob("metadata")).read_text() for f in (one, folder)]
    digests = [json.loads(about)["digest"] for about in abouts]
    assert digests[0] == digests[1]  # of the whole learner: parameters, optimiser, lanes, averages, key
    assert load_policy(folder).sizes["num_items"] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--algo.num_lanes", "0"], "override algo.num_lanes: found 0; expected a number above 0"),
        (["--set", "algo.num_minibatches=3"], "8 sequences cannot be split into 3 minibatches"),
        (["--env.id", "TwoClasQueue-v0"], "Did you mean 'TwoClassQueue-v0'"),
        (["--set", "network.head_kinds={odrer: pair}"], "unknown head 'odrer'"),
        (["--set", "network.head_kinds={order: sort}"], "unknown kind 'sort'"),
        (["--set", "algo.constraints=[{cost: late, limit: 0.1}]"], "unknown cost 'late'"),
        (["--algo.lr", "fast"], "override algo.lr: found a text"),
        (["--algo.learning_rate", "1"], "unknown key 'learning_rate'"),
        (["--algo.kind", "sac"], "unknown kind 'sac'"),
        (["--resume", "nowhere"], "is not a run folder"),
        (["--run.track", "[tensorboard]"], "tensorboardX is not installed"),
        (["--set", "env.options={holding_cots: 3}"], "holding_cost"),
    ],
)
def test_bad_input_is_refused_before_anything_is_computed_or_written(tmp_path, capsys, arguments, said):
    if "tensorboard" in said and _installed("tensorboardX"):
        pytest.skip("tensorboardX is installed here")
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY)
    assert main([str(config), "--run.folder", str(tmp_path / "runs"), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert not (tmp_path / "runs").exists()


def _installed(name):
    import importlib.util

    return importlib.util.find_spec(name) is not None


def test_resuming_under_other_settings_is_refused_by_name(tmp_path, capsys):
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY)
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.yaml").write_text(TINY)
    assert main([str(config), "--resume", str(folder), "--algo.lr", "0.5", "--run.keep", "5"]) == 2
    error = capsys.readouterr().err
    assert "algo.lr (0.0003 there, 0.5 here)" in error and "run.keep" not in error


def test_every_shipped_training_configuration_can_be_built():
    from train import config, es_config
    from train.build import build

    paths = sorted((ROOT / "configs" / "train").glob("*.yaml"))
    written = {path: yaml.safe_load(path.read_text()) for path in paths}
    assert {"ppo", "es"} <= {data["algo"]["kind"] for data in written.values()}
    for path, data in written.items():
        if data["algo"]["kind"] == "es":
            assert es_config.load(path).plan().algo.generations > 0
            continue
        few = {"env.options.num_programs": 4, "env.options.seeds": 2}
        algorithm = build(config.load(path, few if "num_programs" in data["env"].get("options", {}) else {}))
        assert algorithm.decisions > 0 and algorithm.network["kind"]


def test_the_loops_import_without_pydantic_and_without_orbax():
    code = (
        "import sys\n"
        "for name in ('pydantic', 'orbax', 'tensorboardX', 'wandb'):\n"
        "    sys.modules[name] = None\n"
        "import train.ppo, train.rloo, train.bc, train.loop, train.tracking, train.build, train.checkpoints\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
