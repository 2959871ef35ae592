"""Writing a file whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from jaxsched.errors import UserError


def write_html(path: str | Path, html: str) -> Path:
    """Write a page through a temporary file beside it and a rename; missing folders are made.

    Returns:
        The path written.

    Raises:
        UserError: the place cannot be written. What stood there before is untouched, nothing half-written is left.
    """
    path = Path(path).expanduser()
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8", errors="xmlcharrefreplace") as file:
            file.write(html)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes private files; a report is an ordinary one
        os.replace(temporary, path)
        temporary = ""
    except OSError as error:
        raise UserError(
            f"cannot be written ({error.strerror or error})", where=str(path), expected="a file in a writable folder"
        ) from None
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
    return path
