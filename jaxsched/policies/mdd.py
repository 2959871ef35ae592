"""Modified due date (Baker & Bertrand 1982), on the V1 engine.

Rule: ``max(due date, now + predicted work)``, smallest first: who can still be in time goes by due date, who cannot by
shortest work. Work is the predicted time of the request alone, from `prompt_us` and `output_us` per token.
Faithful: the formula. Simplified: work alone stands for work in a batch.
"""

import jax.numpy as jnp

from jaxsched.policies.base import Scheduler
from jaxsched.sim.due import PARAMETERS
from jaxsched.sim.static import SchedulerSpec
from jaxsched.sim.views import QueueView


def modified_due_date(params, view: QueueView):
    """In ticks."""
    del params
    assert view.due is not None
    return jnp.maximum(view.due.finish, view.due.now + view.due.work)


MDD = Scheduler(
    SchedulerSpec("mdd", order=modified_due_date, static_keys=False, due=True),
    "modified due date: by due date while in time, then shortest first",
    "Baker & Bertrand, A dynamic priority rule for scheduling against due-dates, J. Oper. Mgmt. 1982",
    work_params=PARAMETERS,
)
