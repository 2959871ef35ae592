"""AgentSessions against the machine's own records: costs are exact, controls do what they say, slots carry no order.

One compiled program serves most tests; what differs between its lanes is data (`Lane`).
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

import jaxsched as js
from jaxsched.envs import features
from jaxsched.envs.agent_sessions import default_scenario
from jaxsched.envs.controls import GATE_FRACTIONS, key_of
from jaxsched.sim.clock import split_us
from jaxsched.workloads import get_preset
from jaxsched.xla import quick_compiler_options

NUM_PROGRAMS = 16
STEPS = 700


class Lane(struct.PyTreeNode):
    """A policy, and how the lane is treated."""

    workload: jax.Array
    context_weight: jax.Array  # of the item's context in its score
    noise: jax.Array  # 1 = random actions
    gate: jax.Array
    ttl: jax.Array
    shuffles: jax.Array  # 1 = slots are permuted before every step


def lane(workload=0, context_weight=0.0, noise=0.0, gate=4, ttl=2, shuffles=0) -> Lane:
    f = np.float32
    return Lane(np.int32(workload), f(context_weight), f(noise), np.int32(gate), np.int32(ttl), np.int32(shuffles))


#: What the tests below look at, by name.
LANES = {
    "plain": lane(),
    "shuffled": lane(shuffles=1),
    "long_first": lane(context_weight=50.0),
    "long_first_shuffled": lane(context_weight=50.0, shuffles=1),
    "random": lane(workload=1, noise=1.0),
    "open_gate": lane(workload=1, gate=len(GATE_FRACTIONS) - 1, ttl=3),
    "tight_gate": lane(workload=1, gate=0, ttl=0),
    "cut_off": lane(),  # as "plain", up to a time at which half of the programs are done
}


def scenario():
    """Short agents that come faster than their contexts fit."""
    return dataclasses.replace(
        default_scenario(), name="small", workload=get_preset("tau_agents"), num_programs=NUM_PROGRAMS, rate_per_s=4.0,
        usable_blocks=1000, max_paused_programs=32,
    )  # fmt: skip


@functools.cache
def environment():
    env, params = js.make(
        "AgentSessions-v0", scenario=scenario(), seeds=(5, 6), num_slots=32, max_num_seqs=16, num_items=64,
        cache_runs=32, burst=16, policy="pfcfs+ttl+gate",
    )  # fmt: skip
    return dataclasses.replace(env, static=dataclasses.replace(env.static, record=True)), params


def permuted(machine, key):
    """The same cluster with every slot somewhere else."""
    perm = jax.random.permutation(key, machine.request.shape[1])
    kv = None if machine.kv is None else machine.kv.replace(slots=machine.kv.slots[:, :, perm])
    return machine.replace(slots=machine.slots[:, :, perm], request=machine.request[:, perm], kv=kv)


def run(env, params, lane: Lane, epoch, us):
    """One episode: rewards and what happened, step by step; final state."""
    sim = params.sim.replace(horizon_epoch=epoch, horizon_us=us)
    params = params.replace(sim=sim)

    def step(carry, key):
        obs, state = carry
        shuffled = permuted(state.machine, key)
        machine = jax.tree.map(lambda a, b: jnp.where(lane.shuffles > 0, a, b), shuffled, state.machine)
        state = state.replace(machine=machine, items=env._items(machine, params, state.workload))
        obs = env.observe(state, params)
        n = env.total_items
        random = jax.random.normal(key, (n,))
        scores = jnp.where(lane.noise > 0, random, lane.context_weight * obs.items[:, CONTEXT])
        anything = jax.random.randint(key, (n,), 0, 8)
        retain = jnp.where(obs.masks["retain"][:, 1], jnp.where(lane.noise > 0, anything, lane.ttl), 0)
        action = {"order": scores, "retain": retain.astype(jnp.int32), "gate": lane.gate}
        rows = jnp.where(obs.item_mask, state.items.row, -1)
        obs, state, reward, terminated, truncated, info = env.step_env(key, state, action, params)
        seen = {
            "reward": reward, "terminated": terminated, "truncated": truncated, "rows": rows, "scores": scores,
            "clock": jnp.stack([state.clock_epoch, state.clock_us]), "obs": obs, **info,
        }  # fmt: skip
        return (obs, state), seen

    start = env.reset_to(lane.workload, params)
    (_, state), steps = jax.lax.scan(step, start, jax.random.split(jax.random.key(lane.workload), STEPS))
    return state, steps


CONTEXT = features.ITEM_FEATURES.index("context")


@pytest.fixture(scope="module")
def both():
    """Final state and steps of every lane, by name; the time at which "cut_off" ends."""
    env, params = environment()
    lanes = jax.tree.map(lambda *x: np.stack(x), *LANES.values())
    fn = jax.jit(
        jax.vmap(functools.partial(run, env), in_axes=(None, 0, 0, 0)), compiler_options=quick_compiler_options()
    )
    never = np.full(len(LANES), 2**30, np.int32), np.zeros(len(LANES), np.int32)
    out = jax.device_get(fn(params, lanes, *never))
    by_name = lambda out: {name: jax.tree.map(lambda x, i=i: x[i], out) for i, name in enumerate(LANES)}
    found = by_name(out)
    seconds, _ = program_seconds(found["plain"][0], params)
    begin = _arrivals(found["plain"][0], params)
    horizon = round(float(np.median(np.asarray(seconds) + begin)) * 1e6)
    epoch, us = split_us(np.where(np.asarray(list(LANES)) == "cut_off", horizon, 2**60))
    found["cut_off"] = by_name(jax.device_get(fn(params, lanes, np.minimum(epoch, 2**30), us)))["cut_off"]
    return found, horizon * 1e-6


@pytest.fixture(scope="module")
def episodes(both):
    """Final state and steps of every lane, by name."""
    return both[0]


def _arrivals(state, params) -> list[float]:
    requests, first = jax.device_get(params.pool.requests), int(params.pool.first[state.workload])
    rows = np.arange(first, first + NUM_PROGRAMS)
    return ((requests.arrival_epoch[rows].astype(np.float64) * 2**30 + requests.arrival_us[rows]) * 1e-6).tolist()


def program_seconds(state, params, horizon_s=np.inf):
    """From the records: each program's time in the system up to a horizon, and whether it was done by then."""
    record, requests = state.machine.record, jax.device_get(params.pool.requests)
    absolute = lambda pair: (pair[:, 0].astype(np.float64) * 2**30 + pair[:, 1]) * 1e-6
    first = int(params.pool.first[state.workload])
    seconds, done = [], []
    for program in range(first, first + NUM_PROGRAMS):
        row = program
        while requests.next_turn[row] >= 0:
            row = requests.next_turn[row]
        begin = (requests.arrival_epoch[program].astype(np.float64) * 2**30 + requests.arrival_us[program]) * 1e-6
        finished = record.finish[row, 0] >= 0
        end = absolute(record.finish[row : row + 1])[0] if finished else horizon_s
        done.append(finished)
        seconds.append(max(end - begin, 0.0) if begin <= horizon_s else None)
    return seconds, done


