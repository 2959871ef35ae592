"""The host-side workload: one numpy row per turn, validated once, then sliced, thinned and scaled without copies per
lane.

A `Workload` is what readers return. It keeps absolute time in int64 microseconds (two weeks are 1.2e12 of them) and
becomes the machine's int32 table only in `Workload.to_requests`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from jaxsched.errors import UserError
from jaxsched.sim.requests import Requests
from jaxsched.workloads.checks import (
    MAX_TIME_US,
    MAX_TOKENS,
    check_content,
    check_order,
    check_ranges,
    check_sharing,
)
from jaxsched.workloads.content import (
    derive_chains,
    gather,
    ids_of_chains,
    num_full_blocks,
    split_blocks,
    starts_of,
)
from jaxsched.workloads.device_table import as_requests, content_of, from_table, to_table
from jaxsched.workloads.graph import Edges, check_edges, check_forks
from jaxsched.workloads.graph import derive_chains as derive_graph_chains
from jaxsched.workloads.hashing import keyed_exponential, keyed_normal, keyed_uniform

#: Columns of a workload and their dtypes, in field order.
COLUMNS: dict[str, type] = {
    "arrival_us": np.int64,
    "program": np.int64,
    "turn": np.int32,
    "prompt_tokens": np.int32,
    "output_tokens": np.int32,
    "predicted_tokens": np.int32,
    "klass": np.int32,
    "priority": np.int32,
    "pause_us": np.int64,
    "line": np.int32,
    "chain": np.int64,
    "group": np.int32,
    "group_tokens": np.int32,
    "tool": np.int32,
}


@dataclass(frozen=True)
class Workload:
    """Turns of programs, in arrival order of the programs; the turns of one program are consecutive rows.

    Build one with `Workload.build` (fills defaults and validates). The arrays are read-only by convention: every
    operation returns a new workload.
    """

    name: str
    arrival_us: np.ndarray  # int64 [rows]: arrival of the row's program (the same value on each of its turns)
    program: np.ndarray  # int64 [rows]: identity of the program in its source; survives slicing and thinning
    turn: np.ndarray  # int32 [rows]: 0, 1, 2, ... inside the program
    prompt_tokens: np.ndarray  # int32 [rows]: whole prompt of the turn, >= 1
    output_tokens: np.ndarray  # int32 [rows]: tokens generated, >= 1
    predicted_tokens: np.ndarray  # int32 [rows]: what a length-aware policy may see; the truth until `with_predictions`
    klass: np.ndarray  # int32 [rows]: SLO class or tenant, >= 0
    priority: np.ndarray  # int32 [rows]: lower = more important
    pause_us: np.ndarray  # int64 [rows]: between the previous turn's finish and this turn's arrival; 0 on first turns
    line: np.ndarray  # int32 [rows]: line (or record) of the source file, 0 = generated
    # What turns share (meaning: jaxsched/sim/requests.py).
    chain: np.ndarray  # int64 [rows]: identity of the turn's own content; turns of one chain extend each other
    group: np.ndarray  # int32 [rows]: shared prefix at the beginning of the prompt, -1 = none
    group_tokens: np.ndarray  # int32 [rows]: tokens of the prompt that it covers
    tool: np.ndarray  # int32 [rows]: kind of the pause before the turn, an index of `tool_names`; 0 on first turns
    content: np.ndarray | None = None  # int64: ids of the full blocks of every row, one row after another
    content_start: np.ndarray | None = None  # int64 [rows]: where a row's ids begin
    content_block_size: int = 0  # tokens that one id covers, 0 = no ids
    #: What later turns wait for where programs are graphs; `pause_us` is then the longest pause of a turn's edges.
    #: None = chains: each waits for the finish of the one before.
    edges: Edges | None = None
    tool_names: tuple[str, ...] = ()  # names of the values of `tool`, where they are known
    source: str = ""  # path of the file or folder
    format: str = ""  # reader that made it
    notes: tuple[str, ...] = ()  # what the reader decided or left out, in words
    counts: Mapping[str, int] = field(default_factory=dict)  # e.g. {"failed_requests_skipped": 12}

    @classmethod
    def build(
        cls,
        name: str,
        *,
        arrival_us: np.ndarray,
        prompt_tokens: np.ndarray,
        output_tokens: np.ndarray,
        program: np.ndarray | None = None,
        turn: np.ndarray | None = None,
        predicted_tokens: np.ndarray | None = None,
        klass: np.ndarray | None = None,
        priority: np.ndarray | None = None,
        pause_us: np.ndarray | None = None,
        line: np.ndarray | None = None,
        chain: np.ndarray | None = None,
        group: np.ndarray | None = None,
        group_tokens: np.ndarray | None = None,
        tool: np.ndarray | None = None,
        content: np.ndarray | None = None,
        content_start: np.ndarray | None = None,
        content_block_size: int = 0,
        edges: Edges | None = None,
        tool_names: Sequence[str] = (),
        source: str = "",
        format: str = "",
        notes: Sequence[str] = (),
        counts: Mapping[str, int] | None = None,
    ) -> Workload:
        """A validated workload; absent columns are single-turn programs of class 0 with a perfect prediction.

        Without `chain` the turns of a program extend each other as far as their lengths allow (`derive_chains`).
        `content_start` may be left out: the rows' ids follow one another. With `edges` programs are graphs, whose turns
        come behind those that they wait for, and `pause_us` is derived.

        Raises:
            UserError: the workload is empty, a time is negative or goes backwards, a token count is below 1, the turns
                of a program are not consecutive, a shared prefix or a chain does not fit into the prompts, a list of
                block ids does not fit the lengths, or edges make no graph of bounded width; the message names `source`
                and the line.
        """
        rows = len(arrival_us)
        values = {
            "arrival_us": arrival_us,
            "program": np.arange(rows) if program is None else program,
            "turn": np.zeros(rows) if turn is None else turn,
            "prompt_tokens": prompt_tokens,
            "output_tokens": output_tokens,
            "predicted_tokens": output_tokens if predicted_tokens is None else predicted_tokens,
            "klass": np.zeros(rows) if klass is None else klass,
            "priority": np.zeros(rows) if priority is None else priority,
            "pause_us": np.zeros(rows) if pause_us is None else pause_us,
            "line": np.zeros(rows) if line is None else line,
            "group": np.full(rows, -1) if group is None else group,
            "group_tokens": np.zeros(rows) if group_tokens is None else group_tokens,
            "tool": np.zeros(rows) if tool is None else tool,
            "chain": np.zeros(rows) if chain is None else chain,
        }
        where = source or name
        for column, value in values.items():
            if len(value) != rows:
                raise UserError(f"column {column} has {len(value)} rows", where=where, expected=f"{rows} rows")
        check_ranges({k: np.asarray(v) for k, v in values.items()}, where)
        columns = {k: np.ascontiguousarray(values[k], dtype=kind) for k, kind in COLUMNS.items()}
        check_order(columns, where)
        if edges is not None:
            check_edges(edges, columns, where)
            columns["pause_us"] = edges.longest_pause_us(rows)
            edges = None if edges.are_chains(columns["turn"]) else edges
        if chain is None and edges is not None:
            columns["chain"] = derive_graph_chains(edges, columns["prompt_tokens"], columns["output_tokens"])
        elif chain is None:
            columns["chain"] = derive_chains(
                *(columns[k] for k in ("program", "turn", "prompt_tokens", "output_tokens"))
            )
        check_sharing(columns, where)
        if edges is not None and content is None:
            check_forks(edges, columns, where)
        if content is not None:
            content = np.ascontiguousarray(content, np.int64)
            counted = num_full_blocks(columns["prompt_tokens"], columns["output_tokens"], max(content_block_size, 1))
            content_start = starts_of(counted) if content_start is None else np.asarray(content_start, np.int64)
            check_content(columns, content, content_start, content_block_size, where)
        return cls(
            name=name,
            content=content,
            content_start=content_start,
            content_block_size=content_block_size if content is not None else 0,
            edges=edges,
            tool_names=tuple(tool_names),
            source=source,
            format=format,
            notes=tuple(notes),
            counts=dict(counts or {}),
            **columns,
        )

    # -- facts -----------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Number of turns (rows)."""
        return len(self.arrival_us)

    @property
    def first_mask(self) -> np.ndarray:
        """bool [rows]: True on the first turn of each program."""
        return self.turn == 0

    @property
    def num_programs(self) -> int:
        """Number of programs."""
        return int(np.count_nonzero(self.first_mask))

    @property
    def num_classes(self) -> int:
        """Smallest number of classes that holds every `klass`."""
        return int(self.klass.max()) + 1

    @property
    def shares(self) -> bool:
        """Whether turns may share content by chain or group: some program has a second turn, or some turn a group."""
        return bool((self.turn > 0).any() or (self.group >= 0).any())

    @property
    def program_arrival_us(self) -> np.ndarray:
        """int64 [num_programs]: arrival times of the programs, non-decreasing."""
        return self.arrival_us[self.first_mask]

    @property
    def span_s(self) -> float:
        """Seconds between the first and the last program's arrival."""
        return float(self.arrival_us[-1] - self.arrival_us[0]) / 1e6

    @property
    def rate_per_s(self) -> float:
        """Mean arrival rate of programs: (num_programs - 1) / span. Raises UserError when the span is zero."""
        if self.span_s <= 0.0:
            raise UserError(
                f"all {self.num_programs} programs arrive at the same time: no arrival rate",
                where=self.source or self.name,
                expected="at least two distinct arrival times",
            )
        return (self.num_programs - 1) / self.span_s

    # -- operations ------------------------------------------------------------------------------------------------

    def scale_load(self, factor: float) -> Workload:
        """`factor` times the arrival rate: every arrival time is divided by it (to the nearest microsecond).

        Pauses, lengths and identities stay as they are, so two loads of one trace are paired request by request.
        """
        _check_positive(factor, "load factor")
        return self._replace(arrival_us=np.rint(self.arrival_us / float(factor)).astype(np.int64))

    def to_rate(self, rate_per_s: float) -> Workload:
        """Scale the load so that programs arrive at `rate_per_s` on average."""
        _check_positive(rate_per_s, "rate_per_s")
        return self.scale_load(rate_per_s / self.rate_per_s)

    @property
    def is_job_list(self) -> bool:
        """Whether all programs are there at one instant."""
        return self.span_s == 0.0

    def as_job_list(self) -> Workload:
        """The same programs, all there at time 0."""
        return self._replace(arrival_us=np.zeros_like(self.arrival_us))

    def slice_time(self, start_s: float, end_s: float) -> Workload:
        """Programs that arrive in ``[start_s, end_s)``, with all their turns; the slice's clock starts at `start_s`."""
        if not 0.0 <= start_s < end_s:
            raise UserError(f"time slice [{start_s}, {end_s}) s", expected="0 <= start_s < end_s")
        start_us, end_us = round(start_s * 1e6), round(min(end_s, MAX_TIME_US / 1e6) * 1e6)
        lo, hi = np.searchsorted(self.arrival_us, [start_us, end_us], side="left")
        chosen = self._rows(slice(int(lo), int(hi)), f"no program arrives in [{start_s}, {end_s}) s")
        return chosen._replace(arrival_us=chosen.arrival_us - start_us)

    def restarted(self, rate_per_s: float, seed: int) -> Workload:
        """The same programs in an order of their own, starting as a Poisson process: another draw of such arrivals.

        For sessions without a common clock. Order and gaps are keyed by `seed`; lengths and pauses stay.
        """
        _check_positive(rate_per_s, "rate_per_s")
        identity = self.program[self.first_mask]
        num = len(identity)
        order = np.argsort(keyed_uniform(seed, identity, np.ones(num, np.int64)), kind="stable")
        arrival_us = np.cumsum(np.rint(keyed_exponential(seed, np.arange(num)) * 1e6 / rate_per_s).astype(np.int64))
        place = np.empty(num, np.int64)
        place[order] = np.arange(num)
        place = place[np.cumsum(self.first_mask) - 1]  # of every row's program
        rows = np.argsort(place, kind="stable")
        return self._rows(rows, "", arrival_us=arrival_us[place[rows]])

    def head(self, num_programs: int) -> Workload:
        """The first `num_programs` programs (all of them when there are fewer)."""
        if num_programs < 1:
            raise UserError(f"head of {num_programs} programs", expected="at least 1")
        starts = np.flatnonzero(self.first_mask)
        stop = len(self) if num_programs >= len(starts) else int(starts[num_programs])
        return self._rows(slice(0, stop), "")

    def thin(self, fraction: float, seed: int = 0) -> Workload:
        """Keep about `fraction` of the programs, chosen by a hash of (seed, program).

        The choice depends on identity only: thinning is nested (a smaller fraction keeps a subset of a larger one)
        and commutes with slicing. Raises UserError when nothing is left.
        """
        if not 0.0 < fraction <= 1.0:
            raise UserError(f"thinning fraction {fraction}", expected="a number in (0, 1]")
        keep = keyed_uniform(seed, self.program) < fraction
        return self._rows(keep, f"thinning to {fraction} leaves no program")

    def with_predictions(self, error_sigma: float, seed: int = 0) -> Workload:
        """Predicted output lengths ``output * exp(error_sigma * z)``, z standard normal keyed by (seed, program, turn).

        The error is multiplicative, with median 1; sigma 0 gives the oracle. The prediction is at least 1.
        """
        if not error_sigma >= 0.0:
            raise UserError(f"prediction error sigma {error_sigma}", expected="a number >= 0")
        z = keyed_normal(seed, self.program, self.turn)
        noisy = np.rint(self.output_tokens * np.exp(error_sigma * z))
        return self._replace(predicted_tokens=np.clip(noisy, 1, MAX_TOKENS).astype(np.int32))

    def split_content(self, block_tokens: int) -> Workload:
        """The same workload with block ids for smaller blocks; `block_tokens` must divide `content_block_size`.

        Blocks behind the last full one of the list get ids of their own, so at most one large block per turn of what
        turns really share is lost.
        """
        if self.content is None:
            raise UserError("no block ids to split", where=self.source or self.name, expected="a trace with block ids")
        lengths = self.prompt_tokens, self.output_tokens
        content = split_blocks(self.content, *lengths, self.content_block_size, block_tokens)
        start = starts_of(num_full_blocks(*lengths, block_tokens))
        return self._replace(content=content, content_start=start, content_block_size=block_tokens)

    def with_block_ids(self, block_tokens: int) -> Workload:
        """The same workload with what chains and groups say written as block ids (the table form of the formula)."""
        if block_tokens < 1:
            raise UserError(f"block_tokens {block_tokens}", expected="at least 1")
        lengths = self.prompt_tokens, self.output_tokens
        content = ids_of_chains(self.chain, self.group, self.group_tokens, *lengths, block_tokens)
        start = starts_of(num_full_blocks(*lengths, block_tokens))
        return self._replace(content=content, content_start=start, content_block_size=block_tokens)

    def to_requests(self, pad_to: int | None = None, block_size: int | None = None) -> Requests:
        """The machine's table: first turns by arrival, then later turns, padded with inert rows to `pad_to` rows.

        Chains are named by the device row that began them and block ids are renumbered 0, 1, 2, ... Columns that would
        say nothing are left out: chains and groups where no two turns share anything, or where block ids say it.

        Args:
            pad_to: rows of the table.
            block_size: blocks of the cache that will use the ids, tokens; None = do not check.

        Raises:
            UserError: `pad_to` is smaller than the number of turns, or the block ids are of another block size.
        """
        return as_requests(to_table([self], len(self) if pad_to is None else pad_to, block_size)[0])

    @classmethod
    def from_requests(cls, requests: Requests, name: str = "requests", content_block_size: int = 0) -> Workload:
        """The workload of one lane of a device table (the inverse of `to_requests`; unreachable rows are dropped).

        `content_block_size` is needed for a table with block ids: the table does not say how many tokens one covers.
        """
        columns, row = from_table(requests)
        content = content_of(requests, row, content_block_size)
        return cls.build(name, content=content, content_block_size=content_block_size, **columns)

    # -- helpers ---------------------------------------------------------------------------------------------------

    def _replace(self, **changes) -> Workload:
        """A copy with columns changed, validated again."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | changes
        # Block ids follow from ones that were checked: looking at millions of them again would take seconds.
        ids = {name: fields.pop(name) for name in ("content", "content_start", "content_block_size")}
        return dataclasses.replace(Workload.build(**fields), **ids)

    def _rows(self, index: slice | np.ndarray, empty_problem: str, **changes: np.ndarray) -> Workload:
        """The chosen rows (whole programs) with columns changed, or a UserError when none is left."""
        columns = {k: getattr(self, k)[index] for k in COLUMNS} | changes
        if len(columns["arrival_us"]) == 0:
            raise UserError(empty_problem, where=self.source or self.name, expected="at least one program")
        if self.content is not None and self.content_start is not None:
            counts = num_full_blocks(columns["prompt_tokens"], columns["output_tokens"], self.content_block_size)
            columns["content"] = gather(self.content, self.content_start[index], counts)
            columns["content_start"] = starts_of(counts)
        if self.edges is not None:
            columns["edges"] = self.edges.take(index, len(self))
        return self._replace(**columns)


def stack(workloads: Sequence[Workload], pad_to: int | None = None, block_size: int | None = None) -> Requests:
    """One device table with a leading lane axis ``[lanes, rows]``, each lane padded to the longest (or `pad_to`).

    Raises:
        UserError: no workloads, a lane longer than `pad_to`, or block ids in some lanes only or of other block sizes.
    """
    if not workloads:
        raise UserError("no workloads to stack", expected="at least one")
    size = max(len(w) for w in workloads) if pad_to is None else pad_to
    lanes = to_table(workloads, size, block_size)
    return as_requests({k: np.stack([lane[k] for lane in lanes]) for k in lanes[0]})


def _check_positive(value: float, name: str) -> None:
    if not (np.isfinite(value) and value > 0.0):
        raise UserError(f"{name} {value}", expected="a finite number > 0")
