"""The loop as one native function: asked for without disturbing the user's flags, and the same bits as without."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from jaxsched.xla import COMPILE_VARIABLE, ask_for_native_loops
from tests.shared_data import ROOT


@pytest.mark.parametrize("flags", [None, "", "--xla_force_host_platform_device_count=2"])
def test_the_flag_is_added_to_the_users_own(flags):
    environ = {} if flags is None else {"XLA_FLAGS": flags}
    ask_for_native_loops(environ)
    words = environ["XLA_FLAGS"].split()
    assert words[:-1] == (flags or "").split()
    assert words[-1].startswith("--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=")
    once = environ["XLA_FLAGS"]
    ask_for_native_loops(environ)
    assert environ["XLA_FLAGS"] == once


@pytest.mark.parametrize("flags", ["--xla_backend_extra_options=a=b", "flags.txt"])
def test_extra_options_of_the_users_own_and_files_of_flags_are_left_alone(flags):
    environ = {"XLA_FLAGS": flags}
    ask_for_native_loops(environ)
    assert environ == {"XLA_FLAGS": flags}


RUN = """
import sys
import numpy as np
import jaxsched as js
from jaxsched.xla import compiler_options

scenario = js.load("configs/scenarios/chat.yaml", {"workload.num_requests": 60, "cluster.num_instances": 2})
policy = js.policies.get("sarathi", max_num_seqs=32)
result = js.rollout(scenario, policy, seeds=2, num_devices=1)
np.savez(sys.argv[1], histograms=result.histograms, native="xla_cpu_use_fusion_emitters" in compiler_options(),
         **{name: np.asarray(values) for name, values in result.metrics.items()})
"""
KERNELS = "--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=1"


def rolled_out(tmp_path, name: str, flags: str, **variables: str) -> dict[str, np.ndarray]:
    """Metrics of a small rollout, compiled in a process of its own as its environment says."""
    environ = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT), COMPILE_VARIABLE: "", **variables}
    ask_for_native_loops(environ)
    target = tmp_path / f"{name}.npz"
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(target)], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return dict(np.load(target))


def test_native_loops_give_the_same_bits_as_lists_of_kernels_and_hurried_ones_the_same_integers(tmp_path):
    kernels = rolled_out(tmp_path, "kernels", KERNELS)
    hurried = rolled_out(tmp_path, "hurried", "", **{COMPILE_VARIABLE: "quick"})
    hurried["native"] = kernels["native"]
    for name, values in kernels.items():  # time integrals are sums of float32
        np.testing.assert_allclose(values, hurried[name], rtol=1e-6 if values.dtype.kind == "f" else 0, err_msg=name)
    np.testing.assert_array_equal(kernels["histograms"], hurried["histograms"])

    native = rolled_out(tmp_path, "native", "")
    assert not kernels.pop("native")
    if not native.pop("native"):
        pytest.skip("this JAX has only the newer fusion emitters: its loops stay lists of kernels")
    assert kernels.keys() == native.keys()
    for name, values in kernels.items():
        np.testing.assert_array_equal(values, native[name], err_msg=name)
