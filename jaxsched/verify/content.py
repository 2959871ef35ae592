"""Content of recorded requests as ids of KV blocks: equal ids where all tokens up to the block's end are equal.

That is what vLLM's chained block hash says (0.33, v1/core/kv_cache_utils.py, hash_block_tokens), without its chance of
collisions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxsched.verify.recording import Row

Runs = tuple[tuple[str, int, int], ...]


def block_contents(row: Row, block_size: int, num_tokens: int) -> list[Runs]:
    """Each full block among the first `num_tokens` tokens, as maximal runs (stream, start, length).

    Streams of generated text are called ``oN`` (N = request id): a later prompt can hold an earlier one's output.
    """
    generated = max(num_tokens - row.prompt_tokens, 0)
    blocks: list[Runs] = []
    runs: list[tuple[str, int, int]] = []
    left = block_size
    for stream, start, length in (*row.segments, (f"o{row.request_id}", 0, generated)):
        while length > 0 and len(blocks) < num_tokens // block_size:
            taken = min(length, left)
            if runs and runs[-1][0] == stream and runs[-1][1] + runs[-1][2] == start:
                runs[-1] = (stream, runs[-1][1], runs[-1][2] + taken)
            else:
                runs.append((stream, start, taken))
            start, length, left = start + taken, length - taken, left - taken
            if left == 0:
                blocks.append(tuple(runs))
                runs, left = [], block_size
    return blocks


def block_ids(
    rows: Sequence[Row], output_tokens: Sequence[int] | np.ndarray, block_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ids of all blocks that can be cached, request after request, and where each request's begin.

    Args:
        rows: the requests.
        output_tokens: tokens each generates; the KV of the last one is never computed.
        block_size: tokens per block.
    """
    ids: dict[tuple[int, Runs], int] = {}
    content: list[int] = []
    starts: list[int] = []
    for row, outputs in zip(rows, output_tokens, strict=True):
        starts.append(len(content))
        before = -1
        for block in block_contents(row, block_size, row.prompt_tokens + int(outputs) - 1):
            before = ids.setdefault((before, block), len(ids))
            content.append(before)
    return np.asarray(content, np.int32), np.asarray(starts, np.int32)
