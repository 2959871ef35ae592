"""Acting: many lanes of an environment under the present policy, recorded for the update."""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxsched.envs.base import check_action, select
from jaxsched.networks import HeadSpec, evaluate, greedy, sample


class Policy(Protocol):
    """What can be trained: `jaxsched.networks.SetPolicy`, or anything with the same methods."""

    @property
    def heads(self) -> tuple[HeadSpec, ...]: ...
    def init(self, key: Array, obs: Any) -> Any: ...
    def initial_carry(self, batch: tuple[int, ...]) -> Array: ...
    def apply(self, params: Any, obs: Any, carry: Array) -> tuple[dict[str, Array], Array, Array]: ...
    def unroll(self, params: Any, obs: Any, carry: Array, start: Array) -> tuple[dict[str, Array], Array, Array]: ...


class Lanes(struct.PyTreeNode):
    """Where each of b lanes stands between two decisions.

    Attributes:
        env_state: state of the environment, [b, ...].
        obs: its observation, [b, ...].
        carry: f32[b, d] the policy's memory.
        start: bool[b] an episode begins here.
    """

    env_state: Any
    obs: Any
    carry: Float[Array, "b d"]
    start: Bool[Array, " b"]


class Steps(struct.PyTreeNode):
    """t decisions of b lanes. Leaves are [t, b, ...].

    Attributes:
        obs, carry, start: what the policy saw and remembered, and whether an episode began.
        action: head -> what it did.
        executed: i32[t, b, n] rank of each item the order head's scores brought into execution, -1 otherwise.
        log_prob: head -> f32[t, b, T] log-probability of each token when it was drawn.
        decided: bool[t, b] there was something to decide.
        value: f32[t, b, v] network's values (in its own scale).
        last_value: f32[t, b, v] value of the episode's last observation where it was truncated, else 0.
        reward: f32[t, b] integral over the step.
        costs: f32[t, b, c] integrals over the step.
        dt_s: f32[t, b] length of the step.
        terminated, truncated: bool[t, b].
    """

    obs: Any
    carry: Float[Array, "t b d"]
    start: Bool[Array, "*tb"]
    action: dict[str, Array]
    executed: Int[Array, "t b n"]
    log_prob: dict[str, Array]
    decided: Bool[Array, "*tb"]
    value: Float[Array, "*tb v"]
    last_value: Float[Array, "*tb v"]
    reward: Float[Array, "*tb"]
    costs: Float[Array, "*tb c"]
    dt_s: Float[Array, "*tb"]
    terminated: Bool[Array, "*tb"]
    truncated: Bool[Array, "*tb"]


def start_lanes(env: Any, policy: Policy, keys: Array, env_params: Any) -> Lanes:
    """Every lane at the beginning of an episode; one key a lane (equal keys are equal workloads)."""
    obs, env_state = jax.vmap(env.reset, (0, None))(keys, env_params)
    num_lanes = keys.shape[0]
    return Lanes(env_state, obs, policy.initial_carry((num_lanes,)), jnp.ones(num_lanes, jnp.bool_))


