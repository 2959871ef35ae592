"""Where a prefix-cache hit could first act in a recording made with prefix caching on.

The machine has no prefix cache yet. As long as no lookup can hit, an engine with caching decides and counts blocks as
one without (cached free blocks are free blocks), so all before the first possible hit can be compared. A hit needs a
cached copy of a request's first block: of another request whose content begins with the same block, or of its own from
before a preemption (vLLM 0.33, v1/core/kv_cache_manager.py: a block is found by a hash over all tokens up to its end).
"""

from __future__ import annotations

from jaxsched.verify.recording import Recording, Row, Step

Content = tuple[tuple[str, int, int], ...]


def first_block(row: Row, block_size: int) -> Content | None:
    """The content of a request's first KV block, as maximal runs of streams; None if it never fills one.

    Streams of generated text are called ``oN`` (N = request id): a later prompt can begin with an earlier one's output.
    """
    generated = row.output_tokens - 1  # the last output token's KV is never computed
    left = block_size
    runs: list[tuple[str, int, int]] = []
    for stream, start, length in (*row.segments, (f"o{row.request_id}", 0, generated)):
        taken = min(length, left)
        if taken <= 0:
            continue
        left -= taken
        if runs and runs[-1][0] == stream and runs[-1][1] + runs[-1][2] == start:
            runs[-1] = (stream, runs[-1][1], runs[-1][2] + taken)
        else:
            runs.append((stream, start, taken))
    return tuple(runs) if left == 0 else None


def first_shared_arrival(rows: list[Row], block_size: int) -> Row | None:
    """The first request that begins with the same block as an earlier one."""
    seen: set[Content] = set()
    for row in rows:
        block = first_block(row, block_size)
        if block is None:
            continue
        if block in seen:
            return row
        seen.add(block)
    return None


def steps_without_hits(recording: Recording, machine_steps: list[Step]) -> tuple[int, str]:
    """How many leading steps no prefix-cache hit can have touched, and why not the next one ("" = all of them).

    Up to there the machine's steps are the engine's, so they say when a request was there or preempted.
    """
    limit, reason = max(len(recording.steps), len(machine_steps)), ""
    if not recording.config["enable_prefix_caching"]:
        return limit, reason
    # One step ahead: the step before is still in flight, and its `free_blocks_after` is taken after the next call.
    behind = int(recording.config["async_scheduling"])
    shared = first_shared_arrival(recording.rows, recording.config["block_size"])
    for steps in (machine_steps, recording.steps):
        for index, step in enumerate(steps[:limit]):
            if shared is not None and step["t_sched_us"] >= shared.arrival_us:
                limit, reason = max(index - behind, 0), f"request {shared.request_id} begins like an earlier one"
                break
            if step["preempted"]:
                # The call that preempts admits nobody: the victim's first lookup comes in a later one.
                limit, reason = (
                    index + 1 - behind,
                    f"request {step['preempted'][0]} is preempted, with blocks in the cache",
                )
                break
    return limit, reason
