"""What fair schedulers keep for each tenant, and for each request that waits (docs/semantics.md, section 13).

A tenant is a class (`Requests.klass`). Every instance keeps an *account* for its rule, a short vector of int32 (a
counter per tenant, a clock, a pointer), and a *tag* per request in its slots; a rule says what happens to them when a
request comes into the view of the scheduler, is admitted for the first time, yields tokens, is preempted, or finishes.
The order head reads both. Compiled only where `SchedulerSpec.fair` asks for it; needs an ordered queue.

Service is counted in weighted tokens, `input` per prompt token (booked at the first admission) and `output` per token
generated; what preemption makes the engine compute again is nobody's service. Where it is divided by a tenant's weight
it is in `UNIT`-ths, so that integers do for weights that divide `UNIT`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Int

#: Parts of a weighted token: accounts are integers of these.
UNIT = 120
#: Accounts that are further behind than this count as that far behind (8.9 million weighted tokens).
FARTHEST = 2**30
#: Weights of tenants: what keeps a prompt's charge inside int32.
LOWEST_WEIGHT, HIGHEST_WEIGHT = 0.05, 20.0


class TenantParams(struct.PyTreeNode):
    """Weights of the tenants (traced)."""

    price: Int[Array, " u"]  # `UNIT` / weight: what a weighted token costs the tenant
    weight: Int[Array, " u"]  # weight * `UNIT`


def tenant_params(weights: list[float]) -> TenantParams:
    """Weights as the machine takes them."""
    ints = lambda values: jnp.asarray([max(round(v), 1) for v in values], jnp.int32)
    return TenantParams(price=ints([UNIT / w for w in weights]), weight=ints([UNIT * w for w in weights]))


class Who(NamedTuple):
    """A request to which something happens."""

    tenant: Int[Array, ""]
    prompt_tokens: Int[Array, ""]
    predicted_tokens: Int[Array, ""]
    output_tokens: Int[Array, ""]  # generated so far: all of them when it finishes
    tag: Int[Array, ""]  # that it has (0 when it comes)


class Served(NamedTuple):
    """Tokens that a step, or a run of steps, has yielded."""

    outputs: Int[Array, " u"]
    beyond: Int[Array, " u"]  # those of them beyond the request's predicted output


class Queues(NamedTuple):
    """Requests of each tenant at the instance."""

    waiting: Int[Array, " u"]  # without the one in hand
    present: Int[Array, " u"]  # waiting or running, with the one in hand


Account = Int[Array, " a"]
Params = tuple[Array, TenantParams]  # of the order head, and the weights


@dataclasses.dataclass(frozen=True)
class FairRule:
    """What happens to an instance's account. Hashable: part of what is compiled. None: nothing happens."""

    size: Callable[[int], int]  # numbers of the account, given the number of tenants
    #: A request comes into view -> account, tag.
    enter: Callable[[Params, Account, Who, Queues], tuple[Account, Int[Array, ""]]] | None = None
    #: It is admitted for the first time.
    admit: Callable[[Params, Account, Who, Queues], Account] | None = None
    #: A step, or a run of steps, has ended.
    serve: Callable[[Params, Account, Served], Account] | None = None
    #: A request is preempted -> account, tag.
    requeue: Callable[[Account, Int[Array, ""]], tuple[Account, Int[Array, ""]]] | None = None
    #: It is done.
    finish: Callable[[Params, Account, Who], Account] | None = None
    #: Between chunks -> what may be subtracted from the account and from the tags without changing any decision.
    rebase: Callable[[Account], tuple[Account, Int[Array, ""]]] | None = None


class FairState(struct.PyTreeNode):
    """Accounts and tags of a lane."""

    account: Int[Array, "m a"]
    tag: Int[Array, "m s"]