#: Without a gate sixteen contexts that do not fit evict each other, and the episode is not over in `STEPS`.
ENDLESS = ("open_gate",)


@pytest.mark.parametrize("name", [name for name in LANES if name not in ("cut_off", *ENDLESS)])
def test_return_is_minus_the_completion_times_of_all_programs(episodes, name):
    state, steps = episodes[name]
    assert steps["terminated"][-1], "the episode is over"
    assert int(state.machine.flags) == 0
    seconds, done = program_seconds(state, environment()[1])
    assert all(done)
    np.testing.assert_allclose(-steps["reward"].astype(np.float64).sum(), sum(seconds), rtol=1e-5)
    np.testing.assert_allclose(
        steps["dt_s"].astype(np.float64).sum(), steps["clock"][-1] @ [2**30, 1] * 1e-6, rtol=1e-5
    )
    assert not steps["truncated"].any()


def test_a_horizon_charges_the_time_up_to_it_and_what_is_left(both):
    (state, steps), horizon_s = both[0]["cut_off"], both[1]
    params = environment()[1]
    ends = int(np.argmax(steps["terminated"]))
    assert steps["terminated"][ends] and abs(steps["clock"][ends] @ [2**30, 1] * 1e-6 - horizon_s) < 2e-6
    seconds, done = program_seconds(state, params, horizon_s)
    here = [s for s in seconds if s is not None]
    left = sum(s is not None and not d for s, d in zip(seconds, done, strict=True))
    assert 0 < left < NUM_PROGRAMS
    expected = sum(here) + left * float(params.residual_s)
    np.testing.assert_allclose(-steps["reward"][: ends + 1].astype(np.float64).sum(), expected, rtol=1e-5)


@pytest.mark.parametrize(("name", "other"), [("plain", "shuffled"), ("long_first", "long_first_shuffled")])
def test_the_order_of_slots_carries_no_information(episodes, name, other):
    (_, plain), (_, shuffled) = episodes[name], episodes[other]
    np.testing.assert_array_equal(plain["reward"], shuffled["reward"])
    np.testing.assert_array_equal(plain["clock"], shuffled["clock"])
    moved = (plain["rows"] != shuffled["rows"]).any(axis=1)
    assert moved.sum() > 20, "items did change places"
    np.testing.assert_array_equal(np.sort(plain["rows"], axis=1), np.sort(shuffled["rows"], axis=1))


