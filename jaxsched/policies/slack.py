"""Least slack first, on the V1 engine.

Rule: smallest ``due date - now - predicted work``. As `now` is the same for all, the key is ``due date - work``.
Faithful: the rule, at admission. Simplified: requests that run are not interrupted.
"""

from jaxsched.policies.base import Scheduler
from jaxsched.sim.due import PARAMETERS
from jaxsched.sim.static import SchedulerSpec
from jaxsched.sim.views import QueueView


def latest_start(params, view: QueueView):
    """Latest start in time, in ticks: slack without its common `now`."""
    del params
    assert view.due is not None
    return view.due.finish - view.due.work


SLACK = Scheduler(
    SchedulerSpec("slack", order=latest_start, due=True),
    "least slack first: due date minus predicted work",
    "Mok, 1983 (least laxity); Panwalkar & Iskander, Oper. Res. 1977 (rule S)",
    work_params=PARAMETERS,
)
