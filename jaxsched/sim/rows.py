"""Reading and writing one instance's rows, and reductions over them, in the forms that XLA compiles well on a CPU.

Both forms below are about compiled code, not about results (docs/decisions/0006):

- A row of several fields is written as one flat vector. A stack of the fields becomes a transposed copy, into which XLA
  fuses what computes them: element by element, with a branch for the field.
- The smallest of some elements is taken with a stand-in for the others that is not the largest int32. LLVM folds that
  one away, into a conditional minimum, which it does not vectorise.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxsched.sim.clock import NEVER_US

#: Stands for elements that do not count: no time or number of ours lies beyond it, but for `NEVER_US`.
BEYOND = NEVER_US - 1
#: The earliest value of an int32.
LOWEST = -(2**31)


def read_row(table: Int[Array, "m f r"], m: Int[Array, ""]) -> list[Int[Array, " r"]]:
    """The fields of row `m`."""
    row = jax.lax.dynamic_index_in_dim(table, m, 0, keepdims=False)
    return [row[i] for i in range(table.shape[1])]


def write_row(table: Int[Array, "m f r"], m: Int[Array, ""], fields: Sequence[Int[Array, " r"]]) -> Int[Array, "m f r"]:
    """The table with all fields of row `m` replaced."""
    num_rows, num_fields, size = table.shape
    flat = table.reshape(num_rows, num_fields * size)
    flat = jax.lax.dynamic_update_index_in_dim(flat, jnp.concatenate(list(fields)), m, 0)
    return flat.reshape(table.shape)


def matches(ids: Int[Array, " n"], among: Int[Array, " k"]) -> Bool[Array, " n"]:
    """Which ids are among others (a count, which LLVM vectorises; a disjunction it does not always)."""
    return jnp.sum((ids[:, None] == among[None, :]).astype(jnp.int32), axis=1) > 0


def value_at(column: Int[Array, " n"], index: Int[Array, ""]) -> Int[Array, ""]:
    """One element; the last where the index is beyond it."""
    return jax.lax.dynamic_index_in_dim(column, index, 0, keepdims=False)


def earliest(mask: Bool[Array, " n"], value: Int[Array, " n"]) -> Int[Array, ""]:
    """The smallest of the values in `mask`; `NEVER_US` if there is none. (2^31 - 2 counts as `NEVER_US`.)"""
    return known_time(jnp.min(jnp.where(mask, value, BEYOND)))


def known_time(found: Int[Array, ""]) -> Int[Array, ""]:
    """A minimum over elements of which those that do not count are `BEYOND`; `NEVER_US` if none does."""
    return jnp.where(found == BEYOND, NEVER_US, found)


def latest(mask: Bool[Array, " n"], value: Int[Array, " n"]) -> Int[Array, ""]:
    """The largest of the values in `mask`; -2^31 if there is none. (-2^31 + 1 counts as that.)"""
    found = jnp.max(jnp.where(mask, value, LOWEST + 1))
    return jnp.where(found == LOWEST + 1, LOWEST, found)
