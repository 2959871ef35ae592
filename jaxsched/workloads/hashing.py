"""Randomness for host-side workloads, keyed by identity: a pure function of (seed, identity), never of call order."""

from __future__ import annotations

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def splitmix64(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): uint64 [n] to well-mixed uint64 [n]."""
    with np.errstate(over="ignore"):
        x = np.asarray(x, np.uint64) + _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def keyed_bits(seed: int, *identity: np.ndarray) -> np.ndarray:
    """uint64 [n]: hash of the seed and of integer identity columns (each [n] or scalar)."""
    state = splitmix64(np.asarray(seed & 0xFFFFFFFFFFFFFFFF, np.uint64))
    for column in identity:
        state = splitmix64(state ^ splitmix64(np.asarray(column, np.int64).view(np.uint64)))
    return state


def keyed_uniform(seed: int, *identity: np.ndarray) -> np.ndarray:
    """float64 [n] in (0, 1): never 0 or 1."""
    return ((keyed_bits(seed, *identity) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def keyed_normal(seed: int, *identity: np.ndarray) -> np.ndarray:
    """float64 [n], standard normal (Box-Muller on two keyed uniforms)."""
    radius = np.sqrt(-2.0 * np.log(keyed_uniform(seed, *identity, np.asarray(1))))
    return radius * np.cos(2.0 * np.pi * keyed_uniform(seed, *identity, np.asarray(2)))


def keyed_exponential(seed: int, *identity: np.ndarray) -> np.ndarray:
    """float64 [n], exponential with mean 1."""
    return -np.log(keyed_uniform(seed, *identity))
