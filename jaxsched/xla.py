"""How XLA compiles the machine on a CPU. Speed only: results are the same bits (docs/decisions/0002).

Imported before JAX starts, so JAX is imported inside functions here.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, MutableMapping
from typing import Any

#: Environment variable: "quick" compiles every machine in a hurry (`quick_compiler_options`). Tests set it.
COMPILE_VARIABLE = "JAXSCHED_COMPILE"

#: XLA:CPU compiles a loop that touches fewer bytes than this to one native function, and any other to a list of kernels
#: called one by one, which for the machine's loop takes longer than the work inside (XLA: SmallWhileLoopHoistingPass).
_LOOP_OPTION = "xla_cpu_small_while_loop_byte_threshold"
_ANY_LOOP = 10**18
_NO_TREES = {"xla_disable_hlo_passes": "tree_reduction_rewriter"}


def ask_for_native_loops(environ: MutableMapping[str, str]) -> None:
    """Put the flag for it into ``XLA_FLAGS``, which XLA reads when JAX starts; it cannot be given per program.

    Leaves alone what the user has set: extra options of their own, or a file of flags.
    """
    flags = environ.get("XLA_FLAGS", "")
    if "xla_backend_extra_options" in flags or (flags.strip() and not flags.lstrip().startswith("--")):
        return
    environ["XLA_FLAGS"] = f"{flags} --xla_backend_extra_options={_LOOP_OPTION}={_ANY_LOOP}".strip()


def compiler_options(is_large: bool = False) -> dict[str, str | bool | int]:
    """XLA options of the machine's programs: optimised, unless the environment says "quick" (`COMPILE_VARIABLE`)."""
    hurry = os.environ.get(COMPILE_VARIABLE) == "quick"
    return quick_compiler_options() if hurry else optimised_compiler_options(is_large)


def optimised_compiler_options(is_large: bool = False) -> dict[str, str | bool | int]:
    """XLA options for a fast machine, with its loop as one native function where that is possible.

    XLA:CPU splits every reduction of more than 32 elements in two kernels for the sake of float accuracy; ours are
    integers. Without that pass a micro-step takes 22-28 % less time.

    `is_large`: a machine of many parts (memory tiers). At level 3 LLVM unrolls its some 400 short loops until that
    is more code than the core's caches hold; at level 2 it unrolls less (docs/decisions/0006).
    """
    import jax

    if jax.default_backend() != "cpu":
        return {}
    # The level is said, or XLA_FLAGS would choose it.
    return {"xla_backend_optimization_level": 2 if is_large else 3, **_NO_TREES, **_native_loop_options()}


def quick_compiler_options() -> dict[str, str | bool | int]:
    """XLA options of a program that runs for a moment: on a CPU one native loop, without LLVM's optimisation.

    It compiles in a fifth of the time, runs a tenth as fast, and gives the same integers; float32 sums may differ in
    the last bit (measured: docs/decisions/0002).
    """
    import jax

    if jax.default_backend() != "cpu":
        return {}
    return {"xla_backend_optimization_level": 0, **_NO_TREES, **_native_loop_options()}


@functools.cache
def _native_loop_options() -> dict[str, str | bool]:
    """What makes the machine's loop fit to become a native function, where XLA has been asked for those.

    XLA's newer fusion emitters keep scatters, which rule it out; the older ones turn them into loops, but are slower
    without. JAX 0.11 and later have only the newer ones.
    """
    import jax
    import jax.numpy as jnp

    def count_to_nine(x):
        return jax.lax.fori_loop(0, 9, lambda _, y: y + 1, x)

    options: dict[str, str | bool] = {"xla_cpu_use_fusion_emitters": False}
    try:
        program = jax.jit(count_to_nine).lower(jnp.zeros(1 << 20, jnp.int32)).compile(compiler_options=options)
    except jax.errors.JaxRuntimeError:  # no such option
        return {}
    return options if "xla_cpu_small_call" in (program.as_text() or "") else {}


def shard_map(function: Callable[..., Any], mesh: Any, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`jax.shard_map` without checks of replication, with a partitioner that does not crash.

    Shardy, the default one, ends the process of JAX 0.11 with a segmentation fault (0.11.2, in
    ManualComputationUnusedInputsPattern, on programs with unused or empty inputs; 0.10 and 0.12 are well). There
    the older GSPMD is chosen, for all of the process, unless the user has set ``JAX_USE_SHARDY_PARTITIONER``.
    """
    import jax

    if jax.__version_info__[:2] == (0, 11) and "JAX_USE_SHARDY_PARTITIONER" not in os.environ:
        jax.config.update("jax_use_shardy_partitioner", False)
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
