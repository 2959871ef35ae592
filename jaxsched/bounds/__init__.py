"""What no scheduler can do better than, per sample path: lower bounds on latency, an upper bound on goodput.

    bound = jaxsched.bounds.latency_bounds(scenario, seeds=4)      # {"e2e_mean_s": [4], "jct_mean_s": [4]}
    bound = jaxsched.bounds.goodput_bounds(scenario, seeds=4)      # a `GoodputBound` per seed, with prices
    best = jaxsched.bounds.hindsight_optimum([0, 0], [20, 300], [90, 8], pool_blocks=24, most_running=2)

They hold for every rule, clairvoyant ones included, because they only count what the engine must do (`work.py`):
policies named bounds elsewhere (`srpt_program+clair+peak`, `srpt-oracle`) are good heuristics with hindsight, which a
better rule may beat. `hindsight_optimum` is the exact best schedule of a few requests (OR-Tools). Host side, NumPy and
SciPy (which JAX brings along).
"""

from jaxsched.bounds.goodput import GoodputBound, goodput_bound, goodput_bounds
from jaxsched.bounds.hindsight import HindsightOptimum, hindsight_optimum
from jaxsched.bounds.relaxation import latency_bounds, srpt_responses
from jaxsched.bounds.work import TurnWork, turn_work

__all__ = [
    "GoodputBound",
    "HindsightOptimum",
    "TurnWork",
    "goodput_bound",
    "goodput_bounds",
    "hindsight_optimum",
    "latency_bounds",
    "srpt_responses",
    "turn_work",
]
