"""Random programs that are graphs, for `tests/sim/clusters.py`."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from tests.sim.harness import MAX_EDGES


def random_graphs(draw: random.Random, next_turn: list[int], num_programs: int, grid_us: int) -> dict[str, Any]:
    """What every row waits for, and its earliest arrival, given the turns of each program (as chains)."""
    waits: list[list[tuple[int, str, int]]] = [[] for _ in next_turn]
    not_before, pause_us = [0] * len(next_turn), [0] * len(next_turn)
    used: Counter[tuple[int, str]] = Counter()
    wide = draw.random() < 0.5  # fan out from few turns, else anything goes
    for first in range(num_programs):
        earlier, row = [first], next_turn[first]
        while row >= 0:
            num = min(len(earlier), draw.choice([1, 1, 2, 3]))
            chosen = draw.sample(earlier[: max(2, num)] if wide and draw.random() < 0.6 else earlier, num)
            for before in sorted(chosen):
                what = "finish" if draw.random() < 0.8 else "arrival"
                if used[before, what] < MAX_EDGES:
                    used[before, what] += 1
                    waits[row].append((before, what, _pause_us(draw, grid_us)))
            if not waits[row]:  # all of them are full: the turn before is not
                used[earlier[-1], "finish"] += 1
                waits[row].append((earlier[-1], "finish", _pause_us(draw, grid_us)))
            pause_us[row] = max(edge[2] for edge in waits[row])
            not_before[row] = draw.choice([0, 0, 0, 2 * _pause_us(draw, grid_us)])
            earlier.append(row)
            row = next_turn[row]
    return {"waits": waits, "not_before": not_before, "pause_us": pause_us}


def _pause_us(draw: random.Random, grid_us: int) -> int:
    return draw.choice([0, 0, draw.randint(1, 300_000) // grid_us * grid_us])


def random_forks(
    draw: random.Random, waits: list[list[tuple[int, str, int]]], prompt: list[int], output: list[int], longest: int
) -> dict[str, Any]:
    """Content: a turn goes on with the history of one that it waits for (so turns fork); `prompt` grows by it."""
    content: list[list[Any]] = [[] for _ in prompt]
    for row, edges in enumerate(waits):  # rows that a row waits for come before it
        start: list[Any] = []
        if edges and draw.random() < 0.85:
            before = draw.choice(edges)[0]
            history = content[before] + [(("o", before), k) for k in range(output[before])]
            if draw.random() < 0.3:
                history = history[: draw.randint(1, len(history))]
            if len(history) + prompt[row] <= longest:
                start = history
        content[row] = start + [(("u", row), k) for k in range(min(prompt[row], longest - len(start)))]
        prompt[row] = len(content[row])
    none = [-1] * len(prompt)
    return {
        "prompt_content": content,
        "chain": list(range(len(prompt))),
        "group": none,
        "group_tokens": [0] * len(prompt),
    }


def random_lines(
    draw: random.Random,
    waits: list[list[tuple[int, str, int]]],
    prompt: list[int],
    output: list[int],
    longest: int,
    block_size: int,
) -> dict[str, Any]:
    """Content: one at most of those that wait for a finish goes on with its chain; groups' prefixes besides."""
    sizes = [draw.choice([0, 1, 2]) * block_size + draw.choice([0, 3]) for _ in range(2)]
    content: list[list[Any]] = [[] for _ in prompt]
    chain, group, group_tokens = list(range(len(prompt))), [-1] * len(prompt), [0] * len(prompt)
    for row, edges in enumerate(waits):
        which = draw.choice([-1] * 7 + [0, 1])
        start: list[Any] = [(("g", which), k) for k in range(sizes[which] if which >= 0 else 0)]
        size = len(start)
        free = [
            before
            for before, what, _ in edges
            if what == "finish"
            and chain.count(chain[before]) == sum(chain[r] == chain[before] for r in range(before + 1))
        ]
        if free and draw.random() < 0.9:
            before = draw.choice(free)
            history = content[before] + [(("o", before), k) for k in range(output[before])]
            if len(history) + prompt[row] <= longest:
                start, chain[row] = history, chain[before]
                which, size = group[before], group_tokens[before]
        group[row], group_tokens[row] = which, size
        content[row] = start + [(("u", row), k) for k in range(min(prompt[row], longest - len(start)))]
        prompt[row] = len(content[row])
    return {"prompt_content": content, "chain": chain, "group": group, "group_tokens": group_tokens}
