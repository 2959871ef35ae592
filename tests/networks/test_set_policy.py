"""The set network: slots carry no meaning, empty ones no weight, sizes may change (sheet 1, check B)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
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
    keys = jax.random.split(jax.random.key(seed), 3)
    return Obs(
        items=jax.random.normal(keys[0], (num_items, 7)),
        item_mask=jnp.arange(num_items) < num_items - 2,
        instances=jax.random.normal(keys[1], (num_instances, 4)),
        globals=jax.random.normal(keys[2], (2,)),
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
    params = jax.tree.map(lambda x: x * (50.0 if x.ndim == 2 and float(jnp.abs(x).max()) < 0.02 else 1.0), params)
    carry = jax.random.normal(jax.random.key(2), policy.initial_carry(()).shape)
    apply = jax.jit(policy.apply)
    return policy, params, carry, lambda obs: apply(params, obs, carry)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_permuting_slots_permutes_their_outputs_and_changes_nothing_else(network):
    *_, apply = network
    obs = observation()
    items, instances = jnp.asarray([3, 5, 0, 2, 4, 1]), jnp.asarray([2, 0, 1])
    moved = obs.replace(items=obs.items[items], item_mask=obs.item_mask[items], instances=obs.instances[instances])
    outputs, value, carry = apply(obs)
    again, value_again, carry_again = apply(moved)
    close(value, value_again)
    close(carry, carry_again)
    close(again["order"], outputs["order"][items])
    close(again["retain"], outputs["retain"][items])
    close(again["migrate"], outputs["migrate"][items][:, instances])
    close(again["route"], outputs["route"][instances])
    close(again["chunk"], outputs["chunk"][instances])
    close(again["gate"], outputs["gate"])
    assert float(jnp.abs(outputs["order"][0] - outputs["order"][1])) > 1e-3  # the outputs do depend on the item


def test_twice_the_slots_filled_with_garbage_change_nothing(network):
    *_, apply = network
    obs = observation()
    wide = obs.replace(
        items=jnp.concatenate([obs.items, jnp.full((6, 7), jnp.nan)]),
        item_mask=jnp.concatenate([obs.item_mask, jnp.zeros(6, bool)]),
    )
    outputs, value, _ = apply(obs)
    again, value_again, _ = apply(wide)
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
    twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), obs).replace(globals=obs.globals)
    outputs, value, _ = apply(obs)
    again, value_again, _ = apply(twice)
    close(value, value_again)
    for name in PER_ITEM:
        close(again[name][6:10, ...].reshape(4, -1)[:, :1], outputs[name][:4].reshape(4, -1)[:, :1])
    for name in PER_INSTANCE:
        close(again[name][3:], outputs[name])


def test_a_batch_and_a_sequence_are_their_elements_one_by_one(network):
    policy, params, _, _ = network
    length, batch = 5, 2
    obs = jax.tree.map(
        lambda *x: jnp.stack(x).reshape(length, batch, *x[0].shape),
        *[observation(seed=s) for s in range(length * batch)],
    )
    start = jnp.asarray([[True, False], [False, False], [False, True], [False, False], [True, False]])
    carry = jax.random.normal(jax.random.key(3), policy.initial_carry((batch,)).shape)
    outputs, values, end = jax.jit(policy.unroll)(params, obs, carry, start)
    apply = jax.jit(policy.apply)
    for t in range(length):
        carry = jnp.where(start[t][:, None], 0.0, carry)
        one, value, carry = apply(params, jax.tree.map(lambda x, t=t: x[t], obs), carry)
        close(values[t], value)
        for name in outputs:
            close(outputs[name][t], one[name])
    close(end, carry)


def test_the_first_policy_is_nearly_uniform_and_the_first_values_are_not_zero():
    policy = SetPolicy(SetNetworkConfig(HEADS, width=16, num_values=3))
    outputs, value, _ = policy.apply(
        policy.init(jax.random.key(0), observation()), observation(), policy.initial_carry(())
    )
    assert max(float(jnp.abs(x).max()) for x in outputs.values()) < 0.1
    assert value.shape == (3,) and float(jnp.abs(value).max()) > 0.01


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
