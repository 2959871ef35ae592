"""The page of policies is complete and up to date; every policy runs in a shipped comparison."""

from __future__ import annotations

import re
import subprocess
import sys

from jaxsched import policies
from tests.shared_data import ROOT

PAGE = ROOT / "docs" / "policies.md"


def test_the_page_is_what_the_code_and_the_configurations_say() -> None:
    done = subprocess.run([sys.executable, "scripts/catalogue.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"run python scripts/catalogue.py\n{done.stderr}"


def test_every_policy_has_an_entry_with_a_source_and_a_comparison_that_runs_it() -> None:
    entries = dict(re.findall(r"^### `\+?(.*?)`\n(.*?)(?=^##|\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE))
    parts = [
        *policies.RETENTIONS,
        *policies.OFFLOADS,
        policies.GATE,
        policies.PEAK,
        policies.EARLY_REJECT,
        policies.PREFIX_GROUPS,
        policies.APRIL,
        *policies.COMPRESSIONS,
    ]
    for name in [*policies.SCHEDULERS, *parts, *policies.ROUTERS]:
        assert re.search(r"Decides: \w.*Source: \w", entries[name]), name
        assert "Runs in: `configs/compare/" in entries[name], name
