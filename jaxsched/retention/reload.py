"""What it costs to get KV back: recomputation on the GPU, or a transfer from another tier.

Recomputation: the quadratic fit of prefill time over context length that Continuum's Reload(r) uses (section on the
cost model) and DistServe publishes (Zhong et al., OSDI 2024). Transfer: FastSwitch's swap time (Shen et al., 2024)::

    T_swap = operations * launch + bytes / bandwidth

with one operation per contiguous group of tokens: vLLM's 16-token blocks pay one launch each (times the layers, if each
layer is copied alone), FastSwitch's block groups far fewer; and only what the host copy does not yet hold is written.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from jaxsched.retention.window import LARGEST


class PrefillCurve(struct.PyTreeNode):
    """``fixed + linear n + quadratic n^2`` microseconds for a prefill of n tokens."""

    fixed_us: Float[Array, ""]
    linear_us: Float[Array, ""]  # per token
    quadratic_us: Float[Array, ""]  # per token^2


class Link(struct.PyTreeNode):
    """A direction of a link between tiers."""

    bytes_per_us: Float[Array, ""]  # 32 GB/s (PCIe 4 x16, one way) are 32,000
    launch_us: Float[Array, ""]  # per operation; about 10 (FastSwitch)
    bytes_per_token: Float[Array, ""]  # KV of one token; 131,072 for Llama-3-8B in 16 bits
    tokens_per_operation: Float[Array, ""]  # contiguous tokens moved by one operation; 16 = a vLLM block


def prefill_curve(fixed_us: float = 7000.0, linear_us: float = 64.0, quadratic_us: float = 1.76e-3) -> PrefillCurve:
    """Defaults: Llama-3-8B on an A100-80G, the fit of the regime study (its section 1)."""
    return PrefillCurve(jnp.float32(fixed_us), jnp.float32(linear_us), jnp.float32(quadratic_us))


def link(
    bytes_per_us: float = 25_000.0,
    launch_us: float = 10.0,
    bytes_per_token: float = 131_072.0,
    tokens_per_operation: float = 16.0,
) -> Link:
    """Defaults: 25 GB/s, 10 us per launch, Llama-3-8B, one vLLM block per operation."""
    return Link(
        jnp.float32(bytes_per_us),
        jnp.float32(launch_us),
        jnp.float32(bytes_per_token),
        jnp.float32(tokens_per_operation),
    )


def recompute_us(curve: PrefillCurve, tokens: Int[Array, "*n"]) -> Int[Array, "*n"]:
    """Time to prefill `tokens`; 0 for none. Rounded, saturated."""
    n = jnp.asarray(tokens, jnp.float32)
    return jnp.where(n > 0.0, _whole_us(curve.fixed_us + n * (curve.linear_us + curve.quadratic_us * n)), jnp.int32(0))


def transfer_us(link: Link, tokens: Int[Array, "*n"]) -> Int[Array, "*n"]:
    """Time to move the KV of `tokens`; 0 for none. Rounded, saturated."""
    n = jnp.asarray(tokens, jnp.float32)
    operations = jnp.ceil(n / link.tokens_per_operation)
    return _whole_us(operations * link.launch_us + n * link.bytes_per_token / link.bytes_per_us)


def increment_tokens(tokens: Int[Array, "*n"], copied_tokens: Int[Array, "*n"]) -> Int[Array, "*n"]:
    """Tokens still to be written back when the host holds a valid copy of the first `copied_tokens` (FastSwitch)."""
    return jnp.maximum(jnp.asarray(tokens, jnp.int32) - jnp.asarray(copied_tokens, jnp.int32), 0)


def _whole_us(value: Float[Array, "*n"]) -> Int[Array, "*n"]:
    return jnp.round(jnp.clip(value, 0.0, float(LARGEST - 127))).astype(jnp.int32)
