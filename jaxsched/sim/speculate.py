"""Speculative decoding: which drafted tokens are right, how many are drafted, what drafting costs (semantics, 16).

Whether the draft model guesses a token is a property of the request and of the position of the token, drawn from the
hash of (seed, row, position): no schedule can change it. Probabilities are integers of 2**-15, so that the machine and
the reference in Python decide alike. Compiled only where `SchedulerSpec.speculates`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

from jaxsched.sim.arrivals import hash_bits
from jaxsched.sim.event import Event, ceil_blocks, count, first_slot
from jaxsched.sim.state import Col
from jaxsched.timing.step_time import constant_us, context_us

if TYPE_CHECKING:
    from jaxsched.sim.static import SimStatic

#: Most tokens that a request can draft in a step.
MOST_DRAFTS = 16
#: Probabilities are multiples of 2**-BITS.
BITS = 15
ONE = 1 << BITS
#: Equally likely levels of requests, and of tokens of a request.
REQUEST_LEVELS, TOKEN_LEVELS = 16, 64
#: A word of the hash: a number below ONE, the level of the token, what the head knows of it (10 bits).
LEVEL_SHIFT, HEAD_SHIFT, HEAD_BITS = 15, 21, 10
#: Draws of the hash: the level of a request, then its tokens by position.
REQUEST_DRAW, TOKEN_DRAW = 1 << 16, 1 << 20
#: Expected tokens of a round are multiples of 2**-TOKEN_BITS, scores of 2**-SCORE_BITS of that per us.
TOKEN_BITS, SCORE_BITS = 8, 17
#: Cost of a drafted token is in 2**-COST_BITS us.
COST_BITS = 8
#: What `SpecState.counts` holds.
DRAFTED, ACCEPTED, ROUNDS, OUTPUTS, DRAFT_US = range(5)


class SpecParams(struct.PyTreeNode):
    """The draft model: how often it is right and what it costs. int32."""

    accept: Int[Array, "r t"]  # probability that a token is guessed, 2**-15, by level of the request and of the token
    mean: Int[Array, " r"]  # mean of each row of it
    head: Int[Array, ""]  # share of the tokens whose probability is known when drafted, 2**-10; else the mean is taken
    draft_pass_us: Int[Array, ""]  # one pass of the draft model: a token more for all who draft
    draft_token: Int[Array, ""]  # ... and each token of it, 2**-8 us


class DraftParams(struct.PyTreeNode):
    """How many tokens are drafted: a policy's knobs. int32."""

    most: Int[Array, ""]  # tokens of a request and step, at most; and slots that are held ahead
    least: Int[Array, ""]
    stop_below: Int[Array, ""]  # no token after one with which all are right with less than this, 2**-15; 0 = never
    by_batch: Int[Array, ""]  # 1: the cap is chosen anew at each step, for tokens per time of the batch
    outputs: Int[Array, " k"]  # ... expecting so many tokens of 0, 1, ... drafts, 2**-8
    ever: Int[Array, ""] | None = None  # what `most` may become during a run; None: it stays

    def ever_most(self) -> Int[Array, ""]:
        """What a request must have room for to be taken at all."""
        return self.most if self.ever is None else self.ever


class SpecState(struct.PyTreeNode):
    """Registers and counters of a lane."""

    cap: Int[Array, ""]  # most drafts of a request in the schedule() call under way
    counts: Int[Array, " 5"]  # DRAFTED, ...; low 30 bits
    counts_high: Int[Array, " 5"]  # multiples of 2^30


def init_speculation(static: SimStatic) -> SpecState | None:
    """Nothing drafted yet; None where nobody speculates."""
    if not static.scheduler.speculates:
        return None
    zeros = jnp.zeros(DRAFT_US + 1, jnp.int32)
    return SpecState(cap=jnp.int32(0), counts=zeros, counts_high=zeros)


def folded_counts(spec: SpecState) -> SpecState:
    """Between chunks: so that no counter can overflow."""
    return spec.replace(counts=spec.counts & (2**30 - 1), counts_high=spec.counts_high + (spec.counts >> 30))


def _params(event: Event) -> tuple[SpecParams, DraftParams]:
    spec, draft = event.params.speculation, event.params.scheduler.draft
    assert spec is not None and draft is not None
    return spec, draft


