"""Ranges of the parameters of schedulers, retention rules, admission rules, memory tiers and routers.

Not here, since they are checked where they become arrays: due dates (`Policy._work`), KV compression
(`Policy.compress_params`), speculation (`Policy._draft`), rounds (`april.in_flight`), the semantic cache.
"""

from __future__ import annotations

import math

from jaxsched.errors import UserError

#: Largest number of tokens, and of milliseconds that fit into int32 microseconds.
MOST_TOKENS, MOST_MS = 2**30, (2**31 - 1) // 1000
#: Name -> (smallest, largest, whether whole numbers only).
LIMITS: dict[str, tuple[float, float, bool]] = {
    # of every engine
    "token_budget": (1, MOST_TOKENS, True),
    "max_num_seqs": (1, 2**20, True),
    "long_prefill_threshold": (0, MOST_TOKENS, True),
    "adaptive_threshold": (0, 1, True),
    "chunked_prefill": (0, 1, True),
    "reserve_full_isl": (0, 1, True),
    "watermark": (0, 1, False),
    "max_model_len": (1, MOST_TOKENS, True),
    "gate_fraction": (0, 1000, False),
    # of orders
    "quantum_tokens": (1, 2**16, True),  # doubled up to 14 times
    "num_levels": (1, 16, True),
    "step_tokens": (1, 2**20, True),
    "num_queues": (1, 1024, True),
    "weight_milli": (0, 10**6, True),
    "quantum_ms": (1, MOST_MS, True),
    "starvation_ratio": (0, 10**6, True),
    "preempt": (0, 1, True),
    "pinned_first": (0, 2, True),
    "update_ms": (1, MOST_MS, True),
    "loaded_first": (0, 1, True),
    "input_price": (0, 16, True),  # times vtc.UNIT times the tokens of a prompt (a million) in int32
    "output_price": (0, 16, True),
    "slice_ms": (1, MOST_MS, True),
    "lookahead_tenths": (1, 10**6, True),
    # of retention
    "learn_eta": (0, 1, True),
    "price": (0, 1e6, False),
    "mean_tokens": (1, MOST_TOKENS, False),
    "ttl_scale": (0, 1e6, False),
    "ttl_ms": (0, MOST_MS, False),
    "chunk_tokens": (1, MOST_TOKENS, True),
    "chunk_token_us": (0, 1e9, False),
    "chunk_step_us": (0, 1e9, False),
    # of admission
    "max_output_tokens": (1, MOST_TOKENS, True),
    "reserved": (0, 0.999, False),
    "overcommit": (0.001, 1000, False),
    "headroom_tokens": (0, MOST_TOKENS, True),
    "open_tokens": (0, MOST_TOKENS, True),
    # of memory tiers; -1: as the cluster has it
    "offload_on_pause": (0, 1, True),
    "swap_on_preempt": (0, 1, True),
    "keep_copy": (0, 1, True),
    "overlap_copies": (-1, 1, True),
    "copy_group": (-1, 2**20, True),
    # of routers
    "max_tree_tokens": (1, MOST_TOKENS, True),
    "cache_threshold": (0, 1, False),
    "balance_abs_threshold": (0, 1e9, False),
    "balance_rel_threshold": (0, 1e9, False),
    "decode_cost": (0, 1e6, False),
    "balance_ratio": (0, 1e9, False),
    "running_cost": (0, 1e6, False),
    "prefill_instances": (1, 1e6, True),
    "fetch_ratio": (0, 1e6, False),
    "fetch_cost": (0, 1e6, False),
    "overlap_weight": (0, 1e6, False),
    "prefix_weight": (0, 1e6, False),
    "queue_weight": (0, 1e6, False),
    "kv_weight": (0, 1e6, False),
    "active_weight": (0, 1e6, False),
}


def check_parameter(name: str, value: float, where: str) -> None:
    """Refuse a value that is not finite or out of its range. `where`: for the message.

    Raises:
        UserError: with the value, the parameter, and what is expected.
    """
    low, high, whole = LIMITS.get(name, (-math.inf, math.inf, False))
    if math.isfinite(value) and low <= value <= high and (not whole or value == int(value)):
        return
    kind = "a whole number" if whole else "a number"
    between = f"{kind} from {low:.15g} to {high:.15g}" if math.isfinite(high) else "a finite number"
    raise UserError(f"{name} is {value:g}", where=where, expected=between)
