"""Settings every test runs under: CPU, two host devices, a compilation cache shared by workers, few threads each."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator
from pathlib import Path

# Before anything imports JAX, and in the environment, so that subprocesses of tests inherit it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the `gpu` tests: JAX_PLATFORMS=cuda,cpu pytest -m gpu
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parents[1] / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")  # so that code sharded over devices really is
if "PYTEST_XDIST_WORKER" in os.environ:
    # One XLA thread per device and worker; the workers fill the cores. (XLA reads NPROC for the size of its pool.)
    for name in ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")

from jaxsched.xla import COMPILE_VARIABLE, ask_for_native_loops

# Most programs of a test run for a moment: they are compiled without LLVM's optimisation, in a fifth of the time. What
# runs for long says so (`optimised_compiler_options`), and tests/test_xla.py compares the two.
os.environ.setdefault(COMPILE_VARIABLE, "quick")
if "xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
ask_for_native_loops(os.environ)  # as the command line does

import jax  # noqa: E402
import pytest  # noqa: E402

# The same again through JAX: a plugin may have imported it, and so read the environment, before this file ran.
for option in ("jax_platforms", "jax_compilation_cache_dir"):
    jax.config.update(option, os.environ[option.upper()])
jax.config.update(
    "jax_persistent_cache_min_compile_time_secs", float(os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"])
)
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):  # JAX refuses both at once
    jax.config.update("jax_num_cpu_devices", int(os.environ["JAX_NUM_CPU_DEVICES"]))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run tests at full size, e.g. all 10,000 random clusters")


@pytest.fixture(scope="session")
def full_size(request: pytest.FixtureRequest) -> bool:
    """Whether `--full` was given: a test with a size to choose takes its full one, else a reduced one."""
    return request.config.getoption("--full")


#: Memory maps of a process at which compiled programs are dropped. Linux allows 65,530 (vm.max_map_count); XLA, which
#: takes dozens for each program, crashes when it gets no more (seen after about 600 programs in one worker).
MOST_MAPS = 30_000
#: Resident pages at which they are dropped too, and how many more than what was left the last time: without it two
#: workers grew to 10 GB each, and one was killed.
MOST_PAGES, MORE_PAGES = 4 * 2**30 // 4096, 2 * 2**30 // 4096
_left_pages = 0


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """Forget compiled programs before a worker has too many; they come back from the compilation cache."""
    global _left_pages
    yield
    maps, pages = Path("/proc/self/maps"), Path("/proc/self/statm")
    if not maps.exists():
        return
    resident = lambda: int(pages.read_text().split()[1])
    full = resident() > max(MOST_PAGES, _left_pages + MORE_PAGES)
    if full or maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc's: give freed memory back
            trim(0)
        _left_pages = resident()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip `gpu` tests where there is none."""
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu and not _has_gpu():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="JAX sees no GPU (JAX_PLATFORMS=cuda,cpu pytest -m gpu)"))


def _has_gpu() -> bool:
    try:
        return bool(jax.devices("gpu"))
    except RuntimeError:  # JAX's way of saying that the backend is not there
        return False
