"""Randomness on device, keyed by identity: a pure function of (seed key, stream, program, turn), never of call order.

A stream's key is ``fold_in(seed key, stream)``. The draw of an element is the threefry-2x32 block of that key at the
counter ``(turn, program)``: 64 bits, which for turn 0 are exactly the key data of ``fold_in(stream key, program)``.
Element ``i`` is therefore the same however many elements are generated, in whatever order, alone or under `vmap`.
The block function is written out (20 rounds, Salmon et al., SC 2011) because the `fold_in` of JAX does not fuse with
the arithmetic that follows it on CPU: 48 against 4 ns per element, measured.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array, Float, Int, UInt

#: Stream numbers: one per kind of draw. Never renumber: they are part of what a seed means.
GAP, PROMPT, OUTPUT, PREDICTION, DRIFT, TURNS, GROWTH, PAUSE, KLASS, EVENT, KIND, GROUP, PREFIX = range(13)

#: Two random words per element.
Words = tuple[UInt[Array, "*n"], UInt[Array, "*n"]]

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def stream_key(key: Array, stream: int) -> UInt[Array, " two"]:
    """The two key words of a stream. `key` is one typed key (`jax.random.key`) or a legacy uint32 one, not a batch."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    return jax.random.key_data(jax.random.fold_in(key, stream))[:2]


def draw(key: UInt[Array, " two"], program: Int[Array, "*n"], turn: Int[Array, "*n"] | int = 0) -> Words:
    """Two independent random words for each (program, turn), from a stream's key; the arguments broadcast."""
    turn, program = jnp.broadcast_arrays(jnp.asarray(turn, jnp.int32), jnp.asarray(program, jnp.int32))
    schedule = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(_PARITY))
    x = turn.astype(jnp.uint32) + schedule[0]
    y = program.astype(jnp.uint32) + schedule[1]
    for group in range(5):
        for bits in _ROTATIONS[group % 2]:
            x = x + y
            y = x ^ ((y << jnp.uint32(bits)) | (y >> jnp.uint32(32 - bits)))
        x = x + schedule[(group + 1) % 3]
        y = y + schedule[(group + 2) % 3] + jnp.uint32(group + 1)
    return x, y


def uniform(word: UInt[Array, "*n"]) -> Float[Array, "*n"]:
    """float32 in (0, 1), 23 bits, symmetric: neither 0 nor 1 can come out."""
    return ((word >> 9).astype(jnp.float32) + jnp.float32(0.5)) * jnp.float32(2.0**-23)


def exponential(word: UInt[Array, "*n"]) -> Float[Array, "*n"]:
    """float32, exponential with mean 1 (largest value 16.6)."""
    return -jnp.log(uniform(word))


def normal(word: UInt[Array, "*n"]) -> Float[Array, "*n"]:
    """float32, standard normal (inside +-5.3)."""
    return ndtri(uniform(word))
