"""Due dates of requests, the work they have left, and which can no longer make it (docs/semantics.md, section 14).

Times are ticks of 1,024 us, rounded down, since the start of the lane's current epoch: they fit int32 for 25 days, and
between waiting requests their order never changes. Compiled only where `SchedulerSpec.due` asks for it.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

from jaxsched.sim.clock import EPOCH_BITS

TICK_BITS = 10
LONGEST_US = 2**31 - 1
#: Traced parameters, in this order: predicted time of a request alone, in us per prompt and per output token.
PARAMETERS = {"prompt_us": 80, "output_us": 20_000}
#: They are below these, and token counts are cut off at these, so that no product or sum leaves int32.
MOST_US = {"prompt_us": 2**13, "output_us": 2**15}
MOST_PROMPT, MOST_OUTPUT = 2**17, 2**15


class DueView(struct.PyTreeNode):
    """Per slot, in ticks."""

    now: Int[Array, ""]
    first_token: Int[Array, " s"]  # latest time of its first token that meets its class's limit
    finish: Int[Array, " s"]  # latest finish that meets all limits: end to end, or TTFT + TPOT of predicted outputs
    prefill: Int[Array, " s"]  # predicted time until its first token if it began now
    work: Int[Array, " s"]  # predicted time until its last token if it began now


def _outputs_us(tpot_us: Int[Array, " s"], gaps: Int[Array, " s"]) -> Int[Array, " s"]:
    """``tpot_us * gaps``, saturating at `LONGEST_US`."""
    return jnp.where(gaps > LONGEST_US // jnp.maximum(tpot_us, 1), LONGEST_US, tpot_us * gaps)


def due_view(
    params: Int[Array, " 2"],
    *,
    limits_us: tuple[Int[Array, " s"], Int[Array, " s"], Int[Array, " s"]],
    arrival: tuple[Int[Array, " s"], Int[Array, " s"]],
    epoch: Int[Array, ""],
    now_us: Int[Array, ""],
    known_tokens: Int[Array, " s"],
    computed_tokens: Int[Array, " s"],
    prompt_tokens: Int[Array, " s"],
    predicted_tokens: Int[Array, " s"],
) -> DueView:
    """Due dates and predicted work of one instance's requests.

    Args:
        params: us per prompt token, us per output token (`PARAMETERS`).
        limits_us: TTFT, TPOT and E2E limit of each request's class, `LONGEST_US` = none.
        arrival: (epoch, us) of each request.
        epoch: the lane's current one; `now_us` is relative to it.
        known_tokens, computed_tokens, prompt_tokens, predicted_tokens: as in `QueueView`.
    """
    ttft_us, tpot_us, e2e_us = limits_us
    arrived = ((arrival[0] - epoch) << (EPOCH_BITS - TICK_BITS)) + (arrival[1] >> TICK_BITS)
    ticks = lambda us: us >> TICK_BITS
    by_tokens = ticks(ttft_us) + ticks(_outputs_us(tpot_us, jnp.maximum(predicted_tokens - 1, 0)))
    outputs_left = jnp.maximum(predicted_tokens - (known_tokens - prompt_tokens), 1)
    prefill_us = jnp.clip(known_tokens - computed_tokens, 0, MOST_PROMPT) * params[0]
    return DueView(
        now=ticks(now_us),
        first_token=arrived + ticks(ttft_us),
        finish=arrived + jnp.minimum(jnp.minimum(ticks(e2e_us), by_tokens), LONGEST_US >> TICK_BITS),
        prefill=ticks(prefill_us),
        work=ticks(prefill_us + jnp.minimum(outputs_left, MOST_OUTPUT) * params[1]),
    )


def too_late(due: DueView, begun_mask: Bool[Array, " s"]) -> Bool[Array, " s"]:
    """Which requests would miss a limit even if they ran alone from now on; those that have begun are not given up."""
    late = (due.now + due.prefill > due.first_token) | (due.now + due.work > due.finish)
    return late & ~begun_mask
