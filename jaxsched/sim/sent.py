"""A router's own record of the prompts that it sent to each instance: the approximate radix tree of SGLang's router.

The real one holds text per worker and forgets the least recently used leaves (sgl-router/src/policies/tree.rs). Here it
holds full blocks of prompts, as the workload identifies them: by id (every block an entry) or by chain and group (an
entry each: how many of its blocks were sent). An instance's record is cut when a prompt makes it larger than its limit,
least recently sent first and the end of a prompt before its beginning; the real one is cut every 30 to 120 s.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

from jaxsched.sim.oldest import take_oldest
from jaxsched.sim.requests import Requests
from jaxsched.sim.static import SimStatic


class Sent(struct.PyTreeNode):
    """Records of all instances."""

    blocks: Int[Array, "m e"]  # of each entry: chains by their first row, groups from the last entry on down; or ids
    stamp: Int[Array, "m e"]  # when they were last sent
    size: Int[Array, " m"]  # blocks in all
    clock: Int[Array, ""]


class Match(struct.PyTreeNode):
    """Where a turn's prompt is in the records."""

    blocks: Int[Array, " m"]  # leading full blocks found
    index: Int[Array, " l"]  # its entries, in the order of the prompt; the number of entries = none
    length: Int[Array, " l"]  # blocks of each
    full: Int[Array, ""]  # full blocks of the prompt


def init_sent(static: SimStatic) -> Sent:
    """Nothing sent yet."""
    m, e = static.num_instances, static.record_entries
    zeros = lambda *shape: jnp.zeros(shape, jnp.int32)
    return Sent(blocks=zeros(m, e), stamp=zeros(m, e), size=zeros(m), clock=jnp.ones((), jnp.int32))


def match(static: SimStatic, requests: Requests, sent: Sent, row: Int[Array, ""]) -> Match:
    """Look a turn's prompt up."""
    full = requests.prompt_tokens[row] // static.block_size
    none = static.record_entries
    if static.prefix_cache == "blocks":
        assert requests.content is not None and requests.content_start is not None
        depth = jnp.arange(static.max_blocks, dtype=jnp.int32)
        at = jnp.clip(requests.content_start[row] + depth, 0, requests.content.shape[0] - 1)
        index = jnp.where(depth < full, requests.content[at], none)
        there = sent.blocks.at[:, index].get(mode="fill", fill_value=0) > 0
        blocks = jnp.min(jnp.where(there, static.max_blocks, depth), axis=1)
        return Match(blocks, index, jnp.ones_like(index), full)
    chain, group = row, jnp.int32(-1)
    shared: Array = jnp.int32(0)
    if requests.chain is not None and requests.group is not None and requests.group_tokens is not None:
        chain, group = requests.chain[row], requests.group[row]
        shared = jnp.where(group >= 0, requests.group_tokens[row] // static.block_size, 0)
        shared = jnp.minimum(shared, full)
    index = jnp.stack([jnp.where(group >= 0, none - 1 - group, none), chain])
    length = jnp.stack([shared, full - shared])
    known = sent.blocks.at[:, index].get(mode="fill", fill_value=0)
    of_group = jnp.minimum(known[:, 0], shared)
    blocks = jnp.where(of_group == shared, of_group + jnp.minimum(known[:, 1], length[1]), of_group)
    return Match(blocks, index, length, full)


def add(static: SimStatic, sent: Sent, found: Match, m: Int[Array, ""], limit: Array, active: Bool[Array, ""]) -> Sent:
    """Note that the prompt goes to instance `m`, whose record may hold `limit` blocks."""
    index = jnp.where(active, found.index, static.record_entries)
    here = jnp.arange(static.num_instances) == m
    before = sent.blocks[m].at[index].get(mode="fill", fill_value=0)
    after = jnp.where(index < static.record_entries, jnp.maximum(before, found.length), before)
    order = jnp.arange(index.shape[0] - 1, -1, -1, dtype=jnp.int32)  # the end of a prompt goes before its beginning
    size = sent.size + jnp.where(here & active, jnp.sum(after - before), 0)
    blocks = sent.blocks.at[m, index].set(after, mode="drop")
    stamp = sent.stamp.at[m, index].set(sent.clock + order, mode="drop")
    owed = jnp.where(active, jnp.maximum(size[m] - jnp.floor(limit).astype(jnp.int32), 0), 0)
    left = blocks[m] - take_oldest(stamp[m], blocks[m], owed)
    return Sent(
        blocks=blocks.at[m].set(left),
        stamp=stamp,
        size=size - jnp.where(here, owed, 0),
        clock=sent.clock + jnp.where(active, index.shape[0], 0),
    )
