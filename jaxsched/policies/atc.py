"""Apparent tardiness cost (Vepsalainen & Morton 1987), on the V1 engine.

Rule: largest ``(1 / p) exp(-max(d - p - now, 0) / (k p_mean))`` first: work `p`, due date `d`, `p_mean` the mean work
of those who wait, look-ahead `k` (`lookahead_tenths` / 10, the paper's k = 2). With slack 0 it is shortest first, far
from the due date it is least slack.
Faithful: the formula with equal weights. Simplified: work alone stands for work in a batch.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsched.policies.base import Scheduler
from jaxsched.sim.due import PARAMETERS
from jaxsched.sim.static import SchedulerSpec
from jaxsched.sim.views import QueueView


def apparent_cost(lookahead: Array, view: QueueView) -> Float[Array, " s"]:
    """Minus the logarithm of the index: log of the work in ticks, plus slack over `lookahead` mean works."""
    due = view.due
    assert due is not None
    work = jnp.maximum(due.work, 1).astype(jnp.float32)
    waiting = view.waiting_mask.astype(jnp.float32)
    mean = jnp.sum(work * waiting) / jnp.maximum(jnp.sum(waiting), 1.0)
    slack = jnp.maximum(due.finish - due.work - due.now, 0).astype(jnp.float32)
    return jnp.log(work) + slack / (lookahead * jnp.maximum(mean, 1.0))


def tardiness_cost(params, view: QueueView):
    """`apparent_cost` as an integer that sorts like the float (which is not negative)."""
    cost = apparent_cost(jnp.maximum(params[0], 1).astype(jnp.float32) * 0.1, view)
    return jax.lax.bitcast_convert_type(cost, jnp.int32)


ATC = Scheduler(
    SchedulerSpec("atc", order=tardiness_cost, static_keys=False, due=True),
    "apparent tardiness cost: shortest first as due dates come near",
    "Vepsalainen & Morton, Priority rules for job shops with weighted tardiness costs, Management Science 1987",
    order_params={"lookahead_tenths": 20},
    work_params=PARAMETERS,
)
