"""Past-Future admission (Gong et al., ASPLOS 2025) on the V1 engine: admit while the predicted peak of memory fits.

Rule: the output lengths of the last 200 finished requests give each running request a length, conditional on what it
has generated, and the candidate one of the history; all decode in lockstep, and the largest sum of tokens ever held
must stay below (1 - `reserved`) of the pool. Of up to five independent draws the largest peak counts
(`jaxsched/retention/peak.py`, with sources). The first that does not fit ends the round; first come, first served;
requests that outgrow the pool are preempted and recompute.

Faithful to LightLLM's `PastFutureQueue`: window, half of it filled with `max_output_tokens` at the start, reserve,
draws, conditional law, candidates. Simplified: a request's draws are functions of (seed, request, draw), so they
stay the same from check to check (LightLLM draws anew, and a candidate that is tried often enough gets in by luck);
checks at every step instead of every sixth; one history per instance; tokens, not blocks; not asked when nothing
runs.
"""

from __future__ import annotations

from jaxsched.policies.base import Scheduler
from jaxsched.retention.peak import MAX_DRAWS, RESERVED, WINDOW, empty_lengths, fits, past_future_peak
from jaxsched.sim.admit import AdmitHead, AdmitView
from jaxsched.sim.static import SchedulerSpec

SOURCE = "Gong et al., Past-Future Scheduler for LLM Serving under SLA Guarantees, ASPLOS 2025 (LightLLM)"


def _peak_fits(params, view: AdmitView):
    limit = params[0].astype("int32") + 0 * view.known_tokens
    assert view.lengths is not None
    peak = past_future_peak(
        view.lengths,
        view.known_tokens,
        view.generated_tokens,
        limit,
        view.mask,
        view.candidate_mask & (view.generated_tokens == 0),
        view.words,
    )
    return fits(peak, view.pool_tokens, view.held_tokens, params[1])


def past_future_head(window: int = WINDOW) -> AdmitHead:
    """The rule with a history of `window` output lengths per instance."""
    return AdmitHead(
        _peak_fits,
        num_draws=MAX_DRAWS,
        start=lambda params, rows: empty_lengths(params[0].astype("int32"), window, rows),
        stays_out=False,
    )


PAST_FUTURE = Scheduler(
    SchedulerSpec("past_future", admit=past_future_head()),
    "V1 engine, admits while the future peak predicted from past output lengths fits",
    SOURCE,
    admit_params={"max_output_tokens": 4096.0, "reserved": RESERVED},
)
