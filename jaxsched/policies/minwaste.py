"""Preserve, swap or discard a paused context by least expected waste: InferCept (Abhyankar et al., ICML 2024).

Rule: at a pause, of keeping the context in HBM, copying it to host memory and back, and computing it again, take what
wastes least memory x time (`retention/waste.py`, with the equations and their sources). T_INT is the mean of the last
pauses of the same tool (of all tools before there are any). A context that is preserved stays until keeping it has
wasted as much as the better of the other two: that is what the paper's rule for unknown durations (the time already
spent stands for the time to come) comes to.

Faithful: the three wastes, the decision per pause. Simplified: decided once, when the pause begins; whole contexts; no
swap budget per iteration; a discarded context stays findable until its blocks are taken; the engine's other parts are
those of the scheduler that it goes with (``get("pfcfs+minwaste")``). Without a host tier nothing is swapped.
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxsched.policies.base import Retention
from jaxsched.retention.ttl import empty_history, mean_pause_us, record
from jaxsched.retention.waste import (
    Action,
    chunk_params,
    chunked_discard_waste,
    least_waste,
    preserve_waste,
    swap_waste,
)
from jaxsched.sim.retain import FOREVER_US, OffloadRule, PauseView, RetainHead

SOURCE = "Abhyankar et al., InferCept: efficient intercept support for augmented LLM inference, ICML 2024"
#: The authors' constants: tokens of a saturated step, us per token, us per step.
SETTINGS = {"chunk_tokens": 384.0, "chunk_token_us": 27.9, "chunk_step_us": 15_400.0}


def _wastes(params, view: PauseView):
    """Waste of swapping and of discarding, in token us."""
    chunk = chunk_params().replace(step_tokens=params[0].astype(jnp.int32), token_us=params[1], step_us=params[2])
    swap = swap_waste(view.load_us, view.running_tokens + view.context_tokens)
    swap = jnp.where(view.load_us > 0, swap, jnp.inf)
    return swap, chunked_discard_waste(view.context_tokens, view.running, view.running_tokens, chunk)


def _action(params, known, view: PauseView):
    swap, discard = _wastes(params, view)
    return least_waste(preserve_waste(view.context_tokens, mean_pause_us(known, view.tool)), swap, discard)


def _time_to_live(params, known, view: PauseView):
    worth = jnp.minimum(*_wastes(params, view)) / jnp.maximum(view.context_tokens, 1).astype(jnp.float32)
    preserved = _action(params, known, view) == Action.PRESERVE
    return jnp.where(preserved, jnp.minimum(worth, float(FOREVER_US - 127)), 0.0).astype(jnp.int32)


def _swaps(params, known, view: PauseView):
    return _action(params, known, view) == Action.SWAP


MINWASTE = Retention(
    "minwaste",
    RetainHead(_time_to_live, start=empty_history, returned=record),
    "kept, copied to host memory or let go, whatever wastes least memory and time",
    SOURCE,
    dict(SETTINGS),
    offload=OffloadRule(_swaps, needs_tiers=False),
)
