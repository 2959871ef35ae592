"""`check_env` passes what keeps the contract and says what is wrong with what does not."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import jaxsched as js
from jaxsched.envs.check import EnvError
from jaxsched.envs.toys import Cue, TwoClassQueue


@pytest.mark.parametrize("name", ["TwoClassQueue-v0", "Cue-v0"])
def test_toys_keep_the_contract(name):
    js.check_env(*js.make(name))


class Unhashable(Cue):
    __hash__ = None  # type: ignore[assignment]


class WeakReward(Cue):
    def step_env(self, key, state, action, params):
        obs, state, reward, terminated, truncated, info = super().step_env(key, state, action, params)
        return obs, state, jnp.where(reward > 0, 1.0, 0.0), terminated, truncated, {**info, "dt_s": jnp.asarray(1.0)}


class FloatStep(Cue):
    def step_env(self, key, state, action, params):
        obs, state, *rest = super().step_env(key, state, action, params)
        return obs, state.replace(step=state.step.astype(jnp.float32)), *rest


class NothingLegal(Cue):
    def observe(self, state, params):
        obs = super().observe(state, params)
        return obs.replace(masks={"choice": jnp.arange(2) > state.step})


class MissingMask(Cue):
    def observe(self, state, params):
        return super().observe(state, params).replace(masks={})


class GhostItems(Cue):
    def observe(self, state, params):
        return super().observe(state, params).replace(item_mask=jnp.zeros(1, bool), items=jnp.ones((1, 1)))


class NanReward(Cue):
    def step_env(self, key, state, action, params):
        obs, state, reward, *rest = super().step_env(key, state, action, params)
        return obs, state, jnp.where(state.step == 7, jnp.nan, reward).astype(jnp.float32), *rest


class FiveValues(Cue):
    def step(self, key, state, action, params=None):
        obs, state, reward, terminated, truncated, info = super().step(key, state, action, params)
        return obs, state, reward, terminated | truncated, info


class NoInfo(TwoClassQueue):
    def step_env(self, key, state, action, params):
        *out, info = super().step_env(key, state, action, params)
        del info["executed"]
        return *out, info


class MiscountedRanks(TwoClassQueue):
    def step_env(self, key, state, action, params):
        *out, info = super().step_env(key, state, action, params)
        return *out, {**info, "num_executed": info["num_executed"] + 1}


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (Unhashable, "not hashable"),
        (FloatStep, "float32"),
        (NothingLegal, "leaves no legal choice"),
        (MissingMask, "no entry for head 'choice'"),
        (GhostItems, "rows of absent items are not zero"),
        (NanReward, "reward is not finite"),
        (FiveValues, "step must return obs, state, reward, terminated, truncated, info"),
        (NoInfo, "info lacks executed"),
        (MiscountedRanks, "num_executed"),
        (WeakReward, "weak type"),
    ],
)
def test_broken_environments_are_told_what_is_wrong(cls, message):
    with pytest.raises(EnvError, match=message):
        js.check_env(cls())


def test_an_outside_source_of_randomness_is_found():
    calls = []

    @dataclasses.dataclass(frozen=True)
    class Drifting(Cue):
        def step_env(self, key, state, action, params):
            obs, state, reward, *rest = super().step_env(key, state, action, params)
            extra = jax.pure_callback(
                lambda: _count(calls), jax.ShapeDtypeStruct((), jnp.float32), vmap_method="sequential"
            )
            return obs, state, reward + extra, *rest

    with pytest.raises(EnvError, match="same key gives different episodes"):
        js.check_env(Drifting())


def _count(calls: list) -> jnp.ndarray:
    calls.append(1)
    return jnp.float32(len(calls))