def init_fair(rule: FairRule, num_instances: int, num_slots: int, num_tenants: int) -> FairState:
    """Nothing has happened."""
    return FairState(
        account=jnp.zeros((num_instances, rule.size(num_tenants)), jnp.int32),
        tag=jnp.zeros((num_instances, num_slots), jnp.int32),
    )


def rebased(rule: FairRule, state: FairState) -> FairState:
    """Accounts and tags counted from where they stand, so that int32 lasts for ever."""
    if rule.rebase is None:
        return state
    account, tag = jax.vmap(rule.rebase)(state.account)
    floor = lambda x: jnp.maximum(x, -FARTHEST)
    return FairState(account=floor(state.account - account), tag=floor(state.tag - tag[:, None]))


class FairRow:
    """One instance's part during a micro-step."""

    def __init__(self, rule: FairRule, state: FairState, m: Array, params: Params, num_tenants: int):
        self._rule, self._m, self._params, self._num = rule, m, params, num_tenants
        self.account = jax.lax.dynamic_index_in_dim(state.account, m, 0, keepdims=False)
        self.tag = jax.lax.dynamic_index_in_dim(state.tag, m, 0, keepdims=False)
        self._index = jnp.arange(self.tag.shape[0], dtype=jnp.int32)

    def store(self, state: FairState) -> FairState:
        """Write it back."""
        put = jax.lax.dynamic_update_index_in_dim
        return FairState(put(state.account, self.account, self._m, 0), put(state.tag, self.tag, self._m, 0))

    def _update(self, active: Array, account: Account) -> None:
        self.account = jnp.where(active, account, self.account)

    def _set_tag(self, slot: Array, active: Array, tag: Int[Array, ""]) -> None:
        self.tag = jnp.where((self._index == slot) & active, tag, self.tag)

    def _queues(self, slot: Array, tenant: Int[Array, " s"], waiting: Array, present: Array) -> Queues:
        others = self._index != slot
        return Queues(
            waiting=by_tenant(tenant, (waiting & others).astype(jnp.int32), self._num),
            present=by_tenant(tenant, (present | ~others).astype(jnp.int32), self._num),
        )

    # -- what happens to a request -------------------------------------------------------------------------------------

    def enter(self, slot: Array, active: Array, who: Who, tenants: Int[Array, " s"], waiting, present) -> None:
        """It comes into the view of the scheduler (`tenants`, `waiting`, `present`: of every slot)."""
        if self._rule.enter is None:
            return
        account, tag = self._rule.enter(self._params, self.account, who, self._queues(slot, tenants, waiting, present))
        self._update(active, account)
        self._set_tag(slot, active, tag)

    def admit(self, slot: Array, active: Array, who: Who, tenants: Int[Array, " s"], waiting, present) -> None:
        """It is admitted for the first time."""
        if self._rule.admit is not None:
            queues = self._queues(slot, tenants, waiting, present)
            self._update(active, self._rule.admit(self._params, self.account, who, queues))

    def serve(self, served: Served) -> None:
        """Steps have ended (nothing served: nothing changes)."""
        if self._rule.serve is not None:
            self.account = self._rule.serve(self._params, self.account, served)

    def requeue(self, slot: Array, active: Array) -> None:
        """It is preempted."""
        if self._rule.requeue is not None:
            mine = jnp.sum(jnp.where(self._index == slot, self.tag, 0))
            account, tag = self._rule.requeue(self.account, mine)
            self._update(active, account)
            self._set_tag(slot, active, tag)

    def finish(self, active: Array, who: Who) -> None:
        """It is done."""
        if self._rule.finish is not None:
            self._update(active, self._rule.finish(self._params, self.account, who))


def by_tenant(tenant: Int[Array, " s"], values: Int[Array, " s"], num_tenants: int) -> Int[Array, " u"]:
    """Sums of `values` over the slots of each tenant."""
    mine = tenant[None, :] == jnp.arange(num_tenants, dtype=jnp.int32)[:, None]
    return jnp.sum(jnp.where(mine, values[None, :], 0), axis=1)
