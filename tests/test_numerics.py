"""Integer division by way of float32 is exact over its whole domain."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxsched.numerics import floor_div, scaled_floor


def test_quotients_are_exact_up_to_the_largest_and_around_every_multiple():
    rng = np.random.default_rng(0)
    num = 1 << 18
    den = np.clip(2 ** rng.uniform(9, 31, num), 512, 2**31 - 1).astype(np.int64)
    den[::4] = rng.integers(512, 520, num // 4)  # the largest quotients
    x = (2 ** rng.uniform(0, 31, num)).astype(np.int64)
    x[1::4] = 2**31 - rng.integers(1, 4096, num // 4)
    near = np.arange(num) % 2 == 0
    x = np.clip(np.where(near, x // den * den + rng.integers(-1, 2, num), x), 0, 2**31 - 1)
    divide = jax.jit(jax.vmap(floor_div))
    np.testing.assert_array_equal(divide(jnp.asarray(x, jnp.int32), jnp.asarray(den, jnp.int32)), x // den)

    factor = np.minimum((2**31 - 1) // den, rng.integers(0, 2**22, num))
    x = np.where(factor > 0, np.minimum(x, (2**31 - 1) * den // np.maximum(factor, 1)), x)
    scale = jax.jit(jax.vmap(scaled_floor))
    found = scale(*(jnp.asarray(value, jnp.int32) for value in (x, factor, den)))
    np.testing.assert_array_equal(found, factor * x // den)
