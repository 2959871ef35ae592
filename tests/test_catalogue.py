"""The page of policies is complete and up to date; every policy runs in a shipped comparison and has its plot."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np

from jaxsched.catalogue import LISTS
from jaxsched.config import load_compare
from tests.shared_data import ROOT

PAGE = ROOT / "docs" / "policies.md"


def test_the_page_is_what_the_code_and_the_configurations_say() -> None:
    done = subprocess.run([sys.executable, "scripts/catalogue.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"run python scripts/catalogue.py\n{done.stderr}"


def _entries() -> dict[str, str]:
    """Name (parts with their "+") -> its text on the page."""
    return dict(re.findall(r"^### `(.*?)`\n(.*?)(?=^##|\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE))


def _catalogue() -> set[str]:
    """Every name that `jaxsched list policies|routers` shows, as the page has it."""
    rows = [str(row["name"]).split("+") for row in LISTS["policies"]()]
    alone = {first for first, *parts in rows if not parts}
    return alone | {f"+{part}" for _, *parts in rows for part in parts} | {row["name"] for row in LISTS["routers"]()}


def test_every_policy_has_an_entry_with_a_source_and_a_comparison_that_runs_it() -> None:
    entries = _entries()
    assert set(entries) == _catalogue() and len(entries) > 70
    for name, text in entries.items():
        assert re.search(r"Decides: \w.*Source: \w", text), name
        assert "Runs in: `configs/compare/" in text, name


def test_every_policy_has_a_plot_of_a_row_that_its_comparison_has() -> None:
    results = json.loads((PAGE.parent / "policies" / "results.json").read_text())["policies"]
    assert set(results) == _catalogue()
    for name, text in _entries().items():
        plot = re.search(r"!\[.*?\]\((policies/.*?\.svg)\)", text)
        assert plot is not None, name
        drawn = ElementTree.fromstring((PAGE.parent / plot[1]).read_text())
        assert drawn.tag.endswith("svg") and len((PAGE.parent / plot[1]).read_bytes()) < 8000, name
        entry = results[name]
        listed = load_compare(str(ROOT / "configs" / "compare" / f"{entry['comparison']}.yaml")).policies()
        row = listed[entry["row"]]
        assert name.removeprefix("+") in f"{row.scheduler}+{row.router}".split("+") and entry["rival"] in listed, name
        shape = (len(entry["rates_per_s"]), entry["seeds"])
        assert np.shape(entry["values"]) == np.shape(entry["rival_values"]) == shape, name
        assert np.isfinite(entry["values"]).all() and entry["seeds"] >= 4 and entry["command"], name
