"""Environments by versioned id: ``env, params = js.make("AgentSessions-v0")`` (docs/environments.md)."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxsched.envs.agent_sessions import AgentSessions, make_agent_sessions
from jaxsched.envs.base import Environment, Observation
from jaxsched.envs.cache_routing import CacheRouting, make_cache_routing
from jaxsched.envs.chat_serving import ChatServing, make_chat_serving
from jaxsched.envs.disaggregated import Disaggregated, make_disaggregated
from jaxsched.envs.fleet_scaling import FleetScaling, make_fleet_scaling
from jaxsched.envs.model_routing import ModelRouting, make_model_routing
from jaxsched.envs.tenant_fairness import TenantFairness, make_tenant_fairness
from jaxsched.envs.toys import Cue, TwoClassQueue
from jaxsched.errors import UserError

#: Id -> what makes the environment and its parameters from overrides.
_MAKERS: dict[str, Callable[..., tuple[Environment, Any]]] = {}


def register(name: str, maker: Callable[..., tuple[Environment, Any]]) -> None:
    """Add an environment under a versioned id (``Name-vN``).

    Raises:
        UserError: the id is taken, or has no version.
    """
    if name in _MAKERS:
        raise UserError(f"environment {name!r} is registered already", expected="another name or version")
    if not name.rpartition("-v")[2].isdigit() or not name.rpartition("-v")[0]:
        raise UserError(f"environment id {name!r}", expected="a name and a version, e.g. AgentSessions-v0")
    _MAKERS[name] = maker


def registered_envs() -> tuple[str, ...]:
    """Ids of all environments."""
    return tuple(sorted(_MAKERS))


def make(name: str, **overrides: Any) -> tuple[Environment, Any]:
    """The environment of that id, and its parameters.

    Raises:
        UserError: unknown id (the nearest is named), or an override that the environment does not have.
    """
    if name not in _MAKERS:
        near = difflib.get_close_matches(name, _MAKERS, n=1, cutoff=0.4)
        hint = f"Did you mean {near[0]!r}?" if near else ""
        raise UserError(f"unknown environment {name!r}", expected=f"one of {', '.join(registered_envs())}", hint=hint)
    return _MAKERS[name](**overrides)


def _of_class(cls: type[Environment]) -> Callable[..., tuple[Environment, Any]]:
    """A maker of an environment whose overrides are fields of its parameters."""

    def maker(**overrides: Any) -> tuple[Environment, Any]:
        env = cls()
        params = env.default_params
        known = list(params.__dataclass_fields__)
        for field, value in overrides.items():
            if field not in known:
                near = difflib.get_close_matches(field, known, n=1)
                raise UserError(
                    f"unknown override {field!r}",
                    where=f"environment {cls.name}",
                    expected=f"one of {', '.join(known)}",
                    hint=f"Did you mean {near[0]!r}?" if near else "",
                )
            default = getattr(params, field)
            array = jnp.asarray(value, default.dtype)
            if array.shape != default.shape:
                raise UserError(
                    f"{field} of shape {list(array.shape)}", where=f"environment {cls.name}",
                    expected=f"shape {list(default.shape)}",
                )  # fmt: skip
            params = params.replace(**{field: array})
        return env, params

    return maker


for _cls in (TwoClassQueue, Cue):
    register(_cls.name, _of_class(_cls))

register(AgentSessions.name, make_agent_sessions)
register(CacheRouting.name, make_cache_routing)
register(ChatServing.name, make_chat_serving)
register(Disaggregated.name, make_disaggregated)
register(FleetScaling.name, make_fleet_scaling)
register(ModelRouting.name, make_model_routing)
register(TenantFairness.name, make_tenant_fairness)

__all__ = ["Environment", "Observation", "make", "register", "registered_envs"]
