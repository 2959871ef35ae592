"""Heads "evict", "preempt", "draft", "ratio": a constant is exactly the rule that they stand for, a choice matters."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsched as js
from jaxsched import policies
from jaxsched.envs import agent_sessions, chat_serving, tenant_fairness
from jaxsched.envs.controls import DEFAULT_LEVEL, DRAFTS, LEVELS, RATIOS, Controls, in_force
from jaxsched.envs.features import ITEM_FEATURES
from jaxsched.errors import UserError
from jaxsched.sim.retain import RetainHead
from jaxsched.sim.speculate import DRAFTED
from jaxsched.sim.state import Count
from jaxsched.workloads import get_preset
from jaxsched.xla import quick_compiler_options
from tests.envs.test_agent_sessions import permuted

SINCE, CONTEXT = ITEM_FEATURES.index("since"), ITEM_FEATURES.index("context")


def recorded(env):
    return dataclasses.replace(env, static=dataclasses.replace(env.static, record=True))


def inline(env, **spec):
    """The same machine without what is learned, and with a part of the scheduler replaced."""
    scheduler = dataclasses.replace(env.static.scheduler, **spec)
    ordered = env.static.ordered_budget and "victim" not in spec
    static = dataclasses.replace(env.static, scheduler=scheduler, ordered_budget=ordered)
    return dataclasses.replace(env, static=static, learned=())


@functools.partial(jax.jit, static_argnums=(0, 1, 2), compiler_options=quick_compiler_options())
def episodes(env, choose, steps, params, lanes):
    """Lanes ``(settings, 1 = slots are permuted before every step)`` of one program: final states, and step by step."""

    def episode(lane):
        settings, shuffles = lane

        def step(carry, key):
            obs, state = carry
            if env.static.scheduler.compress is None:  # (which keeps more by slot)
                shuffled = permuted(state.machine, key)
                machine = jax.tree.map(lambda a, b: jnp.where(shuffles > 0, a, b), shuffled, state.machine)
                state = state.replace(machine=machine, items=env._items(machine, params, state.workload))
                obs = env.observe(state, params)
            legal = jnp.all(jnp.stack([jnp.any(m, -1).all() for m in jax.tree.leaves(obs.masks)] or [jnp.bool_(True)]))
            action = choose(obs, state, settings)
            obs, state, reward, done, _, info = env.step_env(key, state, action, params)
            spec = state.machine.speculation
            drafted = jnp.int32(0) if spec is None else spec.counts[DRAFTED]
            masks = jax.tree.map(jnp.all, obs.masks)
            return (obs, state), (reward, done, legal, masks, info["costs"], drafted)

        start = env.reset_to(jnp.int32(0), params)
        (_, state), out = jax.lax.scan(step, start, jax.random.split(jax.random.key(0), steps))
        return state, out

    return jax.vmap(episode)(lanes)


def nothing(obs, state, settings):
    return {}


def finishes(state):
    return np.asarray(state.machine.record.finish)


def of_lane(tree, lane):
    return jax.tree.map(lambda x: np.asarray(x[lane]), tree)


def check_masks(out, head):
    assert np.asarray(out[2]).all(), "there is always a legal choice"
    assert np.asarray(out[1])[:, -1].all(), "the episodes are over"
    assert np.asarray(out[3][head])[:, -1].all(), "everything is legal at the end"


@pytest.mark.slow
def test_equal_levels_evict_the_context_released_first_and_others_another():
    """Against a rule that reads ages; long contexts first; the latest first; and the latter with slots permuted."""
    scenario = dataclasses.replace(
        agent_sessions.default_scenario(), name="small", workload=get_preset("tau_agents"), num_programs=12,
        rate_per_s=4.0, usable_blocks=800, max_paused_programs=32,
    )  # fmt: skip
    env, params = js.make(
        "AgentSessions-v0", heads=("evict",), scenario=scenario, seeds=(5, 6), num_slots=32, max_num_seqs=16,
        num_items=64, cache_runs=32, burst=16, policy="pfcfs+gate",
    )  # fmt: skip
    env = recorded(env)

    def choose(obs, state, settings):
        constant, by_context, by_age = settings
        ranks = jnp.sum((obs.items[:, SINCE][None, :] < obs.items[:, SINCE][:, None]), axis=1)
        young = jnp.minimum(ranks // 2, LEVELS - 1)
        long = jnp.where(obs.items[:, CONTEXT] > 0.8, 0, LEVELS - 1)
        level = jnp.where(by_age > 0, young, jnp.where(by_context > 0, long, constant))
        return {"evict": jnp.where(obs.masks["evict"][:, 1], level, 0).astype(jnp.int32)}

    lanes = jnp.asarray([[DEFAULT_LEVEL, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]]), jnp.asarray([0, 0, 0, 1])
    state, out = episodes(env, choose, 450, params, lanes)
    check_masks(out, "evict")
    oldest = RetainHead(env.static.scheduler.retain.ttl, value=lambda params, known, view: -view.age_us)
    plain, _ = episodes(inline(env, retain=oldest), nothing, 450, params, jax.tree.map(lambda x: x[:1], lanes))
    end = finishes(state)
    np.testing.assert_array_equal(end[0], finishes(plain)[0])
    np.testing.assert_array_equal(end[2], end[3])
    assert not np.asarray(state.machine.flags).any()
    cached = np.asarray(state.machine.metrics.counts)[:, Count.CACHED_TOKENS]
    assert len({*cached[:3].tolist()}) == 3, "who is evicted matters"


@pytest.mark.slow
def test_equal_levels_preempt_the_last_admitted_and_others_another():
    """Against the engine's own pass, which knows no other victim; and with slots permuted before every step."""
    scenario = dataclasses.replace(tenant_fairness.default_scenario(), usable_blocks=400, num_programs=32)
    env, params = js.make(
        "TenantFairness-v0", heads=("preempt",), scenario=scenario, seeds=1, num_slots=32, max_num_seqs=16,
        num_items=48, reserve_full_isl=0,
    )  # fmt: skip
    env = recorded(env)

    def choose(obs, state, settings):
        constant, by_context = settings
        level = jnp.where(obs.items[:, CONTEXT] > 0.6, 0, LEVELS - 1)
        level = jnp.where(by_context > 0, level, constant)
        return {"preempt": jnp.where(obs.masks["preempt"][:, 1], level, 0).astype(jnp.int32)}

    lanes = jnp.asarray([[DEFAULT_LEVEL, 0], [0, 1], [0, 1]]), jnp.asarray([0, 0, 1])
    state, out = episodes(env, choose, 300, params, lanes)
    check_masks(out, "preempt")
    plain, _ = episodes(inline(env, victim=None), nothing, 300, params, jax.tree.map(lambda x: x[:1], lanes))
    np.testing.assert_array_equal(finishes(state)[0], finishes(plain)[0])
    preemptions = np.asarray(state.machine.record.preemptions)
    np.testing.assert_array_equal(preemptions[0], np.asarray(plain.machine.record.preemptions)[0])
    np.testing.assert_array_equal(finishes(state)[1], finishes(state)[2])
    assert preemptions[0].sum() > 5 and (preemptions[0] != preemptions[1]).any()
    assert not np.asarray(state.machine.flags).any()


