"""A semantic response cache in front of the cluster: who is answered without the engine (docs/semantics.md, 18).

What a request asks (its topic), how similar it is to a kept answer, and whether a similar answer is wrong for it, are
drawn from the hash of (seed, row); what is kept, for how long, and who is found follow from the run. Integers only.
Compiled only where `SimStatic.semantic`.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

#: Probabilities and similarities are multiples of 2**-BITS.
BITS = 15
ONE = 1 << BITS
#: Draw of the hash, and its parts: place in the law of topics (10 bits), level of the similarity (6), a number (15).
DRAW = 1 << 17
PLACES, LEVELS = 1024, 64
#: Topics of the law are below this; a request that is like no other has the topic FIRST_UNIQUE + row.
FIRST_UNIQUE = 1 << 16
#: Ages are in ticks of 2**TICK_BITS us since time 0.
TICK_BITS, EPOCH_TICK_BITS = 10, 20
#: The load of the adaptive mode is in 2**-LOAD_BITS, slopes of false answers and stretches in 2**-8.
LOAD_BITS = 8
UNUSED = -1
#: What `SemanticState.counts` holds.
LOOKUPS, HITS, FALSE_HITS, STALE, UNLIKE = range(5)


class SemanticParams(struct.PyTreeNode):
    """Knobs and laws, by class of requests. int32."""

    search_us: Int[Array, ""]  # every request waits for it before anything else
    answer_us: Int[Array, ""]  # ... and if it is answered from the cache, for this too
    threshold: Int[Array, " c"]  # similarity that a hit needs, 2**-15
    ttl: Int[Array, " c"]  # age up to which an answer is given, ticks
    quota: Int[Array, " c"]  # answers that are kept; 0 = the class is not cached
    topics: Int[Array, "c 1024"]  # equally likely places: topic, or -1 = like no other
    similarity: Int[Array, "c 64"]  # equally likely levels of a request's similarity to an answer of its topic, 2**-15
    false_slope: Int[Array, " c"]  # probability that such an answer is wrong: this / 2**8 times (1 - similarity)
    load_low: Int[Array, ""]  # adaptive: requests in the system at which it begins, and at which it is full; equal: off
    load_high: Int[Array, ""]
    lower_by: Int[Array, " c"]  # ... by how much thresholds are lower then, 2**-15
    stretch: Int[Array, ""]  # ... and by how many times the time to live is longer, 2**-8


class SemanticState(struct.PyTreeNode):
    """Answers that are kept, of each class."""

    topic: Int[Array, "c q"]  # UNUSED = free
    since: Int[Array, "c q"]  # tick at which the answer was made
    used: Int[Array, "c q"]  # clock of the last use
    clock: Int[Array, ""]
    search_us: Int[Array, ""]  # as in the parameters
    counts: Int[Array, " 5"]  # LOOKUPS, ... (fewer than 2^31 requests arrive)


def init_semantic(params: SemanticParams, num_classes: int, num_entries: int) -> SemanticState:
    """Nothing kept."""
    empty = jnp.full((num_classes, num_entries), UNUSED, jnp.int32)
    zero = jnp.int32(0)
    return SemanticState(
        topic=empty, since=jnp.zeros_like(empty), used=jnp.zeros_like(empty), clock=zero,
        search_us=jnp.asarray(params.search_us, jnp.int32), counts=jnp.zeros(UNLIKE + 1, jnp.int32),
    )  # fmt: skip


def topic_of(params: SemanticParams, klass: Array, row: Array, word: Array) -> Int[Array, ""]:
    """What a request asks."""
    found = params.topics[klass, word & (PLACES - 1)]
    return jnp.where(found < 0, FIRST_UNIQUE + row, found)


def look_up(
    params: SemanticParams,
    state: SemanticState,
    active: Bool[Array, ""],
    request: tuple[Array, Array, Array],
    tick: Int[Array, ""],
    load: Int[Array, ""],
) -> tuple[SemanticState, Bool[Array, ""], Bool[Array, ""]]:
    """Search for an answer to a request (class, row, word of the hash) while `load` requests are in the system.

    Returns the cache with what was found used, whether there is an answer, and whether it is the wrong one.
    """
    klass, row, word = request
    span = jnp.maximum(params.load_high - params.load_low, 0)
    risen = jnp.clip(load - params.load_low, 0, span)
    pressure = jnp.where(span > 0, (risen << LOAD_BITS) // jnp.maximum(span, 1), 0)
    threshold = params.threshold[klass] - ((params.lower_by[klass] * pressure) >> LOAD_BITS)
    ttl = params.ttl[klass]
    ttl += (((ttl >> LOAD_BITS) * pressure) >> LOAD_BITS) * params.stretch
    similarity = params.similarity[klass, (word >> 10) & (LEVELS - 1)]
    entry = (state.topic[klass] == topic_of(params, klass, row, word)) & active & (params.quota[klass] > 0)
    there = jnp.any(entry)
    fresh = jnp.any(entry & (tick - state.since[klass] <= ttl))
    like = similarity >= threshold
    hit = fresh & like
    wrong = hit & ((word >> 16) < ((params.false_slope[klass] * (ONE - similarity)) >> 8))
    clock = state.clock + hit.astype(jnp.int32)
    row_used = jnp.where(entry & hit, clock, state.used[klass])
    change = jnp.stack([active, hit, wrong, there & ~fresh, fresh & ~like]).astype(jnp.int32)
    state = state.replace(used=state.used.at[klass].set(row_used), clock=clock, counts=state.counts + change)
    return state, hit, wrong


def keep(
    params: SemanticParams,
    state: SemanticState,
    active: Bool[Array, ""],
    request: tuple[Array, Array, Array],
    tick: Int[Array, ""],
) -> SemanticState:
    """An answer is there: it replaces an older one of its topic, or takes a free place, or the least recently used."""
    klass, row, word = request
    topic, used = state.topic[klass], state.used[klass]
    index = jnp.arange(topic.shape[0], dtype=jnp.int32)
    inside = index < params.quota[klass]
    asked = topic_of(params, klass, row, word)
    same = topic == asked
    # Free places count as used before all others; of equals the first.
    age = jnp.where(inside, jnp.where(topic == UNUSED, -1, used), 2**31 - 1)
    age = jnp.where(same & inside, -2, age)
    place = jnp.min(jnp.where(age == jnp.min(age), index, topic.shape[0]))
    here = (index == place) & inside & active
    clock = state.clock + active.astype(jnp.int32)
    return state.replace(
        topic=state.topic.at[klass].set(jnp.where(here, asked, topic)),
        since=state.since.at[klass].set(jnp.where(here, tick, state.since[klass])),
        used=state.used.at[klass].set(jnp.where(here, clock, used)),
        clock=clock,
    )


def tick_of(epoch: Int[Array, ""], us: Int[Array, ""]) -> Int[Array, ""]:
    """Tick of a time ``(epoch, us)``."""
    return (epoch << EPOCH_TICK_BITS) + (us >> TICK_BITS)
