"""Measure what the plots of docs/policies.md show: every policy against a rival, in a shipped comparison made smaller.

    python scripts/policy_results.py [NAME ...] [--redo]
    python scripts/policy_results.py NAME ... --from FOLDER    # a finished `jaxsched compare ... --out FOLDER` instead

Writes docs/policies/results.json (`python scripts/catalogue.py` draws it, without simulating) after every policy, and
skips what it already holds. Minutes to an hour of one core for all, mostly compiling. What is smaller: SEEDS seeds, at
most PROGRAMS (SESSIONS of several turns) programs per lane, three arrival rates (one for sessions). Rates are in
programs per second: multiples of the comparison's capacity where it gives one, or of `MEASURED`, else of the scenario's
own rate.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from catalogue import ROOT, names, parts_of

from jaxsched import simulation
from jaxsched.config import load_compare
from jaxsched.errors import UserError
from jaxsched.files import write_atomic
from jaxsched.scenario import from_config, policy_from_config
from jaxsched.xla import quick_compiler_options

RESULTS = ROOT / "docs" / "policies" / "results.json"
SEEDS, PROGRAMS, SESSIONS, JOBS = 4, 300, 24, 150
#: Multiples where a comparison has less than two loads.
LOADS = (0.6, 1.0, 1.4)
#: ... and where the workload is of sessions: so few of them press on memory only if they come fast.
SESSION_LOADS = (2.0,)
#: Load 1 of comparisons that let the saturation finder look for it, programs per second (docs/reproductions.md).
MEASURED = {
    "deadlines": 18.9, "past_future_uniform": 0.353, "priorities": 2.95, "regimes_swe": 0.101, "routing": 19.8,
    "semantic_cache": 13.6, "speculative": 7.4,
}  # fmt: skip
#: Where a policy is shown, and which row against which, where that is not the first comparison that runs it, its row
#: with the fewest parameters against the baseline.
SHOWN_IN = {
    "vllm": "demo", "vllm-priority": "priorities", "sjf": "code_bursty", "mlfq": "code_bursty",
    "ewsjf": "batch_inference", "sarathi": "demo", "vllm-v0": "demo", "static": "demo",
    "pfcfs": "regimes_mixed", "continuum": "regimes_mixed", "gittins": "regimes_mixed",
    "+ttl": "regimes_mixed", "plas": "autellix",
    "aggressive": "past_future_uniform", "past_future": "past_future_uniform", "conservative": "past_future_uniform",
    "fastswitch": "fastswitch_unshared", "vllm_swap": "fastswitch_unshared/vllm_swap/recompute",
    "srpt_program": "regimes_mixed", "vtc": "fairness", "vtc-predict": "fairness", "vtc-oracle": "fairness",
    "wfq": "fairness", "drr": "fairness", "edd": "deadlines", "edf": "deadlines", "mdd": "deadlines",
    "slack": "deadlines", "atc": "deadlines", "batchllm": "batch_inference", "+april": "rollouts_full",
    "+clair": "regimes_mixed", "+gate": "regimes_mixed/gittins+gate/gittins", "+offload": "retention_rules",
    "+prefetch": "prefetch", "+early_reject": "deadlines/fcfs + early rejection",
    "+peak": "regimes_mixed/srpt_program+clair+peak/srpt_program+clair+gate",
    "+spec": "speculative/fixed 4", "least_kv": "routers",
}  # fmt: skip
#: Of the few that want other sizes: the first 200 answers of a history are the prior of `past_future`.
SIZES = {"past_future_uniform": 400, "rollouts": 32}


def places(name: str) -> list[tuple[str, str, str]]:
    """Comparison, row of the policy, row of its rival (the baseline, or the first other row); the best place first."""
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
    return [each[4:] for each in sorted(found)]


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
    loads = list(SESSION_LOADS) if scenario.max_turns > 1 else loads
    loads = [1.0] if scenario.is_job_list or scenario.rounds is not None else loads
    policy = policy_from_config(config, row, config.policies()[row])
    start = time.monotonic()
    results = simulation.rollouts(scenario, policy, SEEDS, [unit * load for load in loads])
    values = [[float(f"{v:.5g}") for v in result.metrics[section.metric]] for result in results]
    print(f"{comparison}, {row}: {time.monotonic() - start:.0f} s", flush=True)
    warnings = sorted({text for result in results for text in result.warnings()})
    return {
        "metric": section.metric, "values": values,
        "rates_per_s": [float(f"{unit * load:.4g}") for load in loads], "num_programs": num, "warnings": warnings,
    }  # fmt: skip


def finished(folder: Path, name: str) -> dict[str, Any]:
    """The entry of a policy from what `jaxsched compare` wrote."""
    source = folder / "comparison.json"
    outcome = json.loads(source.read_text())
    comparison = re.search(r"configs/compare/(\w+)\.yaml", outcome["command"])
    if comparison is None:
        raise UserError(f"no shipped comparison in {outcome['command']!r}", where=str(source))
    rows = {(row["policy"], row["load"]): row for row in outcome["per_seed"]}
    loads = sorted({load for _, load in rows})
    config = load_compare(str(ROOT / "configs" / "compare" / f"{comparison[1]}.yaml"))
    row, rival = next((row, rival) for place, row, rival in places(name) if place == comparison[1])
    metric = config.compare.metric
    values = {p: [[float(f"{v:.5g}") for v in rows[p, load][metric]] for load in loads] for p in (row, rival)}
    num = re.search(r"--workload\.num_requests (\d+)", outcome["command"])
    rates = [float(f"{load * outcome['capacity_per_s']:.4g}") for load in loads]
    return {
        "comparison": comparison[1], "row": row, "rival": rival, "metric": metric, "rates_per_s": rates,
        "num_programs": int(num[1]) if num else config.workload.num_requests, "seeds": len(values[row][0]),
        "values": values[row], "rival_values": values[rival], "warnings": [],
        "command": outcome["command"].split(" --out")[0], "commit": outcome["versions"].get("git", "not recorded"),
        "date": time.strftime("%Y-%m-%d", time.gmtime(source.stat().st_mtime)),
    }  # fmt: skip


def compared(name: str, runs: Runs, commit: str) -> dict[str, Any]:
    """The entry of a policy, measured now."""
    comparison, row, rival = places(name)[0]
    own, other = runs(comparison, row), runs(comparison, rival)
    return {
        "comparison": comparison, "row": row, "rival": rival, **own, "rival_values": other["values"],
        "warnings": sorted({*own["warnings"], *other["warnings"]}), "seeds": SEEDS,
        "command": f"python scripts/policy_results.py {name}", "commit": commit, "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of policies, as in docs/policies.md; none: all")
    parser.add_argument("--redo", action="store_true", help="also those that the file holds")
    parser.add_argument("--from", dest="folder", type=Path, help="what `jaxsched compare --out` wrote")
    options = parser.parse_args()
    simulation.compiler_options = lambda is_large=False: quick_compiler_options()  # runs of a moment, many programs
    git = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True)
    RESULTS.parent.mkdir(exist_ok=True)
    runs = Runs()
    for name in options.names or names():
        data = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"policies": {}}
        data["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}"
        if name in data["policies"] and not options.redo:
            continue
        entry = finished(options.folder, name) if options.folder else compared(name, runs, git.stdout.strip())
        data["policies"][name] = entry
        write_atomic(RESULTS, (json.dumps(data, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
