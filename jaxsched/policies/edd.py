"""Earliest due date first, on the V1 engine: `edd`, and `edf` that also preempts.

Rule: requests in order of the latest finish that meets their class's limits (`DueView.finish`: end to end, or TTFT +
TPOT of the predicted outputs); a request without limits is due 36 minutes after its arrival. `edf` lets a waiting
request displace a running one that is due later, when it cannot be admitted otherwise (recompute).
Faithful: on one machine with all jobs there at once, `edd` minimises the maximum lateness (Jackson 1955); with arrivals
and preemption `edf` finds a schedule in time if there is one (Liu & Layland 1973; Dertouzos 1974). A batching engine is
not one machine: there both are heuristics.
"""

from jaxsched.policies.base import Scheduler
from jaxsched.sim.due import PARAMETERS
from jaxsched.sim.static import SchedulerSpec
from jaxsched.sim.views import QueueView


def due_date(params, view: QueueView):
    """Latest finish in time, in ticks."""
    del params
    assert view.due is not None
    return view.due.finish


SOURCE = "Jackson 1955; Liu & Layland 1973"
EDD = Scheduler(
    SchedulerSpec("edd", order=due_date, due=True), "earliest due date first", SOURCE, work_params=PARAMETERS
)
EDF = Scheduler(
    SchedulerSpec("edf", order=due_date, due=True, preemptive=True),
    "earliest due date first, preemptive",
    SOURCE,
    work_params=PARAMETERS,
)
