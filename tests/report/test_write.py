"""A report is written whole or not at all."""

from __future__ import annotations

import os
import stat

import pytest

from jaxsched.errors import UserError
from jaxsched.report import write_html


def test_a_page_is_written_with_its_folders_and_readable_by_others(tmp_path):
    old = os.umask(0o022)
    try:
        path = write_html(tmp_path / "new" / "r.html", "<p>µ \ud800</p>")
    finally:
        os.umask(old)
    assert path.read_text(encoding="utf-8") == "<p>µ &#55296;</p>"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [p.name for p in path.parent.iterdir()] == ["r.html"]


def test_a_failed_write_leaves_the_old_file_and_no_leftovers(tmp_path, monkeypatch):
    path = write_html(tmp_path / "r.html", "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"r\.html: cannot be written \(No space left on device\)"):
        write_html(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"file/r\.html: cannot be written \(.*\); expected a file in a writable folder"
    ):
        write_html(tmp_path / "file" / "r.html", "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        write_html(tmp_path / "folder", "x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]
