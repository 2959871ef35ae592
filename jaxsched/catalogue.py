"""What `jaxsched list` shows: the names that configurations and the library take, one row each."""

from __future__ import annotations

import os
from typing import Any

from jaxsched.errors import UserError


def _policies() -> list[dict[str, Any]]:
    from jaxsched.policies import (
        APRIL,
        COMPRESSIONS,
        EARLY_REJECT,
        GATE,
        OFFLOADS,
        PEAK,
        PREFIX_GROUPS,
        RETENTIONS,
        SCHEDULERS,
        SEMANTIC_CACHE,
        SPECULATIONS,
    )

    rows = [{"name": name, "summary": s.summary, "source": s.source} for name, s in SCHEDULERS.items()]
    # Retention rules and the gate go with any V1 scheduler; shown with one of them.
    rows += [
        {"name": f"pfcfs+{n}", "summary": f"KV kept: {r.summary}", "source": r.source} for n, r in RETENTIONS.items()
    ]
    rows += [{"name": f"vllm+{n}", "summary": c.summary, "source": c.source} for n, c in COMPRESSIONS.items()]
    rows += [{"name": f"continuum+{n}", "summary": o.summary, "source": o.source} for n, o in OFFLOADS.items()]
    gate = "new programs wait while the contexts of begun ones fill the pool"
    source = "regime study (docs/retention.md)"
    rows.append({"name": f"gittins+{GATE}", "summary": gate, "source": source})
    early = "refuses, when it is considered, who can no longer meet the limits of its class"
    rows.append({"name": f"edd+{EARLY_REJECT}", "summary": early, "source": "Qin et al., Mooncake, 2024 (section 7)"})
    groups = "jobs handed over together run in groups of one shared prefix, most outputs per prompt token first"
    rows.append({"name": f"vllm+{PREFIX_GROUPS}", "summary": groups, "source": "Zheng et al., BatchLLM, MLSys 2026"})
    april = "rounds of rollouts begin with more than they need; what is not done is carried on to the next"
    rows.append({"name": f"vllm+{APRIL}", "summary": april, "source": "Zhou et al., APRIL, 2025 (arXiv 2509.18521)"})
    rows += [{"name": f"vllm+{n}", "summary": s.summary, "source": s.source} for n, s in SPECULATIONS.items()]
    cached = "requests that are like an earlier one of their category are answered without the engine"
    source_of = "Category-aware semantic caching, 2025"
    rows.append({"name": f"vllm+{SEMANTIC_CACHE}", "summary": cached, "source": source_of})
    peak = "bound: the gate on true final contexts"
    return [*rows, {"name": f"srpt_program+clair+{PEAK}", "summary": peak, "source": source}]


def _routers() -> list[dict[str, Any]]:
    from jaxsched.policies import ROUTERS

    return [{"name": name, "summary": r.summary, "source": r.source} for name, r in ROUTERS.items()]


def _workloads() -> list[dict[str, Any]]:
    from jaxsched.workloads import get_preset, list_formats, list_presets

    presets = [get_preset(name) for name in list_presets()]
    rows = [{"name": p.name, "summary": p.summary, "source": p.source} for p in presets]
    return rows + [{"name": f"format {name}", "summary": "trace reader (workload.path)"} for name in list_formats()]


def _models() -> list[dict[str, Any]]:
    from jaxsched.timing import find_model, list_models

    return [{"name": n, "parameters": f"{find_model(n).total_params / 1e9:.1f} B"} for n in list_models()]


def _devices() -> list[dict[str, Any]]:
    from jaxsched.timing import find_device, list_devices

    rows = []
    for name in list_devices():
        d = find_device(name)
        rows.append({"name": name, "memory": f"{d.memory_bytes / 2**30:.0f} GiB"})
    return rows


def _scenarios() -> list[dict[str, Any]]:
    from pathlib import Path

    from jaxsched.config import load

    roots = [Path.cwd() / "configs", Path(__file__).resolve().parents[1] / "configs"]
    root = next((r for r in roots if r.is_dir()), None)
    if root is None:
        raise UserError("no configs folder", where=str(roots[0]), hint="Run this in a clone of the project.")
    rows = []
    for path in sorted((root / "scenarios").glob("*.yaml")):
        config = load(str(path))
        rows.append({"name": config.name, "path": os.path.relpath(path), "description": config.description})
    return rows


#: What can be listed -> its rows, each with a `name`. Imports are inside: no list waits for what it does not show.
LISTS = {
    "policies": _policies,
    "routers": _routers,
    "workloads": _workloads,
    "models": _models,
    "devices": _devices,
    "scenarios": _scenarios,
}
