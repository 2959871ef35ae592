"""Views with a few programs, for heads."""

from __future__ import annotations

import jax.numpy as jnp

from jaxsched.sim.retain import PauseView
from jaxsched.sim.views import QueueView


def queue_view() -> QueueView:
    """Four waiting turns of programs 0, 1, 2 and 5; that of program 1 has a pinned context, that of 2 was preempted."""
    ints = lambda *values: jnp.asarray(values, jnp.int32)
    flags = lambda *values: jnp.asarray(values, bool)
    return QueueView(
        waiting_mask=flags(1, 1, 1, 1),
        running_mask=flags(0, 0, 0, 0),
        known_tokens=ints(900, 12_000, 7_000, 2_500),
        computed_tokens=ints(0, 0, 0, 0),
        prompt_tokens=ints(900, 12_000, 6_900, 2_500),
        predicted_tokens=ints(1, 1, 1, 1),
        priority=ints(0, 0, 0, 0),
        sequence=ints(4, 90, 31, 40),
        wait_us=jnp.asarray([1e6, 2e6, 3e6, 4e6], jnp.float32),
        now_epoch=jnp.int32(0),
        now_us=jnp.int32(10**7),
        row=ints(0, 45, 60, 5),
        program=ints(0, 1, 2, 5),
        first_turn_mask=flags(1, 0, 0, 1),
        turn=ints(0, 9, 2, 0),
        first_prompt_tokens=ints(900, 8_000, 5_000, 2_500),
        preempted_mask=flags(0, 0, 1, 0),
        pinned_mask=flags(0, 1, 0, 0),
    )


def pause_view() -> PauseView:
    """A program of 8,000 first tokens pauses after its tenth turn."""
    number = jnp.int32
    return PauseView(
        tool=number(0), context_tokens=number(12_000), reload_us=number(900_000), pool_tokens=number(175_000),
        turn=number(10), first_prompt_tokens=number(8_000), pause_epoch=number(0), pause_us=number(0),
        recompute_us=number(900_000), load_us=number(0), running_tokens=number(90_000), running=number(9),
    )  # fmt: skip
