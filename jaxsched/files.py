"""Writing a file whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from jaxsched.errors import UserError


def write_atomic(path: str | Path, data: bytes) -> Path:
    """Write through a temporary file beside the target and a rename; missing folders are made.

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
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes private files; an output is an ordinary one
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


def check_writable(path: str | Path) -> Path:
    """Refuse a target that cannot be written, before any long work starts."""
    path = Path(path).expanduser()
    if path.is_dir():
        raise UserError("is a folder", where=str(path), expected="a file name")
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError("is not a writable folder", where=str(folder), expected="a folder to write the output into")
    return path
