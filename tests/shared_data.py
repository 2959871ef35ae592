"""Where the optional reference data lies: a `shared` folder beside the repository, or $JAXSCHED_SHARED."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("JAXSCHED_SHARED", ROOT.parent / "shared"))


def shared_path(*parts: str) -> Path:
    """Path of a file or folder of the reference data; skips the calling test, saying why, when it is not there."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"reference data not found at {path} (set JAXSCHED_SHARED or place `shared` beside the repository)")
    return path
