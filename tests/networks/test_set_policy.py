"""The set network: slots carry no meaning, empty ones no weight, sizes may change (sheet 1, check B)."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import struct

from jaxsched.errors import UserError
from jaxsched.networks import HeadSpec, SetNetworkConfig, SetPolicy, policy_from_dict

HEADS = (
    HeadSpec("order", "order"),
    HeadSpec("retain", "item", 5),
    HeadSpec("gate", "choice", 3),
    HeadSpec("route", "instance"),
    HeadSpec("migrate", "pair"),
    HeadSpec("chunk", "per_instance", 4),
)
PER_ITEM, PER_INSTANCE = ("order", "retain", "migrate"), ("route", "chunk")


@struct.dataclass
class Obs:
    items: jax.Array
    item_mask: jax.Array
    instances: jax.Array
    globals: jax.Array
    masks: dict


def observation(num_items=6, num_instances=3, seed=0):
    rng = np.random.default_rng(seed)
    return Obs(
        items=rng.normal(size=(num_items, 7)).astype(np.float32),
        item_mask=np.arange(num_items) < num_items - 2,
        instances=rng.normal(size=(num_instances, 4)).astype(np.float32),
        globals=rng.normal(size=2).astype(np.float32),
        masks={},
    )


@pytest.fixture(scope="module", params=["deep sets", "attention", "memory"])
def network(request):
    policy = SetPolicy(
        SetNetworkConfig(
            HEADS, width=16, num_attention=2 * (request.param == "attention"), recurrent=request.param == "memory"
        )
    )
    params = jax.jit(policy.init)(jax.random.key(1), observation())
    # The last layers' small gain would hide differences.
    params = jax.tree.map(lambda x: np.asarray(x) * (50.0 if x.ndim == 2 and np.abs(x).max() < 0.02 else 1.0), params)
    params = jax.tree.map(np.float32, params)
    carry = np.random.default_rng(2).normal(size=policy.initial_carry(()).shape).astype(np.float32)
    apply = jax.jit(policy.apply)
    return policy, params, carry, lambda obs: apply(params, obs, carry)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_permuting_slots_permutes_their_outputs_and_changes_nothing_else(network):
    *_, apply = network
    obs = observation()
    items, instances = np.asarray([3, 5, 0, 2, 4, 1]), np.asarray([2, 0, 1])
    moved = obs.replace(items=obs.items[items], item_mask=obs.item_mask[items], instances=obs.instances[instances])
    outputs, value, carry = jax.device_get(apply(obs))
    again, value_again, carry_again = jax.device_get(apply(moved))
    close(value, value_again)
    close(carry, carry_again)
    close(again["order"], outputs["order"][items])
    close(again["retain"], outputs["retain"][items])
    close(again["migrate"], outputs["migrate"][items][:, instances])
    close(again["route"], outputs["route"][instances])
    close(again["chunk"], outputs["chunk"][instances])
    close(again["gate"], outputs["gate"])
    assert (
        float(np.abs(np.asarray(outputs["order"])[0] - np.asarray(outputs["order"])[1])) > 1e-3
    )  # the outputs do depend on the item


def test_twice_the_slots_filled_with_garbage_change_nothing(network):
    *_, apply = network
    obs = observation()
    wide = obs.replace(
        items=np.concatenate([obs.items, np.full((6, 7), np.nan, np.float32)]),
        item_mask=np.concatenate([obs.item_mask, np.zeros(6, bool)]),
    )
    outputs, value, _ = jax.device_get(apply(obs))
    again, value_again, _ = jax.device_get(apply(wide))
    close(value, value_again)
    for name in PER_ITEM:
        assert again[name].shape[0] == 12 and np.all(np.isfinite(again[name]))
        close(again[name][:4], outputs[name][:4])
    for name in (*PER_INSTANCE, "gate"):
        close(again[name], outputs[name])


@pytest.mark.parametrize(
    "network", ["deep sets", "memory"], indirect=True
)  # attention weighs the one global token less
def test_the_same_parameters_serve_twice_the_items_and_instances(network):
    """Each item and instance twice: means and maxima are those of one copy, so both copies get its outputs."""
    *_, apply = network
    obs = observation()
    twice = jax.tree.map(lambda x: np.concatenate([x, x]), obs).replace(globals=obs.globals)
    outputs, value, _ = jax.device_get(apply(obs))
    again, value_again, _ = jax.device_get(apply(twice))
    close(value, value_again)
    for name in PER_ITEM:
        close(again[name][6:10, ...].reshape(4, -1)[:, :1], outputs[name][:4].reshape(4, -1)[:, :1])
    for name in PER_INSTANCE:
        close(again[name][3:], outputs[name])


def test_a_batch_and_a_sequence_are_their_elements_one_by_one(network):
    policy, params, _, _ = network
    length, batch = 5, 2
    obs = jax.tree.map(
        lambda *x: np.stack(x).reshape(length, batch, *x[0].shape),
        *[observation(seed=s) for s in range(length * batch)],
    )
    start = np.asarray([[True, False], [False, False], [False, True], [False, False], [True, False]])
    carry = np.random.default_rng(3).normal(size=policy.initial_carry((batch,)).shape).astype(np.float32)
    outputs, values, end = jax.device_get(jax.jit(policy.unroll)(params, obs, carry, start))
    apply = jax.jit(policy.apply)
    for t in range(length):
        carry = np.where(start[t][:, None], np.float32(0), np.asarray(carry))
        one, value, carry = apply(params, jax.tree.map(lambda x, t=t: x[t], obs), carry)
        close(values[t], value)
        for name in outputs:
            close(outputs[name][t], one[name])
    close(end, carry)


def test_the_first_policy_is_nearly_uniform_and_the_first_values_are_not_zero():
    policy = SetPolicy(SetNetworkConfig(HEADS, width=16, num_values=3))
    params = jax.jit(policy.init)(jax.random.key(0), observation())
    outputs, value, _ = jax.jit(policy.apply)(params, observation(), policy.initial_carry(()))
    assert max(float(np.abs(x).max()) for x in outputs.values()) < 0.1
    assert value.shape == (3,) and float(np.abs(value).max()) > 0.01


def test_a_network_written_down_is_the_same_network_again():
    config = SetNetworkConfig(HEADS, width=32, num_attention=1, recurrent=True, num_values=2)
    assert policy_from_dict(config.to_dict()).config == config


@pytest.mark.parametrize(
    ("change", "said"),
    [({"kind": "index"}, "kind 'index'"), ({"depth": 3}, "unknown settings"), ({"heads": []}, "one head or more")],
)
def test_another_network_is_refused(change, said):
    with pytest.raises(UserError, match=said):
        policy_from_dict({**SetNetworkConfig(HEADS).to_dict(), **change})
