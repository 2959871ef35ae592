"""Disaggregated: a request's two turns, together or apart, against times worked out by hand."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsched as js
from jaxsched.envs.disaggregated import Disaggregated, default_scenario, make_disaggregated
from jaxsched.errors import UserError
from jaxsched.tiering import ClusterTiers, Tier
from jaxsched.timing.step_time import affine
from jaxsched.workloads import get_preset
from jaxsched.xla import quick_compiler_options

#: A step takes 10 ms and 10 us per token. A block takes 1 ms over every link, an operation 10 us more.
TIMING = affine(10_000, 10, 0)
LINK = {"write_gbps": 1.0, "read_gbps": 1.0, "launch_us": 10.0, "block_group": 256}
TIERS = ClusterTiers(host=Tier(1024, **LINK), remote=Tier(4096, **LINK), block_bytes=1_000_000)
OUTPUT = 11


@pytest.mark.slow
def test_a_decode_elsewhere_waits_for_the_copies_and_one_at_home_does_not():
    """One request: a prompt prefilled on instance 0 from 1 s on, then ten more tokens.

    A prompt of 100 tokens leaves six full blocks. At home they are there: a step of five tokens, nine of one.
    Elsewhere they first go to the host, the pool, the other host and its memory: four times 6.01 ms. Without a pool all
    101 tokens are computed again. Of 95 tokens five blocks are full, although 96 are known: the first output token has
    no KV before the next step. Of 96 six are.
    """
    scenario = dataclasses.replace(default_scenario(), num_instances=2, timing=TIMING, tiers=TIERS)
    key = jax.random.key(0)
    env, params = make_disaggregated(
        scenario=scenario, num_programs=1, seeds=1, num_slots=16, max_num_seqs=8, num_items=16
    )
    assert isinstance(env, Disaggregated) and env.name == "Disaggregated-v0"
    table = params.pool.requests
    assert table.num_rows == 2
    as_int = lambda *x: jnp.asarray(x, jnp.int32)
    table = table.replace(
        arrival_us=as_int(1_000_000, 0), arrival_epoch=as_int(0, 0), next_turn=as_int(1, -1),
        output_tokens=as_int(1, OUTPUT - 1),
    )  # fmt: skip

    def episode(prompt, second, remote_blocks):
        mine_table = table.replace(prompt_tokens=jnp.stack([prompt, prompt + 1]))
        assert params.sim.tiers is not None
        tiers = params.sim.tiers.replace(remote_blocks=remote_blocks)
        pool = params.pool.replace(requests=mine_table)
        mine = params.replace(sim=params.sim.replace(tiers=tiers), pool=pool)

        def step(state, _):
            obs = env.observe(state, mine)
            first = obs.globals[-1] == 0
            _, state, reward, done, _, info = env.step_env(key, state, {"route": jnp.where(first, 0, second)}, mine)
            return state, (reward, done, info["costs"][1])

        _, state = env.reset_to(jnp.int32(0), mine)
        return jax.lax.scan(step, state, None, length=16)

    run = jax.jit(jax.vmap(episode), compiler_options=quick_compiler_options())
    prompts, second, remote = [100, 100, 100, 95, 96, 95], [0, 1, 1, 0, 0, 1], [4096, 4096, 0, 4096, 4096, 4096]
    state, (reward, done, finished) = jax.device_get(run(as_int(*prompts), as_int(*second), as_int(*remote)))
    assert done[:, -1].all() and not state.machine.flags.any()
    np.testing.assert_array_equal(finished.sum(axis=1), 2)
    copied_blocks, computed = [0, 6, 0, 0, 0, 5], [5, 5, 101, 16, 1, 16]
    expected = [
        10_000 + 10 * prompt + 4 * (1_000 * blocks + 10 * (blocks > 0)) + 10_000 + 10 * tokens + 9 * 10_010
        for prompt, blocks, tokens in zip(prompts, copied_blocks, computed, strict=True)
    ]
    lasted = -np.asarray(reward, np.float64).sum(axis=1) * 1e6
    np.testing.assert_allclose(lasted, expected, atol=2)


@pytest.mark.slow
def test_it_keeps_the_contract():
    js.check_env(*js.make("Disaggregated-v0", num_programs=12, seeds=2, num_slots=16, max_num_seqs=8, num_items=16))


def test_a_split_request_is_the_request_token_for_token():
    whole = get_preset("sharegpt").generate(jax.random.key(3), 200, 4.0, prediction_sigma=0.5)
    split = get_preset("sharegpt_split").generate(jax.random.key(3), 200, 4.0, prediction_sigma=0.5)
    first, second = slice(None, 200), slice(200, None)
    np.testing.assert_array_equal(split.arrival_us[first], whole.arrival_us)
    np.testing.assert_array_equal(split.prompt_tokens[first], whole.prompt_tokens)
    assert (split.output_tokens[first] == 1).all() and (split.pause_us == 0).all()
    follows = np.asarray(split.next_turn[first]) >= 0
    np.testing.assert_array_equal(follows, whole.output_tokens > 1)
    np.testing.assert_array_equal(split.prompt_tokens[second], whole.prompt_tokens + 1)
    total = 1 + np.where(follows, split.output_tokens[second], 0)
    np.testing.assert_array_equal(total, whole.output_tokens)
    guess = np.asarray(split.predicted_tokens[second])
    np.testing.assert_array_equal(guess, np.maximum(np.asarray(whole.predicted_tokens) - 1, 1))


def test_a_cluster_whose_instances_share_no_pool_is_refused():
    scenario = dataclasses.replace(default_scenario(), tiers=dataclasses.replace(TIERS, remote=None))
    with pytest.raises(UserError, match="no pool that its instances share"):
        js.make("Disaggregated-v0", scenario=scenario, seeds=1)
    with pytest.raises(UserError, match="cannot run inline"):
        js.make("AgentSessions-v0", policy="continuum+offload", seeds=1)
