"""How fast environments step: decisions per second on one device with a policy that costs nothing.

    python benchmarks/environments.py [--env AgentSessions-v0] [--lanes 64 256] [--burst 8] [--resets lazy] [--json]

Rows are timed over whole calls of a compiled scan of vectorised steps, after a warm-up that fills the cluster; the
median of several calls counts. `us_per_micro_step` divides by the micro-steps of the machine that a decision takes. The
policy scores every item 0 and takes the middle of every choice, so what is measured is the environment: the machine,
the observation, new episodes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", nargs="+", default=["AgentSessions-v0"], help="ids")
    parser.add_argument("--lanes", type=int, nargs="+", default=[64])
    parser.add_argument("--burst", type=int, nargs="+", default=[8], help="micro-steps per decision")
    parser.add_argument("--resets", nargs="+", default=["lazy"], help="strategies for new episodes, see envs/vector.py")
    parser.add_argument("--items", type=int, nargs="+", default=[128], help="places of the observation")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="of js.make (numbers)")
    parser.add_argument("--steps", type=int, default=32, help="steps per timed call")
    parser.add_argument("--warm-up", type=int, default=12, help="calls before the first timed one")
    parser.add_argument("--repeats", type=int, default=7, help="timed calls")
    parser.add_argument("--slow-compiler", action="store_true", help="without the options of jaxsched.xla")
    parser.add_argument("--json", action="store_true", help="the last line of stdout is a JSON list of the rows")
    options = parser.parse_args()

    from jaxsched.cli import configure_jax

    configure_jax()
    import jax

    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    print(f"machine: {machine}; jax {jax.__version__} on {jax.default_backend()}, one device")
    columns = (
        "env", "lanes", "burst", "items", "resets", "decisions_per_s", "us_per_micro_step", "simulated_s_per_step",
        "state_bytes", "observation_bytes", "compile_s",
    )  # fmt: skip
    print(" | ".join(columns))
    rows = []
    for name in options.env:
        for burst in options.burst:
            for items in options.items:
                for lanes in options.lanes:
                    for resets in options.resets:
                        rows.append(row(options, name, lanes, burst, items, resets))
                        print(" | ".join(str(rows[-1][column]) for column in columns), flush=True)
    if options.json:
        print(json.dumps(rows))
    return 0


def row(options: argparse.Namespace, name: str, lanes: int, burst: int, items: int, resets: str) -> dict:
    """One measurement."""
    import jax
    import jax.numpy as jnp

    import jaxsched as js
    from jaxsched.envs.spaces import Discrete
    from jaxsched.envs.vector import VectorEnv
    from jaxsched.xla import compiler_options

    extra = {key: float(value) if "." in value else int(value) for key, value in (s.split("=") for s in options.set)}
    env, params = js.make(name, burst=burst, num_items=items, **extra)
    vector = VectorEnv(env, lanes, resets)
    spaces = env.action_space(params)

    def action(obs):
        one = lambda space: jnp.full(space.shape, space.n // 2 if isinstance(space, Discrete) else 0, space.dtype)
        return {head: jnp.broadcast_to(one(space), (lanes, *space.shape)) for head, space in spaces.items()}

    def call(key, obs, state, params):
        def step(carry, key):
            obs, state = carry
            obs, state, reward, terminated, _, info = vector.step(key, state, action(obs), params)
            seen = jnp.sum(obs.items) + jnp.sum(obs.globals) + jnp.sum(obs.instances)  # nothing may be left out
            return (obs, state), (jnp.sum(reward) + seen, jnp.sum(info["dt_s"]), jnp.sum(terminated))

        (obs, state), out = jax.lax.scan(step, (obs, state), jax.random.split(key, options.steps))
        return obs, state, jax.tree.map(jnp.sum, out)

    obs, state = jax.jit(vector.reset)(jax.random.key(0), params)
    bytes_of = lambda tree: sum(
        x.nbytes for x in jax.tree.leaves(tree) if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    )
    sizes = bytes_of(state.lanes) // lanes, bytes_of(obs) // lanes
    begin = time.perf_counter()
    xla = {} if options.slow_compiler else compiler_options()
    run = jax.jit(call, donate_argnums=2).lower(jax.random.key(0), obs, state, params).compile(compiler_options=xla)
    compiled = time.perf_counter() - begin
    times, simulated = [], 0.0
    for i in range(options.warm_up + options.repeats):
        begin = time.perf_counter()
        obs, state, out = jax.block_until_ready(run(jax.random.key(i), obs, state, params))
        if i >= options.warm_up:
            times.append(time.perf_counter() - begin)
            simulated += float(out[1])
    seconds = statistics.median(times) / (options.steps * lanes)
    return {
        "env": name, "lanes": lanes, "burst": burst, "items": items, "resets": resets,
        "decisions_per_s": round(1 / seconds), "us_per_micro_step": round(seconds / burst * 1e6, 2),
        "simulated_s_per_step": round(simulated / (options.repeats * options.steps * lanes), 4),
        "state_bytes": sizes[0], "observation_bytes": sizes[1], "compile_s": round(compiled, 1),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
