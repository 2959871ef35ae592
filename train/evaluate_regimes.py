"""``python -m train.evaluate CONFIG [--runs a,b] [--out FOLDER]``: learned policies against rules, on several regimes.

CONFIG is an evaluation (configs/evaluate/agents.yaml): regimes, rules and learned policies, each of these the runs of
one training with several seeds. All run on the same evaluation seeds, which lie below all that training used. Writes
``evaluation.md``, ``evaluation.html`` and, with every number per seed, ``evaluation.json``. What has been simulated is
kept in ``parts/``: the same command goes on where it was cut off.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxsched.errors import UserError

#: Lanes between two savings of what is done.
LANES = 8

if TYPE_CHECKING:
    from jaxsched.policies.base import Policy
    from jaxsched.report.evaluation import Regime, Table
    from jaxsched.scenario import Scenario
    from train.evaluate_config import EvaluateConfig, RegimeSection


def run(arguments: Sequence[str]) -> int:
    """The command."""
    from jaxsched.config import split_overrides

    parser = argparse.ArgumentParser(
        prog="python -m train.evaluate", description="Learned policies against rules.", allow_abbrev=False
    )
    parser.add_argument("config", help="an evaluation, e.g. configs/evaluate/agents.yaml")
    parser.add_argument("--runs", help="run folders, comma-separated, instead of the configuration's learned policies")
    parser.add_argument("--regimes", help="names, comma-separated: only these")
    parser.add_argument("--seeds", type=int, help="evaluation seeds of every regime, at most")
    parser.add_argument("--only-done", action="store_true", help="report what has been simulated; simulate nothing")
    parser.add_argument("--traces", help="folder of public traces (default: shared/traces beside the clone)")
    parser.add_argument("--out", default="results/evaluation", help="folder (default: results/evaluation)")
    overrides, rest = split_overrides(list(arguments))
    options = parser.parse_args(rest)

    from jaxsched.files import check_writable
    from train.evaluate_config import load

    folder = Path(options.out)
    check_writable(folder / "evaluation.md")
    config = load(options.config, overrides)
    if options.runs is not None:
        runs = [Path(run.strip()) for run in options.runs.split(",") if run.strip()]
        config = config.with_runs({"learned": runs})
    chosen = _chosen(config, options.regimes)
    if options.seeds is not None:
        if options.seeds < 1:
            raise UserError(f"{options.seeds} seeds", where="option --seeds", expected="1 or more")
        chosen = [r.model_copy(update={"seeds": min(r.seeds, options.seeds)}) for r in chosen]

    from jaxsched.cli import configure_jax

    configure_jax()
    command = shlex.join(["python", "-m", "train.evaluate", *arguments])
    evaluate(config, chosen, folder, command=command, traces=_traces(options.traces), only_done=options.only_done)
    return 0


def evaluate(
    config: EvaluateConfig, regimes: Sequence[RegimeSection], folder: Path, *, command: str, traces: Path,
    only_done: bool = False,
) -> None:  # fmt: skip
    """Run what is missing in `folder` (`only_done`: leave it out, and say so), and write the report."""
    from jaxsched.comparison import versions
    from jaxsched.files import write_atomic
    from jaxsched.report.evaluation import Page, tables, to_html, to_markdown

    prepared, notes = [], []
    for regime in regimes:  # everything is read and checked before the first run
        if regime.trace is not None and not (traces / regime.trace).exists():
            notes.append(f"{regime.name} was not run: no {traces / regime.trace} (option --traces)")
            continue
        prepared.append((regime, *prepare(config, regime, traces)))
    done: list[Regime] = []
    for regime, scenario, policies in prepared:
        if only_done:
            policies, missing = _done(regime, scenario, policies, folder / "parts")
            notes += [f"{regime.name}: {name} was not run" for name in missing]
            if not any(name in policies for name in config.learned):
                continue
        found, warnings = _run_regime(config, regime, scenario, policies, folder / "parts")
        done.append(found)
        notes += [f"{regime.name}, {text}" for text in warnings]
    shown = tables(done, config.reference, config.bound, confidence=config.confidence, tie=config.tie)
    if (training := _training(config)) is not None:
        shown.append(training)
    about = versions()
    page = Page(
        title=config.name, lead=config.description, command=command, versions=about, config_yaml=config.to_yaml(),
        notes=tuple(notes), facts=(("regimes", str(len(done))), ("intervals", f"{config.confidence:.0%}")),
    )  # fmt: skip
    data = {
        "command": command, "versions": about, "config": config.to_dict(), "notes": notes,
        "regimes": {r.name: {"seeds": r.found.seeds, "metrics": _lists(r.found.metrics)} for r in done},
    }  # fmt: skip
    text = to_markdown(page, shown)
    write_atomic(folder / "evaluation.md", text.encode())
    write_atomic(folder / "evaluation.html", to_html(page, shown).encode("utf-8", errors="xmlcharrefreplace"))
    write_atomic(folder / "evaluation.json", (json.dumps(data) + "\n").encode())
    print(text)


# --- Reading and checking ------------------------------------------------------------------------------------------


def _chosen(config: EvaluateConfig, names: str | None) -> list[RegimeSection]:
    if names is None:
        return list(config.regimes)
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    known = {regime.name: regime for regime in config.regimes}
    for name in wanted:
        if name not in known:
            raise UserError(f"unknown regime {name!r}", where="option --regimes", expected=f"one of {', '.join(known)}")
    return [known[name] for name in wanted]


def _traces(given: str | None) -> Path:
    if given is not None:
        return Path(given).expanduser()
    return Path(os.environ.get("JAXSCHED_SHARED", str(Path(__file__).resolve().parents[2] / "shared"))) / "traces"


def prepare(config: EvaluateConfig, regime: RegimeSection, traces: Path) -> tuple[Scenario, dict[str, list[Policy]]]:
    """The regime's scenario and its policies, rules first; a learned one is as many as it was trained times."""
    from jaxsched.scenario import from_config, policy_from_config

    comparison = config.comparison(regime, traces)
    scenario = from_config(comparison)
    sections = comparison.policies()
    added = f"+{regime.part}" if regime.part else ""
    with_part = lambda section, name: section.model_copy(update={"scheduler": f"{name}{added}"})
    policies = {
        name: [policy_from_config(comparison, name, with_part(section, section.scheduler))]
        for name, section in sections.items()
    }
    for name, runs in config.runs().items():
        members = [policy_from_config(comparison, str(run), with_part(comparison.policy, run)) for run in runs]
        if len({member.scheduler.spec for member in members}) != 1 or members[0].scheduler.weights is None:
            raise UserError(f"{len(runs)} runs with different networks", where=f"learned policy {name}",
                            expected="runs of one training with different seeds")  # fmt: skip
        policies[name] = members
    for members in policies.values():
        scenario.check(members[0])
    return scenario, policies


