"""What a decision head may look at.

Heads get views, never the state, so that nothing unobservable leaks into a policy.
"""

from __future__ import annotations

from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxsched.sim.due import DueView
from jaxsched.sim.fair import TenantParams


class QueueView(struct.PyTreeNode):
    """One instance's slots, for order heads."""

    waiting_mask: Bool[Array, " s"]  # slot holds a request that waits for admission
    running_mask: Bool[Array, " s"]  # slot holds an admitted request
    known_tokens: Int[Array, " s"]  # prompt + outputs so far
    computed_tokens: Int[Array, " s"]  # tokens whose KV is held (0 while waiting)
    prompt_tokens: Int[Array, " s"]
    predicted_tokens: Int[Array, " s"]  # predicted output tokens (not the truth, unless the scenario says error 0)
    priority: Int[Array, " s"]  # lower = more important
    sequence: Int[Array, " s"]  # arrival number in this lane: a FCFS key
    wait_us: Float[Array, " s"]  # time since arrival
    now_epoch: Int[Array, ""]  # the clock: epochs of 2^30 us,
    now_us: Int[Array, ""]  # and microseconds since the start of the epoch
    row: Int[Array, " s"]  # identity of the turn
    program: Int[Array, " s"]  # identity of its program: programs are numbered in order of arrival
    first_turn_mask: Bool[Array, " s"]  # the turn is its program's first
    turn: Int[Array, " s"]  # turns of its program before it
    first_prompt_tokens: Int[Array, " s"]  # prompt of its program's first turn
    preempted_mask: Bool[Array, " s"]  # it has been preempted
    pinned_mask: Bool[Array, " s"]  # the context it will find is pinned (retention policies)
    #: It has yielded a token since its admission (schedulers with a `ServiceRule`).
    advanced_mask: Bool[Array, " s"] | None = None
    remaining_us: Int[Array, " s"] | None = None  # work left of its program, history included unless pinned (bounds)
    tenant: Int[Array, " s"] | None = None  # whose request it is (schedulers with a `FairRule`, and those below)
    tag: Int[Array, " s"] | None = None  # what the rule gave it
    account: Int[Array, " a"] | None = None  # of the instance, as the rule keeps it
    tenants: TenantParams | None = None  # weights of the tenants
    admitted_us: Int[Array, " s"] | None = None  # time since its admission (schedulers with a `ServiceRule`)
    due: DueView | None = None  # due dates and predicted work (schedulers with `SchedulerSpec.due`)
    attained_us: Int[Array, " s"] | None = None  # service that counts for the call (schedulers with a `ServiceRule`)


class RouterView(struct.PyTreeNode):
    """The cluster as the router sees it: live, or as of the last telemetry tick."""

    num_waiting: Int[Array, " m"]
    num_running: Int[Array, " m"]
    used_blocks: Int[Array, " m"]  # KV blocks held
    waiting_blocks: Int[Array, " m"]  # blocks of the prompts that wait
    work_tokens: Int[Array, " m"]  # prompt + predicted output tokens of unfinished requests
    arrival_count: Int[Array, ""]  # arrivals routed before this one
    home: Int[Array, ""]  # instance that ran the program's previous turn, -1 = none
    hash0: Int[Array, ""]  # uniform non-negative int32, a function of (seed, request) only
    hash1: Int[Array, ""]  # another one
    prompt_tokens: Int[Array, ""]  # of the arriving request
    predicted_tokens: Int[Array, ""]
    params: Float[Array, " q"] | None = None  # of the router, in the order of its `Router.params`
    # Only for routers that read the caches (`Router.reads_cache`).
    usable_blocks: Int[Array, " m"] | None = None  # size of the KV pools
    matched_tokens: Int[Array, " m"] | None = None  # leading tokens of the prompt that are cached, in whole blocks
    prefill_tokens: Int[Array, " m"] | None = None  # prompt tokens of its requests that are still to be computed
    recent_prefill: Int[Array, " m"] | None = None  # prompt tokens to compute of what it was sent in the last minutes
    recent_output: Int[Array, " m"] | None = None  # ... and predicted output tokens
    record_tokens: Int[Array, " m"] | None = None  # size of the router's own record of an instance
    block_size: int = struct.field(pytree_node=False, default=16)
