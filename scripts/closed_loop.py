"""Past-Future's question with the paper's clients: a fixed number, each sends its next request when it has an answer.

    python scripts/closed_loop.py [--clients 32 48] [--requests 10] [--seeds 4]

Prompts of 32 to 4,096 tokens, answers of 2,048 to 4,096 (decode-heavy), model and pool of
configs/compare/past_future_uniform.yaml. All clients begin at once. Printed: requests per second without a gap between
two tokens above 1.5 s (the paper's limit), seed by seed, and what memory pressure cost (docs/reproductions.md).
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib

import numpy as np

import jaxsched as js
from jaxsched.config import load_compare
from jaxsched.scenario import Scenario, from_config, policy_from_config
from jaxsched.workloads import Workload

ROOT = pathlib.Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[32, 48])
    parser.add_argument("--requests", type=int, default=10, help="of each client")
    parser.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args()
    config = load_compare(str(ROOT / "configs/compare/past_future_uniform.yaml"), {})
    scenario = from_config(config)
    policies = {name: policy_from_config(config, name, section) for name, section in config.policies().items()}
    policies["aggressive, watermark 1 %"] = policies["aggressive"].with_params(watermark=0.01)
    # Only the gaps: that many clients wait for more than 10 s for a first token, whoever is let in.
    slo = tuple(dataclasses.replace(promise, ttft_us=None) for promise in scenario.slo)
    for num_clients in options.clients:
        print(f"\n{num_clients} clients\n| policy | good requests/s | of requests | preemptions | recomputed tokens |")
        for name, policy in policies.items():
            rows = []
            for seed in range(options.seeds):
                closed = closed_loop(scenario, num_clients, options.requests, seed)
                metrics = js.rollout(dataclasses.replace(closed, slo=slo), policy, seeds=1).metrics
                finished = num_clients * options.requests / metrics["simulated_s"]
                columns = (metrics["slo_attainment"], metrics["preemptions"], metrics["recomputed_tokens"])
                rows.append([float(x[0]) for x in (metrics["slo_attainment"] * finished, *columns)])
            mean = np.mean(rows, axis=0)
            each = " ".join(f"{row[0]:.4f}" for row in rows)
            print(f"| {name} | {mean[0]:.4f} ({each}) | {mean[1]:.3f} | {mean[2]:.1f} | {mean[3]:,.0f} |", flush=True)


def closed_loop(scenario: Scenario, num_clients: int, requests: int, seed: int) -> Scenario:
    """Clients as programs: every turn is a request of its own content, sent when the one before has finished."""
    draw = np.random.default_rng(seed)
    num = num_clients * requests
    workload = Workload.build(
        "clients",
        arrival_us=np.zeros(num, np.int64),
        program=np.repeat(np.arange(num_clients), requests),
        turn=np.tile(np.arange(requests), num_clients),
        pause_us=np.zeros(num, np.int64),
        prompt_tokens=draw.integers(32, 4097, num),
        output_tokens=draw.integers(2048, 4097, num),
        chain=np.arange(num),
    )
    return dataclasses.replace(
        scenario, workload=workload, num_programs=num_clients, rate_per_s=1.0, max_paused_programs=num_clients,
        warmup_fraction=0.0,
    )  # fmt: skip


if __name__ == "__main__":
    main()
