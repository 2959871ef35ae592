"""Decisions per second of PPO end to end, and where the time goes.

    python benchmarks/learning.py --env AgentSessions-v0 --lanes 256 --steps 64 --width 32 --devices 2

Three programs on the same lanes: the environment alone under constant actions; acting (environment and network, with
what is recorded); learning from it (advantages, epochs of minibatches). An iteration is the last two; the network's
share is acting less the environment alone. Each is timed after its compilation, the best of `--repeats`; rates per
second of CPU time are for a machine that others use as well.
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
    parser.add_argument("--native", type=int, default=1, help="loops as native functions (docs/decisions/0002)")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--warmup", type=int, default=3, help="calls of the simulator before anything is timed")
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
    for name in ("simulator", "acting", "learning", "iteration"):
        rate, of_cpu = row[f"{name}_per_s"], row[f"{name}_per_cpu_s"]
        print(f"  {name:10s} {rate:12,.0f} decisions/s {of_cpu:12,.0f} per second of CPU time")
    print("  share of an iteration: " + ", ".join(f"{name} {row[f'share_{name}']:.0%}" for name in SHARES))


SHARES = ("simulator", "network", "update")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One row of the table."""
    import jax
    import jax.numpy as jnp

    from jaxsched.envs import make
    from jaxsched.networks import SetNetworkConfig, SetPolicy
    from jaxsched.networks.heads import greedy
    from jaxsched.xla import compiler_options, quick_compiler_options
    from train import ppo
    from train.devices import AXIS, over_devices
    from train.rollout import Lanes, heads_of, step_lanes

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

    options_of_xla = compiler_options() if options.native else None
    whole = ppo.ppo(env, policy, {}, static, hyper, {})
    if axis is not None:
        whole = over_devices(whole, options.devices)
        alone = over_devices(
            dataclasses.replace(ppo.ppo(env, policy, {}, static, hyper, {}), update=constant), options.devices
        )
    else:
        alone = dataclasses.replace(whole, update=constant)
    begun = time.perf_counter()
    state = jax.block_until_ready(
        jax.jit(whole.init, compiler_options=quick_compiler_options())(jax.random.key(0), hyper)
    )
    simulate = jax.jit(alone.update, compiler_options=options_of_xla).lower(state, hyper).compile()
    act = jax.jit(whole.act, compiler_options=options_of_xla).lower(state, hyper).compile()
    state, data = act(state, hyper)
    learn = jax.jit(whole.learn).lower(state, hyper, data).compile()
    compiled = time.perf_counter() - begun
    for _ in range(options.warmup):  # into the middle of an episode, where the tables are in use
        state, _ = simulate(state, hyper)
    runs = {
        "simulator": lambda: simulate(state, hyper),
        "acting": lambda: act(state, hyper),
        "learning": lambda: learn(state, hyper, data),
    }
    times, busy = {}, {}
    for name, run in runs.items():
        durations = []
        for _ in range(options.repeats):
            begun = time.perf_counter(), time.process_time()
            jax.block_until_ready(run())
            durations.append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
        times[name], busy[name] = (min(column) for column in zip(*durations, strict=True))
    times["iteration"] = times["acting"] + times["learning"]
    busy["iteration"] = busy["acting"] + busy["learning"]
    decisions = options.lanes * options.steps
    shares = (times["simulator"], times["acting"] - times["simulator"], times["learning"])
    return {
        "env": options.env, "options": options.options, "lanes": options.lanes, "steps": options.steps,
        "width": options.width, "epochs": options.epochs, "minibatches": options.minibatches,
        "devices": options.devices, "native": options.native, "platform": jax.default_backend(), "compile_s": compiled,
        **{f"{name}_per_s": decisions / value for name, value in times.items()},
        **{f"{name}_per_cpu_s": decisions / value for name, value in busy.items()},
        **{f"share_{name}": part / times["iteration"] for name, part in zip(SHARES, shares, strict=True)},
    }  # fmt: skip


if __name__ == "__main__":
    main()
