"""TenantFairness keeps the contract of environments, and its return is minus the service gap of the episode."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsched as js
from jaxsched.envs.features import ITEM_FEATURES
from jaxsched.errors import UserError
from jaxsched.sim.ledger import largest_gap
from jaxsched.xla import quick_compiler_options


@pytest.mark.slow
def test_returns_are_gaps_and_serving_who_is_behind_beats_first_come_first_served() -> None:
    env, params = js.make("TenantFairness-v0", num_programs=60, seeds=3, num_slots=64, max_num_seqs=8, num_items=64)
    tenants = env.static.num_classes
    since = ITEM_FEATURES.index("since")

    def episode(workload, by_lead):
        def step(carry, _):
            obs, state, total = carry
            score = jnp.where(by_lead, -obs.items[:, -1], obs.items[:, since])
            obs, state, reward, done, _, _ = env.step_env(None, state, {"order": score}, params)
            return (obs, state, total + reward), done

        start = (*env.reset_to(workload, params), jnp.float32(0.0))
        (obs, state, total), done = jax.lax.scan(step, start, None, length=300)
        return total, largest_gap(state.machine), done[-1], obs.globals

    lanes = np.repeat(np.arange(3, dtype=np.int32), 2), np.tile([False, True], 3)
    run = jax.jit(jax.vmap(episode), compiler_options=quick_compiler_options())
    total, gap, done, overall = jax.device_get(run(*lanes))
    assert done.all()
    np.testing.assert_allclose(-1000 * total, gap, rtol=1e-4)
    assert overall.shape[-1] == 6 + 2 * tenants
    assert np.mean(np.log(gap[1::2] / gap[0::2])) < np.log(0.8), gap


@pytest.mark.slow
def test_the_environment_keeps_the_contract() -> None:
    env, params = js.make(
        "TenantFairness-v0", heads=("order", "preempt"), num_programs=16, seeds=2, num_slots=16, max_num_seqs=4,
        num_items=16,
    )  # fmt: skip
    js.check_env(env, params)


def test_the_reward_needs_tenants() -> None:
    with pytest.raises(UserError, match="reward 'fairness' without tenants"):
        js.make("ChatServing-v0", reward="fairness", num_programs=8, seeds=1)
