"""Experts for imitation: ``expert(key, obs, env_state, env_params) -> action`` (`train.bc.Expert`)."""

from __future__ import annotations

from typing import Any

from jaxtyping import Array


def c_mu(key: Array, obs: Any, env_state: Any, env_params: Any) -> dict[str, Array]:
    """The best order of `TwoClassQueue-v0`: the larger holding cost times service rate first (Cox and Smith 1961)."""
    del key, obs, env_state
    return {"order": env_params.holding_cost * env_params.service_rate}
