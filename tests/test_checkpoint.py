"""The exported policy: what goes in comes out, and what is not it is refused by name."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsched.checkpoint import load_policy, save_policy
from jaxsched.errors import UserError

PARAMS = {"encoder": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)}, "scale": jnp.float32(2)}
NETWORK = {"kind": "set", "width": 3}


@pytest.fixture
def folder(tmp_path):
    save_policy(tmp_path / "run", PARAMS, network=NETWORK, sizes={"num_items": 8}, training={"seed": 3})
    return tmp_path / "run"


def test_what_is_saved_is_loaded(folder):
    export = load_policy(folder)
    assert export.network == NETWORK and export.sizes == {"num_items": 8} and export.training == {"seed": 3}
    params = export.params_like(
        {"encoder": {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}, "scale": jnp.zeros(())}
    )
    np.testing.assert_array_equal(params["encoder"]["kernel"], PARAMS["encoder"]["kernel"])
    assert float(params["scale"]) == 2.0
    assert load_policy(folder / "policy.json").content_hash == load_policy(folder / "policy.msgpack").content_hash


def test_the_content_hash_names_the_numbers_and_the_network(tmp_path):
    first = save_policy(tmp_path / "a", PARAMS, network=NETWORK)
    assert save_policy(tmp_path / "b", PARAMS, network=NETWORK) == first
    assert save_policy(tmp_path / "c", {**PARAMS, "scale": jnp.float32(2.0000002)}, network=NETWORK) != first
    assert save_policy(tmp_path / "d", PARAMS, network={**NETWORK, "width": 4}) != first


def test_one_bare_array_is_a_policy_too(tmp_path):
    save_policy(tmp_path, jnp.arange(4.0), network={"kind": "index"})
    np.testing.assert_array_equal(load_policy(tmp_path).params, np.arange(4.0, dtype=np.float32))


def _truncate(folder):
    numbers = folder / "policy.msgpack"
    numbers.write_bytes(numbers.read_bytes()[:-5])


def _flip_a_bit(folder):
    data = bytearray((folder / "policy.msgpack").read_bytes())
    data[-1] ^= 1
    (folder / "policy.msgpack").write_bytes(bytes(data))


def _edit(**changes):
    def edit(folder):
        about = json.loads((folder / "policy.json").read_text())
        (folder / "policy.json").write_text(json.dumps({**about, **changes}))

    return edit


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_truncate, "is truncated"),
        (_flip_a_bit, "does not hold the parameters"),
        (_edit(sizes={"num_items": 9}), "was changed"),
        (_edit(format="other"), "is not an exported policy"),
        (_edit(format_version=2), "format version 2"),
        (lambda folder: (folder / "policy.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "policy.json").unlink(), "no policy.json"),
        (lambda folder: (folder / "policy.msgpack").unlink(), "cannot be read"),
    ],
)
def test_damage_is_refused_by_name(folder, damage, said):
    damage(folder)
    with pytest.raises(UserError, match=said):
        load_policy(folder)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ({"scale": jnp.zeros(())}, "that the network does not have"),
        ({**PARAMS, "more": jnp.zeros(2)}, "has no parameter more"),
        ({**PARAMS, "scale": jnp.zeros(2)}, r"parameter scale has shape \[\]"),
    ],
)
def test_parameters_of_another_network_are_refused(folder, target, said):
    with pytest.raises(UserError, match=said):
        load_policy(folder).params_like(target)


def test_parameters_that_are_not_finite_are_not_exported(tmp_path):
    with pytest.raises(UserError, match="scale holds NaN"):
        save_policy(tmp_path, {**PARAMS, "scale": jnp.float32(np.nan)}, network=NETWORK)
    assert not (tmp_path / "policy.json").exists()
