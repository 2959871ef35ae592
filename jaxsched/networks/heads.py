"""Heads: kinds of decision, how an action is drawn from a network's outputs and how likely it was.

Every elementary choice (each pick of an order, each item's bucket, ...) is a *token* with a probability of its own: a
trainer clips token by token, because the joint probability of eight picks leaves any clip range at once. Masks are True
for what is legal; masked logits become -1e9 before the softmax, so their probability is exactly 0 and so is their
gradient.

| kind | one choice for | among | action |
| --- | --- | --- | --- |
| ``order`` | every pick | available items | f32[N] scores, higher goes first |
| ``item`` | every item | `num_choices` buckets | i32[N] |
| ``choice`` | the whole | `num_choices` buckets | i32[] |
| ``instance`` | the whole | instances | i32[] |
| ``pair`` | every item | instances | i32[N] |
| ``per_instance`` | every instance | `num_choices` buckets | i32[M] |

All functions take any leading batch dimensions (``*b``), the same for outputs, masks and actions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxsched.errors import UserError
from jaxsched.networks.plackett_luce import NEGATIVE, executed_picks

KINDS = ("order", "item", "choice", "instance", "pair", "per_instance")
#: Kinds with a number of choices of their own.
WITH_CHOICES = ("item", "choice", "per_instance")


@dataclass(frozen=True)
class HeadSpec:
    """One learned decision: its name in actions and masks, its kind, and its number of choices where the kind has one.

    `max_picks` (order only): picks that one step can execute; fewer tokens are less to compute. 0: any number.

    Raises:
        UserError: an unknown kind, or a number of choices that the kind does not have or that is missing.
    """

    name: str
    kind: str
    num_choices: int = 0
    max_picks: int = 0

    def __post_init__(self) -> None:
        where = f"head {self.name!r}"
        if self.kind not in KINDS:
            raise UserError(f"unknown kind {self.kind!r}", where=where, expected=f"one of {', '.join(KINDS)}")
        if self.kind in WITH_CHOICES and self.num_choices < 1:
            raise UserError(f"num_choices is {self.num_choices}", where=where, expected="at least 1")
        if self.kind not in WITH_CHOICES and self.num_choices:
            raise UserError(f"kind {self.kind!r} takes no num_choices", where=where, expected="0")
        if self.max_picks < 0 or (self.max_picks and self.kind != "order"):
            raise UserError(f"max_picks is {self.max_picks}", where=where, expected="0, or for an order 1 or more")


class Tokens(struct.PyTreeNode):
    """Elementary choices of one head; T of them at most, those with `mask` really made.

    Attributes:
        log_prob: [*b, T] log-probability of what was chosen, 0 where not made.
        mask: [*b, T] whether the choice was made and there was something to choose (two legal options or more).
        entropy: [*b, T] of the choice, in nats.
        log_choices: [*b, T] log of the number of legal options: the largest entropy possible.
    """

    log_prob: Float[Array, "*b T"]
    mask: Bool[Array, "*b T"]
    entropy: Float[Array, "*b T"]
    log_choices: Float[Array, "*b T"]


def legal(head: HeadSpec, obs: Any, output: Array) -> Array:
    """The head's mask in the shape of its output; a mask per item or instance holds for all its choices."""
    mask = obs.masks[head.name]
    if mask.ndim == output.ndim - 1:
        mask = mask[..., None]
    return jnp.broadcast_to(mask, output.shape)


def masked_logits(logits: Float[Array, "*b k"], mask: Bool[Array, "*b k"]) -> Float[Array, "*b k"]:
    """Logits with those of illegal options at -1e9 (not -inf: a row without any legal option must stay finite)."""
    return jnp.where(mask, logits, jnp.float32(NEGATIVE))


