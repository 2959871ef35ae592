"""Writing a page."""

from __future__ import annotations

from pathlib import Path

from jaxsched.files import write_atomic


def write_html(path: str | Path, html: str) -> Path:
    """Write a page whole or not at all (`jaxsched.files.write_atomic`).

    Characters UTF-8 cannot hold become references.
    """
    return write_atomic(path, html.encode("utf-8", errors="xmlcharrefreplace"))