def _training(config: EvaluateConfig) -> Table | None:
    """Curves of the runs that have their log with them."""
    from jaxsched.report.evaluation import curves

    points, exported = {}, {}
    for name, runs in config.runs().items():
        for run in runs:
            log, about = run / "metrics.jsonl", run / "policy.json"
            if not log.is_file():
                continue
            rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
            label = f"{name}, {run.name}"
            points[label] = [(r["generation"], r["validation"]) for r in rows if "validation" in r]
            if about.is_file():
                exported[label] = json.loads(about.read_text())["training"].get("generation", "")
    return curves(points, exported)


# --- Running -------------------------------------------------------------------------------------------------------


def _run_regime(
    config: EvaluateConfig, regime: RegimeSection, scenario: Scenario, policies: dict[str, list[Policy]], parts: Path
) -> tuple[Regime, list[str]]:
    from jaxsched.evaluation import Evaluation
    from jaxsched.report.evaluation import Regime

    seeds = scenario.lane_seeds(regime.seeds)
    metrics, warnings = {}, []
    for name, members in policies.items():
        rows = [run_part(regime, scenario, name, member, seeds, parts) for member in members]
        kept = [m for m in rows[0][0]["metrics"] if all(m in cell["metrics"] for row in rows for cell in row)]
        metrics[name] = {m: np.asarray([[cell["metrics"][m] for cell in row] for row in rows]) for m in kept}
        warnings += dict.fromkeys(f"{name}: {text}" for row in rows for cell in row for text in cell["warnings"])
        others = sum(cell["source"] != _source() for row in rows for cell in row)
        if others:
            warnings.append(f"{name}: {others} of {len(rows) * len(seeds)} runs by another version of the sources")
    bounds = tuple(name for name, members in policies.items() if members[0].scheduler.is_bound)
    found = Evaluation(tuple(seeds), metrics, tuple(warnings))
    return Regime(regime.name, regime.role, found, tuple(config.learned), bounds, regime.note), warnings


