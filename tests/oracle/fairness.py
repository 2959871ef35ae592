"""Accounts of tenants for vtc, vtc-predict, wfq and drr (docs/semantics.md, section 13), in plain Python.

Service is in 120ths of a weighted token over the tenant's weight, as in the machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.oracle.data import EngineConfig, Request

UNIT = 120
ORDERS = ("vtc", "vtc-predict", "wfq", "drr", "aios-rr")
INPUT, OUTPUT = 1, 2


@dataclass
class Accounts:
    """Of one instance."""

    config: EngineConfig
    amount: dict[int, int] = field(default_factory=dict)  # vtc: counter; wfq: virtual finish; drr: deficit
    virtual: int = 0  # wfq: virtual time
    pointer: int = 0  # drr: tenant served last
    tag: dict[int, int] = field(default_factory=dict)  # wfq and aios-rr, by row
    num_tags: int = 0  # aios-rr: entries and preemptions so far
    entered: list[Request] = field(default_factory=list)  # those that the scheduler has seen and that are not over

    def __post_init__(self) -> None:
        self.amount = {tenant: 0 for tenant in range(len(self.config.weights))}

    def price(self, tenant: int) -> int:
        return max(round(UNIT / self.config.weights[tenant]), 1)

    def _waiting(self, but: Request) -> list[int]:
        return [r.klass for r in self.entered if not (r.is_running or r.is_over or r is but)]

    def rounds(self, tenant: int) -> int:
        """drr: rounds until the tenant's deficit is above 0."""
        found, quantum = 0, self.config.drr_quantum * UNIT
        while self.amount[tenant] + found * quantum <= 0:
            found += 1
        return found

    def enter(self, request: Request) -> None:
        """A schedule() call sees it for the first time."""
        if request in self.entered:
            return
        self.entered = [r for r in self.entered if not r.is_over]
        order, tenant = self.config.order, request.klass
        others = self._waiting(request)
        self.entered.append(request)
        if order in ("vtc", "vtc-predict") and others and tenant not in others:
            self.amount[tenant] = max(self.amount[tenant], min(self.amount[t] for t in others))
        if order == "aios-rr":
            self.requeue(request)
        if order == "drr" and tenant not in others:
            self.amount[tenant] = min(self.amount[tenant], 0)
        if order == "wfq":
            cost = (INPUT * request.prompt_tokens + OUTPUT * request.predicted_tokens) * self.price(tenant)
            programs = sum(r.klass == tenant for r in self.entered)
            self.amount[tenant] = max(self.amount[tenant], self.virtual) + cost
            self.tag[request.row] = min(self.amount[tenant], self.virtual + programs * cost)

    def requeue(self, request: Request) -> None:
        """It enters or is preempted: aios-rr puts it at the back of the queue."""
        if self.config.order == "aios-rr":
            self.tag[request.row] = self.num_tags
            self.num_tags += 1

    def admit(self, request: Request) -> None:
        """It is admitted for the first time."""
        order, tenant = self.config.order, request.klass
        prompt = INPUT * request.prompt_tokens * self.price(tenant)
        if order == "drr":
            quanta = self.rounds(tenant) * self.config.drr_quantum * UNIT
            for other in {tenant, *self._waiting(request)}:
                self.amount[other] += quanta
            self.amount[tenant] -= prompt
            self.pointer = tenant
        elif order == "wfq":
            self.virtual = max(self.virtual, self.tag[request.row])
        else:
            self.amount[tenant] += prompt
            if order == "vtc-predict":
                self.amount[tenant] += OUTPUT * request.predicted_tokens * self.price(tenant)

    def serve(self, request: Request) -> None:
        """It has got an output token."""
        order, tenant = self.config.order, request.klass
        price = OUTPUT * self.price(tenant)
        if order == "drr":
            self.amount[tenant] -= price
        elif order == "vtc" or (order == "vtc-predict" and request.delivered > request.predicted_tokens):
            self.amount[tenant] += price

    def finish(self, request: Request) -> None:
        if self.config.order == "vtc-predict":
            unused = max(request.predicted_tokens - request.output_tokens, 0)
            self.amount[request.klass] -= OUTPUT * unused * self.price(request.klass)

    def key(self, request: Request) -> tuple[int, int]:
        """The smallest goes next."""
        tenant = request.klass
        if self.config.order in ("wfq", "aios-rr"):
            return self.tag[request.row], request.sequence
        if self.config.order == "drr":
            num = len(self.config.weights)
            return self.rounds(tenant) * num + (tenant - self.pointer) % num, request.sequence
        return self.amount[tenant], request.sequence
