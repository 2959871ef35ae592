"""What a decision is worth: returns of simple rules for each head that is not learned by default, and for each fleet.

    python benchmarks/heads.py [evict preempt draft ratio scale route] [--seeds 16] [--first 0] [--json]
    python benchmarks/heads.py scale --run runs/fleet_ppo

Every rule plays the same workloads; shown are the mean return per program, and the paired difference to the first rule
(which is what the engine would do) with its standard error. Nothing is trained here: a head of which no simple rule
gains anything may still be worth learning, and the other way round.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from typing import Any

Rule = Callable[[Any, Any], Any]


def cases() -> dict[str, tuple[str, dict[str, Any], str, dict[str, Rule]]]:
    """Head -> (environment, arguments, head's name in the action, rules by name, of (env, obs))."""
    import jax.numpy as jnp

    from jaxsched.envs import tenant_fairness
    from jaxsched.envs.cache_routing import ROUTER_FEATURES
    from jaxsched.envs.chat_serving import default_scenario
    from jaxsched.envs.controls import DRAFTS, LEVELS, RATIOS
    from jaxsched.envs.features import GLOBAL_FEATURES, INSTANCE_FEATURES, ITEM_FEATURES

    def by(feature: str, largest_first: bool) -> Rule:
        """Levels by the rank of a feature among the items."""

        def rule(env, obs):
            x = jnp.where(obs.item_mask, obs.items[:, ITEM_FEATURES.index(feature)], jnp.inf)
            x = jnp.where(obs.item_mask & largest_first, -x, x)
            rank = jnp.sum((x[None, :] < x[:, None]).astype(jnp.int32), axis=1)
            return jnp.minimum(rank * LEVELS // jnp.maximum(jnp.sum(obs.item_mask), 1), LEVELS - 1).astype(jnp.int32)

        return rule

    def level(env, obs):
        return jnp.full(env.total_items, 3, jnp.int32)

    def always(value: int) -> Rule:
        return lambda env, obs: jnp.int32(value)

    def number(column):
        """What `features.counts` made the column of."""
        return jnp.expm1(10 * column)

    def requests(obs, where: str):
        return number(obs.globals[GLOBAL_FEATURES.index(where)])

    def of_batch(env, obs):
        """Fewer drafts in larger batches."""
        num = requests(obs, "running")
        bounds = jnp.asarray([48.0, 32.0, 24.0, 16.0, 8.0, 4.0])
        return jnp.sum(num < bounds).astype(jnp.int32)

    def under_pressure(env, obs):
        """All is kept while half of the pool is free; less the fuller it is."""
        free = obs.instances[0, INSTANCE_FEATURES.index("free")]
        return jnp.clip(jnp.floor(free * 2 * len(RATIOS)), 0, len(RATIOS) - 1).astype(jnp.int32)

    def of_backlog(per_instance: float) -> Rule:
        """So many requests per instance that is on."""

        def rule(env, obs):
            num = requests(obs, "in_system")
            return jnp.clip(jnp.ceil(num / per_instance) - 1, 0, env.static.num_instances - 1).astype(jnp.int32)

        return rule

    def surge(num: int) -> Rule:
        """All instances with more than `num` requests, two with more than half of that, else one."""

        def rule(env, obs):
            here = requests(obs, "in_system")
            most = env.static.num_instances - 1
            return jnp.where(here > num, most, jnp.where(here > num / 2, 1, 0)).astype(jnp.int32)

        return rule

    seen = {name: len(INSTANCE_FEATURES) + i for i, name in enumerate(ROUTER_FEATURES)}

    def load(obs):
        return number(obs.instances[:, seen["seen_waiting"]]) + number(obs.instances[:, seen["seen_running"]])

    def least(env, obs):
        return jnp.argmin(load(obs)).astype(jnp.int32)

    def quality_less(weight: float) -> Rule:
        """Quality of the answer, less a price per request that is there, times the model's step."""

        def rule(env, obs):
            width = env.static.num_classes
            models = obs.instances[:, -1 - width :]
            step_s = jnp.expm1(4 * models[:, -1] / 10)
            value = models[:, :width] @ obs.globals[-width:] - weight * step_s * (1 + load(obs))
            return jnp.argmax(value).astype(jnp.int32)

        return rule

    small = {"num_programs": 150, "reward": "latency"}
    tight = dataclasses.replace(tenant_fairness.default_scenario(), usable_blocks=1000)
    full = dataclasses.replace(default_scenario(), usable_blocks=1600, rate_per_s=5.0)
    compressed = {"reward": "goodput", "scenario": full, "policy": "vllm+h2o"}
    contexts = {
        "released first": level, "oldest pause": by("since", True), "latest pause": by("since", False),
        "largest": by("context", True), "smallest": by("context", False), "youngest program": by("program_age", False),
    }  # fmt: skip
    victims = {
        "last admitted": level, "shortest context": by("context", False), "longest context": by("context", True),
        "fewest outputs": by("generated", False), "longest predicted": by("predicted_output", True),
    }  # fmt: skip
    fixed = lambda table, first: {f"{table[i]:g}": always(i) for i in [first, *(set(range(len(table))) - {first})]}
    drafts = fixed(DRAFTS, 4) | {"by batch": of_batch}
    ratios = fixed(RATIOS, 5) | {"under pressure": under_pressure}
    fleet = {f"{n + 1} on": always(n) for n in (3, 0, 1, 2)}
    fleet |= {f"one per {n} requests": of_backlog(n) for n in (8, 12, 16)}
    fleet |= {f"4 above {n} requests": surge(n) for n in (20, 28, 36)}
    routes = {"fewest requests": least} | {f"quality - {w:g} work": quality_less(w) for w in (0.0, 0.2, 0.5, 1.0, 2.0)}
    return {
        "evict": ("AgentSessions-v0", {"num_programs": 100, "policy": "pfcfs+gate"}, "evict", contexts),
        "preempt": ("TenantFairness-v0", {**small, "scenario": tight, "reserve_full_isl": 0}, "preempt", victims),
        "draft": ("ChatServing-v0", {**small, "policy": "vllm+spec"}, "draft", drafts),
        "ratio": ("ChatServing-v0", {**small, **compressed}, "ratio", ratios),
        "scale": ("FleetScaling-v0", {}, "scale", fleet),
        "route": ("ModelRouting-v0", {"num_programs": 300}, "route", routes),
    }  # fmt: skip


def learned(export: Any, name: str, head: str, obs: Any) -> Rule:
    """The most likely choice of a trained network as a rule."""
    import jax
    import numpy as np

    from jaxsched.errors import UserError
    from jaxsched.networks import greedy
    from jaxsched.networks.policy import policy_from_dict

    found, network = export.scenario.get("id"), policy_from_dict(export.network)
    if found != name or [spec.name for spec in network.heads] != [head]:
        raise UserError(f"{export.path} was trained on {found}", where="--run", expected=f"{name}, head {head} alone")
    like = jax.eval_shape(network.init, jax.random.key(0), obs)
    weights = export.params_like(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like))
    carry = network.initial_carry(())
    return lambda env, obs: greedy(network.heads, network.apply(weights, obs, carry)[0], obs)[head]


def measure(
    case: tuple[str, dict[str, Any], str, dict[str, Rule]], seeds: range, runs: list[str] | None = None, chunk: int = 64
) -> dict[str, Any]:
    """Returns per program ``[rule, seed]``, rules, and whether the machine complained."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import jaxsched as js
    from jaxsched.checkpoint import load_policy
    from jaxsched.envs.base import select
    from jaxsched.xla import compiler_options

    name, arguments, head, rules = case
    exports = {run: load_policy(run) for run in runs or ()}
    for export in exports.values():  # all decide as often as the first was trained to
        arguments = {"burst": (export.scenario.get("options") or {}).get("burst"), **arguments}
    arguments = {key: value for key, value in arguments.items() if value is not None}
    env, params = js.make(name, heads=(head,), seeds=seeds, **arguments)
    start = jax.jit(jax.vmap(env.reset_to, (0, None)))
    if exports:
        example = jax.tree.map(lambda x: x[0], start(jnp.zeros(1, jnp.int32), params)[0])
        rules = rules | {run: learned(export, name, head, example) for run, export in exports.items()}

    def one(carry, rule):
        obs, state, total, done = carry
        action = jnp.stack([choose(env, obs) for choose in rules.values()])[rule]
        mask = obs.masks[head]
        if mask.ndim == 2:
            action = jnp.where(mask[:, 1], action, 0)
        new, after, reward, ended, _, _ = env.step_env(None, state, {head: action}, params)
        obs, state = select(done, obs, new), select(done, state, after)
        return obs, state, total + jnp.where(done, 0.0, reward), done | ended

    def several(carry, rule):
        return jax.lax.scan(lambda c, _: (jax.vmap(one)(c, rule), None), carry, None, length=chunk)[0]

    count = len(seeds)
    rule = jnp.repeat(jnp.arange(len(rules), dtype=jnp.int32), count)
    workload = jnp.tile(jnp.arange(count, dtype=jnp.int32), len(rules))
    obs, state = start(workload, params)
    carry = (obs, state, jnp.zeros(len(rule)), jnp.zeros(len(rule), bool))
    several = jax.jit(several, compiler_options=compiler_options())
    for _ in range(400):
        carry = several(carry, rule)
        if bool(np.asarray(carry[3]).all()):
            break
    flags = int(np.bitwise_or.reduce(np.asarray(carry[1].machine.flags)))
    returns = np.asarray(carry[2]).reshape(len(rules), count) / env.num_programs
    return {"rules": list(rules), "returns": returns, "flags": flags, "done": bool(np.asarray(carry[3]).all())}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("heads", nargs="*", help="all by default")
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--run", nargs="*", default=[], help="trained networks of the head, e.g. runs/fleet_ppo")
    parser.add_argument("--json", action="store_true", help="the last line of stdout is JSON")
    options = parser.parse_args()

    from jaxsched.cli import configure_jax

    configure_jax()
    known, out = cases(), {}
    if options.run and len(options.heads) != 1:
        parser.error("--run needs the one head that it learned")
    for name in options.heads or known:
        found = measure(known[name], range(options.first, options.first + options.seeds), options.run)
        returns = found["returns"]
        print(f"{name}: {known[name][0]}, flags {found['flags']}, all done: {found['done']}")
        for rule, values in zip(found["rules"], returns, strict=True):
            gain = values - returns[0]
            error = gain.std(ddof=1) / len(gain) ** 0.5
            print(f"  {rule:24} {values.mean():10.4f}   {gain.mean():+9.4f} +- {error:.4f}", flush=True)
        out[name] = {**found, "returns": returns.tolist()}
    if options.json:
        print(json.dumps(out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