def _done(
    regime: RegimeSection, scenario: Scenario, policies: dict[str, list[Policy]], parts: Path
) -> tuple[dict[str, list[Policy]], list[str]]:
    """Policies all of whose seeds have been simulated, and the names of the others."""
    seeds = {str(seed) for seed in scenario.lane_seeds(regime.seeds)}

    def complete(name: str, policy: Policy) -> bool:
        path = _path(parts, name, scenario, policy)
        return path.is_file() and seeds <= set(json.loads(path.read_text(encoding="utf-8"))["seeds"])

    kept = {name: members for name, members in policies.items() if all(complete(name, m) for m in members)}
    return kept, [name for name in policies if name not in kept]


def _path(parts: Path, name: str, scenario: Scenario, policy: Policy) -> Path:
    return parts / f"{_plain(name)}__{part_key(scenario, policy)}.json"


def run_part(
    regime: RegimeSection, scenario: Scenario, name: str, policy: Policy, seeds: list[int], folder: Path
) -> list[dict[str, Any]]:
    """One policy on one regime, by seed: what its file has, and what it does not have simulated now."""
    from jaxsched.evaluation import run_policy
    from jaxsched.files import write_atomic

    path = _path(folder, name, scenario, policy)
    part: dict[str, Any] = {"regime": regime.name, "policy": name, "run": policy.name, "seeds": {}}
    if path.is_file():
        part = json.loads(path.read_text(encoding="utf-8"))
    known = part["seeds"]
    missing = [seed for seed in seeds if str(seed) not in known]
    begun = time.perf_counter()
    for some, metrics, warnings in run_policy(scenario, policy, missing, at_a_time=LANES):
        for i, seed in enumerate(some):
            values = {metric: float(column[i]) for metric, column in metrics.items()}
            known[str(seed)] = {"metrics": values, "warnings": warnings, "source": _source()}
        write_atomic(path, (json.dumps(part) + "\n").encode())
    rows = [known[str(seed)] for seed in seeds]
    if missing:
        mean = np.mean([row["metrics"]["jct_mean_s"] for row in rows])
        print(f"{regime.name}: {name}, mean JCT {mean:.4g} s ({time.perf_counter() - begun:.0f} s)", flush=True)
    return rows


def part_key(scenario: Scenario, policy: Policy) -> str:
    """Names what is simulated: the scenario, and the policy with its numbers.

    What a configuration leaves at its default does not count, so an option that a later version adds changes no name.
    """
    setting = scenario.config.model_dump(mode="json", exclude_defaults=True)
    for field in ("name", "description", "compare", "policy"):
        setting.pop(field, None)
    if setting.get("workload", {}).get("path"):
        setting["workload"]["path"] = Path(setting["workload"]["path"]).name
    scheduler = policy.scheduler
    rule = "learned" if scheduler.weights is not None else scheduler.spec.name
    parts = "offload" if scheduler.spec.offload is not None else ""
    data = [setting, rule, parts, policy.router.name, policy.settings(), scheduler.weights, scheduler.sees_true_length]
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]


def _source() -> str:
    """Of the package's sources: a part simulated by others is used, and said to be so."""
    digest = hashlib.sha256()
    root = Path(__file__).resolve().parents[1] / "jaxsched"
    for path in sorted([*(root / "sim").rglob("*.py"), *(root / "retention").rglob("*.py"),
                        *(root / "workloads").rglob("*.py"), *(root / "timing").rglob("*.py")]):  # fmt: skip
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c in "+.-" else "_" for c in name)


def _lists(metrics: Mapping[str, Any]) -> Any:
    return {
        name: _lists(values) if isinstance(values, dict) else np.asarray(values).tolist()
        for name, values in metrics.items()
    }
