"""Traced parameters of the machine: everything a sweep may vary with `vmap` without a new compilation."""

from __future__ import annotations

from typing import Any

from flax import struct
from jaxtyping import Array, Float, Int

from jaxsched.sim.tiers import TierParams
from jaxsched.timing.step_time import StepTimeParams


class SchedulerParams(struct.PyTreeNode):
    """Knobs of one engine's schedule(); all int32. Names as in vLLM's SchedulerConfig."""

    token_budget: Int[Array, ""]  # max_num_batched_tokens; the chunk size of sarathi
    max_num_seqs: Int[Array, ""]  # requests admitted at a time
    long_prefill_threshold: Int[Array, ""]  # longest chunk of one request per step, 0 = off
    adaptive_threshold: Int[Array, ""]  # 1: raise the threshold to budget / (running + waiting)
    chunked_prefill: Int[Array, ""]  # 0: a prompt is scheduled whole or waits
    reserve_full_isl: Int[Array, ""]  # 1: admit only if the whole known sequence fits
    watermark_blocks: Int[Array, ""]  # blocks kept free at admission
    max_model_len: Int[Array, ""]  # tokens; what `orca` and `static` reserve
    order: Int[Array, " k"]  # parameters of the order head, see the policy's file
    retain: Float[Array, " r"]  # parameters of the retention head, see the policy's file
    admit: Float[Array, " a"]  # parameters of the admission head, see the policy's file
    gate_fraction: Float[Array, ""]  # share of the pool that the contexts of begun programs may fill
    work: Int[Array, " 2"] | None = None  # us per prompt token and per output token, for due dates; None: not read
    weights: Float[Array, " w"] | None = None  # of a learned policy: what all its heads get instead; None: it is not
    draft: Any = None  # `DraftParams`: how many tokens are drafted (sim/speculate.py); None: nobody speculates
    evict: Array | None = None  # what the rule of eviction gets instead of `retain`; None: it gets that
    victim: Array | None = None  # parameters of `SchedulerSpec.victim`

    def of_order(self) -> Array:
        """What the order head gets."""
        return self.order if self.weights is None else self.weights

    def of_retain(self) -> Array:
        """What the retention head gets."""
        return self.retain if self.weights is None else self.weights

    def of_evict(self) -> Array:
        """What the retention head's rule of eviction gets."""
        return self.of_retain() if self.evict is None else self.evict


class SimParams(struct.PyTreeNode):
    """Parameters of one lane."""

    timing: StepTimeParams  # of all instances, or with a leading axis of instances
    scheduler: SchedulerParams
    usable_blocks: Int[Array, " m"]  # KV blocks of each instance (the engine's pool without its null block)
    #: Waiting requests per instance beyond which arrivals are rejected, 0 = only the FIFO's capacity.
    max_queue: Int[Array, ""]
    view_delay_us: Int[Array, ""]  # age limit of the routers' view (period of the telemetry ticks), below 2^29
    cache_delay_us: Int[Array, ""] | None  # the same for the view of the prefix caches; None: it is live
    route: Float[Array, " q"] | None  # parameters of the route head, see the router's file; None: it has none
    seed: Int[Array, ""]  # of hashed routing decisions
    timeout_us: Int[Array, " c"]  # per class, 0 = none, below 2^30
    slo_ttft_us: Int[Array, " c"]  # per class, 2^31 - 1 = none
    slo_tpot_us: Int[Array, " c"]
    slo_e2e_us: Int[Array, " c"]
    slo_tbt_us: Int[Array, " c"]  # of every gap between two tokens (only with `SimStatic.gap_limits`)
    measure_from: Int[Array, ""]  # programs [measure_from, measure_to) are the measured cohort
    measure_to: Int[Array, ""]
    horizon_epoch: Int[Array, ""]  # no event after this time is taken
    horizon_us: Int[Array, ""]
    tenants: Any = None  # `TenantParams`: weights by class; None: neither the order nor the metrics ask
    tiers: TierParams | None = None  # None: nothing below HBM
    compress: Any = None  # `CompressParams`, with `SchedulerSpec.compress`
    rounds: Any = None  # `RoundParams`, with `SimStatic.rounds`
    speculation: Any = None  # `SpecParams`: the draft model; None: nobody speculates
    semantic: Any = None  # `SemanticParams`, with `SimStatic.semantic`
