"""What the entry points of training programs share."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Protocol

from jaxsched.errors import UserError

Main = Callable[[Sequence[str]], int]


class EntryPoint(Protocol):
    """A command: its arguments (None: those of the process), and the exit code."""

    def __call__(self, argv: Sequence[str] | None = None) -> int: ...


def entry_point(interrupted: str) -> Callable[[Main], EntryPoint]:
    """Makes a function of the arguments an entry point: a user's mistake is a line on stderr and exit code 2, an
    interruption says `interrupted` and gives 130."""

    def decorate(main: Main) -> EntryPoint:
        @functools.wraps(main)
        def run(argv: Sequence[str] | None = None) -> int:
            try:
                return main(list(sys.argv[1:] if argv is None else argv))
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
                return error.exit_code
            except KeyboardInterrupt:
                print(interrupted, file=sys.stderr)
                return 130

        return run

    return decorate
