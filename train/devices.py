"""One learner over several devices: each holds a share of the lanes, all hold the same parameters.

On a CPU one XLA program keeps about one core busy, so that two devices (``JAX_NUM_CPU_DEVICES=2``) use two.
"""

from __future__ import annotations

import dataclasses

import jax
from jax.sharding import Mesh, PartitionSpec

from jaxsched.errors import UserError
from jaxsched.xla import shard_map
from train.algorithm import Algorithm

#: Name of the device axis; algorithms average over it.
AXIS = "lanes"


def over_devices(algorithm: Algorithm, num_devices: int) -> Algorithm:
    """The algorithm with its lanes split over devices.

    Args:
        algorithm: made for the lanes of ONE device, with ``axis="lanes"``; its state has a field `lanes`, all else in
            the state is the same on every device because gradients and statistics are averaged.
        num_devices: how many.

    Raises:
        UserError: JAX sees fewer devices.
    """
    devices = jax.devices()
    if len(devices) < num_devices:
        raise UserError(f"{num_devices} devices", where="run.num_devices", expected=f"at most {len(devices)}",
                        hint="On a CPU set JAX_NUM_CPU_DEVICES.")  # fmt: skip
    mesh = Mesh(devices[:num_devices], (AXIS,))
    same, split = PartitionSpec(), PartitionSpec(AXIS)

    def specs(state: object) -> object:
        everywhere = jax.tree.map(lambda _: same, state)
        return everywhere.replace(lanes=jax.tree.map(lambda _: split, state.lanes))  # type: ignore[attr-defined]

    def mapped(function, arguments, in_specs, out_specs):
        return shard_map(function, mesh, in_specs, out_specs)(*arguments)

    def init(key, hyper):
        # The structure of the state, found on an axis of the right size without computing anything.
        shape = jax.eval_shape(
            lambda: jax.vmap(algorithm.init, (None, None), axis_name=AXIS, axis_size=num_devices)(key, hyper)
        )
        return mapped(algorithm.init, (key, hyper), (same, same), specs(shape))

    def update(state, hyper):
        spec = specs(state)
        return mapped(algorithm.update, (state, hyper), (spec, same), (spec, same))

    def act(state, hyper):
        assert algorithm.act is not None
        spec = specs(state)
        # What was recorded is [time, lane, ...]; the key for the second half is everywhere the same.
        return mapped(algorithm.act, (state, hyper), (spec, same), (spec, (PartitionSpec(None, AXIS), same)))

    def learn(state, hyper, data):
        assert algorithm.learn is not None
        spec = specs(state)
        recorded = (PartitionSpec(None, AXIS), same)
        return mapped(algorithm.learn, (state, hyper, data), (spec, same, recorded), (spec, same))

    halves = {"act": act, "learn": learn} if algorithm.act is not None else {}
    return dataclasses.replace(
        algorithm, init=init, update=update, **halves, decisions=algorithm.decisions * num_devices
    )
