"""A workload of several tenants holds what each would send alone, in order of arrival."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxsched.workloads import get_preset
from jaxsched.workloads.presets import Preset
from jaxsched.workloads.tenants import TenantMix, TenantPart

NUM = 120
MIX = TenantMix((
    TenantPart("chat", get_preset("sharegpt").spec, 2.0),  # type: ignore[arg-type]
    TenantPart("flood", get_preset("lmsys").spec, 10.0, 0.4, 0.7),  # type: ignore[arg-type]
    TenantPart("agents", get_preset("mixed_agents").spec, 0.5),  # type: ignore[arg-type]
))  # fmt: skip
PRESET = Preset("tenants", "", "", MIX, MIX.rate_per_s)


@pytest.fixture(scope="module")
def table():
    return jax.tree.map(np.asarray, PRESET.generate(jax.random.key(3), NUM))


def _times_s(table, rows) -> np.ndarray:
    return (table.arrival_epoch[rows].astype(np.int64) * 2**30 + table.arrival_us[rows]) * 1e-6


def test_programs_come_in_order_each_tenant_sends_its_share_and_a_flood_comes_and_goes(table):
    times, klass = _times_s(table, slice(NUM)), table.klass[:NUM]
    assert np.all(np.diff(times) >= 0)
    assert np.bincount(klass).tolist() == MIX.counts(NUM) == [44, 65, 11]
    span = NUM / MIX.rate_per_s
    flood = times[klass == 1]
    assert flood[0] > 0.4 * span and abs(flood[-1] - 0.7 * span) < 0.15 * span
    assert len(table.prompt_tokens) == PRESET.num_rows(NUM) and PRESET.num_classes == 3


def test_turns_follow_each_other_inside_their_program(table):
    seen = 0
    for program in range(NUM):
        row, turn = program, 0
        while row >= 0:
            assert (table.program[row], table.turn[row], table.klass[row]) == (program, turn, table.klass[program])
            # A chain belongs to one program.
            assert table.program[table.chain[row]] == program
            row, turn, seen = table.next_turn[row], turn + 1, seen + 1
    assert seen > NUM + 20


def test_what_a_tenant_sends_does_not_depend_on_the_others(table):
    """Half as many of another tenant: the same requests, at the same distances."""
    parts = (MIX.parts[0], TenantPart("flood", MIX.parts[1].spec, 5.0, 0.4, 0.7))
    fewer = TenantMix(parts)
    other = Preset("tenants", "", "", fewer, fewer.rate_per_s)
    own = jax.tree.map(np.asarray, other.generate(jax.random.key(3), NUM))
    for name in ("prompt_tokens", "output_tokens", "predicted_tokens"):
        ours = getattr(own, name)[:NUM][own.klass[:NUM] == 0]
        theirs = getattr(table, name)[:NUM][table.klass[:NUM] == 0]
        np.testing.assert_array_equal(ours[: len(theirs)], theirs[: len(ours)])
    gaps = [np.diff(_times_s(t, slice(NUM))[t.klass[:NUM] == 0]) for t in (own, table)]
    num = min(map(len, gaps))
    np.testing.assert_allclose(gaps[0][:num], gaps[1][:num], atol=2e-6)


def test_another_rate_is_the_same_workload_at_another_speed(table):
    faster = jax.tree.map(np.asarray, PRESET.generate(jax.random.key(3), NUM, 2 * MIX.rate_per_s))
    np.testing.assert_allclose(2 * _times_s(faster, slice(NUM)), _times_s(table, slice(NUM)), rtol=1e-4)
