"""Ratios of a comparison: geometric means over seeds, with t intervals of the log ratio.

    jaxsched compare configs/compare/regimes_mixed.yaml --out results/mixed
    python scripts/ratios.py results/mixed --against vllm continuum [--metric jct_mean_s]

Reads ``comparison.json`` of the folder (its ``per_seed``). The intervals are those of the regime study
(docs/reproductions.md), so that both can stand side by side; reports of `compare` bootstrap differences of means.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import sys

#: Two-sided 95 % quantiles of Student's t, by number of seeds.
T_QUANTILES = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26, 16: 2.13, 30: 2.05}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, help="what `jaxsched compare --out` wrote")
    parser.add_argument("--against", nargs="+", required=True, help="policies in the denominator")
    parser.add_argument("--metric", default="jct_mean_s")
    options = parser.parse_args()
    outcome = json.loads((options.folder / "comparison.json").read_text())
    values = {(row["policy"], row["load"]): row[options.metric] for row in outcome["per_seed"]}
    loads = sorted({load for _, load in values})
    policies = list(dict.fromkeys(policy for policy, _ in values))
    if missing := [name for name in options.against if name not in policies]:
        sys.exit(f"error: no policy {missing[0]!r} in {options.folder}; there are {', '.join(policies)}")
    print(f"{options.metric}; load 1 = {outcome['capacity_per_s']:.4g} programs/s ({outcome['capacity_note']})")
    for load in loads:
        header = ["policy", "mean", *(f"/ {name}" for name in options.against)]
        print(f"\nload {load:g}\n| {' | '.join(header)} |\n|{' --- |' * len(header)}")
        for policy in policies:
            mine = values[policy, load]
            cells = [ratio(mine, values[name, load]) for name in options.against]
            print(f"| {policy} | {sum(mine) / len(mine):.4g} | {' | '.join(cells)} |")
    return 0


def ratio(values: list[float], others: list[float]) -> str:
    """Geometric mean of the ratio and its interval, as text."""
    if min(*values, *others) <= 0:
        return "n/a"
    logs = [math.log(a / b) for a, b in zip(values, others, strict=True)]
    num = len(logs)
    mean = sum(logs) / num
    if num < 2:
        return f"{math.exp(mean):.2f}"
    spread = math.sqrt(sum((x - mean) ** 2 for x in logs) / (num - 1) / num)
    half = spread * T_QUANTILES[max(n for n in T_QUANTILES if n <= num)]
    return f"{math.exp(mean):.2f} [{math.exp(mean - half):.2f}, {math.exp(mean + half):.2f}]"


if __name__ == "__main__":
    sys.exit(main())
