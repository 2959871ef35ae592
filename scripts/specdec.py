"""SpecDec++ against fixed draft lengths, one request at a time (docs/reproductions.md).

    python scripts/specdec.py

Time per token of chats on a target model of 100 ms + 50 us per token and step, with drafts of 20 ms: geometric means
over seeds of ratios, with t intervals. About five minutes on one core.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import stats

from jaxsched import policies
from jaxsched.scenario import load
from jaxsched.simulation import rollouts
from jaxsched.speculation import DraftModel
from jaxsched.timing import affine

SEEDS, RATE = list(range(10)), 0.05
FIXED, THRESHOLDS = (1, 2, 3, 4, 5, 6, 8, 10), (0.3, 0.5, 0.7, 0.8)
#: How far the tokens of a request differ, and the share of them that the head knows.
LAWS = ((0.0, 1.0), (0.2, 1.0), (0.4, 1.0), (0.6, 1.0), (0.4, 0.8), (0.4, 0.5), (0.4, 0.0), (0.6, 0.8))


def main() -> None:
    overrides = ["workload.num_requests=100", f"workload.rate_per_s={RATE}"]
    base = load("configs/scenarios/speculative.yaml", overrides)
    base = dataclasses.replace(base, timing=affine(100_000, 50, 0))

    def tpot(name: str, model: DraftModel | None, **params: float) -> np.ndarray:
        policy = policies.get(name, max_num_seqs=1, max_model_len=8192, **params)
        scenario = dataclasses.replace(base, speculation=model)
        return np.asarray(rollouts(scenario, policy, SEEDS, [RATE])[0].metrics["tpot_mean_s"])

    off = tpot("vllm", None)
    for spread, head in LAWS:
        model = DraftModel(0.82, 20_000.0, token_spread=spread, head_accuracy=head)
        fixed = {k: tpot("vllm+spec", model, num_speculative_tokens=k) for k in FIXED}
        best = min(fixed, key=lambda k: fixed[k].mean())
        print(f"spread {spread}, head {head}: best K {best}, {ratio(off, fixed[best])} over none; SpecDec++ over it:")
        for h in THRESHOLDS:
            print(f"  h {h}: {ratio(fixed[best], tpot('vllm+specdec', model, reject_threshold=h))}", flush=True)


def ratio(slow: np.ndarray, fast: np.ndarray) -> str:
    """Geometric mean of a ratio over seeds and its interval."""
    logs = np.log(slow / fast)
    half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs))
    low, mean, high = np.exp([logs.mean() - half, logs.mean(), logs.mean() + half])
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    main()
