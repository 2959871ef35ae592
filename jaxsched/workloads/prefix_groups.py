"""Which prefix every request of a job list shares with others, one level deep (BatchLLM's explicit prefix groups).

A list of jobs is a tree of prompts; an engine that computes one shared prefix per group cannot use more than one level
of it. Zheng et al. (BatchLLM, MLSys 2026) choose the level by a dynamic programme over the tree that saves the most
tokens; here over a tree of blocks, as the block ids of a trace give it, and over cuts of it: all rows below a chosen
node are its group (theirs may also split a part of a group off; they put the loss of one level at one percent).
"""

from __future__ import annotations

import numpy as np


def flat_groups(prompt_blocks: np.ndarray, content_start: np.ndarray, content: np.ndarray) -> tuple[np.ndarray, ...]:
    """The cut of the prefix tree into groups with one shared prefix each that saves the most blocks.

    ``best(v) = max(depth(v) (rows(v) - 1), sum of best over children)`` from the leaves up; from the root down a node
    whose own value is not below its children's becomes the prefix of all rows below it.

    Args:
        prompt_blocks: full blocks of every row's prompt, int [n].
        content_start: where a row's ids begin in `content`, int [n].
        content: ids; equal ids are equal content up to the end of the block.

    Returns:
        (group, blocks), int64 [n] each: rows of one group share that many leading blocks; -1 and 0 where a row shares
        nothing.
    """
    num = len(prompt_blocks)
    deepest = int(prompt_blocks.max(initial=0))
    places = int(content.max(initial=-1)) + 1
    rows_of = np.zeros(places, np.int64)
    depth = np.zeros(places, np.int64)
    level_ids = []  # per level: (rows that reach it, the id there)
    for level in range(deepest):
        rows = np.flatnonzero(prompt_blocks > level)
        ids = content[content_start[rows] + level]
        rows_of += np.bincount(ids, minlength=places)
        depth[ids] = level + 1
        level_ids.append((rows, ids))
    own = depth * (rows_of - 1)
    best, below = own.copy(), np.zeros(places, np.int64)
    for level in range(deepest - 1, -1, -1):
        ids = np.unique(level_ids[level][1])
        best[ids] = np.maximum(own[ids], below[ids])
        if level:
            rows, here = level_ids[level]
            _, first = np.unique(here, return_index=True)
            parents = content[content_start[rows[first]] + level - 1]
            np.add.at(below, parents, best[here[first]])
    group, blocks = np.full(num, -1, np.int64), np.zeros(num, np.int64)
    for rows, ids in level_ids:
        chosen = (group[rows] < 0) & (own[ids] >= below[ids]) & (own[ids] > 0)
        group[rows[chosen]], blocks[rows[chosen]] = ids[chosen], depth[ids[chosen]]
    return group, blocks


def saved_share(group: np.ndarray, shared_tokens: np.ndarray, prompt_tokens: np.ndarray) -> float:
    """Share of all prompt tokens that need not be computed if every group's prefix is computed once."""
    total, saved = float(prompt_tokens.sum()), 0.0
    for name in np.unique(group[group >= 0]):
        shared = shared_tokens[group == name]
        saved += float(shared.sum() - shared.max())
    return saved / max(total, 1.0)
