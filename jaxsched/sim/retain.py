"""Retention: for how long the KV of a paused program is kept from those who wait (docs/semantics.md, section 9).

At the finish of a turn whose program goes on, a policy's head sets a time to live. Until it is over (and while the
program's next turn waits at the instance) the run of blocks is pinned: admissions do without it as long as anything
runs. Running requests that need blocks take pinned ones last, of the latest program first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

from jaxsched.sim.clock import EPOCH_BITS
from jaxsched.timing.step_time import StepTimeParams, constant_us, context_us

#: A time to live of this many microseconds (9 minutes) or more cannot be told from a longer one before it is over:
#: longer ones are kept as (epoch, us) pairs.
FOREVER_US = 2**30 - 1


class PauseView(struct.PyTreeNode):
    """What a retention head sees when a turn has finished and its program will go on."""

    tool: Int[Array, ""]  # kind of pause that begins
    context_tokens: Int[Array, ""]  # tokens of the program's own context in full blocks
    reload_us: Int[Array, ""]  # time to compute that context again, or to load it if it is copied to host memory
    pool_tokens: Int[Array, ""]  # KV memory of the instance
    pause_epoch: Int[Array, ""]  # the pause itself: for bounds only, which say so (`RetainHead.sees_pause`)
    pause_us: Int[Array, ""]
    turn: Int[Array, ""]  # turns of the program that are done, this one included
    first_prompt_tokens: Int[Array, ""]  # prompt of its first turn
    # For policies that weigh a swap:
    recompute_us: Int[Array, ""]  # time to compute the context again
    load_us: Int[Array, ""]  # time to copy it between host memory and HBM, one way; 0 without memory tiers
    running_tokens: Int[Array, ""]  # tokens of KV that the running requests hold
    running: Int[Array, ""]  # running requests
    program: Int[Array, ""] | None = None  # identity of the program (row of its first turn)


class ContextView(struct.PyTreeNode):
    """What a rule of eviction sees of the contexts of paused programs at an instance (sim/worth.py)."""

    tool: Int[Array, " r"]  # kind of the pause
    age_us: Int[Array, " r"]  # how long it has lasted, at most `FOREVER_US`
    context_tokens: Int[Array, " r"]  # what is left of the context
    reload_us: Int[Array, " r"]  # time to compute that again
    pause_us: Int[Array, " r"]  # the whole pause, at most `FOREVER_US`: for bounds only (`RetainHead.sees_pause`)
    program: Int[Array, " r"] | None = None  # identity of the program (only with `SchedulerParams.evict`)


@dataclasses.dataclass(frozen=True)
class OffloadRule:
    """That contexts are copied to host memory (sim/tiers.py), and which. Hashable: it is part of what is compiled."""

    #: (retention parameters, what was learned so far, view) -> whether the context is copied when its program pauses;
    #: None: as `TierParams.on_pause` says.
    copies: Callable[[Array, Any, PauseView], Bool[Array, ""]] | None = None
    #: The same arguments -> when the program is expected back, in us from now: its context is loaded so that it is
    #: there by then (`FOREVER_US`: not). None: nothing is prefetched.
    returns_in: Callable[[Array, Any, PauseView], Int[Array, ""]] | None = None
    needs_tiers: bool = True  # False: without a host tier the policy is still one


@dataclasses.dataclass(frozen=True)
class RetainHead:
    """A retention policy. Hashable: it is part of what is compiled."""

    #: (parameters, what was learned so far, view) -> time to live in us; at `FOREVER_US` or above: until the return.
    ttl: Callable[[Array, Any, PauseView], Int[Array, ""]]
    #: number of tools -> what is known at the start (None: the policy learns nothing).
    start: Callable[[int], Any] | None = None
    #: (known, tool, pause in us, happened) -> known: a program returned.
    returned: Callable[[Any, Array, Array, Array], Any] | None = None
    #: (known, wait in us, happened) -> known: a later turn whose context was gone was admitted after that wait.
    readmitted: Callable[[Any, Array, Array], Any] | None = None
    #: (parameters, known, turns, happened) -> known: a program is done after so many turns.
    completed: Callable[[Array, Any, Array, Array], Any] | None = None
    sees_pause: bool = False  # a bound: reads the true pause
    #: (parameters, known, view of all contexts) -> what each is worth (int32 or float32): the least is evicted first.
    #: None: unpinned contexts by release, like everything else; pinned ones the latest program first.
    value: Callable[[Array, Any, ContextView], Array] | None = None


def reload_time_us(timing: StepTimeParams, context_tokens: Int[Array, ""]) -> Int[Array, ""]:
    """Time to compute a context again, as one prefill of the step-time model (context read included)."""
    one = jnp.int32(1)
    quad = context_tokens * (context_tokens >> 6)
    constant = constant_us(timing, context_tokens, one, context_tokens, quad, 0 * one)
    read = context_us(timing, timing.prefill_in_ctx * context_tokens)
    return jnp.where(context_tokens > 0, constant + read, 0)


def saturated_us(epoch: Int[Array, ""], us: Int[Array, ""]) -> Int[Array, ""]:
    """A duration (epochs, us) in int32 microseconds, at most `FOREVER_US`."""
    return jnp.where(epoch > 0, FOREVER_US, jnp.minimum(us, FOREVER_US)).astype(jnp.int32)


def deadline(epoch: Int[Array, ""], us: Int[Array, ""], ttl_us: Int[Array, ""]) -> tuple[Array, Array]:
    """(epoch, us) of the end of a time to live; "for ever" is an epoch that never comes."""
    ends = us + jnp.minimum(ttl_us, FOREVER_US)
    never = ttl_us >= FOREVER_US
    return jnp.where(never, 2**30, epoch + (ends >> EPOCH_BITS)), ends & (2**EPOCH_BITS - 1)
