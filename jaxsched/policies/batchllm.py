"""BatchLLM (Zheng et al., MLSys 2026) on the V1 engine: a list of jobs is put in order before it runs.

Rule: jobs handed over at one instant are grouped by the prefix that they share (`workloads/prefix_groups.py`: one level
per group, chosen to save the most tokens); groups go in order of their ratio of outputs to prompt, ``sum of predicted
outputs / (prefix + sum of what follows it)``, largest first, so that prompts that come later fill steps full of
decodes; the members of a group follow one another. `batchllm` also lifts the cap on running requests and the token
budget, so that KV memory alone limits the batch; `+prefix_groups` is the order alone, for any scheduler.
Faithful: groups, ratio, consecutive members, memory as the limit, chunked prefill. Simplified: the prefix of a group
lives in the engine's own cache (least recently released first) instead of being pinned until its group is done; no
fused kernel, so each decode reads the prefix for itself; among jobs of different instants nothing is reordered.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxsched.errors import UserError
from jaxsched.policies.base import Scheduler
from jaxsched.sim.requests import Requests
from jaxsched.sim.static import SchedulerSpec
from jaxsched.workloads.prefix_groups import flat_groups

PREFIX_GROUPS = "prefix_groups"
SOURCE = "Zheng et al., BatchLLM, MLSys 2026 (arXiv 2412.03594)"
#: Columns that name rows of the table.
_ROWS = ("program", "next_turn", "chain")


def group_order(
    handed_over: np.ndarray, group: np.ndarray, shared: np.ndarray, prompt: np.ndarray, predicted: np.ndarray
) -> np.ndarray:
    """The order in which jobs run, int [n] (rows).

    Args:
        handed_over: what is sorted together, never decreasing: number of the instant (and window) of each row.
        group: rows of one group share a prefix, -1 = alone.
        shared: tokens of that prefix.
        prompt, predicted: tokens of the prompt and predicted outputs.
    """
    num = len(prompt)
    alone = np.where(group < 0, np.arange(num) + np.max(group, initial=-1) + 1, group)
    _, first, name = np.unique(np.stack([handed_over, alone], axis=1), axis=0, return_index=True, return_inverse=True)
    name = name.reshape(-1)
    total = lambda values: np.bincount(name, weights=values, minlength=len(first))
    prefix = np.zeros(len(first))
    np.maximum.at(prefix, name, shared)
    ratio = total(predicted) / np.maximum(prefix + total(prompt - shared), 1.0)
    return np.lexsort((np.arange(num), first[name], -ratio[name], handed_over))


def in_group_order(requests: Requests, block_size: int, cuts: np.ndarray | None = None) -> Requests:
    """The table with the jobs of each instant in BatchLLM's order; with a leading lane axis, each lane.

    Args:
        requests: programs of one turn.
        block_size: tokens that one block id covers, where the table has ids.
        cuts: rows at which another lane's window begins or ends: nothing moves across them.

    Raises:
        UserError: some program has more than one turn.
    """
    table = {k: np.asarray(v) for k, v in vars(requests).items() if v is not None}
    if requests.edges is not None or np.any(table["next_turn"] >= 0):
        raise UserError(
            "programs of several turns: BatchLLM orders jobs, and a later turn comes when the one before is done",
            expected="a workload of programs of one turn, e.g. preset batch_jobs",
        )
    content = {name: table.pop(name) for name in ("content", "num_programs") if name in table}
    lanes = table["prompt_tokens"].ndim == 2
    rows = table if lanes else {k: v[None] for k, v in table.items()}
    ordered = [
        _ordered({k: v[i] for k, v in rows.items()}, content.get("content"), block_size, cuts)
        for i in range(len(rows["prompt_tokens"]))
    ]
    stacked = {k: np.stack([lane[k] for lane in ordered]) for k in table}
    columns = stacked if lanes else {k: v[0] for k, v in stacked.items()}
    return requests.replace(**jax.tree.map(jnp.asarray, columns))


def _ordered(
    table: dict[str, np.ndarray], content: np.ndarray | None, block_size: int, cuts: np.ndarray | None
) -> dict[str, np.ndarray]:
    """One lane's columns in order."""
    prompt, num = table["prompt_tokens"], len(table["prompt_tokens"])
    changes = np.diff(table["arrival_epoch"]) | np.diff(table["arrival_us"])
    handed_over = np.concatenate([[0], np.cumsum(changes != 0)])
    if cuts is not None:
        handed_over = handed_over + np.searchsorted(np.unique(cuts), np.arange(num), side="right")
    if content is not None:
        full = np.minimum(prompt // block_size, (prompt + table["output_tokens"] - 1) // block_size)
        group, blocks = flat_groups(full, table["content_start"], content)
        shared = blocks * block_size
    elif "group" in table:
        group, shared = table["group"], np.where(table["group"] >= 0, table["group_tokens"], 0)
    else:
        group, shared = np.full(num, -1), np.zeros(num, np.int64)
    order = group_order(handed_over, group, shared, prompt, table["predicted_tokens"])
    place = np.empty(num, np.int32)
    place[order] = np.arange(num, dtype=np.int32)
    moved = {k: v[order] for k, v in table.items()}
    for name in _ROWS:
        if name in moved:
            moved[name] = np.where(moved[name] >= 0, place[np.maximum(moved[name], 0)], moved[name])
    return moved


BATCHLLM = Scheduler(
    SchedulerSpec("batchllm"),
    "a list of jobs in groups of one shared prefix, most outputs per prompt token first; memory alone limits the batch",
    SOURCE,
    defaults={"max_num_seqs": 1024, "token_budget": 8192},
    orders_jobs=True,
)
