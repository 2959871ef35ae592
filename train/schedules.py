"""Learning-rate schedules as optax callables: from the number of updates made to the rate of the next one.

z = updates made / updates planned. What is counted are UPDATES (iterations x epochs x minibatches), not iterations.

| name | factor at z | source |
| --- | --- | --- |
| constant | 1 | |
| linear | 1 - z | |
| cosine | u = (1 + cos(pi z)) / 2 | Loshchilov and Hutter 2017 |
| rex | (1 - z) / (1/2 + (1 - z)/2) | Chen, Wolfe and Kyrillidis 2022 |
| uba | 2u / (phi + (2 - phi) u) | experimental: taken from a study's notes, not compared with its paper |

uba with phi = 2 is cosine; a smaller phi stays high longer.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

NAMES = ("constant", "linear", "cosine", "rex", "uba")


def factor(name: str, z: Float[Array, ""], phi: float = 1.0) -> Float[Array, ""]:
    """The schedule's share of the peak at progress `z` (0 to 1), without warm-up.

    Raises:
        ValueError: no schedule of that name.
    """
    z = jnp.clip(jnp.asarray(z, jnp.float32), 0.0, 1.0)
    half_cosine = 0.5 * (1.0 + jnp.cos(jnp.pi * z))
    if name == "constant":
        return jnp.ones_like(z)
    if name == "linear":
        return 1.0 - z
    if name == "cosine":
        return half_cosine
    if name == "rex":
        return (1.0 - z) / (0.5 + 0.5 * (1.0 - z))
    if name == "uba":
        return 2.0 * half_cosine / (phi + (2.0 - phi) * half_cosine)
    raise ValueError(f"no schedule {name!r}: {', '.join(NAMES)}")


def schedule(
    name: str, peak: float | Array, num_updates: int, *, warmup: float = 0.02, phi: float = 1.0
) -> optax.Schedule:
    """A rate for every update.

    Args:
        name: one of `NAMES`.
        peak: largest rate; may be traced.
        num_updates: updates planned in all.
        warmup: share of them over which the rate rises linearly before it follows the schedule.
        phi: shape of `uba`.
    """
    factor(name, jnp.float32(0.0), phi)
    rising = max(1.0, warmup * num_updates) if warmup > 0 else 0.0

    def rate(count: Any) -> Array:
        step = jnp.asarray(count, jnp.float32)
        if not rising:
            return peak * factor(name, step / num_updates, phi)
        falling = factor(name, (step - rising) / max(1.0, num_updates - rising), phi)
        return peak * jnp.where(step < rising, (step + 1.0) / rising, falling)

    return rate
