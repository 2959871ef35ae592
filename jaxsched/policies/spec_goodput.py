"""Draft length by batch: any synchronous scheduler of the V1 engine, with `+spec_goodput`.

Rule: at the start of each schedule() call the number of drafts K in 0..`num_speculative_tokens` (8) that maximises
expected tokens of a step over its time: (1 - a^(K+1)) / (1 - a) / (drafting of K tokens by b requests + a step of
b (K+1) tokens), b = requests that decode, a = `expected_acceptance`. Ties to the smaller K.
Faithful: the goodput objective of SmartSpec (Liu et al., "Optimizing speculative decoding for serving LLMs using
goodput", 2024): accepted tokens per time, by batch and context. Simplified: `a` is a parameter, where SmartSpec takes a
moving average of what was accepted; one K for all requests of a step; the step that is reckoned with has no prefill.
"""

from __future__ import annotations

from jaxsched.policies.spec_fixed import Speculation

SPEC_GOODPUT = Speculation(
    "spec_goodput",
    "chooses the draft length at each step, for tokens per time of the batch",
    "Liu et al., SmartSpec, 2024",
    {"num_speculative_tokens": 8, "by_batch": 1},
)
