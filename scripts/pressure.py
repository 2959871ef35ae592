"""Continuum against vLLM as memory gets scarcer, and as agents take more turns (docs/reproductions.md).

    python scripts/pressure.py [--seeds 4] [--programs 100]

SWE agents on one A100 (configs/compare/regimes_swe.yaml), the arrival rate fixed, every run drained. Printed: means of
both, their ratio (geometric mean over seeds, t interval), p99 slowdown and longest completion time.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib

import numpy as np
from ratios import ratio

import jaxsched as js
from jaxsched.config import load_compare
from jaxsched.scenario import from_config, policy_from_config
from jaxsched.workloads import Preset

ROOT = pathlib.Path(__file__).resolve().parents[1]
POLICIES = ("vllm", "continuum")
#: (what is varied, its values, programs per second); pools are parts of the working set, turns multiples of 22.
CASES = (("pool", (2.0, 1.0, 0.7, 0.5), 0.09), ("turns", (0.5, 1.0, 1.25, 1.5), 0.05))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--programs", type=int, default=100)
    options = parser.parse_args()
    for what, values, rate_per_s in CASES:
        overrides = {"workload.num_requests": options.programs}
        if what == "turns":
            overrides["workload.options"] = {"max_turns": 128}
        config = load_compare(str(ROOT / "configs/compare/regimes_swe.yaml"), overrides)
        scenario, sections = from_config(config), config.policies()
        for value in values:
            assert isinstance(scenario.workload, Preset)
            if what == "pool":
                varied = dataclasses.replace(scenario, usable_blocks=int(value * scenario.usable_blocks))
            else:
                varied = dataclasses.replace(scenario, workload=scenario.workload.with_options(turns_factor=value))
            found = {}
            for name in POLICIES:
                policy = policy_from_config(config, name, sections[name])
                metrics = js.rollout(varied, policy, options.seeds, rate_per_s=rate_per_s, record=True).metrics
                assert np.all(metrics["programs_done"] == options.programs)  # drained: no survivor bias
                found[name] = metrics["jct_mean_s"].tolist()
                print(
                    f"{what} {value:g} {name}: mean {np.mean(found[name]):.0f} s, p99 slowdown "
                    f"{metrics['slowdown_p99'].mean():.1f}, longest {metrics['jct_max_s'].max():.0f} s"
                )
            print(f"{what} {value:g}: vllm / continuum {ratio(found['vllm'], found['continuum'])}", flush=True)


if __name__ == "__main__":
    main()
