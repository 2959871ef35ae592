"""Online paging: Marker, and paging with one bit of prediction per request (unit costs, one size).

A *discard bit* of a request is 1 if MIN would evict its page before the page's next request; a *phase bit* is 1 if the
page is not requested in the next k-phase (phases: maximal runs of requests of at most k distinct pages). With eta0
wrong zeros and eta1 wrong ones the rules cost at most (Antoniadis et al., Paging with succinct predictions, ICML 2023):

| rule | bit | cost, up to a constant |
| --- | --- | --- |
| LRU (`paging.faults`) | - | k OPT (Sleator & Tarjan 1985) |
| `MARKER` | - | 2 H_k OPT in expectation (Fiat et al. 1991) |
| `FLUSH` | discard | OPT + (k - 1) eta0 + eta1 |
| `MARK0` | discard | OPT + 2 H_k eta0 + eta1 in expectation |
| `MARK_PREDICT` | phase | 2 OPT + H_k eta0 + eta1 in expectation, and O(log k) OPT whatever the bits |

Every rule is one `lax.scan` over the sequence, jittable and vmappable over sequences, bits and keys. Which of several
candidates is evicted is drawn from the key and the position, so lanes with one key meet the same draws.
"""

from __future__ import annotations

import enum

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int, Key

from jaxsched.retention.paging import NEVER, next_use


class Online(enum.Enum):
    """Which page leaves a full memory on a miss."""

    MARKER = "marker"  # a random unmarked page; requests mark; all marked: a new phase, all unmarked
    FLUSH = "flush"  # a page with bit 1; none: the whole memory is dropped
    MARK0 = "mark0"  # Marker on pages with bit 0; one with bit 1 is dropped as soon as it is served
    MARK_PREDICT = "mark_predict"  # Marker, among unmarked pages with bit 1 first


class _Frames(struct.PyTreeNode):
    page: Int[Array, " k"]  # -1: empty
    bit: Int[Array, " k"]  # of the page's last request
    marked: Bool[Array, " k"]


def discard_bits(pages: Int[Array, " N"], num_frames: int, num_pages: int) -> Int[Array, " N"]:
    """The true discard bits of a sequence: MIN's decisions. Pages that MIN keeps to the end have 0."""
    pages = jnp.asarray(pages, jnp.int32)

    def step(frames, item):
        page_of, next_of, last_of = frames
        position, page, upcoming = item
        hit_at = page_of == page
        victim = jnp.argmax(jnp.where(page_of < 0, NEVER, jnp.minimum(next_of, NEVER - 1)))
        at = jnp.where(jnp.any(hit_at), jnp.argmax(hit_at), victim)
        evicts = ~jnp.any(hit_at) & (page_of[at] >= 0)
        discarded = jnp.where(evicts, last_of[at], pages.shape[0])
        new = (page_of.at[at].set(page), next_of.at[at].set(upcoming), last_of.at[at].set(position))
        return new, discarded

    empty = jnp.full((num_frames,), -1, jnp.int32)
    positions = jnp.arange(pages.shape[0], dtype=jnp.int32)
    items = (positions, pages, next_use(pages, num_pages))
    _, discarded = jax.lax.scan(step, (empty, jnp.zeros_like(empty), empty), items)
    return jnp.zeros_like(pages).at[discarded].set(1, mode="drop")


def phases(pages: Int[Array, " N"], num_frames: int, num_pages: int) -> Int[Array, " N"]:
    """The k-phase of each request, from 0."""

    def step(state, page):
        seen, phase = state
        full = ~seen[page] & (jnp.sum(seen.astype(jnp.int32)) == num_frames)
        seen = jnp.where(full, False, seen).at[page].set(True)
        phase = phase + full.astype(jnp.int32)
        return (seen, phase), phase

    start = (jnp.zeros((num_pages,), bool), jnp.int32(0))
    return jax.lax.scan(step, start, jnp.asarray(pages, jnp.int32))[1]


def phase_bits(pages: Int[Array, " N"], num_frames: int, num_pages: int) -> Int[Array, " N"]:
    """The true phase bits: 1 where the page is not requested in the phase after the request's own."""
    pages = jnp.asarray(pages, jnp.int32)
    phase = phases(pages, num_frames, num_pages)

    def step(following, item):  # backwards; per page: phase of its next request, and that request's bit
        next_phase, next_bit = following
        page, here = item
        far = (next_phase[page] != here + 1).astype(jnp.int32)
        bit = jnp.where(next_phase[page] == here, next_bit[page], far)
        return (next_phase.at[page].set(here), next_bit.at[page].set(bit)), bit

    start = (jnp.full((num_pages,), -1, jnp.int32), jnp.zeros((num_pages,), jnp.int32))
    return jax.lax.scan(step, start, (pages, phase), reverse=True)[1]


def online_faults(
    pages: Int[Array, " N"],
    bits: Int[Array, " N"],
    num_frames: int,
    rule: Online,
    key: Key[Array, ""],
) -> Int[Array, ""]:
    """Number of faults of a cold start.

    Args:
        pages: ids of at least 0.
        bits: the prediction that comes with each request, 0 or 1 (`MARKER` does not read them).
        num_frames: size k of the memory, static.
        rule: static.
        key: of the random choices.
    """

    def step(frames: _Frames, item):
        position, page, bit = item
        hit_at = frames.page == page
        hit = jnp.any(hit_at)
        full = jnp.all(frames.page >= 0)
        frames = _make_room(rule, frames, ~hit & full)
        empty = frames.page < 0
        eligible = jnp.where(jnp.any(empty), empty, _victims(rule, frames))
        draw = jax.random.uniform(jax.random.fold_in(key, position), (num_frames,))
        at = jnp.where(hit, jnp.argmax(hit_at), jnp.argmax(jnp.where(eligible, draw, -1.0)))
        stays = jnp.bool_(True) if rule is not Online.MARK0 else bit == 0
        here = jnp.arange(num_frames) == at
        return _Frames(
            page=jnp.where(here, jnp.where(stays, page, -1), frames.page),
            bit=jnp.where(here, bit, frames.bit),
            marked=jnp.where(here, stays, frames.marked),
        ), ~hit

    start = _Frames(
        jnp.full((num_frames,), -1, jnp.int32), jnp.zeros((num_frames,), jnp.int32), jnp.zeros((num_frames,), bool)
    )
    positions = jnp.arange(pages.shape[0], dtype=jnp.int32)
    items = (positions, jnp.asarray(pages, jnp.int32), jnp.asarray(bits, jnp.int32))
    return jnp.sum(jax.lax.scan(step, start, items)[1].astype(jnp.int32))


def _make_room(rule: Online, frames: _Frames, needed: Bool[Array, ""]) -> _Frames:
    """What a miss in a full memory changes before a victim is chosen: a flush, or a new phase."""
    if rule is Online.FLUSH:
        flush = needed & jnp.all(frames.bit == 0)
        return frames.replace(page=jnp.where(flush, -1, frames.page))
    return frames.replace(marked=jnp.where(needed & jnp.all(frames.marked), False, frames.marked))


def _victims(rule: Online, frames: _Frames) -> Bool[Array, " k"]:
    if rule is Online.FLUSH:
        return frames.bit == 1
    unmarked = ~frames.marked
    if rule is Online.MARK_PREDICT:
        predicted = unmarked & (frames.bit == 1)
        return jnp.where(jnp.any(predicted), predicted, unmarked)
    return unmarked
