"""Training programs: one algorithm a file, read top to bottom; run with ``python -m train CONFIG``.

Outside the wheel. The algorithms (`ppo`, `rloo`, `bc`, ...) and what they share import neither pydantic nor orbax.
"""
