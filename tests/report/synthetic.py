"""A comparison as it could come out of the simulator: queueing-like curves, noise shared by all policies of a seed."""

from __future__ import annotations

import numpy as np

from jaxsched.report import ComparisonData, SimulationData, Timeline

#: policy -> (service demand relative to vllm, TPOT in seconds at no load, how much short jobs are favoured)
POLICIES = {
    "vllm": (1.0, 0.021, 0.0),
    "sarathi": (1.02, 0.019, 0.0),
    "vllm-v0": (1.01, 0.026, 0.0),
    "static": (1.45, 0.030, 0.0),
    "srpt": (1.0, 0.0212, 0.55),
}


def make_comparison(policies=None, loads=(0.5, 0.8, 0.95, 1.1), num_seeds=8, num_instances=4) -> ComparisonData:
    """Deterministic data; seeds share their noise, so pairing helps as in the real thing."""
    policies = policies or POLICIES
    generator = np.random.default_rng(0)
    capacity = 20.0
    shared = generator.normal(0, 0.08, (len(loads), num_seeds))
    per_seed, cdfs, timelines = {}, {}, {}
    for policy, (demand, tpot, favour) in policies.items():
        for i, load in enumerate(loads):
            used = load * demand
            wait = used / (1 - used) if used < 0.97 else 32.0 * (1 + 3 * (used - 0.97))
            own = generator.normal(0, 0.012, num_seeds)
            noise = np.exp(shared[i] + own)
            ttft = (0.06 + 0.045 * wait * (1 - favour)) * noise
            tpot_values = tpot * (1 + 0.6 * min(used, 1.0)) * np.exp(0.3 * shared[i] + own)
            e2e = ttft * 1.3 + 202 * tpot_values
            offered = round(600 * num_seeds)
            rejected = max(0.0, used - 1.0) * 0.5 * offered / num_seeds
            finished = np.full(num_seeds, 600.0) - np.round(rejected)
            attained = np.clip(1.02 - 0.9 * (ttft / 1.0) ** 2, 0.02, 1.0)
            per_seed[policy, load] = {
                "e2e_mean_s": e2e,
                "e2e_p99_s": e2e * 3.1,
                "ttft_p50_s": ttft,
                "ttft_p99_s": ttft * (6 + 4 * favour * used),
                "tpot_p50_s": tpot_values,
                "tbt_p99_s": tpot_values * (4.5 if policy == "vllm-v0" else 2.2),
                "throughput_per_s": capacity * min(load, 1 / demand) * np.exp(0.1 * own),
                "goodput_per_s": capacity * min(load, 1 / demand) * attained,
                "slo_attainment": attained,
                "preemptions": np.round(np.full(num_seeds, 40 * max(0, used - 0.8)) * noise),
                "kv_used_fraction": np.clip(0.55 * used * noise, 0, 1),
                "fate_finished": finished,
                "fate_unfinished": np.zeros(num_seeds),
                "fate_rejected_size": np.zeros(num_seeds),
                "fate_rejected_queue": 600.0 - finished,
                "fate_timed_out": np.zeros(num_seeds),
                "fate_never_arrived": np.zeros(num_seeds),
            }
            edges = np.geomspace(1e-3, 300, 240)
            centres = {"ttft_s": (float(ttft.mean()), 0.9), "tpot_s": (float(tpot_values.mean()), 0.25)}
            centres["e2e_s"] = (float(e2e.mean()) * 0.8, 0.7)
            cdfs[policy, load] = {
                metric: (edges, 1 / (1 + np.exp(-1.7 * np.log(edges / centre) / width)))
                for metric, (centre, width) in centres.items()
            }
        timelines[policy] = make_timeline(generator, num_instances, demand)
    return ComparisonData(
        title="Schedulers on smooth chat traffic, four A100s",
        command="jaxsched compare configs/compare/demo.yaml --workload.num_requests 600 --out report.html",
        config_yaml="name: demo\nworkload:\n  preset: chat_smooth\n  num_requests: 600\n",
        versions={
            "jaxsched": "0.1.0", "jax": "0.10.2", "python": "3.11.9",
            "platform": "Linux-6.1-x86_64 (cpu, 2 devices)", "git": "0123abc (clean)",
        },
        seeds=list(range(num_seeds)),
        policies=list(policies),
        loads=list(loads),
        rates_per_s=[capacity * load for load in loads],
        capacity_per_s=capacity,
        capacity_note="measured by bisection, the highest rate vllm keeps up with.",
        baseline=next(iter(policies)),
        primary_metric="e2e_mean_s",
        higher_is_better={"goodput_per_s": True, "throughput_per_s": True, "slo_attainment": True},
        per_seed=per_seed,
        cdfs=cdfs,
        timelines=timelines,
        notes=["The first 10% of arrivals are warm-up and not measured."],
    )  # fmt: skip


def make_timeline(
    generator: np.random.Generator, num_instances: int, demand: float, num_samples: int = 900
) -> Timeline:
    """A run of two minutes that fills up and drains."""
    t_s = np.sort(generator.uniform(0, 120, num_samples))
    shape = np.minimum(t_s / 15, 1) * np.minimum((120 - t_s) / 10, 1)
    walk = np.cumsum(generator.normal(0, 1.2, (num_samples, num_instances)), 0)
    batch = np.clip((42 * demand + walk) * shape[:, None], 0, 128).round()
    queue = np.clip((walk - 8) * shape[:, None] * demand, 0, None).round()
    return Timeline(t_s, batch, np.clip(batch / 90 + 0.02, 0, 1), queue)


def make_simulation() -> SimulationData:
    """One policy at one load of `make_comparison`."""
    data = make_comparison()
    return SimulationData(
        title="chat under sarathi",
        command="jaxsched simulate configs/scenarios/chat.yaml --policy sarathi",
        config_yaml=data.config_yaml,
        versions=data.versions,
        seeds=data.seeds,
        policy="sarathi",
        summary=data.per_seed["sarathi", 0.95],
        cdfs=data.cdfs["sarathi", 0.95],
        timeline=data.timelines["sarathi"],
        notes=data.notes,
    )
