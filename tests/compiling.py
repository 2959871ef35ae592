"""How programs that run for a moment are compiled in tests."""

from __future__ import annotations

#: Without LLVM's optimisation: half as long to compile, five times as long to run, the same integers; float sums may
#: differ in the last bit (docs/decisions/0002).
QUICK_COMPILE: dict[str, str | bool | int] = {"xla_backend_optimization_level": 0}
