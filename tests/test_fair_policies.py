"""Every fair policy differs from FCFS on a workload made for it, is FCFS where it must be; clear errors otherwise."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import jaxsched as js
from jaxsched.errors import UserError
from jaxsched.scenario import Tenant
from jaxsched.workloads import Workload

#: Two tenants: 0 floods at the start, 1 comes right behind with as many. Five at a time are served.
NUM, PLACES = 40, 5


def _scenario(klass: np.ndarray, gap_us: int = 1000) -> js.Scenario:
    base = js.load("configs/scenarios/two_clients.yaml", {"workload.num_requests": NUM})
    trace = Workload.build(
        "made", arrival_us=np.arange(NUM) * gap_us, prompt_tokens=np.full(NUM, 64), output_tokens=np.full(NUM, 40),
        klass=klass,
    )  # fmt: skip
    return dataclasses.replace(
        base, workload=trace, num_programs=NUM, num_slots=64, usable_blocks=1000, warmup_fraction=0.0,
        rate_per_s=trace.rate_per_s, tenants=(Tenant("a"), Tenant("b"))[: int(klass.max()) + 1],
    )  # fmt: skip


def _starts(scenario: js.Scenario, name: str, **settings: float) -> np.ndarray:
    """When each request was first scheduled, in seconds."""
    policy = js.policies.get(name, max_num_seqs=PLACES, max_model_len=1024, **settings)
    return js.rollout(scenario, policy, 1, record=True).records()["first_scheduled_s"]


@pytest.mark.slow
def test_fair_policies_mix_two_tenants_and_are_fcfs_for_one_and_aios_takes_turns_where_places_are_scarce() -> None:
    two, one = _scenario((np.arange(NUM) >= NUM // 2).astype(int)), _scenario(np.zeros(NUM, int))
    apart = _scenario(np.zeros(NUM, int), gap_us=4_000_000)
    fcfs = {name: _starts(scenario, "vllm") for name, scenario in (("two", two), ("one", one), ("apart", apart))}
    assert np.all(np.diff(fcfs["two"]) >= 0)
    for name in ("wfq",):  # (the others: tests/sim/test_fair_orders_equal_reference.py)
        mixed = _starts(two, name)
        # The second tenant's half no longer waits for the first one's.
        assert np.median(mixed[NUM // 2 :]) < 0.8 * np.median(fcfs["two"][NUM // 2 :]), name
        np.testing.assert_array_equal(_starts(one, name), fcfs["one"], name)
    fifo, turns = _starts(one, "aios-fifo"), _starts(one, "aios-rr", slice_ms=200)
    # Batches: nobody begins before all of the batch before are done. Turns: all have begun long before FCFS would.
    assert len(np.unique(fifo.round(1))) <= NUM // PLACES + 1 < len(np.unique(fcfs["one"].round(1))) + 2
    assert turns.max() < 0.8 * fcfs["one"].max()
    np.testing.assert_array_equal(_starts(one, "aios-rr", slice_ms=1_000_000), fcfs["one"])
    for name in ("aios-fifo", "aios-rr"):
        np.testing.assert_array_equal(_starts(apart, name), fcfs["apart"], name)


TENANT = "{name: a, preset: sharegpt, rate_per_s: 1.0%s}"


@pytest.mark.parametrize(
    ("tenants", "wanted"),
    [
        ([TENANT % ", weight: 0"], r"field workload\.tenants\.0\.weight: found 0.*at least 0\.05"),
        ([TENANT % ", begin: 0.5, end: 0.5"], r"`begin` 0\.5 must be below `end` 0\.5"),
        ([TENANT % ", wieght: 2.0"], r"unknown key 'wieght'.*Did you mean 'weight'"),
        ([TENANT % "", TENANT % ""], r"two of the same name"),
        (["{name: a, rate_per_s: 1.0}"], r"tenant 'a' needs a `preset`"),
        (["{name: a, preset: sharegtp, rate_per_s: 1.0}"], r"'sharegtp'.*Did you mean 'sharegpt'"),
        (["{name: a, preset: sub_agents, rate_per_s: 1.0}"], r"preset sub_agents cannot be one of several tenants"),
        (["{name: a, preset: sharegpt_split, rate_per_s: 1.0}"], r"preset sharegpt_split cannot be one of several"),
        (["{name: a, preset: sharegpt, rate_per_s: 0.0}"], r"rate_per_s: found 0\.0.*above 0"),
        (["{name: 1 b, preset: sharegpt, rate_per_s: 1.0}"], r"workload\.tenants\.0\.name"),
    ],
)
def test_bad_tenants_are_refused_with_the_place_and_what_is_expected(tmp_path, tenants, wanted) -> None:
    path = tmp_path / "c.yaml"
    lines = "\n".join(f"    - {tenant}" for tenant in tenants)
    path.write_text(
        f"workload:\n  num_requests: 10\n  tenants:\n{lines}\n"
        "cluster: {num_instances: 1}\ntiming: {kind: description, model: llama-3-8b, device: a100}\n"
    )
    with pytest.raises(UserError, match=wanted):
        js.load(str(path))


def test_accounts_of_tenants_go_with_ordered_synchronous_v1_queues_only() -> None:
    spec = js.policies.get("vtc").scheduler.spec
    for change in ({"order": None}, {"asynchronous": True}, {"family": "sarathi"}):
        with pytest.raises(ValueError, match="ordered queue"):
            dataclasses.replace(spec, **change)
    with pytest.raises(UserError, match="unknown parameter"):
        js.policies.get("drr", quantum=5)
