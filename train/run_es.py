"""``python -m train CONFIG`` for ``algo.kind: es``: read, check, search, and write the run folder.

``runs/<name>`` gets ``config.yaml`` (every default filled in), ``metrics.jsonl`` (a line per generation), and the
policy as ``policy.msgpack`` and ``policy.json``, anew whenever the validation improves: a stopped run leaves its best.
The search is saved (``state.msgpack``) after every generation; the same command goes on where it stood.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization

from jaxsched.errors import UserError

STATE = "state.msgpack"


def run(path: str, overrides: Sequence[str]) -> int:
    """Train as a configuration says; a run of the same configuration that was cut off goes on where it stood."""
    from jaxsched.files import check_writable, write_atomic
    from train.es_config import load

    config = load(path, overrides)
    folder = Path(config.run.folder).expanduser() / config.name
    check_writable(folder / "metrics.jsonl")

    from jaxsched.cli import configure_jax

    configure_jax()
    from jaxsched.scenario import from_config
    from train import index_policy

    scenario, plan = from_config(config), config.plan()
    assert scenario.policy is not None
    text = config.to_yaml().encode()
    progress = _resumed(folder, text, index_policy.start(plan))
    write_atomic(folder / "config.yaml", text)
    about = {"workload": scenario.workload.name, "config": config.to_dict()}
    _cut(folder / "metrics.jsonl", int(progress.search.generation), fresh=not _begun(progress))
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as metrics:

        def log(entry: dict[str, Any], progress: index_policy.Progress) -> None:
            metrics.write(json.dumps(entry) + "\n")
            metrics.flush()
            if "validation" in entry:
                print(f"generation {entry['generation']}: validation {entry['validation']:.4f} "
                      f"(mean log cost), {entry['wall_s']:.0f} s", flush=True)  # fmt: skip
                if int(progress.best_generation) == entry["generation"]:
                    _export(folder, progress, plan, about)
            write_atomic(folder / STATE, serialization.to_bytes(_storable(progress)))

        progress = index_policy.train(plan, scenario, scenario.policy, progress, log)
    print(f"{config.name}: {int(progress.search.generation)} generations, validation "
          f"{float(progress.best_validation):.4f}, policy in {folder}")  # fmt: skip
    return 0


def _export(folder: Path, progress: Any, plan: Any, about: dict[str, Any]) -> None:
    """The best mean as a published policy."""
    from jaxsched.checkpoint import save_policy
    from jaxsched.policies.learned import describe

    training = {
        "algo": "es",
        "generation": int(progress.best_generation),
        "seed": plan.seed,
        "validation": float(progress.best_validation),
    }
    weights = {"weights": np.asarray(progress.best)}
    save_policy(folder, weights, network=describe(plan.hidden, plan.network), scenario=about, training=training)


def _begun(progress: Any) -> bool:
    return bool(np.isfinite(float(progress.best_validation)))


def _storable(progress: Any) -> Any:
    """Without the key, which the seed gives again."""
    return progress.replace(search=progress.search.replace(key=None))


def _resumed(folder: Path, config: bytes, fresh: Any) -> Any:
    """Where the run of this configuration in the folder stood; `fresh` if there is none."""
    state, own = folder / STATE, folder / "config.yaml"
    if own.exists() and own.read_bytes() != config:
        raise UserError(
            "holds a run of another configuration",
            where=str(folder),
            expected="a new name (--set name=...), or the run's own configuration, which goes on",
        )
    if not state.exists():
        return fresh
    try:
        found = serialization.from_bytes(_storable(fresh), state.read_bytes())
    except Exception as error:
        raise UserError(
            f"cannot be read ({error})",
            where=str(state),
            expected="the state that this version wrote",
            hint="Remove it to start anew.",
        ) from None
    found = jax.tree.map(jnp.asarray, found)
    return found.replace(search=found.search.replace(key=fresh.search.key))


def _cut(metrics: Path, generation: int, *, fresh: bool) -> None:
    """Leave the lines up to that generation: the last ones of a run may be ahead of its state."""
    lines = [] if fresh or not metrics.exists() else metrics.read_text(encoding="utf-8").splitlines()
    kept = []
    for line in lines:
        try:
            if json.loads(line)["generation"] <= generation:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError):  # cut off while it was written
            break
    from jaxsched.files import write_atomic

    write_atomic(metrics, "".join(kept).encode())