def test_without_a_gate_contexts_evict_each_other(episodes):
    per_turn = {name: steps["costs"][:, 3].sum() / steps["costs"][:, 1].sum() for name, (_, steps) in episodes.items()}
    assert int(episodes["open_gate"][0].machine.flags) == 0
    assert per_turn["open_gate"] > per_turn["tight_gate"], "tokens computed for each turn that finished"


def test_policies_that_differ_differ(episodes):
    returns = {name: steps["reward"].sum() for name, (_, steps) in episodes.items()}
    assert returns["plain"] != returns["long_first"]
    assert len({returns[name] for name in ("random", "open_gate", "tight_gate")}) == 3


@pytest.mark.parametrize("name", ["random", "open_gate", "long_first"])
def test_executed_items_waited_and_went_in_the_order_of_their_scores(episodes, name):
    state, steps = episodes[name]
    first = state.machine.record.first_scheduled.astype(np.int64) @ [2**30, 1]
    pairs = 0
    for rank, rows, scores, num in zip(
        steps["executed"], steps["rows"], steps["scores"], steps["num_executed"], strict=True
    ):
        at = np.flatnonzero(rank >= 0)
        assert len(at) == num and sorted(rank[at]) == list(range(num))
        at = at[np.argsort(rank[at])]
        assert (rows[at] >= 0).all()
        if (state.machine.record.preemptions[rows[at]] == 0).all():
            assert (np.diff(first[rows[at]]) >= 0).all()
        pairs += len(at) - 1 if len(at) else 0
        if name == "open_gate":  # (a closed gate lets returning turns pass programs that would begin)
            assert (np.diff(scores[at]) <= 0).all()
    assert steps["num_executed"].sum() > 0


def test_masks_leave_a_choice_and_everything_is_legal_at_the_end(episodes):
    for _, steps in episodes.values():
        masks, ended = steps["obs"].masks, steps["terminated"]
        assert masks["retain"].any(axis=-1).all() and masks["gate"].all()
        assert masks["retain"][ended].all()
        assert (masks["order"] <= steps["obs"].item_mask).all()
        for leaf in jax.tree.leaves(steps["obs"]):
            assert np.isfinite(leaf.astype(np.float32)).all()


def test_what_cannot_be_known_is_not_shown():
    """Two workloads that differ only in how long tools take and how long answers get look the same until they act."""
    env, params = environment()
    hidden = params.pool.requests
    longer = hidden.replace(pause_us=hidden.pause_us * 2, output_tokens=hidden.output_tokens * 2)
    _, state = env.reset_to(jnp.int32(0), params)
    row = 2 * NUM_PROGRAMS + 3  # a later turn: a program that pauses before it
    paused = state.machine.paused
    at = lambda table: paused.replace(
        request=paused.request.at[0].set(row),
        epoch=paused.epoch.at[0].set(1),
        us=paused.us.at[0].set(table.pause_us[row]),
    )
    look = []
    for table in (hidden, longer):
        machine = state.machine.replace(paused=at(table), epoch=jnp.int32(1), now=jnp.int32(4_000_000))
        p = params.replace(pool=params.pool.replace(requests=table))
        seen = state.replace(machine=machine, items=env._items(machine, p, state.workload))
        look.append(env.observe(seen, p))
    assert bool(look[0].item_mask.any())
    jax.tree.map(np.testing.assert_array_equal, look[0], look[1])


def test_higher_scores_have_smaller_keys():
    scores = np.asarray([np.inf, 3e38, 2.5, 1e-30, 0.0, -1e-30, -1.0, -3e38, -np.inf, np.nan], np.float32)
    keys = np.asarray(key_of(jnp.asarray(scores)))
    assert (np.diff(keys.astype(np.int64)) > 0).all()
    assert key_of(jnp.float32(-0.0)) == key_of(jnp.float32(0.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": ("ordr",)}, "unknown head 'ordr'.*Did you mean 'order'"),
        ({"heads": ()}, "no heads"),
        ({"policy": "sarathi"}, "cannot run inline"),
        ({"policy": "gitins"}, "Did you mean 'gittins'"),
        ({"reward": "speed"}, "unknown reward"),
        ({"burst": 0}, "burst 0"),
        ({"tick_ms": -1.0}, "tick_ms"),
        ({"seeds": ()}, "no seeds"),
        ({"num_programs": 0}, "num_programs 0"),
        ({"horizon_s": 0.0}, "horizon_s"),
        ({"token_budgets": 3}, "unknown parameter 'token_budgets'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_built(arguments, message):
    with pytest.raises(js.UserError, match=message):
        js.make("AgentSessions-v0", **{"num_programs": 4, "seeds": 1, **arguments})
