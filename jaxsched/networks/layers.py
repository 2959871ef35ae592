"""Layers that do not care how many items there are or in which slots they stand."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxsched.networks.plackett_luce import NEGATIVE

#: First bias of a GRU's update gate: sigmoid(2) = 0.88 of the state stays at each step.
KEEP_BIAS = 2.0


def dense(features: int, scale: float = math.sqrt(2.0), name: str | None = None) -> nn.Dense:
    """A linear layer with orthogonal initialisation (Saxe et al. 2014); `scale` sqrt(2) before a ReLU."""
    return nn.Dense(features, kernel_init=nn.initializers.orthogonal(scale), name=name)


class Mlp(nn.Module):
    """`num_layers` of linear map and ReLU."""

    width: int
    num_layers: int

    @nn.compact
    def __call__(self, x: Float[Array, "*b f"]) -> Float[Array, "*b d"]:
        for _ in range(self.num_layers):
            x = nn.relu(dense(self.width)(x))
        return x


def pooled(x: Float[Array, "*b n d"], mask: Bool[Array, "*b n"]) -> Float[Array, "*b 2d"]:
    """Mean and maximum over the items that are there; the mean divides by their number, not by that of slots."""
    if x.shape[-2] == 0:
        return jnp.zeros((*x.shape[:-2], 2 * x.shape[-1]), jnp.float32)
    present = mask[..., None]
    count = jnp.maximum(jnp.sum(mask, axis=-1, dtype=jnp.int32), 1).astype(jnp.float32)[..., None]
    mean = jnp.sum(jnp.where(present, x, 0.0), axis=-2) / count
    peak = jnp.max(jnp.where(present, x, NEGATIVE), axis=-2)
    return jnp.concatenate([mean, jnp.where(jnp.any(mask, axis=-1, keepdims=True), peak, 0.0)], axis=-1)


class AttentionBlock(nn.Module):
    """Masked self-attention and a two-layer perceptron, each added to its input after a layer norm (pre-norm)."""

    width: int
    num_heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "*b n d"], mask: Bool[Array, "*b n"]) -> Float[Array, "*b n d"]:
        size = self.width // self.num_heads
        normed = nn.LayerNorm(name="norm_attention")(x)
        query, key, value = jnp.split(dense(3 * self.width, 1.0, "qkv")(normed), 3, axis=-1)
        query, key, value = (y.reshape(*y.shape[:-1], self.num_heads, size) for y in (query, key, value))
        weight = jnp.einsum("...qhd,...khd->...hqk", query, key) / jnp.float32(math.sqrt(size))
        weight = jax.nn.softmax(jnp.where(mask[..., None, None, :], weight, NEGATIVE), axis=-1)
        mixed = jnp.einsum("...hqk,...khd->...qhd", weight, value)
        x = x + dense(self.width, 0.1, "out")(mixed.reshape(x.shape))
        normed = nn.LayerNorm(name="norm_mlp")(x)
        return x + dense(self.width, 0.1, "down")(nn.relu(dense(2 * self.width, name="up")(normed)))


def _keep_first(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Biases of a GRU's gates (reset, update, new) that keep the state at first: a bit shown long ago is still there.

    The same as a forget gate's positive bias (Gers, Schmidhuber and Cummins 2000).
    """
    del key
    return jnp.repeat(jnp.asarray([0.0, KEEP_BIAS, 0.0], dtype), shape[0] // 3)


class Gru(nn.Module):
    """A gated recurrent unit (Cho et al. 2014) over the first axis; its carry is set to zero where an episode starts.

    The input's part of all gates is one matrix product for the whole sequence; only the recurrent part is sequential.
    """

    width: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "*tb f"], carry: Float[Array, "*b d"], start: Bool[Array, "*tb"]
    ) -> tuple[Float[Array, "*tb d"], Float[Array, "*b d"]]:
        gates_in = nn.Dense(
            3 * self.width, kernel_init=nn.initializers.orthogonal(1.0), bias_init=_keep_first, name="input"
        )(x)
        kernel = self.param("recurrent", nn.initializers.orthogonal(1.0), (self.width, 3 * self.width), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.width,), jnp.float32)

        def step(state: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
            gates, first = now
            state = jnp.where(first[..., None], 0.0, state)
            of_state = state @ kernel
            in_reset, in_update, in_new = jnp.split(gates, 3, axis=-1)
            st_reset, st_update, st_new = jnp.split(of_state, 3, axis=-1)
            reset, update = nn.sigmoid(in_reset + st_reset), nn.sigmoid(in_update + st_update)
            new = jnp.tanh(in_new + reset * (st_new + bias))
            state = (1.0 - update) * new + update * state
            return state, state

        carry, states = jax.lax.scan(step, carry, (gates_in, start))
        return states, carry
