"""SpecDec++: drafting ends when it has probably gone wrong; any synchronous V1 scheduler, with `+specdec`.

Rule: a request drafts token after token; a head of the draft model gives the probability that each is right. Drafting
ends after the first token with which the probability that some token so far is rejected exceeds `reject_threshold`
(0.7), within `min_speculative_tokens` (2) and `num_speculative_tokens` (16).
Faithful: the rule of SpecDec++ (Huang et al., 2024, section 3 and algorithm 1), its threshold and lower bound; that the
optimal rule is a threshold (their theorem 3.1) is shown by value iteration in jaxsched/speculation/optimal.py.
Simplified: the upper bound is 16, not 20; the head knows the probability of a share of the tokens
(`speculation.head_accuracy`) and the mean of the request for the others; in a batch the longest draft is waited for.
"""

from __future__ import annotations

from jaxsched.policies.spec_fixed import Speculation

SPECDEC = Speculation(
    "specdec",
    "stops drafting when a rejection has become likely",
    "Huang, Guo and Wang, SpecDec++, 2024",
    {"num_speculative_tokens": 16, "min_speculative_tokens": 2, "reject_threshold": 0.7},
)
