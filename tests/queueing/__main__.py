"""Run every row of docs/validation.md and print the table.

``python -m tests.queueing [SCALE]`` (SCALE times as many requests).
"""

from __future__ import annotations

import sys
import time

from tests.queueing.rows import PROGRAMS, table


def main() -> None:
    scale = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    done = []
    for make in PROGRAMS:
        began = time.perf_counter()
        program = make()
        done.append((program, program.run(scale)))
        print(f"{make.__name__}: {time.perf_counter() - began:.1f} s", file=sys.stderr)
    print(table(done))


if __name__ == "__main__":
    main()
