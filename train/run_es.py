"""``python -m train CONFIG`` for ``algo.kind: es``: read, check, search, and write the run folder.

``runs/<name>`` gets ``config.yaml`` (every default filled in), ``metrics.jsonl`` (a line per generation), and the
policy as ``policy.msgpack`` and ``policy.json``, anew whenever the validation improves: a stopped run leaves its best.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxsched.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Exit codes: 0 done, 2 the user's mistake, 130 interrupted."""
    from jaxsched.config import split_overrides

    try:
        overrides, rest = split_overrides(list(sys.argv[1:] if argv is None else argv))
        if len(rest) != 1 or rest[0].startswith("-"):
            raise UserError(f"found {' '.join(rest) or 'no arguments'}", expected="CONFIG [--set FIELD=VALUE ...]")
        return run(rest[0], overrides)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; the best policy so far is in the run folder", file=sys.stderr)
        return 130


def run(path: str, overrides: Sequence[str]) -> int:
    """Train as a configuration says."""
    from jaxsched.files import check_writable, write_atomic
    from train.es_config import load

    config = load(path, overrides)
    folder = Path(config.run.folder).expanduser() / config.name
    check_writable(folder / "metrics.jsonl")

    from jaxsched.cli import configure_jax

    configure_jax()
    from jaxsched.checkpoint import save_policy
    from jaxsched.policies.learned import describe
    from jaxsched.scenario import from_config
    from train.index_policy import train

    scenario, plan = from_config(config), config.plan()
    assert scenario.policy is not None
    write_atomic(folder / "config.yaml", config.to_yaml().encode())
    about = {"workload": scenario.workload.name, "config": config.to_dict()}
    best = float("inf")
    with open(folder / "metrics.jsonl", "w", encoding="utf-8") as metrics:

        def log(entry: dict[str, Any]) -> None:
            nonlocal best
            metrics.write(json.dumps(entry) + "\n")
            metrics.flush()
            value = entry.get("validation")
            if value is None:
                return
            print(f"generation {entry['generation']}: validation {value:.4f} (mean log of the mean JCT in s), "
                  f"{entry['wall_s']:.0f} s", flush=True)  # fmt: skip
            if value < best:
                best = value
                training = {"algo": "es", "generation": entry["generation"], "seed": plan.seed, "validation": value}
                weights = {"weights": to_float32(entry["weights"])}
                save_policy(folder, weights, network=describe(plan.hidden), scenario=about, training=training)

        found = train(plan, scenario, scenario.policy, log)
    print(f"{config.name}: {found.generations} generations ({found.stopped}), "
          f"validation {found.validation:.4f}, policy in {folder}")  # fmt: skip
    return 0


def to_float32(values: Sequence[float]) -> Any:
    """As the export keeps weights."""
    import numpy as np

    return np.asarray(values, np.float32)


if __name__ == "__main__":
    sys.exit(main())
