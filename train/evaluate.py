"""``python -m train.evaluate CONFIG --runs runs/a,runs/b [--seeds N] [--out FOLDER]``: learned policies against rules.

CONFIG is an evaluation over several regimes (configs/evaluate/agents.yaml: train/evaluate_regimes.py has what it does),
or a comparison (configs/compare/agents.yaml); the runs are the same training with different seeds. Every policy
of the configuration and the learned one run on the same evaluation seeds (those of the configuration: below all that
training used), at each of its loads. Writes ``evaluation.md`` and, with every number per seed, ``evaluation.json``.
The HTML report of one run: ``jaxsched compare CONFIG --policies ...,runs/a``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxsched.errors import UserError
from train.entry import entry_point


@entry_point("interrupted; the same command goes on from there")
def main(arguments: Sequence[str]) -> int:
    """Entry point. Exit codes: 0 done, 2 the user's mistake, 130 interrupted."""
    arguments = list(arguments)
    if _has_regimes(arguments):
        from train.evaluate_regimes import run

        return run(arguments)
    return _compare(arguments)


def _has_regimes(arguments: list[str]) -> bool:
    """Whether the configuration lists regimes (train/evaluate_regimes.py) or is one comparison."""
    from jaxsched.config.source import read_with_bases

    paths = [Path(a) for a in arguments if a.endswith((".yaml", ".yml")) and not a.startswith("-")]
    return bool(paths) and paths[0].is_file() and "regimes" in read_with_bases(paths[0]).data


def _compare(arguments: list[str]) -> int:
    from jaxsched.config import split_overrides

    parser = argparse.ArgumentParser(
        prog="python -m train.evaluate", description="Learned policies against rules.", allow_abbrev=False
    )
    parser.add_argument("config", help="a comparison, e.g. configs/compare/agents.yaml")
    parser.add_argument("--runs", required=True, help="comma-separated run folders: one training, several seeds")
    parser.add_argument("--out", default="results/evaluation", help="folder (default: results/evaluation)")
    overrides, rest = split_overrides(arguments)
    options = parser.parse_args(rest)

    from jaxsched.files import check_writable, write_atomic

    folder = Path(options.out)
    check_writable(folder / "evaluation.md")
    from jaxsched.cli import configure_jax

    configure_jax()
    from jaxsched.comparison import versions
    from jaxsched.config import load_compare
    from jaxsched.evaluation import markdown, run_policies
    from jaxsched.scenario import from_config, policy_from_config

    config = load_compare(options.config, overrides)
    scenario = from_config(config)
    rules: dict[str, Any] = {
        name: policy_from_config(config, name, section) for name, section in config.policies().items()
    }
    runs = [run.strip() for run in options.runs.split(",") if run.strip()]
    learned = [policy_from_config(config, run, config.policy.model_copy(update={"scheduler": run})) for run in runs]
    sizes = {policy.scheduler.spec for policy in learned}
    if not learned or len(sizes) != 1 or learned[0].scheduler.weights is None:
        raise UserError(f"{len(runs)} runs with {len(sizes)} networks", where="option --runs",
                        expected="runs of one training with different seeds")  # fmt: skip
    seeds = scenario.lane_seeds(config.compare.seeds)
    if config.compare.capacity == "auto":
        raise UserError("compare.capacity is auto", where=options.config, expected="a number: what load 1 means")
    metric = "service_gap_tokens" if scenario.tenants else "jct_mean_s"
    if config.compare.metric == "goodput_per_s":
        metric = config.compare.metric
    parts, data = [], {"seeds": seeds, "runs": runs, "versions": versions(), "config": config.to_dict(), "loads": {}}
    for load in config.compare.loads:
        rate = load * float(config.compare.capacity)
        found = run_policies(scenario, {**rules, "learned": learned}, seeds, rate_per_s=rate,
                             say=lambda text: print(text, flush=True))  # fmt: skip
        bounds = [name for name, policy in rules.items() if policy.scheduler.is_bound]
        head = f"Load {load:g} ({rate:.4g} programs/s), {len(seeds)} evaluation seeds, {len(runs)} training seeds"
        parts.append(f"{head}\n\n{markdown(found, 'learned', bounds=bounds, metric=metric)}")
        parts += [f"- {text}\n" for text in found.warnings]
        data["loads"][f"{load:g}"] = {
            name: {metric: values.tolist() for metric, values in metrics.items()}
            for name, metrics in found.metrics.items()
        }
    text = f"# {config.name}\n\n" + "\n".join(parts)
    write_atomic(folder / "evaluation.md", text.encode())
    write_atomic(folder / "evaluation.json", (json.dumps(data) + "\n").encode())
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
