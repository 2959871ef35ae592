"""Networks of learned policies: set encoders and masked heads (docs/learning.md, section 1)."""

from __future__ import annotations

from jaxsched.networks.heads import HeadSpec, Tokens, evaluate, greedy, sample
from jaxsched.networks.policy import SetNetworkConfig, SetPolicy, policy_from_dict

__all__ = ["HeadSpec", "SetNetworkConfig", "SetPolicy", "Tokens", "evaluate", "greedy", "policy_from_dict", "sample"]
