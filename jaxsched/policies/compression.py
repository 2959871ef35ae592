"""KV compression as a serving system sees it: published methods as sets of numbers, for any plain V1 scheduler.

Rule: when a prompt has been computed, ``ceil(ratio * context)`` tokens of its KV are kept (at least `min_tokens`) and
the blocks of the others are free; with a `window` the same is done again whenever a request holds `window` tokens more
than its budget as it decodes. Decode steps read what is kept. `+squeeze` compresses under pressure only: nothing below
`pressure_low` of the pool, down to `ratio` at `pressure_high`, in a line between. Quality: each finished request loses
``loss_at_20 * ((1 - ratio) / 0.8) ^ loss_exponent`` times a lognormal of mean 1 and log-sd `loss_sigma`, keyed by
(seed, request).
Faithful: where each method applies and its usual budget. Simplified: which tokens go (layers and heads alike); no cost
of choosing them; H2O evicts every block, not every token; the curve of quality is our calibration of what the papers
report (docs/semantics.md, section 17), not data. Evidence: [P] read in the paper or a note of it, [M] from memory, [D]
ours.
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxsched.policies.base import COMPRESS_PARAMETERS, Compression
from jaxsched.sim.compress import WHOLE, CompressHead, CompressView


def fixed(params, view: CompressView):
    """The same ratio for all."""
    return params[0] + 0 * view.context_tokens


def under_pressure(params, view: CompressView):
    """All is kept while the pool is emptier than `pressure_low`; at `pressure_high` the ratio; in a line between."""
    ratio, low, high = params[0], params[1], params[2]
    used = (jnp.minimum(view.used_blocks, 2**20) * WHOLE) // jnp.maximum(jnp.minimum(view.usable_blocks, 2**20), 1)
    part = jnp.clip(used - low, 0, jnp.maximum(high - low, 1))
    return WHOLE - (WHOLE - ratio) * part // jnp.maximum(high - low, 1) + 0 * view.context_tokens


FIXED, UNDER_PRESSURE = CompressHead(fixed), CompressHead(under_pressure)


def _method(
    name: str, summary: str, source: str, ratio: float, loss: float, window: float = 0, head: CompressHead = FIXED
) -> Compression:
    values = (ratio, 0.7, 0.95, 64, window, loss, 2.5, 0.8)
    return Compression(name, head, summary, source, dict(zip(COMPRESS_PARAMETERS, values, strict=True)))


COMPRESSIONS: dict[str, Compression] = {
    entry.name: entry
    for entry in (
        _method("h2o", "KV: 20 % of the context, half heavy hitters and half recent, prompt and outputs",
                "Zhang et al., H2O, NeurIPS 2023 [M]; loss [D]", 0.2, 0.25, window=16),
        _method("cake", "KV: 3.2 % of the prompt, layer budgets by attention preference",
                "Qin et al., CAKE, ICLR 2025 [M]; loss [D]", 0.032, 0.08),
        _method("lazy_eviction", "KV of long answers: half of the context, evicted every 128 tokens by recurrence",
                "LazyEviction, 2025 [P]; window and loss [D]", 0.5, 0.02, window=128),
        _method("lookahead_kv", "KV: 20 % of the prompt, scored by learned lookahead tokens",
                "LookaheadKV [P] (budgets 64-2,048 tokens); ratio and loss [D]", 0.2, 0.08),
        _method("defensive_kv", "KV: 20 % of the prompt, worst case over a window instead of its mean",
                "DefensiveKV [P] (loss of 4.8 % at 20 %)", 0.2, 0.048),
        _method("attention_gate", "KV: about 37 % of the prompt, what learned gates per head let through",
                "Attention-Gate [P/M] (62.8 % evicted); loss [D]", 0.372, 0.05),
        _method("squeeze", "KV compressed under memory pressure only, in proportion to it",
                "heuristic of this project [D]; curve as DefensiveKV", 0.2, 0.048, head=UNDER_PRESSURE),
    )
}  # fmt: skip