def chat(head, policy):
    env, params = js.make(
        "ChatServing-v0", heads=(head,), policy=policy, num_programs=24, seeds=1, num_slots=24, max_num_seqs=12,
        num_items=24,
    )  # fmt: skip
    return recorded(env), params


@pytest.mark.slow
def test_drafts_in_force_are_the_policy_with_that_number_and_can_change():
    """The policy with K drafts is another setting of the same program; K that changes drafts between the two."""
    env, params = chat("draft", "vllm+spec")
    for index, number in enumerate(DRAFTS):
        forced = in_force(params.sim, Controls(draft=jnp.int32(index)), jnp.int32(0)).scheduler
        own = policies.get("vllm+spec", num_speculative_tokens=number).params(1000).draft
        jax.tree.map(np.testing.assert_array_equal, forced.draft.replace(ever=None), own)
        assert int(forced.draft.ever_most()) == max(DRAFTS)

    def choose(obs, state, settings):
        low, high = settings
        return {"draft": jnp.where(jnp.sum(obs.item_mask) > 4, low, high).astype(jnp.int32)}

    best = len(DRAFTS) - 1
    lanes = jnp.asarray([[0, 0], [4, 4], [best, best], [0, best]]), jnp.zeros(4)
    state, out = episodes(env, choose, 400, params, lanes)
    check_masks(out, "draft")
    for lane, number in enumerate((0, DRAFTS[4], DRAFTS[best])):
        draft = params.sim.scheduler.draft.replace(most=jnp.int32(number))
        scheduler = params.sim.scheduler.replace(draft=draft)
        own = params.replace(sim=params.sim.replace(scheduler=scheduler))
        plain, _ = episodes(inline(env), nothing, 400, own, jax.tree.map(lambda x: x[:1], lanes))
        np.testing.assert_array_equal(finishes(state)[lane], finishes(plain)[0])
    drafted = np.asarray(out[5])[:, -1]
    assert drafted[0] == 0 < drafted[3] < drafted[2]
    assert len({*np.asarray(out[0]).sum(axis=1).tolist()}) > 1


