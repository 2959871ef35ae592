"""Which representation of the prefix cache a run uses, and how large it begins."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxsched.errors import UserError
from jaxsched.scenario import Scenario
from jaxsched.sim.requests import Requests
from jaxsched.sim.static import SimStatic
from jaxsched.workloads import Workload

#: Idle runs that a table of runs begins with room for, at most and at least; it doubles while some lane needs more
#: (`simulation.run_lanes`).
FIRST_RUNS, FEWEST_RUNS = 128, 32
#: Copies that a table of host memory begins with room for.
FIRST_COPIES = 128


def with_block_size(trace: Workload, scenario: Scenario) -> Workload:
    """The trace with block ids for the engine's blocks: ids of larger blocks are split; none if caching is off.

    Exact either way, but the cost of an event grows with the number of blocks: where a trace's ids cover 512 tokens, an
    engine with blocks of 512 (`cluster.block_size`) simulates many times faster than one with blocks of 16.
    """
    if trace.content is None:
        return trace
    if scenario.prefix_cache == "off":
        return dataclasses.replace(trace, content=None, content_start=None, content_block_size=0)
    if trace.content_block_size == scenario.block_size or trace.content_block_size % scenario.block_size:
        return trace  # what does not divide is refused by `Workload.to_requests`
    return trace.split_content(scenario.block_size)


def with_cache(static: SimStatic, scenario: Scenario, requests: Requests) -> SimStatic:
    """`static` with the prefix cache that the scenario asks for, as far as the engine has one.

    ``auto``: a block table where the workload says what its blocks hold, chains of runs where it says what its turns
    share, and none where nothing is shared.

    Raises:
        UserError: the representation asked for cannot hold the workload's content.
    """
    return _with_record(_with_form(static, scenario, requests), requests)


def _with_record(static: SimStatic, requests: Requests) -> SimStatic:
    """`static` with room for all that a router can remember to have sent (sim/sent.py)."""
    if static.route_by_cache != "record":
        return static
    largest = lambda column: 0 if column is None else int(np.max(np.asarray(column))) + 1
    if static.prefix_cache == "blocks":
        return dataclasses.replace(static, record_entries=largest(requests.content))
    return dataclasses.replace(static, record_entries=requests.num_rows + largest(requests.group))


def _with_form(static: SimStatic, scenario: Scenario, requests: Requests) -> SimStatic:
    form = scenario.prefix_cache
    if form == "auto":
        form = "blocks" if requests.content is not None else "runs" if requests.chain is not None else "off"
    if form in ("runs", "blocks") and scenario.prefix_cache != "auto" and static.scheduler.compress is not None:
        raise UserError(
            f"policy {static.scheduler.name} compresses KV, and what is left of it is nobody else's prefix",
            where=f"scenario {scenario.name}, cluster.prefix_cache",
            expected="'auto' or 'off'",
        )
    if form == "off" or static.scheduler.family != "v1" or static.scheduler.compress is not None:
        return static
    if form == "blocks" and static.scheduler.offload is not None:
        raise UserError(
            f"policy {static.scheduler.name} copies contexts of programs, and blocks with ids have none",
            where=f"scenario {scenario.name}, cluster.prefix_cache",
            expected="a workload of programs with chains, and 'runs' or 'auto'",
        )
    needs = requests.content if form == "blocks" else requests.chain
    if needs is None:
        other = "runs" if requests.chain is not None else "blocks" if requests.content is not None else "off"
        what = "block ids" if form == "blocks" else "chains and groups"
        raise UserError(
            f"prefix_cache {form!r} needs {what}, which workload {scenario.workload.name} does not have",
            where=f"scenario {scenario.name}, cluster.prefix_cache",
            expected=f"{other!r}, or 'auto'",
        )
    if form == "runs":
        most = max(scenario.usable_blocks, 64)
        tools = 1 if requests.tool is None else int(np.max(np.asarray(requests.tool))) + 1
        shared = requests.group_tokens is not None and np.max(np.asarray(requests.group_tokens)) >= scenario.block_size
        runs = dataclasses.replace(static, prefix_cache="runs", num_tools=tools, group_prefixes=bool(shared))
        entries, copies = min(_first_runs(scenario, requests), most), min(FIRST_COPIES, most)
        return dataclasses.replace(runs, cache_entries=entries, tier_entries=copies)
    tokens = np.max(np.asarray(requests.prompt_tokens) + np.asarray(requests.output_tokens))
    longest = int(tokens) // scenario.block_size + 1
    return dataclasses.replace(static, prefix_cache="blocks", cache_entries=scenario.usable_blocks, max_blocks=longest)


def _first_runs(scenario: Scenario, requests: Requests) -> int:
    """Idle runs to begin with room for: a power of two, twice as many as mean contexts fit into the pool."""
    tokens = np.asarray(requests.prompt_tokens) + np.asarray(requests.output_tokens)
    contexts = scenario.usable_blocks * scenario.block_size / max(float(tokens.mean()), 1.0)
    runs = FEWEST_RUNS
    while runs < min(2 * contexts, FIRST_RUNS):
        runs *= 2
    return runs


def with_graphs(static: SimStatic, requests: Requests) -> SimStatic:
    """`static` for programs that are graphs, if the table says so."""
    return dataclasses.replace(static, graphs=True) if requests.edges is not None else static
