"""The retention index inside the real machine: what it keeps, how long, and what that costs (learning sheets 3, 7f).

Pauses follow a Lomax law (shape 1.5, scale 2 s), a lost context takes R = 6 s to compute again, and keeping it costs
one second per second. The index falls to that price at age 1.5 R - 2 s = 7 s, and no other age costs less: 2.743 s.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsched as js
from jaxsched.policies.gittins import GITTINS, GITTINS_INDEX, KNOTS, index_retention
from jaxsched.retention.index import return_rate
from jaxsched.retention.pauses import Lomax, tables_from_history, tables_from_laws
from jaxsched.retention.ttl import empty_history, record
from jaxsched.scenario import Scenario
from jaxsched.sim.retain import ContextView
from jaxsched.timing import affine
from jaxsched.workloads import Workload

SECOND = 1_000_000
BLOCK, POOL = 16, 1000
CONTEXT = 6000  # tokens, a whole number of blocks
STEP_US, TOKEN_US = 100_000, 983  # a context is computed again in 0.1 + 6000 * 0.000983 = 6.0 s
EVERY = 400 * SECOND  # trials do not meet
TRIALS = 200


def trials(pauses_us: np.ndarray) -> Workload:
    """Every trial: a context and its pause; a request that keeps the engine busy; one that wants all other memory."""
    start = np.arange(len(pauses_us), dtype=np.int64) * EVERY
    # (arrival, turn, prompt, output, pause) of the rows of a trial; the second is the first's next turn.
    rows = [
        (0, 0, CONTEXT, 1, 0),
        (0, 1, CONTEXT + 1 + BLOCK, 1, None),
        (1 * SECOND, 0, BLOCK, 300, 0),
        (7 * SECOND, 0, (POOL - 13) * BLOCK, 1, 0),
    ]
    columns = [np.array([row[k] for row in rows] * len(start)) for k in (1, 2, 3)]
    pause = np.stack([np.zeros_like(pauses_us), pauses_us, 0 * pauses_us, 0 * pauses_us], axis=1).reshape(-1)
    program = np.arange(3 * len(start)).reshape(-1, 3)[:, [0, 0, 1, 2]].reshape(-1)
    return Workload.build(
        "lomax",
        arrival_us=(start[:, None] + np.array([row[0] for row in rows])).reshape(-1),
        turn=columns[0],
        prompt_tokens=columns[1],
        output_tokens=columns[2],
        program=program,
        pause_us=pause,
    )


@pytest.mark.slow
def test_a_lomax_pause_is_kept_for_seven_seconds_and_costs_no_more_than_the_best_rule() -> None:
    law = Lomax(1.5, 2.0 * SECOND)
    quantile = (np.arange(TRIALS) + 0.5) / TRIALS
    pauses_us = np.round(2.0 * SECOND * ((1.0 - quantile) ** (-1.0 / 1.5) - 1.0)).astype(np.int64)
    rule = index_retention(tables_from_laws([law]))
    spec = dataclasses.replace(GITTINS.spec, name="gittins_known", retain=rule.head)
    scheduler = dataclasses.replace(GITTINS, spec=spec, retain_params={"price": 1.0, "mean_tokens": float(CONTEXT)})
    policy = js.policies.Policy("gittins_known", scheduler, js.policies.ROUTERS["round_robin"])
    workload = trials(pauses_us)
    scenario = Scenario(
        name="lomax", workload=workload, num_programs=3 * TRIALS, rate_per_s=workload.rate_per_s, num_instances=1,
        usable_blocks=POOL, timing=affine(STEP_US, TOKEN_US, 0), max_paused_programs=4, num_slots=8, queue_capacity=64,
        warmup_fraction=0.0,
    )  # fmt: skip
    policy = policy.with_params(token_budget=2 * POOL * BLOCK, max_num_seqs=8)
    result = js.rollout(scenario, policy, seeds=1, record=True)
    records = result.records()
    assert (records["fate"] == "finished").all()
    context, _, taker = ({k: v[: 3 * TRIALS][i::3] for k, v in records.items()} for i in range(3))
    back = {k: v[3 * TRIALS :] for k, v in records.items()}  # second turns come behind all first ones
    evicted_after = taker["first_scheduled_s"] - context["finish_s"]
    returned_after = back["arrival_s"] - context["finish_s"]
    np.testing.assert_allclose(returned_after, pauses_us / SECOND, atol=2e-6)
    late = pauses_us > 8 * SECOND
    assert 15 <= late.sum() <= 25
    np.testing.assert_allclose(evicted_after[late], 7.0, rtol=0.05)

    missing = 1.0 - back["cached_tokens_first"] / CONTEXT
    assert (missing[late] > 0.98).all() and (missing[pauses_us < 6.5 * SECOND] < 0.01).all()
    reload_s = (STEP_US + CONTEXT * TOKEN_US) / SECOND
    cost = np.minimum(returned_after, evicted_after) + missing * reload_s
    assert 2.70 < cost.mean() < 2.76


def test_the_order_of_eviction_is_that_of_the_index_by_then() -> None:
    """`gittins_index` against `return_rate` at each context's own age: tools, ages and sizes all count."""
    pauses = (jnp.arange(1, 121) * 1_000, jnp.arange(1, 121) * 100_000)  # enough of each that its own law is believed
    both = lambda known, pause: (record(record(known, 0, pause[0]), 1, pause[1]), None)
    known, _ = jax.lax.scan(both, empty_history(2), pauses)
    view = ContextView(
        tool=jnp.int32([0, 1, 1, 0, 0]),
        age_us=jnp.int32([0, 0, 2_000_000, 55_000, 0]),
        context_tokens=jnp.int32([1000, 1000, 1000, 1000, 4000]),
        reload_us=jnp.int32([64_000, 64_000, 64_000, 64_000, 64_000]),
        pause_us=jnp.zeros(5, jnp.int32),
    )
    params = jnp.float32([0.1, 8000.0])
    head = GITTINS_INDEX.head
    assert head.value is not None
    worth = np.asarray(head.value(params, known, view))
    table = tables_from_history(known, KNOTS)
    for i in range(5):
        rate = return_rate(table, view.tool[i], view.age_us[i].astype(jnp.float32))
        expected = float(rate) * 64_000 * 8000.0 / float(view.context_tokens[i])
        assert worth[i] == pytest.approx(expected, rel=1e-5)
    assert worth[0] > worth[1] and worth[0] == pytest.approx(4 * worth[4], rel=1e-5) and len(set(worth.tolist())) == 5
