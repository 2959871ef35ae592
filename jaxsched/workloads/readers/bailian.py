"""Qwen-Bailian JSONL: `chat_id, parent_chat_id, timestamp, input_length, output_length, type, turn, hash_ids`.

Source: github.com/alibaba-edu/qwen-bailian-usagetraces-anon. Timestamps are seconds; `parent_chat_id` -1 is a first
turn.

Two ways to replay (`arrivals`):
- "closed" (default): a chat and the one that follows it are turns of one program. The file has arrival times only, so
  the pause is the difference of the two arrivals minus an estimate of the service time of the first,
  ``service_s + service_s_per_token * output_length``, at least 0. With the default estimate of 0 the pause is an upper
  bound.
- "open": every row is a program of its own at its timestamp.

`hash_ids` (blocks of 16 tokens of the prompt) become the workload's block ids; the one of a last block that is not full
is ignored: upstream pads it, and says that it may differ between turns of a chat.

When several rows name the same parent the first continues the program; the others start programs of their own (counted
as branches). A parent outside the file makes its child a first turn (counted).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxsched.errors import UserError
from jaxsched.workloads.readers.sessions import TurnTable, check_block_tokens, check_service, estimated_pause_s
from jaxsched.workloads.readers.text import check_monotone, read_jsonl
from jaxsched.workloads.table import Workload


def read(
    path: Path,
    *,
    arrivals: str = "closed",
    service_s: float = 0.0,
    service_s_per_token: float = 0.0,
    content_block_tokens: int = 16,
) -> Workload:
    """A Qwen-Bailian trace; the options are explained in the module's docstring."""
    if arrivals not in ("closed", "open"):
        raise UserError(f"arrivals {arrivals!r}", expected="'closed' or 'open'")
    check_service(service_s, service_s_per_token)
    check_block_tokens(content_block_tokens)
    table = TurnTable()
    # chat -> program, turn, program start s, own time s, output
    chats: dict[str, tuple[int, int, float, float, int]] = {}
    continued: set[str] = set()
    counts = {"branches": 0, "parents_outside_the_file": 0}
    programs = 0
    times, lines = [], []
    for record in read_jsonl(path):
        chat, parent = record.text("chat_id"), record.text("parent_chat_id", default="-1")
        time = record.number("timestamp")
        prompt, output = record.integer("input_length", 1), record.integer("output_length", 1)
        times.append(time)
        lines.append(record.line)
        before = chats.get(parent) if arrivals == "closed" and parent != "-1" else None
        if arrivals == "closed" and parent != "-1":
            counts["parents_outside_the_file"] += before is None
            counts["branches"] += before is not None and parent in continued
        if before is None or parent in continued:
            program, turn, start, pause_s = programs, 0, time, 0.0
            programs += 1
        else:
            continued.add(parent)
            program, turn, start = before[0], before[1] + 1, before[2]
            pause_s = estimated_pause_s(time - before[3], before[4], service_s, service_s_per_token)
        chats[chat] = (program, turn, start, time, output)
        blocks = table.prompt_blocks(record, "hash_ids", prompt, content_block_tokens)
        pause_us = round(pause_s * 1e6)
        table.add(program, turn, round(start * 1e6), prompt, output, pause_us, record.line, blocks=blocks)
    check_monotone(np.array(times), np.array(lines), path, "field timestamp", "s")
    return table.workload(
        path.stem,
        content_block_tokens=content_block_tokens,
        source=str(path),
        format="bailian",
        counts=counts if arrivals == "closed" else {},
    )