@pytest.mark.slow
def test_ratios_in_force_are_the_policy_with_that_ratio_and_lost_quality_is_charged():
    """The policy with a ratio is another setting of the same program; a ratio that changes loses something between."""
    env, params = chat("ratio", "vllm+h2o")
    assert env.static.scheduler.compress == policies.get("vllm+h2o").scheduler.spec.compress
    for index, ratio in enumerate(RATIOS):
        forced = in_force(params.sim, Controls(ratio=jnp.int32(index)), jnp.int32(0)).compress
        own = policies.get("vllm+h2o", ratio=ratio).compress_params()
        jax.tree.map(np.testing.assert_array_equal, forced, own)

    def choose(obs, state, settings):
        low, high = settings
        return {"ratio": jnp.where(jnp.sum(obs.item_mask) > 4, low, high).astype(jnp.int32)}

    best = len(RATIOS) - 1
    lanes = jnp.asarray([[0, 0], [best, best], [0, best]]), jnp.zeros(3)
    state, out = episodes(env, choose, 400, params, lanes)
    check_masks(out, "ratio")
    good, lost = np.asarray(out[4])[:, :, 2].sum(axis=1), np.asarray(state.machine.quality.loss)
    np.testing.assert_allclose(np.asarray(out[0]).sum(axis=1), good - lost, rtol=1e-4, atol=1e-3)
    share = np.asarray(state.machine.quality.share) / 24
    np.testing.assert_allclose(share[:2], [RATIOS[0], 1.0], atol=1e-3)
    assert share[0] < share[2] < share[1] and lost[1] == 0 < lost[2] < lost[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": ("draft",)}, "head 'draft' with policy vllm, which drafts no tokens.*vllm.spec"),
        ({"heads": ("ratio",), "policy": "vllm+spec"}, "head 'ratio' .* which compresses no KV"),
        ({"heads": ("batch", "draft"), "policy": "vllm+spec"}, "max_num_seqs 64 of 9 tokens.*max_num_seqs=28"),
        ({"heads": ("evict",)}, "unknown head 'evict'"),
    ],
)
def test_heads_of_what_is_not_there_are_refused(arguments, message):
    with pytest.raises(UserError, match=f"(?s){message}"):
        js.make("ChatServing-v0", num_programs=4, seeds=1, **arguments)


def test_eviction_needs_contexts_that_wait():
    scenario = chat_serving.default_scenario()
    with pytest.raises(UserError, match="nothing is retained"):
        js.make("AgentSessions-v0", heads=("evict",), policy="vllm", scenario=scenario, num_programs=4, seeds=1)
