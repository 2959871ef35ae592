"""Bounds for agents: what knowing the pauses, the work left and the final contexts would be worth. No policies.

`clair_ttl`: program FCFS with kept contexts first, as Continuum, and the true pause instead of a learned one: the
context stays exactly until the return where the reload it saves is worth its memory (`clair`, policies/continuum.py).
`belady` (a retention rule: ``vllm+belady``): nothing is pinned, and what is evicted is the end of the context whose
program returns last, after what no program waits for: Belady's MIN (1966) on the leaves of the chains
(`retention/paging.py`, `belady_leaf`) with the true pauses. Prefixes of groups go before contexts, by release.
`srpt_program`: turns by the engine work that is left of their program, least first (Schrage 1968 on programs), a
context that is not kept counted as work to do again. Preempted turns come first, then (`pinned_first` 1) those whose
context is kept, for the same reason as in Continuum. Nobody is displaced.
`+peak`: the gate (`+gate`) with every begun context as large as it will grow, and `gate_fraction` 1.4: final contexts
are never all there at once.

``get("srpt_program+clair+gate")`` and ``get("srpt_program+clair+peak")`` are the best of the regime study
(docs/retention.md): heuristics with hindsight, not optima. Work is that of tokens in a batch (jaxsched/foresight.py).

Faithful: the rules they are named after. Simplified: blocks and costs are unequal here, so none of them is optimal.
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxsched.policies.base import Retention, Scheduler
from jaxsched.policies.continuum import RETENTIONS
from jaxsched.policies.program_fcfs import CLASS, pinned_first
from jaxsched.sim.retain import ContextView, PauseView, RetainHead
from jaxsched.sim.static import SchedulerSpec
from jaxsched.sim.views import QueueView

SOURCE = "regime study (docs/retention.md); Schrage 1968"
PEAK_FRACTION = 1.4
#: Work is compared in units of 2^3 us, so that 35 minutes of it fit below a class.
UNIT_BITS = 3


def least_program_work(params, view: QueueView):
    """Preempted turns, then those whose context is pinned (if `params[0]`), then by work left of the program."""
    assert view.remaining_us is not None
    kept = view.pinned_mask & (params[0] > 0)
    group = jnp.where(view.preempted_mask, 0, jnp.where(kept, 1, 2))
    return group * CLASS + (view.remaining_us >> UNIT_BITS)


def _not_pinned(params, known, view: PauseView):
    del params, known, view
    return jnp.int32(0)


def soonest_return(params, known, view: ContextView):
    """Worth of a context: the less time is left of the pause, the more."""
    del params, known
    return view.age_us - view.pause_us


BELADY = Retention(
    "belady",
    RetainHead(_not_pinned, sees_pause=True, value=soonest_return),
    "bound: contexts of programs that return last are evicted first",
    "Belady 1966; docs/retention.md, section 7",
)
SRPT_PROGRAM = Scheduler(
    SchedulerSpec("srpt_program", order=least_program_work, foresees=True),
    "bound: least true remaining work of the program first",
    SOURCE,
    order_params={"pinned_first": 1},
)
CLAIR_TTL = Scheduler(
    SchedulerSpec("clair_ttl", order=pinned_first, retain=RETENTIONS["clair"].head),
    "bound: knows each pause, keeps the context for it where that is worth its memory; program FCFS",
    SOURCE,
    retain_params=dict(RETENTIONS["clair"].params),
)
