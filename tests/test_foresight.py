"""What bounds know, against sums turn by turn with the reference's step times; and that the bounds behave as bounds."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

import jaxsched as js
from jaxsched.caching import with_cache
from jaxsched.errors import UserError
from jaxsched.foresight import BASE_TOKENS, MOST_TOKENS, PROBE_TOKENS, with_foresight
from jaxsched.lanes import static_of, synthetic_lanes
from jaxsched.metrics.critical_path import turns_of_programs
from jaxsched.retention.ttl import eta
from jaxsched.simulation import run_lanes
from tests.oracle.data import StepFeatures
from tests.sim.clusters import TIMINGS, reference_step_time


def _expected(table, timing) -> dict[str, np.ndarray]:
    """`Foresight` of a table of chains (numpy leaves), in a loop over programs."""
    step_time = reference_step_time(timing)
    prompt, output, following, chain = (
        np.asarray(x).tolist() for x in (table.prompt_tokens, table.output_tokens, table.next_turn, table.chain)
    )

    def prefill_us(tokens: int, before: int) -> int:
        tokens, before = min(tokens, MOST_TOKENS), min(before, MOST_TOKENS)
        if tokens == 0:
            return 0
        ctx = timing.prefill_in_ctx.item() * (before + tokens)
        quad = tokens * ((2 * before + tokens) >> 6)
        more = StepFeatures(BASE_TOKENS + tokens, 0, 0, 0, 1, tokens, ctx, quad)
        return step_time(more) - step_time(StepFeatures(BASE_TOKENS, 0, 0, 0, 0, 0, 0, 0))

    each = step_time(StepFeatures(BASE_TOKENS + PROBE_TOKENS, 0, PROBE_TOKENS, 0, 0, 0, 0, 0))
    each = (each - step_time(StepFeatures(BASE_TOKENS, 0, 0, 0, 0, 0, 0, 0))) / PROBE_TOKENS
    read = timing.ctx_num.item() / timing.ctx_den.item()
    found = {name: np.zeros(len(prompt)) for name in ("remaining_us", "history_us", "final_tokens")}
    for first in range(int(table.num_programs)):
        rows = [first]
        while following[rows[-1]] >= 0:
            rows.append(following[rows[-1]])
        history = [0] * len(rows)
        for i in range(1, len(rows)):
            if chain[rows[i]] == chain[rows[i - 1]]:
                history[i] = min(prompt[rows[i - 1]] + output[rows[i - 1]] - 1, prompt[rows[i]] - 1)
        work = 0.0
        largest = 0
        for row, before in reversed(list(zip(rows, history, strict=True))):
            work += prefill_us(prompt[row] - before, before)
            work += (output[row] - 1) * (each + (prompt[row] + output[row] // 2) * read)
            largest = max(largest, prompt[row] + output[row] - 1)
            found["remaining_us"][row], found["final_tokens"][row] = work, largest
            found["history_us"][row] = prefill_us(before, 0)
    return found


@pytest.mark.parametrize("timing", [1, 3])
def test_foresight_is_that_of_a_loop_over_turns(timing: int) -> None:
    preset = js.workloads.get_preset("coding_agent")  # with compactions, which cut the history
    tables = jax.vmap(lambda key: preset.generate(key, 12, 0.1))(jax.random.split(jax.random.key(3), 2))
    seen = with_foresight(tables, TIMINGS[timing]).foresight
    for lane in range(2):
        expected = _expected(jax.tree.map(lambda x, i=lane: np.asarray(x[i]), tables), TIMINGS[timing])
        used = expected["final_tokens"] > 0
        assert used.sum() > 200
        for name, values in expected.items():
            found = np.asarray(getattr(seen, name)[lane])[used]
            # (remaining_us is a float32 sum, capped at 2^31 - 128.)
            np.testing.assert_allclose(found, np.minimum(values[used], 2.0**31 - 128), rtol=1e-4, atol=2.0)


def test_continuum_learns_eta_from_the_programs_that_are_done() -> None:
    """eta of all programs of a run, from the machine's own statistics and from the definition."""
    scenario = js.load("configs/scenarios/agents_tau.yaml", {"workload.num_requests": 40})
    policy = js.policies.get("continuum+program_sticky", max_num_seqs=16, learn_eta=1)
    scenario = dataclasses.replace(scenario, num_slots=32)
    lanes = synthetic_lanes(scenario, policy, [0], [0.4])
    state, _ = run_lanes(with_cache(static_of(scenario, policy), scenario, lanes.requests), lanes)
    table = jax.tree.map(lambda x: np.asarray(x[0]), lanes.requests)
    lengths = [0] * 40
    for number, rows in enumerate(turns_of_programs(table)):
        np.testing.assert_array_equal(table.turn[rows], number)
        for program in table.program[rows]:
            lengths[program] = number + 1
    pairs = [(k, n - k) for n in lengths for k in range(1, n)]
    k, left = np.array(pairs, float).T
    learned = jax.tree.map(lambda x: x[0], state.learned)
    assert learned.pair_count == len(pairs)
    expected = -np.corrcoef(k, left)[0, 1]
    assert abs(expected) < 0.9  # not the prior, 1
    assert float(eta(learned)) == pytest.approx(expected, abs=1e-3)


def test_bounds_say_that_they_are_bounds_and_policies_are_not_given_what_they_know() -> None:
    bounds = {name for name, scheduler in js.policies.SCHEDULERS.items() if scheduler.is_bound}
    assert bounds == {"sjf-oracle", "srpt-oracle", "clair_ttl", "srpt_program", "vtc-oracle"}
    assert (
        js.policies.get("vllm+belady").scheduler.is_bound and js.policies.get("vllm+clair+prefetch").scheduler.is_bound
    )
    assert js.policies.get("vllm+clair").scheduler.is_bound and js.policies.get("continuum+peak").scheduler.is_bound
    assert not js.policies.get("gittins+gate").scheduler.is_bound
    for name in ("vllm+gittins_index+offload", "vllm+offload+belady", "fastswitch+belady"):
        with pytest.raises(UserError, match="without memory tiers"):
            js.policies.get(name)
    assert js.policies.get("srpt_program+clair+peak").settings()["gate_fraction"] == 1.4
    assert js.policies.get("gittins+gate").settings()["gate_fraction"] == 0.8