class _Tokens:
    """The next `MOST_DRAFTS` tokens of each slot's request ``[slots, drafts]``."""

    def __init__(self, event: Event):
        spec, _ = _params(event)
        row = event.column_of(Col.REQUEST)[:, None]
        first = event.slots.known - event.slots.prompt
        position = first[:, None] + jnp.arange(MOST_DRAFTS, dtype=jnp.int32)
        self.word = hash_bits(event.params.seed, row, TOKEN_DRAW + position)  # type: ignore[arg-type]
        self.request_level = hash_bits(event.params.seed, row, REQUEST_DRAW) & (REQUEST_LEVELS - 1)
        level = (self.word >> LEVEL_SHIFT) & (TOKEN_LEVELS - 1)
        self.chance = spec.accept.reshape(-1)[self.request_level * TOKEN_LEVELS + level]

    def guessed(self) -> Int[Array, " s"]:
        """How many of them the draft model gets right before the first that it does not."""
        right = (self.word & (ONE - 1)) < self.chance
        index = jnp.arange(MOST_DRAFTS, dtype=jnp.int32)
        return jnp.min(jnp.where(right, MOST_DRAFTS, index), axis=1)

    def believed(self, spec: SpecParams) -> Int[Array, "s k"]:
        """What the head believes of each."""
        knows = ((self.word >> HEAD_SHIFT) & ((1 << HEAD_BITS) - 1)) < spec.head
        return jnp.where(knows, self.chance, spec.mean[self.request_level])


def begin_drafts(event: Event, begins: Bool[Array, ""]) -> None:
    """At the start of a schedule() call: the most that a request may draft in it."""
    spec, draft = _params(event)
    slots, state = event.slots, event.state
    decodes = event.running_mask & (slots.known - slots.computed == 1) & (slots.known > slots.prompt)
    batch = count(decodes)
    ctx = jnp.sum(jnp.where(decodes, slots.known, 0))
    num = jnp.arange(MOST_DRAFTS + 1, dtype=jnp.int32)
    zero = jnp.int32(0)
    timing = event.timing
    constant = jax.vmap(lambda tokens: constant_us(timing, tokens, zero, zero, zero, batch))(batch * (num + 1))
    time_us = constant + context_us(timing, ctx + batch * num) + draft_us(spec, num, batch * num)
    score = (draft.outputs << SCORE_BITS) // jnp.maximum(time_us, 1)
    score = jnp.where(num <= draft.most, score, -1)
    best = first_slot(score == jnp.max(score))
    cap = jnp.where(draft.by_batch > 0, best, draft.most)
    was = state.speculation
    event.state = state.replace(speculation=was.replace(cap=jnp.where(begins, cap, was.cap)))


def drafts(event: Event) -> Int[Array, " s"]:
    """Tokens that each running request drafts in this call; 0 for those that still compute a prompt."""
    spec, draft = _params(event)
    slots = event.slots
    believed = _Tokens(event).believed(spec)
    chance = jnp.full_like(slots.known, ONE)
    likely = jnp.zeros_like(slots.known)  # tokens with which all are right with at least `stop_below`
    for k in range(MOST_DRAFTS):
        chance = (chance * believed[:, k]) >> BITS
        likely += chance >= draft.stop_below
    cap = event.state.speculation.cap
    number = jnp.minimum(jnp.maximum(likely + 1, draft.least), cap)
    decodes = event.running_mask & (slots.known - slots.computed == 1) & (slots.known > slots.prompt)
    return jnp.where(decodes, number, 0)


def slots_ahead(event: Event, tokens: Int[Array, " s"]) -> Int[Array, " s"]:
    """Blocks that requests with `tokens` tokens scheduled in all hold: vLLM's num_lookahead_tokens come on top."""
    return ceil_blocks(event.static, tokens + _params(event)[1].most)


def draft_us(spec: SpecParams, passes: Int[Array, "*n"], tokens: Int[Array, "*n"]) -> Int[Array, "*n"]:
    """Time of `passes` passes of the draft model over `tokens` tokens in all."""
    return spec.draft_pass_us * passes + ((spec.draft_token * tokens) >> COST_BITS)


def step_drafts_us(event: Event, drafted: Int[Array, " s"]) -> Int[Array, ""]:
    """Time that the drafts of a step take before it."""
    return draft_us(_params(event)[0], jnp.max(drafted), jnp.sum(drafted))


def book_outputs(event: Event, emit: Bool[Array, " s"]) -> Int[Array, " s"]:
    """Tokens that each request gets at the end of its step: the drafts guessed, and one of the target model's own.

    What lies behind the request's last token is dropped.
    """
    slots, was = event.slots, event.state.speculation
    drafted = jnp.where(emit, slots.computed - slots.known, 0)
    accepted = jnp.minimum(_Tokens(event).guessed(), drafted)
    outputs = jnp.where(emit, jnp.minimum(accepted + 1, slots.goal - slots.known), 0)
    rounds = drafted > 0
    change = jnp.stack([
        jnp.sum(drafted),
        jnp.sum(accepted),
        count(rounds),
        jnp.sum(jnp.where(rounds, outputs, 0)),
        step_drafts_us(event, drafted),
    ])  # fmt: skip
    event.state = event.state.replace(speculation=was.replace(counts=was.counts + change))
    return outputs
