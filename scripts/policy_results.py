"""Measure what the plots of docs/policies.md show: every policy against a rival, in a shipped comparison made smaller.

    python scripts/policy_results.py [NAME ...] [--redo]

Writes docs/policies/results.json (`python scripts/catalogue.py` draws it, without simulating) after every policy, and
skips what it already holds. About 25 minutes of one core, mostly compiling. What is smaller: SEEDS seeds, at most
PROGRAMS (SESSIONS of several turns) programs per lane, three arrival rates. Rates are in programs per second: multiples
of the comparison's capacity where it gives one, or of `MEASURED`, else of the scenario's own rate.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from catalogue import ROOT, names, parts_of

from jaxsched import simulation
from jaxsched.config import load_compare
from jaxsched.errors import UserError
from jaxsched.scenario import from_config, policy_from_config
from jaxsched.xla import quick_compiler_options

RESULTS = ROOT / "docs" / "policies" / "results.json"
SEEDS, PROGRAMS, SESSIONS, JOBS = 4, 300, 60, 150
#: Multiples where a comparison has less than two loads.
LOADS = (0.6, 1.0, 1.4)
#: Load 1 of comparisons that let the saturation finder look for it, programs per second (docs/reproductions.md).
MEASURED = {
    "deadlines": 18.9, "past_future_uniform": 0.353, "priorities": 2.95, "regimes_swe": 0.101, "routing": 19.8,
    "semantic_cache": 13.6, "speculative": 7.4,
}  # fmt: skip
#: Where a policy is shown, and which row against which, where that is not the first comparison that runs it, its row
#: with the fewest parameters against the baseline.
SHOWN_IN = {
    "vllm": "demo", "vllm-priority": "priorities", "sjf": "code_bursty", "srpt": "code_bursty", "mlfq": "code_bursty",
    "ewsjf": "code_bursty", "sarathi": "demo", "vllm-v0": "demo", "static": "demo",
    "pfcfs": "continuum", "continuum": "continuum", "gittins": "continuum", "plas": "autellix",
    "aggressive": "past_future_uniform", "past_future": "past_future_uniform", "conservative": "past_future_uniform",
    "fastswitch": "fastswitch_unshared", "vllm_swap": "fastswitch_unshared/vllm_swap/recompute",
    "srpt_program": "regimes_swe", "vtc": "fairness", "vtc-predict": "fairness", "vtc-oracle": "fairness",
    "wfq": "fairness", "drr": "fairness", "edd": "deadlines", "edf": "deadlines", "mdd": "deadlines",
    "slack": "deadlines", "atc": "deadlines", "batchllm": "batch_inference",
    "+clair": "regimes_swe", "+gate": "continuum/continuum+gate/continuum", "+offload": "retention_rules",
    "+prefetch": "prefetch", "+peak": "regimes_swe", "+early_reject": "deadlines/fcfs + early rejection",
    "+spec": "speculative/fixed 4", "least_kv": "routers",
}  # fmt: skip
#: Of the few that want other sizes: the first 200 answers of a history are the prior of `past_future`.
SIZES = {"past_future_uniform": 400, "rollouts": 32}


def chosen(name: str) -> tuple[str, str, str]:
    """Comparison, row of the policy, row of its rival (the baseline, or the first other row)."""
    where, *rows = SHOWN_IN.get(name, "").split("/")
    found = []
    for path in sorted((ROOT / "configs" / "compare").glob("*.yaml")):
        config = load_compare(str(path))
        base = config.compare.baseline
        for choice in config.compare.policies:
            first, *parts = parts_of(choice.scheduler) or [config.policy.scheduler]
            if name not in (first, choice.router or "", *(f"+{part}" for part in parts)):
                continue
            rival = base if choice.name != base else next(p.name for p in config.compare.policies if p.name != base)
            rank = (where != path.stem, rows[:1] != [choice.name], len(choice.params), choice.name == base)
            found.append((*rank, path.stem, choice.name, rows[1] if len(rows) > 1 else rival))
    if not found:
        raise UserError(f"no comparison runs {name}", expected="a row in configs/compare")
    return min(found)[4:]


class Runs:
    """Results of rows of comparisons, each run once."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str], dict[str, Any]] = {}

    def __call__(self, comparison: str, row: str) -> dict[str, Any]:
        if (comparison, row) not in self.known:
            self.known[comparison, row] = measured(comparison, row)
        return self.known[comparison, row]


def measured(comparison: str, row: str) -> dict[str, Any]:
    """The deciding metric of one row, per rate and seed."""
    path = str(ROOT / "configs" / "compare" / f"{comparison}.yaml")
    config = load_compare(path)
    scenario = from_config(config)
    most = SIZES.get(comparison) or (JOBS if scenario.is_job_list else SESSIONS if scenario.max_turns > 1 else PROGRAMS)
    num = min(int(config.workload.num_requests or most), most)
    config = load_compare(path, {"workload.num_requests": num})
    scenario, section = from_config(config), config.compare
    given = section.capacity if isinstance(section.capacity, float) else MEASURED.get(comparison)
    unit = given or scenario.rate_per_s
    loads = section.loads if len(section.loads) > 1 else list(LOADS)
    loads = loads if len(loads) <= 3 else [loads[0], loads[len(loads) // 2], loads[-1]]
    loads = [1.0] if scenario.is_job_list or scenario.rounds is not None else loads
    policy = policy_from_config(config, row, config.policies()[row])
    start = time.monotonic()
    results = simulation.rollouts(scenario, policy, SEEDS, [unit * load for load in loads])
    values = [[float(f"{v:.5g}") for v in result.metrics[section.metric]] for result in results]
    print(f"{comparison}, {row}: {time.monotonic() - start:.0f} s", flush=True)
    warnings = sorted({text for result in results for text in result.warnings()})
    return {
        "metric": section.metric, "unit": "capacity" if given else "the scenario's rate", "values": values,
        "rates_per_s": [float(f"{unit * load:.4g}") for load in loads], "num_programs": num, "warnings": warnings,
    }  # fmt: skip


def main(arguments: list[str]) -> int:
    simulation.compiler_options = lambda is_large=False: quick_compiler_options()  # runs of a moment, many programs
    RESULTS.parent.mkdir(exist_ok=True)
    data = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"policies": {}}
    git = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    data["made"] = {
        "command": "python scripts/policy_results.py", "commit": git.stdout.strip(), "seeds": SEEDS,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores", "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    runs = Runs()
    for name in [a for a in arguments if not a.startswith("-")] or names():
        if name in data["policies"] and "--redo" not in arguments:
            continue
        comparison, row, rival = chosen(name)
        own, other = runs(comparison, row), runs(comparison, rival)
        data["policies"][name] = {
            "comparison": comparison, "row": row, "rival": rival, **own, "rival_values": other["values"],
            "rival_warnings": other["warnings"],
        }  # fmt: skip
        temporary = RESULTS.with_suffix(".tmp")
        temporary.write_text(json.dumps(data, indent=1) + "\n")
        temporary.replace(RESULTS)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
