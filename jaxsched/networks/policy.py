"""Policy and value network over sets of items and instances, behind ``init`` and ``apply``.

    items     --MLP--> h_i --(masked attention)--> h_i --masked mean and max--+
    instances --MLP--> g_m --(          "        )--> g_m --     "      "     --+--> context --(GRU)--> context
    globals   --MLP----------------------------------------------------------+
    head of an item:      MLP(h_i, context)          head of the whole:  linear(context)
    head of an instance:  MLP(g_m, context)          pair:               query(item) . key(instance)
    values:               linear(MLP(context))

Everything is shared over items and over instances (Zaheer et al. 2017, Deep Sets): slots carry no meaning, empty slots
change nothing, and the same parameters work for any number of slots and instances. Memory, where asked for, is of the
pooled context only, because a slot is reused by other items.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxsched.errors import UserError
from jaxsched.networks.heads import HeadSpec
from jaxsched.networks.layers import AttentionBlock, Gru, Mlp, dense, pooled

#: Gain of the last layer of every head: the first policy is nearly uniform (Andrychowicz et al. 2021, section 3.2).
LAST_GAIN = 0.01


@dataclass(frozen=True)
class SetNetworkConfig:
    """Shape of the network (hashable; a change is another network).

    Attributes:
        heads: what is decided.
        width: features of every hidden layer.
        num_layers: layers of each item's, instance's and the global perceptron, and of the context's.
        num_attention: blocks of masked attention among items and instances; 0: none (20 times cheaper on a CPU).
        num_attention_heads: heads of each block; divides `width`.
        recurrent: whether the context passes through a GRU.
        num_values: critics: one for the reward and one for each constrained cost.
    """

    heads: tuple[HeadSpec, ...]
    width: int = 64
    num_layers: int = 1
    num_attention: int = 0
    num_attention_heads: int = 4
    recurrent: bool = False
    num_values: int = 1

    def __post_init__(self) -> None:
        names = [head.name for head in self.heads]
        if not names or len(set(names)) < len(names):
            raise UserError(f"found {names}", where="network heads", expected="one head or more, of different names")
        for name in ("width", "num_layers", "num_values"):
            if getattr(self, name) < 1:
                raise UserError(f"found {getattr(self, name)}", where=f"network {name}", expected="at least 1")
        if self.num_attention and self.width % self.num_attention_heads:
            raise UserError(f"width {self.width} cannot be split among {self.num_attention_heads} attention heads",
                            where="network width", expected="a multiple of num_attention_heads")  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``policy.json``."""
        return {"kind": "set", **dataclasses.asdict(self), "heads": [dataclasses.asdict(head) for head in self.heads]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SetNetworkConfig:
        """The inverse of `to_dict`."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = set(data) - known - {"kind"}
        if unknown or data.get("kind") != "set":
            found = f"unknown settings {sorted(unknown)}" if unknown else f"kind {data.get('kind')!r}"
            raise UserError(found, where="network", expected="a set network as this version writes it")
        heads = tuple(HeadSpec(**head) for head in data["heads"])
        return cls(**{**{k: v for k, v in data.items() if k != "kind"}, "heads": heads})


class SetNetwork(nn.Module):
    """The module behind `SetPolicy`; works on sequences, time first."""

    config: SetNetworkConfig

    @nn.compact
    def __call__(
        self, obs: Any, carry: Array, start: Bool[Array, "*tb"]
    ) -> tuple[dict[str, Array], Float[Array, "*tb v"], Array]:
        cfg = self.config
        width = cfg.width
        item_mask = obs.item_mask
        instance_mask = getattr(obs, "instance_mask", None)
        if instance_mask is None:
            instance_mask = jnp.ones(obs.instances.shape[:-1], jnp.bool_)
        # What stands in empty slots must not matter, not even a NaN.
        items = Mlp(width, cfg.num_layers, name="item")(jnp.where(item_mask[..., None], obs.items, 0.0))
        instances = Mlp(width, cfg.num_layers, name="instance")(jnp.where(instance_mask[..., None], obs.instances, 0.0))
        overall = Mlp(width, cfg.num_layers, name="global")(obs.globals)
        if cfg.num_attention:
            kinds = self.param("kind", nn.initializers.normal(0.02), (3, width), jnp.float32)
            tokens = jnp.concatenate([items + kinds[0], instances + kinds[1], (overall + kinds[2])[..., None, :]], -2)
            there = jnp.concatenate([item_mask, instance_mask, jnp.ones_like(item_mask, shape=(*start.shape, 1))], -1)
            for index in range(cfg.num_attention):
                tokens = AttentionBlock(width, cfg.num_attention_heads, name=f"attention_{index}")(tokens, there)
            num_items, num_instances = items.shape[-2], instances.shape[-2]
            items, instances = tokens[..., :num_items, :], tokens[..., num_items : num_items + num_instances, :]
            overall = tokens[..., -1, :]
        context = jnp.concatenate([pooled(items, item_mask), pooled(instances, instance_mask), overall], axis=-1)
        context = Mlp(width, cfg.num_layers, name="context")(context)
        if cfg.recurrent:
            remembered, carry = Gru(width, name="memory")(context, carry, start)
            context = jnp.concatenate([context, remembered], axis=-1)
        outputs = self._heads(items, instances, context)
        values = dense(cfg.num_values, 1.0, "value")(nn.relu(dense(width, name="value_hidden")(context)))
        return outputs, values, carry

    def _heads(self, items: Array, instances: Array, context: Array) -> dict[str, Array]:
        kinds = {head.kind for head in self.config.heads}
        width = self.config.width

        def with_context(x: Array, name: str) -> Array:
            """One layer over (element, context) without writing the context out for every element."""
            of_context = dense(width, name=f"{name}_context")(context)
            return nn.relu(dense(width, name=f"{name}_own")(x) + of_context[..., None, :])

        item = with_context(items, "head_item") if kinds & {"order", "item", "pair"} else items
        instance = with_context(instances, "head_instance") if kinds - {"order", "item", "choice"} else instances
        outputs = {}
        for head in self.config.heads:
            name, choices = f"head_{head.name}", head.num_choices
            if head.kind == "order":
                output = dense(1, LAST_GAIN, name)(item)[..., 0]
            elif head.kind == "item":
                output = dense(choices, LAST_GAIN, name)(item)
            elif head.kind == "choice":
                output = dense(choices, LAST_GAIN, name)(nn.relu(dense(width, name=f"{name}_hidden")(context)))
            elif head.kind == "instance":
                output = dense(1, LAST_GAIN, name)(instance)[..., 0]
            elif head.kind == "per_instance":
                output = dense(choices, LAST_GAIN, name)(instance)
            else:  # pair
                query, key = dense(width, LAST_GAIN, f"{name}_query")(item), dense(width, 1.0, f"{name}_key")(instance)
                output = jnp.einsum("...nd,...md->...nm", query, key) / jnp.float32(math.sqrt(width))
            outputs[head.name] = output
        return outputs


@dataclass(frozen=True)
class SetPolicy:
    """``init`` and ``apply`` of the set network; any object with these four methods can be trained instead.

    An observation has `items` f32[*b, N, F], `item_mask` bool[*b, N], `instances` f32[*b, M, G], `globals` f32[*b, D]
    and `masks` (head name -> bool array); `instance_mask` bool[*b, M] is optional.
    """

    config: SetNetworkConfig

    @property
    def heads(self) -> tuple[HeadSpec, ...]:
        """What is decided."""
        return self.config.heads

    def init(self, key: Array, obs: Any) -> Any:
        """Fresh parameters for observations of these feature sizes (any leading dimensions, any number of slots)."""
        batch = obs.item_mask.shape[:-1]
        obs = jax.tree.map(lambda x: x[None], obs)
        start = jnp.zeros((1, *batch), jnp.bool_)
        return SetNetwork(self.config).init(key, obs, self.initial_carry(batch), start)["params"]

    def initial_carry(self, batch: tuple[int, ...]) -> Array:
        """What the memory holds at the start of an episode: f32[*batch, width] zeros, width 0 without memory."""
        return jnp.zeros((*batch, self.config.width if self.config.recurrent else 0), jnp.float32)

    def apply(self, params: Any, obs: Any, carry: Array) -> tuple[dict[str, Array], Float[Array, "*b v"], Array]:
        """Head outputs, values and the next carry for one observation."""
        start = jnp.zeros((1, *obs.item_mask.shape[:-1]), jnp.bool_)
        obs = jax.tree.map(lambda x: x[None], obs)
        outputs, values, carry = self.unroll(params, obs, carry, start)
        return {name: x[0] for name, x in outputs.items()}, values[0], carry

    def unroll(
        self, params: Any, obs: Any, carry: Array, start: Bool[Array, "*tb"]
    ) -> tuple[dict[str, Array], Float[Array, "*tb v"], Array]:
        """As `apply` for a sequence (time first); `start` is True where an episode begins, so the carry is dropped."""
        return SetNetwork(self.config).apply({"params": params}, obs, carry, start)  # type: ignore[return-value]


def policy_from_dict(network: Mapping[str, Any]) -> SetPolicy:
    """The policy of a ``policy.json``'s network section.

    Raises:
        UserError: another kind of network.
    """
    return SetPolicy(SetNetworkConfig.from_dict(network))