def collect(
    env: Any,
    policy: Policy,
    params: Any,
    lanes: Lanes,
    num_steps: int,
    env_params: Any,
    act_keys: Array,
    env_keys: Array,
    *,
    is_greedy: bool = False,
) -> tuple[Lanes, Steps]:
    """Let every lane make `num_steps` decisions; episodes that end are followed by new ones.

    Args:
        env: environment; where an episode ends a new one begins.
        policy: network.
        params: its parameters.
        lanes: where the lanes stand.
        num_steps: decisions.
        env_params: parameters of the environment, the same in all lanes.
        act_keys: [b] a lane's draws of actions.
        env_keys: [b] a lane's new episodes. Apart from `act_keys`, so that lanes can share their workload alone.
        is_greedy: take the most likely action instead of a draw.
    """

    def step(lanes: Lanes, index: Array) -> tuple[Lanes, Steps]:
        act, world = (jax.vmap(jax.random.fold_in, (0, None))(keys, index) for keys in (act_keys, env_keys))
        outputs, value, carry = policy.apply(params, lanes.obs, lanes.carry)
        if is_greedy:
            action = greedy(policy.heads, outputs, lanes.obs)
        else:
            action = jax.vmap(sample, (0, None, 0, 0))(act, policy.heads, outputs, lanes.obs)
        stepped = step_lanes(env, world, lanes.env_state, action, env_params)
        obs, env_state, reward, terminated, truncated, info = stepped
        tokens = evaluate(policy.heads, outputs, lanes.obs, action, info["executed"])
        cut = truncated & ~terminated
        # Under vmap over seeds this is computed always; else only where an episode was cut.
        last_value = jax.lax.cond(
            jnp.any(cut),
            lambda: policy.apply(params, info["final_observation"], carry)[1],
            lambda: jnp.zeros_like(value),
        )
        done = terminated | truncated
        record = Steps(
            obs=lanes.obs, carry=lanes.carry, start=lanes.start, action=action, executed=info["executed"],
            log_prob={name: token.log_prob for name, token in tokens.items()}, decided=info["decision_valid"],
            value=value, last_value=jnp.where(cut[:, None], last_value, 0.0), reward=reward, costs=info["costs"],
            dt_s=info["dt_s"], terminated=terminated, truncated=cut,
        )  # fmt: skip
        return Lanes(env_state, obs, jnp.where(done[:, None], 0.0, carry), done), record

    return jax.lax.scan(step, lanes, jnp.arange(num_steps, dtype=jnp.int32))


def step_lanes(env: Any, keys: Array, env_state: Any, action: dict[str, Array], env_params: Any) -> tuple[Any, ...]:
    """`env.step` of every lane, except that new episodes are only made in steps in which some lane needs one.

    Under a further `vmap` (over seeds, say) a condition is no branch, and every lane is reset in every step.
    """

    def one(key: Array, env_state: Any, action: dict[str, Array]) -> tuple[Any, ...]:
        return env.step_env(key, env_state, check_action(env, action), env_params)

    obs, env_state, reward, terminated, truncated, info = jax.vmap(one)(keys, env_state, action)
    done = terminated | truncated

    def begin() -> tuple[Any, Any]:
        fresh = jax.vmap(env.reset_env, (0, None))(keys, env_params)
        return jax.vmap(select)(done, fresh, (obs, env_state))

    info = {**info, "final_observation": obs}
    obs, env_state = jax.lax.cond(jnp.any(done), begin, lambda: (obs, env_state))
    return obs, env_state, reward, terminated, truncated, info


def heads_of(env: Any, kinds: dict[str, str] | None = None) -> tuple[HeadSpec, ...]:
    """The heads that an environment's action asks for.

    A space of numbers is an order, of one choice a choice, of as many choices as items a choice for each item.

    Args:
        env: environment with `action_space`.
        kinds: head -> another kind than that: "instance" or "pair" for choices among instances, "per_instance".

    Raises:
        UserError: `kinds` names a head that the environment does not have, or an unknown kind.
    """
    from jaxsched.errors import UserError
    from jaxsched.networks.heads import WITH_CHOICES

    spaces, kinds = env.action_space(), dict(kinds or {})
    for name in kinds:
        if name not in spaces:
            raise UserError(
                f"unknown head {name!r}", where=f"heads of {env.name}", expected=f"one of {', '.join(spaces)}"
            )
    heads = []
    for name, space in spaces.items():
        choices = getattr(space, "n", 0)
        kind = kinds.get(name) or ("order" if not choices else "item" if space.shape else "choice")
        picks = min(getattr(env, "burst", 0), *space.shape) if kind == "order" else 0  # a micro-step admits one at most
        heads.append(HeadSpec(name, kind, choices if kind in WITH_CHOICES else 0, picks))
    return tuple(heads)


def sequences(x: Array, length: int) -> Array:
    """[t, b, ...] -> [length, t / length * b, ...]: pieces of lanes side by side."""
    t, b = x.shape[:2]
    x = x.reshape(t // length, length, b, *x.shape[2:])
    return jnp.moveaxis(x, 0, 1).reshape(length, (t // length) * b, *x.shape[3:])
