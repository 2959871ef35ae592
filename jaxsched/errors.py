"""Errors that are the user's to mend: one line, no traceback, exit code 2."""

from __future__ import annotations


class UserError(Exception):
    """Something outside the program (a file, a config value, a flag) is not usable.

    Args:
        problem: what was found.
        where: file, line and field, e.g. ``"trace.csv, line 12, column TIMESTAMP"``.
        expected: what would have been accepted.
        hint: what to do next.
    """

    exit_code = 2

    def __init__(self, problem: str, *, where: str = "", expected: str = "", hint: str = ""):
        self.problem, self.where, self.expected, self.hint = problem, where, expected, hint
        parts = [f"{where}: {problem}" if where else problem]
        if expected:
            parts.append(f"expected {expected}")
        message = "; ".join(parts)
        super().__init__(f"{message}. {hint}" if hint else message)
