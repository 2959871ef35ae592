"""How much of a workload's prompts a prefix cache could reuse, from content alone: no clock, no engine.

Two bounds to read simulated hit rates against: an LRU cache of any size that sees the prompts in order, and a cache
that keeps every session for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxsched.errors import UserError
from jaxsched.workloads.content import dense, gather, num_full_blocks, starts_of
from jaxsched.workloads.table import Workload


@dataclass(frozen=True)
class HitCurve:
    """Hits of an LRU cache at several capacities."""

    capacity_blocks: np.ndarray  # int64 [k]; -1 = unlimited
    token_hit_rate: np.ndarray  # float64 [k]: tokens found / tokens of all prompts
    block_hit_rate: np.ndarray  # float64 [k]: blocks found / blocks of all prompts
    unique_blocks: int  # different blocks that the prompts touch: the smallest capacity that never evicts


def lru_hit_curve(workload: Workload, capacities_blocks: Sequence[int | None]) -> HitCurve:
    """Hit rates of a block cache with least-recently-used eviction, exact for every capacity, in one pass.

    Turns are replayed in order of rows (for a trace: of arrival), answers not counted. A turn finds its longest prefix
    of blocks that are all cached: ``min(block * found, prompt_tokens)`` tokens. Then it touches all blocks of its
    prompt, first to last, the missing ones evicting the least recently touched. The block in which a prompt ends
    counts when it has an id; it is then filled by the answer, so it is the turn's own.

    Whether a block is cached depends only on how many other blocks were touched since its last touch (the stack
    distance of Mattson et al., 1970), so one count per touch gives all capacities.

    Args:
        workload: a trace with block ids; see `Workload.with_block_ids` for chains and groups.
        capacities_blocks: sizes of the cache, blocks; None = unlimited.

    Raises:
        UserError: the workload has no block ids, or a capacity is below 1.
    """
    if workload.content is None or workload.content_start is None:
        raise UserError(
            "no block ids",
            where=workload.source or workload.name,
            expected="a trace with hash_ids",
            hint="Workload.with_block_ids writes chains and groups as block ids.",
        )
    for capacity in capacities_blocks:
        if capacity is not None and capacity < 1:
            raise UserError(f"capacity of {capacity} blocks", expected="at least 1 block, or None for unlimited")
    size = workload.content_block_size
    prompt = workload.prompt_tokens.astype(np.int64)
    counts = np.minimum(-(-prompt // size), num_full_blocks(prompt, workload.output_tokens, size))
    ids = dense(gather(workload.content, workload.content_start, counts))
    start = starts_of(counts)
    distance = _stack_distances(ids, np.repeat(start, counts))

    # Blocks of a prompt are found up to the first whose distance is too large: up to the largest distance so far.
    worst = _running_max(distance, start, counts)
    row = np.repeat(np.arange(len(prompt)), counts)
    tokens, blocks = [], []
    for capacity in capacities_blocks:
        found = np.bincount(row[worst <= (len(ids) if capacity is None else capacity)], minlength=len(prompt))
        tokens.append(np.minimum(found * size, prompt).sum() / prompt.sum())
        blocks.append(found.sum() / max((-(-prompt // size)).sum(), 1))
    return HitCurve(
        capacity_blocks=np.array([-1 if c is None else c for c in capacities_blocks], np.int64),
        token_hit_rate=np.array(tokens),
        block_hit_rate=np.array(blocks),
        unique_blocks=int(ids.max()) + 1 if len(ids) else 0,
    )


def session_hit_rate(workload: Workload) -> float:
    """Share of all prompt tokens that earlier turns of the same program have seen, with everything kept.

    With block ids: the longest prefix of blocks of earlier turns, in whole blocks. Without: the earlier prompt and
    outputs (all but the last, whose KV is never computed) of the same chain, or the group's prefix where a new chain
    begins.
    """
    prompt = workload.prompt_tokens.astype(np.int64)
    if workload.content is None or workload.content_start is None:
        return float(_chain_hits(workload).sum() / prompt.sum())
    size = workload.content_block_size
    counts = np.minimum(num_full_blocks(prompt, workload.output_tokens, size), prompt // size)
    all_counts = num_full_blocks(prompt, workload.output_tokens, size)
    # A block is known when the same program had it in an earlier row. Sorted by (program, id, place), the first
    # occurrence is the one that is not.
    owner = np.repeat(np.cumsum(workload.first_mask) - 1, all_counts)
    ids = gather(workload.content, workload.content_start, all_counts)
    order = np.lexsort((ids, owner))
    new = np.append(True, (ids[order[1:]] != ids[order[:-1]]) | (owner[order[1:]] != owner[order[:-1]]))
    known = np.empty(len(ids), bool)
    known[order] = ~new
    place = np.arange(len(ids)) - np.repeat(starts_of(all_counts), all_counts)
    row = np.repeat(np.arange(len(prompt)), all_counts)
    hit = counts.copy()
    missing = ~known & (place < np.repeat(counts, all_counts))
    np.minimum.at(hit, row[missing], place[missing])
    return float((hit * size).sum() / prompt.sum())


def _chain_hits(workload: Workload) -> np.ndarray:
    """Tokens of each prompt that earlier turns of its program hold, by chains and groups."""
    w = workload
    order = np.argsort(w.chain, kind="stable")
    before, after = order[:-1], order[1:]
    same = w.chain[before] == w.chain[after]
    hit = np.zeros(len(w), np.int64)
    hit[after[same]] = (w.prompt_tokens + w.output_tokens - 1)[before[same]]
    starts = np.flatnonzero((hit == 0) & (w.turn > 0) & (w.group >= 0))
    for row in starts:  # few: a chain begins inside a program
        earlier = np.flatnonzero(w.group[row - w.turn[row] : row] == w.group[row])
        held = w.group_tokens[row - w.turn[row] + earlier]
        hit[row] = min(int(held.max(initial=0)), int(w.group_tokens[row]))
    return hit


def _stack_distances(ids: np.ndarray, request_start: np.ndarray) -> np.ndarray:
    """int64 per touch: its depth in the LRU stack (1 = touched last) when its request begins; huge on first touches."""
    num = len(ids)
    order = np.argsort(ids, kind="stable")
    repeated = ids[order[1:]] == ids[order[:-1]]
    previous, following = np.full(num, -1, np.int64), np.full(num, num, np.int64)
    previous[order[1:][repeated]] = order[:-1][repeated]
    following[order[:-1][repeated]] = order[1:][repeated]
    # Since its last touch p, the stack above a block got each id touched in [p, now) once: count last touches.
    known = np.flatnonzero(previous >= 0)
    low, now = previous[known], request_start[known]
    depth = np.full(num, np.iinfo(np.int64).max)
    depth[known] = (now - low) - _count_below(following, low, now, now)
    return depth


def _count_below(values: np.ndarray, low: np.ndarray, high: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """How many of ``values[low:high]`` are below `limit`, for many queries at once (a wavelet matrix)."""
    low, high, total = low.copy(), high.copy(), np.zeros(len(low), np.int64)
    for bit in range(int(values.max(initial=1)).bit_length() - 1, -1, -1):
        zero = ((values >> bit) & 1) == 0
        rank = np.append(0, np.cumsum(zero))
        zeros = int(rank[-1])
        low_zero, high_zero = rank[low], rank[high]
        above = ((limit >> bit) & 1) == 1
        total += np.where(above, high_zero - low_zero, 0)
        low = np.where(above, zeros + low - low_zero, low_zero)
        high = np.where(above, zeros + high - high_zero, high_zero)
        values = np.concatenate([values[zero], values[~zero]])
    return total


def _running_max(values: np.ndarray, start: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Running maximum inside each row."""
    result = values.copy()
    rows = np.flatnonzero(counts > 0)
    for depth in range(1, int(counts.max(initial=0))):
        rows = rows[counts[rows] > depth]
        at = start[rows] + depth
        result[at] = np.maximum(result[at], result[at - 1])
    return result
