"""From a policy and a cluster's sizes to the machine's static description and its traced parameters."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jaxsched.errors import UserError
from jaxsched.policies.base import Policy
from jaxsched.sim.clock import EPOCH_BITS, EPOCH_US
from jaxsched.sim.fair import tenant_params
from jaxsched.sim.params import SimParams
from jaxsched.sim.rounds import RoundParams
from jaxsched.sim.semantic import SemanticParams
from jaxsched.sim.speculate import SpecParams
from jaxsched.sim.static import SimStatic
from jaxsched.sim.tiers import TierParams
from jaxsched.timing.step_time import StepTimeParams

NO_LIMIT_US = 2**31 - 1


def make_static(
    policy: Policy,
    *,
    num_instances: int,
    num_slots: int | None = None,
    timeouts: bool = False,
    delayed_view: bool = False,
    delayed_cache: bool = False,
    usable_blocks: int | Sequence[int] = 0,
    **sizes,
) -> SimStatic:
    """The compiled program's description. `num_slots` defaults to what the scheduler needs to be exact.

    FCFS engines keep their queue in the FIFO and need one slot per admitted request; ordered queues compare the
    requests in the slots, so theirs are twice as many.

    Raises:
        UserError: fewer slots than `max_num_seqs`: the slots would silently be the limit.
    """
    max_num_seqs = int(policy.settings()["max_num_seqs"])
    ordered = policy.scheduler.spec.order is not None
    if num_slots is None:
        num_slots = max_num_seqs * (2 if ordered else 1)
    if num_slots < max_num_seqs:
        raise UserError(
            f"num_slots {num_slots} is below max_num_seqs {max_num_seqs}",
            where=f"policy {policy.name}",
            expected=f"num_slots >= {max_num_seqs}",
            hint="Raise cluster.num_slots or lower max_num_seqs.",
        )
    return SimStatic(
        scheduler=policy.scheduler.spec,
        route=policy.router.route,
        num_instances=num_instances,
        num_slots=num_slots,
        ordered_budget=policy.needs_ordered_budget(),
        route_by_blocks=policy.router.reads_blocks,
        route_by_work=policy.router.reads_work,
        route_by_cache=policy.router.reads_cache,
        route_by_window=policy.router.reads_window,
        timeouts=timeouts,
        delayed_view=delayed_view,
        delayed_cache=delayed_cache and policy.router.reads_cache == "cache",
        cache_entries=_cache_entries(sizes.get("prefix_cache", "none"), usable_blocks),
        **sizes,
    )


def _cache_entries(prefix_cache: str, usable_blocks: int | Sequence[int]) -> int:
    """Room of the prefix cache: a block table has one entry per block; runs are rarely shorter than 16 blocks."""
    largest = int(np.max(usable_blocks))
    return {"none": 0, "blocks": largest, "runs": min(max(64, largest // 16), 2048)}[prefix_cache]


def make_params(
    policy: Policy,
    timing: StepTimeParams,
    usable_blocks: int | Sequence[int],
    *,
    num_instances: int,
    view_delay_us: int = 0,
    cache_delay_us: int = 0,
    max_queue: int = 0,
    seed: int = 0,
    timeout_us: Sequence[int] = (0,),
    slo_ttft_us: Sequence[int] | None = None,
    slo_tpot_us: Sequence[int] | None = None,
    slo_e2e_us: Sequence[int] | None = None,
    slo_tbt_us: Sequence[int] | None = None,
    measure_from: int = 0,
    measure_to: int = 2**30,
    horizon_us: int | None = None,
    tenant_weights: Sequence[float] | None = None,
    tiers: TierParams | None = None,
    rounds: RoundParams | None = None,
    speculation: SpecParams | None = None,
    semantic: SemanticParams | None = None,
) -> SimParams:
    """Traced parameters of one lane. Sequences over classes must be equally long; SLOs default to none.

    `tenant_weights`: where the tenants' service is measured; None: a fair scheduler takes all classes as equal.
    """
    num_classes = len(timeout_us)
    blocks = np.broadcast_to(np.asarray(usable_blocks, np.int32), (num_instances,))

    def limits(values: Sequence[int] | None) -> jnp.ndarray:
        return jnp.asarray([NO_LIMIT_US] * num_classes if values is None else list(values), jnp.int32)

    if tenant_weights is None and policy.scheduler.spec.fair is not None:
        tenant_weights = [1.0] * num_classes
    far = 2**30 << EPOCH_BITS
    horizon = far if horizon_us is None else int(horizon_us)
    return SimParams(
        timing=timing,
        scheduler=policy.params(int(blocks.min())),
        usable_blocks=jnp.asarray(blocks),
        max_queue=jnp.int32(max_queue),
        view_delay_us=jnp.int32(view_delay_us),
        cache_delay_us=jnp.int32(cache_delay_us) if cache_delay_us and policy.router.reads_cache == "cache" else None,
        route=policy.route_params(),
        seed=jnp.int32(seed),
        timeout_us=jnp.asarray(list(timeout_us), jnp.int32),
        slo_ttft_us=limits(slo_ttft_us),
        slo_tpot_us=limits(slo_tpot_us),
        slo_e2e_us=limits(slo_e2e_us),
        slo_tbt_us=limits(slo_tbt_us),
        measure_from=jnp.int32(measure_from),
        measure_to=jnp.int32(measure_to),
        horizon_epoch=jnp.int32(horizon >> EPOCH_BITS),
        horizon_us=jnp.int32(horizon & (EPOCH_US - 1)),
        tenants=None if tenant_weights is None else tenant_params(list(tenant_weights)),
        tiers=tiers,
        rounds=rounds,
        compress=policy.compress_params(),
        speculation=speculation,
        semantic=semantic,
    )
