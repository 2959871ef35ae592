"""What cache-aware routers know: matches of the arriving prompt, live or late, and a memory of what they sent where.

Kept only for routers that ask for it (`SimStatic.route_by_cache`); the rules are docs/semantics.md, section 7.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

from jaxsched.sim.clock import EPOCH_BITS
from jaxsched.sim.kv import init_cache
from jaxsched.sim.kv.seen import look
from jaxsched.sim.params import SimParams
from jaxsched.sim.sent import init_sent
from jaxsched.sim.static import SimStatic

#: The window of recent requests: so many buckets of 2^24 us, together 184.5 s (Preble: 3 minutes).
BUCKET_BITS = 24
NUM_BUCKETS = 11


class Window(struct.PyTreeNode):
    """What was sent to each instance in the last buckets, counted whole when it is routed."""

    tokens: Int[Array, "2 m b"]  # prompt tokens expected to be computed; predicted output tokens
    bucket: Int[Array, " b"]  # absolute number of the bucket that each place holds


class Routing(struct.PyTreeNode):
    """Memory of a cache-aware router; parts that the router does not use are None."""

    unmatched: Int[Array, " n"] | None = None  # of each routed turn: prompt tokens that the router saw no cache of
    waiting_tokens: Int[Array, " m"] | None = None  # ... summed over the turns that wait at an instance
    seen: Any = None  # the caches as of the last cache tick (sim/kv/seen.py)
    next_tick: Int[Array, ""] | None = None  # next cache tick, relative to the epoch
    window: Window | None = None
    sent: Any = None  # the router's own record (sim/sent.py)


def init_routing(static: SimStatic, params: SimParams, num_rows: int) -> Routing | None:
    """Nothing routed yet, and every cache empty."""
    if static.route_by_cache == "none":
        return None
    if static.route_by_cache == "record":
        return Routing(sent=init_sent(static))
    m = static.num_instances
    routing = Routing(unmatched=jnp.zeros(num_rows, jnp.int32), waiting_tokens=jnp.zeros(m, jnp.int32))
    if static.delayed_cache:
        nothing = jnp.zeros((m, static.num_slots), jnp.int32)
        start = look(static, None, init_cache(static, params), nothing[:, 0], nothing, jnp.bool_(False))
        routing = routing.replace(seen=start, next_tick=jnp.asarray(params.cache_delay_us, jnp.int32))
    if static.route_by_window:
        window = Window(jnp.zeros((2, m, NUM_BUCKETS), jnp.int32), jnp.full(NUM_BUCKETS, -1, jnp.int32))
        routing = routing.replace(window=window)
    return routing


def bucket_now(epoch: Int[Array, ""], now: Int[Array, ""]) -> Int[Array, ""]:
    """Absolute number of the bucket of a time."""
    return (epoch << (EPOCH_BITS - BUCKET_BITS)) + (now >> BUCKET_BITS)


def recent_tokens(window: Window, bucket: Int[Array, ""]) -> Int[Array, "2 m"]:
    """Sums over the window that ends with `bucket`."""
    fresh = (window.bucket >= 0) & (window.bucket > bucket - NUM_BUCKETS)
    return jnp.sum(jnp.where(fresh, window.tokens, 0), axis=2)


def add_recent(
    window: Window, bucket: Int[Array, ""], m: Int[Array, ""], tokens: Int[Array, 2], active: Bool[Array, ""]
) -> Window:
    """Count a request for instance `m`."""
    place = (jnp.arange(NUM_BUCKETS) == bucket % NUM_BUCKETS) & active
    here = place & (jnp.arange(window.tokens.shape[1]) == m)[:, None]
    kept = jnp.where(place & (window.bucket != bucket), 0, window.tokens)
    return Window(
        tokens=kept + jnp.where(here, tokens[:, None, None], 0), bucket=jnp.where(place, bucket, window.bucket)
    )


def count_waiting(
    routing: Routing, m: Int[Array, ""], row: Int[Array, ""], sign: int, active: Bool[Array, ""]
) -> Routing:
    """A turn joins (+1) or leaves (-1) those that wait at instance `m`."""
    assert routing.waiting_tokens is not None and routing.unmatched is not None
    here = (jnp.arange(routing.waiting_tokens.shape[0]) == m) & active
    return routing.replace(waiting_tokens=routing.waiting_tokens + jnp.where(here, sign * routing.unmatched[row], 0))