def sample(key: Array, heads: tuple[HeadSpec, ...], outputs: Mapping[str, Array], obs: Any) -> dict[str, Array]:
    """An action drawn from the policy. For temperature t, divide all outputs by t first (here and in `evaluate`).

    Args:
        key: JAX key of the draw.
        heads: the learned heads.
        outputs: head name -> scores or logits.
        obs: observation with `masks`.
    """
    action = {}
    for index, head in enumerate(heads):
        output, draw = outputs[head.name], jax.random.fold_in(key, index)
        logits = masked_logits(output, legal(head, obs, output))
        if head.kind == "order":  # scores plus Gumbel noise, sorted, are a Plackett-Luce order
            action[head.name] = logits + jax.random.gumbel(draw, logits.shape, jnp.float32)
        else:
            action[head.name] = _draw(draw, logits)
    return action


def _draw(key: Array, logits: Float[Array, "*b k"]) -> Int[Array, "*b"]:
    """A choice with the softmax's probabilities: one uniform number against their running sums.

    Gumbel noise on every option is the same law, but two logarithms per option took half the time of acting.
    """
    odds = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    possible, upto = odds > 0, jnp.cumsum(odds, axis=-1)
    # Rounded sums need not rise: only a possible option is taken, and one always exceeds a number below their largest.
    total = jnp.max(jnp.where(possible, upto, 0.0), axis=-1, keepdims=True)
    below = jax.random.uniform(key, logits.shape[:-1], jnp.float32)[..., None] * total
    index = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    return jnp.min(jnp.where(possible & (upto > below), index, index[-1]), axis=-1)


def greedy(heads: tuple[HeadSpec, ...], outputs: Mapping[str, Array], obs: Any) -> dict[str, Array]:
    """The most likely action: scores without noise, the best legal option."""
    action = {}
    for head in heads:
        logits = masked_logits(outputs[head.name], legal(head, obs, outputs[head.name]))
        action[head.name] = logits if head.kind == "order" else jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return action


def evaluate(
    heads: tuple[HeadSpec, ...],
    outputs: Mapping[str, Array],
    obs: Any,
    action: Mapping[str, Array],
    executed: Int[Array, "*b n"],
) -> dict[str, Tokens]:
    """How likely an action was, token by token.

    Args:
        heads: the learned heads.
        outputs: head name -> scores or logits, of the policy that is asked.
        obs: observation with `masks`.
        action: what was done.
        executed: rank of each item that the engine took by the order head in this step (0 first), -1 for the others.

    Returns:
        Head name -> its tokens: for an order N or `max_picks` (pick by pick), else one for each choice (at least one).
    """
    tokens = {}
    for head in heads:
        logits = outputs[head.name]
        mask = legal(head, obs, logits)
        if head.kind == "order":
            log_prob, is_pick, entropy, log_choices = executed_picks(logits, mask, executed, head.max_picks)
            made = is_pick & (log_choices > 0)
        else:
            log_prob, entropy, log_choices = _categorical(logits, mask, action[head.name])
            made = log_choices > 0
            if head.kind in ("choice", "instance"):  # one token
                log_prob, made, entropy, log_choices = (x[..., None] for x in (log_prob, made, entropy, log_choices))
        zero = jnp.float32(0.0)
        tokens[head.name] = Tokens(
            jnp.where(made, log_prob, zero), made, jnp.where(made, entropy, zero), jnp.where(made, log_choices, zero)
        )
    return tokens


def _categorical(
    logits: Float[Array, "*b k"], mask: Bool[Array, "*b k"], choice: Int[Array, "*b"]
) -> tuple[Float[Array, "*b"], Float[Array, "*b"], Float[Array, "*b"]]:
    """Log-probability of a choice, entropy in nats, log of the number of legal options (0 if there are none)."""
    log_probs = jax.nn.log_softmax(masked_logits(logits, mask), axis=-1)
    # A comparison instead of a gather, whose gradient is a scatter.
    chosen = choice[..., None] == jnp.arange(logits.shape[-1], dtype=jnp.int32)
    log_prob = jnp.sum(jnp.where(chosen, log_probs, 0.0), axis=-1)
    entropy = -jnp.sum(jnp.where(mask, jnp.exp(log_probs) * log_probs, 0.0), axis=-1)
    num_legal = jnp.sum(mask, axis=-1, dtype=jnp.int32)
    return log_prob, entropy, jnp.log(jnp.maximum(num_legal, 1).astype(jnp.float32))
