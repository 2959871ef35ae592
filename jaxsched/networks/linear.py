"""The product that the index networks are made of."""

from __future__ import annotations

from jaxtyping import Array, Float


def weighted(features: Float[Array, "*n f"], weights: Float[Array, " f"]) -> Float[Array, "*n"]:
    """``features @ weights``, as a sum of products written out: a dot product in a loop may be rounded otherwise when
    more lanes are compiled."""
    total = features[..., 0] * weights[0]
    for i in range(1, weights.shape[0]):
        total = total + features[..., i] * weights[i]
    return total
