"""Write docs/policies.md: every policy, what it decides, its source, what is faithful and simplified, what runs it.

    python scripts/catalogue.py [--check]

From the registry (jaxsched/policies), docstrings and shipped configurations, and one plot per policy from
docs/policies/results.json (scripts/policy_results.py measures it); `--check` only says whether page and plots are up to
date (exit code 1 if not).
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import sys
from pathlib import Path
from typing import Any

import policy_plots
import yaml

from jaxsched import policies
from jaxsched.catalogue import LISTS
from jaxsched.policies.base import Compression, Retention, Router, Scheduler
from jaxsched.policies.offload import Offload
from jaxsched.report.metrics import label

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "policies.md"
PLOTS = ROOT / "docs" / "policies"
RESULTS = PLOTS / "results.json"
ENTRIES = (Scheduler, Retention, Router, Offload, Compression)
PARTS = {
    policies.GATE: ("jaxsched.retention.gate", "admission of new programs"),
    policies.PEAK: ("jaxsched.policies.clairvoyant", "admission of new programs (a bound)"),
    policies.EARLY_REJECT: ("jaxsched.policies.early_reject", "rejection"),
    policies.APRIL: ("jaxsched.policies.april", "over-provisioning of rounds of rollouts"),
    policies.PREFIX_GROUPS: ("jaxsched.policies.batchllm", "order of a job list"),
    policies.SEMANTIC_CACHE: ("jaxsched.policies.semantic_cache", "answers without the engine"),
    "spec": ("jaxsched.policies.spec_fixed", "draft length"),
    "specdec": ("jaxsched.policies.specdec", "draft length"),
    "spec_goodput": ("jaxsched.policies.spec_goodput", "draft length"),
}
HEAD = """# Policies
Every policy of `jaxsched list policies`: what it decides, where it comes from, what of the original is kept. Written
by `python scripts/catalogue.py` from the code and the configurations; edit those. A policy is a scheduler, then in any
order a retention rule, parts and a router, joined by "+": `continuum+gate+program_sticky`. Semantics, rule by rule:
docs/semantics.md; published effects: docs/reproductions.md; learned policies: docs/index_policies.md.

The plots show a row of a shipped comparison against its baseline or another row, from docs/policies/results.json, which
holds every number with its command and seeds, and the commit where it was recorded. They are pictures of what a policy
does, on one workload, often smaller than the comparison (it is said below each): two dozen agents hardly press on
memory, so that rules of retention tie there. A part is shown in a composition that has it; where the rival lacks more
than the part (`+ttl`, `+clair`, `srpt_program` against plain vllm), so does the difference. Effects to rely on are in
docs/reproductions.md.
"""


def _modules() -> dict[int, str]:
    """Entry (by identity) -> module that defines it; the deepest wins."""
    found: dict[int, str] = {}
    for info in pkgutil.walk_packages(policies.__path__, "jaxsched.policies."):
        if info.ispkg:
            continue
        for value in vars(importlib.import_module(info.name)).values():
            for entry in value.values() if isinstance(value, dict) else [value]:
                if isinstance(entry, ENTRIES):
                    found.setdefault(id(entry), info.name)
    return found


def _honesty(text: str) -> str:
    """The sentences "Faithful ..." and "Simplified ..." of a docstring, or ""."""
    paragraph = re.search(r"(?:^|(?<=\s))((?:Faithful|Simplified).*?)(?=\n\s*\n|\Z)", text, re.DOTALL)
    return " ".join(paragraph.group(1).split()) if paragraph else ""


def _rule(text: str) -> str:
    """The paragraph "Rule: ..." of a docstring without what follows it, or ""."""
    found = re.search(
        r"Rule:\s*(.*?)(?=\n\s*\n|\n(?:Faithful|Simplified)|\s(?:Faithful|Simplified):|\Z)", text, re.DOTALL
    )
    return " ".join(found.group(1).split()) if found else ""


def _decides(entry: Any) -> str:
    """The decision heads of an entry."""
    if isinstance(entry, Router):
        sees = {"none": "", "cache": ", sees the prefix caches", "record": ", remembers what it sent"}[
            entry.reads_cache
        ]
        return f"route{sees}"
    if isinstance(entry, Retention):
        order = ", the order in which contexts are evicted" if entry.head.value is not None else ""
        return "retain" + order + (", offload" if entry.offload is not None else "")
    if isinstance(entry, Compression):
        return "compress"
    if isinstance(entry, Offload):
        return "offload"
    spec = entry.spec
    heads = [
        (spec.family != "v1", f"batch formation ({spec.family})"),
        (spec.order is not None, "order"),
        (spec.preemptive, "preempt"),
        (spec.priority_victims, "victims"),
        (spec.retain is not None, "retain"),
        (spec.admit is not None, "admit"),
        (spec.offload is not None, "offload"),
    ]
    named = [name for is_on, name in heads if is_on] or ["batch formation (v1)"]
    return ", ".join(named) + ("; a bound: knows what no engine can" if entry.is_bound else "")


def parts_of(*names: str | None) -> list[str]:
    """Every part of a policy's name: ``("gittins+gate", "random")`` has three."""
    return [part for name in names if name for part in name.split("+")]


