"""Decisions per second of PPO end to end, and where the time goes.

    python benchmarks/learning.py --env AgentSessions-v0 --lanes 256 --steps 64 --width 32 --devices 2

Three programs on the same lanes: the environment alone under constant actions; acting (environment and network, with
what is recorded for the update); a whole iteration (acting, advantages, epochs of minibatches). Their differences are
the shares of simulator, network and update. Each is timed after its compilation, the best of `--repeats`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Throughput of learning.", allow_abbrev=False)
    parser.add_argument("--env", default="AgentSessions-v0")
    parser.add_argument("--options", default="{}", help="JSON handed to js.make")
    parser.add_argument("--lanes", type=int, default=256)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--minibatches", type=int, default=4)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(options.devices))
    from jaxsched.cli import configure_jax

    configure_jax()
    row = measure(options)
    if options.json:
        print(json.dumps(row))
        return
    print(f"{row['env']}: {row['lanes']} lanes x {row['steps']} steps, width {row['width']}, {row['epochs']} epoch(s), "
          f"{row['devices']} device(s) {row['platform']}; compile {row['compile_s']:.0f} s")  # fmt: skip
    for name in ("simulator", "acting", "iteration"):
        print(f"  {name:10s} {row[f'{name}_per_s']:12,.0f} decisions/s")
    print("  share of an iteration: " + ", ".join(f"{name} {row[f'share_{name}']:.0%}" for name in SHARES))


SHARES = ("simulator", "network", "update")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One row of the table."""
    import jax
    import jax.numpy as jnp

    from jaxsched.envs import make
    from jaxsched.networks import SetNetworkConfig, SetPolicy
    from jaxsched.networks.heads import greedy
    from train import ppo
    from train.devices import AXIS, over_devices
    from train.rollout import Lanes, collect, heads_of, step_lanes

    env, env_params = make(options.env, **json.loads(options.options))
    heads = heads_of(env)
    policy = SetPolicy(SetNetworkConfig(heads, width=options.width))
    axis = AXIS if options.devices > 1 else None
    lanes_each = options.lanes // options.devices
    static = ppo.PpoStatic(
        num_lanes=lanes_each, num_steps=options.steps, num_minibatches=options.minibatches,
        num_epochs=options.epochs, num_iterations=1000, axis=axis,
    )  # fmt: skip
    hyper = ppo.PpoHyper(env=env_params)

    def constant(state: Any, hyper: Any) -> tuple[Any, dict[str, Any]]:
        """The environment alone: all scores and logits 0."""
        keys = jax.random.split(jax.random.key(0), lanes_each)
        shapes = jax.eval_shape(lambda: policy.apply(state.params, state.lanes.obs, state.lanes.carry)[0])
        outputs = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def step(lanes: Lanes, _: Any) -> tuple[Lanes, Any]:
            action = greedy(heads, outputs, lanes.obs)
            obs, env_state, reward, *_ = step_lanes(env, keys, lanes.env_state, action, hyper.env)
            return lanes.replace(obs=obs, env_state=env_state), jnp.sum(reward)

        lanes, reward = jax.lax.scan(step, state.lanes, None, static.num_steps)
        return state.replace(lanes=lanes), {"reward": jnp.sum(reward)}

    def act(state: Any, hyper: Any) -> tuple[Any, dict[str, Any]]:
        keys = jax.random.split(state.key, lanes_each)
        lanes, steps = collect(env, policy, state.params, state.lanes, static.num_steps, hyper.env, keys, keys)
        used = jax.tree.map(lambda x: jnp.sum(x.astype(jnp.float32)), (steps.obs, steps.action, steps.value))
        total = jnp.sum(jnp.stack(jax.tree.leaves(used)))  # nothing recorded may be left out
        return state.replace(lanes=lanes), {"used": total}

    whole = ppo.ppo(env, policy, {}, static, hyper, {})
    times, compiled, state = {}, 0.0, None
    for name, update in (("simulator", constant), ("acting", act), ("iteration", whole.update)):
        algorithm = dataclasses.replace(whole, update=update)
        if axis is not None:
            algorithm = over_devices(algorithm, options.devices)
        begun = time.perf_counter()
        if state is None:
            state = jax.block_until_ready(jax.jit(algorithm.init)(jax.random.key(0), hyper))
        program = jax.jit(algorithm.update).lower(state, hyper).compile()
        compiled += time.perf_counter() - begun
        if name == "simulator":  # into the middle of an episode, where the tables are in use
            for _ in range(options.repeats):
                state, _ = program(state, hyper)
        durations = []
        for _ in range(options.repeats):
            begun = time.perf_counter()
            jax.block_until_ready(program(state, hyper))
            durations.append(time.perf_counter() - begun)
        times[name] = min(durations)
    decisions = options.lanes * options.steps
    shares = (times["simulator"], times["acting"] - times["simulator"], times["iteration"] - times["acting"])
    return {
        "env": options.env, "options": options.options, "lanes": options.lanes, "steps": options.steps,
        "width": options.width, "epochs": options.epochs, "minibatches": options.minibatches,
        "devices": options.devices, "platform": jax.default_backend(), "compile_s": compiled,
        **{f"{name}_per_s": decisions / value for name, value in times.items()},
        **{f"share_{name}": part / times["iteration"] for name, part in zip(SHARES, shares, strict=True)},
    }  # fmt: skip


if __name__ == "__main__":
    main()
