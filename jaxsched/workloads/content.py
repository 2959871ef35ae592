"""What the turns of a workload share, on host: chains of append-only turns, and flat lists of block ids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxsched.errors import UserError


def num_full_blocks(prompt_tokens: np.ndarray, output_tokens: np.ndarray, block_size: int) -> np.ndarray:
    """int64 [rows]: full blocks of prompt + outputs without the last output token, whose KV is never computed."""
    return (np.asarray(prompt_tokens, np.int64) + output_tokens - 1) // block_size


def starts_of(counts: np.ndarray) -> np.ndarray:
    """int64 [rows]: where each row's ids begin when the rows' ids follow one another."""
    return np.cumsum(counts, dtype=np.int64) - counts


def gather(content: np.ndarray, start: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The ids of some rows, one row after another. `start` and `counts` are of the chosen rows."""
    place = np.arange(int(counts.sum()), dtype=np.int64) - np.repeat(starts_of(counts), counts)
    return content[np.repeat(np.asarray(start, np.int64), counts) + place]


def dense(ids: np.ndarray) -> np.ndarray:
    """int32, the ids renumbered 0, 1, 2, ... in their order; equality and order are kept."""
    return np.unique(ids, return_inverse=True)[1].astype(np.int32).reshape(np.shape(ids))


def derive_chains(
    program: np.ndarray, turn: np.ndarray, prompt_tokens: np.ndarray, output_tokens: np.ndarray
) -> np.ndarray:
    """int64 [rows]: the chain of each turn when nothing is known but the lengths.

    A chain is named after its program. Where a prompt is not longer than the previous prompt + outputs the history was
    cut (or never kept), and a chain with a name of its own begins.
    """
    program = np.asarray(program, np.int64)
    later = np.flatnonzero(np.asarray(turn) > 0)
    history = np.asarray(prompt_tokens, np.int64) + output_tokens
    cut = later[np.asarray(prompt_tokens)[later] <= history[later - 1]]
    if len(cut) == 0:
        return program
    begins = np.where(np.asarray(turn) == 0, np.arange(len(program)), 0)
    begins[cut] = cut
    begins = np.maximum.accumulate(begins)  # row at which the chain of each row began
    fresh = int(program.max()) + 1 + np.arange(len(program), dtype=np.int64)
    return np.where(np.asarray(turn)[begins] == 0, program, fresh[begins])


def split_blocks(
    content: np.ndarray, prompt_tokens: np.ndarray, output_tokens: np.ndarray, block_size: int, smaller: int
) -> np.ndarray:
    """The same content in blocks of `smaller` tokens, which must divide `block_size`.

    A block's id becomes the ids of its parts, so equal ids still mean equal content up to the end of the (smaller)
    block. Full small blocks behind the last full large one get ids of their own: the list says nothing of them.
    """
    if smaller < 1 or block_size % smaller:
        raise UserError(
            f"blocks of {smaller} tokens from blocks of {block_size}",
            expected=f"a divisor of {block_size}",
            hint="Ids say what whole blocks hold; they can be split evenly, not joined or shifted.",
        )
    parts = block_size // smaller
    large = num_full_blocks(prompt_tokens, output_tokens, block_size)
    small = num_full_blocks(prompt_tokens, output_tokens, smaller)
    known = (content.astype(np.int64)[:, None] * parts + np.arange(parts)).reshape(-1)
    result = np.empty(int(small.sum()), np.int64)
    place = np.arange(len(result)) - np.repeat(starts_of(small), small)
    is_known = place < np.repeat(large * parts, small)
    result[is_known] = known
    free = int(known.max()) + 1 if len(known) else 0
    result[~is_known] = free + np.arange(int(np.count_nonzero(~is_known)))
    return result


def ids_of_turns(
    prompt_ids: Sequence[np.ndarray], prompt_tokens: np.ndarray, output_tokens: np.ndarray, block_size: int
) -> np.ndarray:
    """Flat ids of all full blocks from ids of the prompts alone: blocks with generated tokens get ids of their own.

    `prompt_ids` holds, per row, at least the ids of the full blocks of its prompt.
    """
    counts = num_full_blocks(prompt_tokens, output_tokens, block_size)
    in_prompt = np.asarray(prompt_tokens, np.int64) // block_size
    known = np.concatenate([ids[:k] for ids, k in zip(prompt_ids, in_prompt, strict=True)] or [np.zeros(0, np.int64)])
    known = known.astype(np.int64)
    place = np.arange(int(counts.sum())) - np.repeat(starts_of(counts), counts)
    is_known = place < np.repeat(in_prompt, counts)
    result = np.empty(len(place), np.int64)
    result[is_known] = known
    free = int(known.max()) + 1 if len(known) else 0
    result[~is_known] = free + np.arange(int(np.count_nonzero(~is_known)))
    return result


def ids_of_chains(
    chain: np.ndarray,
    group: np.ndarray,
    group_tokens: np.ndarray,
    prompt_tokens: np.ndarray,
    output_tokens: np.ndarray,
    block_size: int,
) -> np.ndarray:
    """Flat ids of all full blocks that say the same as chains and groups do.

    A block inside the group's prefix is the group's; every other one, also the one in which the prefix ends, is the
    chain's.
    """
    counts = num_full_blocks(prompt_tokens, output_tokens, block_size)
    shared = np.where(group >= 0, np.minimum(group_tokens // block_size, counts), 0)
    groups, chains = dense(group), dense(chain)
    longest = np.zeros(int(groups.max()) + 1, np.int64)
    np.maximum.at(longest, groups, shared)
    group_base, used = starts_of(longest), int(longest.sum())
    longest = np.zeros(int(chains.max()) + 1, np.int64)
    np.maximum.at(longest, chains, counts)
    chain_base = used + starts_of(longest)

    place = np.arange(int(counts.sum())) - np.repeat(starts_of(counts), counts)
    in_group = place < np.repeat(shared, counts)
    return place + np.where(in_group, np.repeat(group_base[groups], counts), np.repeat(chain_base[chains], counts))


def prefix_conflict(content: np.ndarray, start: np.ndarray, counts: np.ndarray) -> tuple[int, int] | None:
    """Two places of one id that follow different ids, if there are any; -1 is followed at the beginning of a row."""
    if len(content) == 0:
        return None
    previous = followed(content, start, counts)
    order = np.argsort(content, kind="stable")
    same = content[order[1:]] == content[order[:-1]]
    differs = np.flatnonzero(same & (previous[order[1:]] != previous[order[:-1]]))
    return (int(order[1:][differs[0]]), int(order[:-1][differs[0]])) if len(differs) else None


def followed(content: np.ndarray, start: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The id before each id in its row, -1 at the beginning."""
    previous = np.append(np.int64(-1), content[:-1])
    previous[start[counts > 0]] = -1
    return previous


def with_prefixes(content: np.ndarray, start: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Ids that stand for a block and everything before it, from ids that stand for the block alone."""
    result = np.empty(len(content), np.int64)
    rows = np.flatnonzero(counts > 0)
    node, used = np.full(len(rows), -1, np.int64), 0
    for depth in range(int(counts.max(initial=0))):
        going = counts[rows] > depth
        rows, node = rows[going], node[going]
        pair = np.stack([node, content[start[rows] + depth]], axis=1)
        unique, index = np.unique(pair, axis=0, return_inverse=True)
        node = used + index.reshape(-1)
        used += len(unique)
        result[start[rows] + depth] = node
    return result
