"""Run the commands of a README as a reader would: in a fresh copy of the repository, with the environment on the PATH.

Every ```bash and ```python block says, in an HTML comment on the line before it, what becomes of it here::

    <!-- smoke -->                  run the block
    <!-- smoke: ARGS -->            run it with ARGS behind every line that starts one of ours (a smaller size)
    <!-- smoke-python -->           run the Python block
    <!-- no-smoke: REASON -->       do not run it

A block without such a line is an error, so none is left out unnoticed. Blocks run in order and in one copy: later ones
may use what earlier ones wrote. Bash blocks run with `set -euo pipefail`.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_FENCE = re.compile(r"^```(\w*)\s*$")
_MARK = re.compile(r"^<!--\s*(smoke-python|smoke|no-smoke)\s*(?::\s*(.*?))?\s*-->$")
_LANGUAGES = ("bash", "python")
_OURS = ("jaxsched ", "python -m train ")


@dataclass(frozen=True)
class Block:
    """One code block and what its mark says."""

    line: int  # of its first line of code, from 1
    language: str
    code: str
    mark: str  # smoke, smoke-python or no-smoke
    argument: str  # arguments to append, or why the block is not run


class MarkError(ValueError):
    """A code block that does not say whether it is to be run."""


def blocks_of(text: str) -> list[Block]:
    """The bash and python blocks of a Markdown text, in order.

    Raises:
        MarkError: a block without a mark, with one of the other language, or a `no-smoke` that gives no reason.
    """
    lines = text.splitlines()
    found, start, language = [], 0, None
    for number, line in enumerate(lines):
        fence = _FENCE.match(line)
        if language is None and fence:
            start, language = number, fence[1]
        elif language is not None and line.rstrip() == "```":
            if language in _LANGUAGES:
                found.append(_block(lines, start, number, language))
            language = None
    if language is not None:
        raise MarkError(f"line {start + 1}: this code block is never closed")
    return found


def _block(lines: list[str], start: int, end: int, language: str) -> Block:
    mark = _MARK.match(lines[start - 1].strip()) if start else None
    if mark is None:
        raise MarkError(f"line {start + 1}: a {language} block needs a line `<!-- smoke -->` or similar before it")
    kind, argument = mark[1], mark[2] or ""
    if kind == "no-smoke" and not argument:
        raise MarkError(f"line {start}: `no-smoke` must give a reason: `<!-- no-smoke: needs a trace -->`")
    if kind != "no-smoke" and (kind == "smoke-python") != (language == "python"):
        raise MarkError(f"line {start}: `{kind}` does not go with a {language} block")
    return Block(start + 2, language, "\n".join(lines[start + 1 : end]) + "\n", kind, argument)


def bash_code(block: Block) -> str:
    """The block as it is run: strict, and with the mark's arguments behind every line that starts one of `_OURS`."""
    lines = [
        f"{line.split('  #')[0].rstrip()} {block.argument}" if block.argument and line.startswith(_OURS) else line
        for line in block.code.splitlines()
    ]
    return "set -euo pipefail\n" + "\n".join(lines) + "\n"


def copy_tree(target: Path) -> None:
    """Copy what a clone of the repository would hold (tracked files, and new ones that git does not ignore)."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def run(block: Block, folder: Path, environment: dict[str, str]) -> bool:
    """Run one block, its output passed through; whether it succeeded."""
    command = ["bash", "-c", bash_code(block)] if block.language == "bash" else [sys.executable, "-c", block.code]
    done = subprocess.run(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL)
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the marked code blocks of a README in a copy of the repository.")
    parser.add_argument("readme", type=Path, nargs="?", default=ROOT / "README.md")
    parser.add_argument("--list", action="store_true", help="only say what would be run")
    arguments = parser.parse_args()
    try:
        blocks = blocks_of(arguments.readme.read_text(encoding="utf-8"))
    except MarkError as error:
        print(f"{arguments.readme}, {error}", file=sys.stderr)
        return 2

    environment = dict(os.environ)
    # Not resolved: inside a virtual environment the interpreter is a link to the one it was made from.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    with tempfile.TemporaryDirectory(prefix="jaxsched-smoke-") as temporary:
        folder = Path(temporary) / "jaxsched"
        if not arguments.list:
            copy_tree(folder)
        num_run = 0
        for block in blocks:
            place = f"{arguments.readme.name}, line {block.line}"
            if block.mark == "no-smoke":
                print(f"-- {place}: not run: {block.argument}", flush=True)
                continue
            shown = bash_code(block).split("\n", 1)[1] if block.language == "bash" else block.code
            print(f"-- {place}:\n" + "".join(f"   $ {line}\n" for line in shown.splitlines()), end="", flush=True)
            if arguments.list:
                continue
            started = time.monotonic()
            if not run(block, folder, environment):
                print(f"-- {place}: FAILED", file=sys.stderr)
                return 1
            num_run += 1
            print(f"-- {place}: ok, {time.monotonic() - started:.1f} s", flush=True)
    print(f"README: {num_run} blocks ran" if not arguments.list else f"README: {len(blocks)} blocks")
    return 0


if __name__ == "__main__":
    sys.exit(main())
