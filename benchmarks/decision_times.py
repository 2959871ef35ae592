"""How often a policy should act: the same policy at every event, every so many micro-steps, or at the ticks of a clock.

    python benchmarks/decision_times.py [--programs 60] [--seeds 8] [--rate 0.5] [--json]

All protocols and seeds are lanes of one program: the machine advances by one micro-step at a time, and each lane
decides whether its controls are set anew or held. The policy is small first prompts first (who goes next), contexts
kept for 4 s, gate 0.8; how well it does is not the question, only that its decisions matter. Reported: mean time to
first token and mean completion time, relative to acting at every micro-step (the reference), over paired seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

#: Protocols: micro-steps between decisions, or milliseconds between ticks.
BURSTS = (1, 4, 8, 16, 32)
TICKS_MS = (12.5, 25.0, 50.0, 250.0, 1000.0)
#: Micro-steps per call of the compiled program.
CHUNK = 256


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--rate", type=float, default=0.5, help="programs/s: a few programs must compete, too")
    parser.add_argument("--json", action="store_true", help="the last line of stdout is JSON")
    options = parser.parse_args()

    from jaxsched.cli import configure_jax

    configure_jax()
    import jaxsched as js
    from jaxsched.envs.agent_sessions import default_scenario

    scenario = dataclasses.replace(default_scenario(), rate_per_s=options.rate)
    env, params = js.make("AgentSessions-v0", scenario=scenario, num_programs=options.programs, seeds=options.seeds)
    rows = measure(env, params, options.seeds)
    print("protocol | decisions per s | mean TTFT s | mean JCT s | TTFT vs reference | JCT vs reference")
    for row in rows:
        print(
            f"{row['protocol']} | {row['decisions_per_s']:.2f} | {row['ttft_s']:.3f} | {row['jct_s']:.2f} | "
            f"{100 * row['ttft_ratio'] - 100:+.2f} % | {100 * row['jct_ratio'] - 100:+.2f} %"
        )
    if options.json:
        print(json.dumps(rows))
    return 0


def measure(env, params, num_seeds: int, bursts=BURSTS, ticks_ms=TICKS_MS, compiler_options=None) -> list[dict]:
    """One row per protocol; the first is the reference. Workloads of the pool are the seeds."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxsched.envs import features
    from jaxsched.envs.agent_sessions import AgentSessions
    from jaxsched.sim.arrivals import next_input_time
    from jaxsched.sim.clock import NEVER_US

    first_prompt = features.ITEM_FEATURES.index("first_prompt")

    class Holding(AgentSessions):
        """AgentSessions whose controls stay as they are where the action says so."""

        def _controls(self, controls, items, action):
            new = super()._controls(controls, items, action)
            return jax.tree.map(lambda old, value: jnp.where(action["hold"], old, value), controls, new)

    fields = {f.name: getattr(env, f.name) for f in dataclasses.fields(env)}
    static = dataclasses.replace(env.static, record=True)
    env = Holding(**{**fields, "burst": 1, "static": static})

    def chunk(every, tick_us, workload, carry, params):
        def step(carry):
            obs, state, count, boundary, decisions, over = carry
            machine = state.machine
            _, requests = env._inputs(params, workload)
            arrival, _, returning = next_input_time(env.static, requests, machine)
            upcoming = jnp.minimum(jnp.minimum(arrival, returning), jnp.min(machine.next_event))
            upcoming = jnp.where(machine.locked >= 0, machine.now, upcoming)
            now_s = machine.epoch.astype(jnp.float32) * 1073.741824 + upcoming.astype(jnp.float32) * 1e-6
            tick_s = tick_us * 1e-6
            crosses = (upcoming != NEVER_US) & (now_s >= boundary)
            decides = jnp.where(tick_us > 0, crosses, count % every == 0)
            boundary = jnp.where(crosses, (jnp.floor(now_s / tick_s) + 1) * tick_s, boundary)
            retain = jnp.where(obs.masks["retain"][:, 1], 3, 0).astype(jnp.int32)
            action = {"order": -obs.items[:, first_prompt], "retain": retain, "gate": jnp.int32(4), "hold": ~decides}
            obs, state, _, done, _, _ = env.step_env(None, state, action, params)
            return obs, state, count + 1, boundary, decisions + (decides & ~over), done

        carry, _ = jax.lax.scan(lambda carry, _: (step(carry), None), carry, None, length=CHUNK)
        return carry

    def begin(workload, params):
        obs, state = env.reset_to(workload, params)
        zero = jnp.int32(0)
        return obs, state, zero, jnp.float32(0.0), zero, jnp.bool_(False)

    protocols = [(f"every {n} micro-steps" if n > 1 else "every micro-step", n, 0) for n in bursts]
    protocols += [(f"tick {ms:g} ms", 1, round(ms * 1000)) for ms in ticks_ms]
    every, tick, workload = (
        jnp.asarray([f(p, s) for p in protocols for s in range(num_seeds)], dtype)
        for f, dtype in (
            (lambda p, s: p[1], jnp.int32), (lambda p, s: p[2], jnp.float32), (lambda p, s: s, jnp.int32),
        )
    )  # fmt: skip
    options = compiler_options or {}
    carry = jax.jit(jax.vmap(begin, in_axes=(0, None)), compiler_options=options)(workload, params)
    run = jax.jit(jax.vmap(chunk, in_axes=(0, 0, 0, 0, None)), donate_argnums=3, compiler_options=options)
    while not np.asarray(carry[-1]).all():
        carry = run(every, tick, workload, carry, params)
    _, state, _, _, decisions, _ = jax.device_get(carry)
    record, flags, epoch, us = state.machine.record, state.machine.flags, state.clock_epoch, state.clock_us
    absolute = lambda pair: np.asarray(pair[..., 0], np.float64) * 1073.741824 + np.asarray(pair[..., 1]) * 1e-6
    requests = jax.device_get(params.pool.requests)
    next_turn, program = requests.next_turn, requests.program
    born = requests.arrival_epoch * 1073.741824 + requests.arrival_us * 1e-6
    done = record.finish[..., 0] >= 0
    assert not flags.any(), flags
    ttft = np.where(done, absolute(record.first_token) - absolute(record.arrival), np.nan)
    last = done & (next_turn < 0)
    jct = np.where(last, absolute(record.finish) - born[program], np.nan)
    shape = (len(protocols), num_seeds)
    mean = lambda x: np.nanmean(x, axis=1).reshape(shape)
    ttft, jct = mean(ttft), mean(jct)
    per_s = (decisions / (epoch * 1073.741824 + us * 1e-6)).reshape(shape)
    return [
        {
            "protocol": name, "decisions_per_s": float(per_s[i].mean()), "ttft_s": float(ttft[i].mean()),
            "jct_s": float(jct[i].mean()), "ttft_ratio": float(ttft[i].mean() / ttft[0].mean()),
            "jct_ratio": float(jct[i].mean() / jct[0].mean()),
        }
        for i, (name, _, _) in enumerate(protocols)
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