def names() -> list[str]:
    """Every entry of the page, in its order; parts with the "+" before them."""
    parts = (policies.RETENTIONS, policies.OFFLOADS, policies.COMPRESSIONS, PARTS)
    return [*policies.SCHEDULERS, *(f"+{name}" for table in parts for name in table), *policies.ROUTERS]


def _configurations() -> dict[str, list[str]]:
    """Part of a policy's name -> comparisons that run it."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "configs" / "compare").glob("*.yaml")):
        listed = (yaml.safe_load(path.read_text()).get("compare") or {}).get("policies") or []
        for item in listed:
            row = {"scheduler": item} if isinstance(item, str) else item
            for part in parts_of(row.get("scheduler"), row.get("router")):
                if path.name not in found.setdefault(part, []):
                    found[part].append(path.name)
    return found


def _shown(name: str, entry: dict[str, Any] | None) -> list[str]:
    """The plot of a policy and what it is of."""
    if entry is None:
        return ["No plot yet: `python scripts/policy_results.py`."]
    sizes = f"{entry['num_programs']} programs, {entry['seeds']} seeds"
    said = f" {' '.join(entry['warnings'])}" if entry["warnings"] else ""
    return [
        f"![{name}: {label(entry['metric'])}](policies/{policy_plots.file_name(name)})",
        f"Shown: `{entry['row']}` against `{entry['rival']}` of `configs/compare/{entry['comparison']}.yaml`, "
        f"{sizes} (`{entry['command']}`, {entry['date']}, commit {entry['commit']}).{said}",
    ]


def _entry(
    name: str, summary: str, decides: str, source: str, text: str, runs: list[str], shown: dict[str, Any]
) -> str:
    lines = [f"### `{name}`", f"{summary}.", f"Decides: {decides}. Source: {source}."]
    lines += [f"Rule: {rule}"] if (rule := _rule(text)) else []
    lines += [honesty] if (honesty := _honesty(text)) else []
    some = ", ".join(f"`configs/compare/{file}`" for file in runs[:4])
    lines.append(f"Runs in: {some}{' and others' if len(runs) > 4 else ''}." if runs else "Runs in: no comparison yet.")
    lines += _shown(name, shown.get(name))
    return "\n\n".join(lines)


def page() -> str:
    """The text of docs/policies.md."""
    modules, configs, shown = _modules(), _configurations(), results()

    def text_of(entry: Any) -> str:
        module = importlib.import_module(modules[id(entry)])
        if isinstance(entry, Router) and modules[id(entry)].endswith(".routers"):
            return entry.route.__doc__ or ""
        return module.__doc__ or ""

    def section(title: str, table: dict[str, Any], prefix: str = "") -> list[str]:
        return [f"## {title}"] + [
            _entry(
                prefix + name,
                entry.summary,
                _decides(entry),
                entry.source,
                text_of(entry),
                configs.get(name, []),
                shown,
            )
            for name, entry in table.items()
        ]  # fmt: skip

    parts = ["## Parts for any scheduler of the V1 engine"]
    for name, (module, decides) in PARTS.items():
        text = importlib.import_module(module).__doc__ or ""
        summary, source = _listed(name)
        parts.append(_entry(f"+{name}", summary, decides, source, text, configs.get(name, []), shown))
    return "\n\n".join([
        HEAD.rstrip(),
        *section("Schedulers", policies.SCHEDULERS),
        *section("Retention rules", policies.RETENTIONS, "+"),
        *section("Copies to host memory", policies.OFFLOADS, "+"),
        *section("KV compression", policies.COMPRESSIONS, "+"),
        *parts,
        *section("Routers", policies.ROUTERS),
    ]) + "\n"  # fmt: skip


def _listed(part: str) -> tuple[str, str]:
    """Summary and source of a part as `jaxsched list policies` shows it."""
    row = next(row for row in LISTS["policies"]() if str(row["name"]).endswith(f"+{part}"))
    return str(row["summary"]), str(row["source"])


def results() -> dict[str, Any]:
    """Policy -> what its plot shows."""
    return json.loads(RESULTS.read_text())["policies"] if RESULTS.exists() else {}


def plots() -> dict[Path, str]:
    """Every plot with its file."""
    return {PLOTS / policy_plots.file_name(name): policy_plots.plot(name, entry) for name, entry in results().items()}


if __name__ == "__main__":
    written = {PAGE: page(), **plots()}
    if "--check" in sys.argv:
        stale = [path for path, text in written.items() if not path.exists() or path.read_text() != text]
        stale += [path for path in PLOTS.glob("*.svg") if path not in written]
        sys.exit(f"not up to date: {', '.join(path.name for path in stale)}" if stale else 0)
    for path, text in written.items():
        path.write_text(text)
