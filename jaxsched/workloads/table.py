"""The host-side workload: one numpy row per turn, validated once, then sliced, thinned and scaled without copies per
lane.

A `Workload` is what readers return. It keeps absolute time in int64 microseconds (two weeks are 1.2e12 of them) and
becomes the machine's int32 table only in `Workload.to_requests`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxsched.errors import UserError
from jaxsched.sim.clock import EPOCH_US, join_us, split_us
from jaxsched.sim.requests import Requests
from jaxsched.workloads.hashing import keyed_normal, keyed_uniform

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
}
#: Latest representable time: the machine counts epochs in int32 and adds pauses to clock readings.
MAX_TIME_US = (2**30) * EPOCH_US
MAX_TOKENS = 2**30


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
        source: str = "",
        format: str = "",
        notes: Sequence[str] = (),
        counts: Mapping[str, int] | None = None,
    ) -> Workload:
        """A validated workload; absent columns are single-turn programs of class 0 with a perfect prediction.

        Raises:
            UserError: the workload is empty, a time is negative or goes backwards, a token count is below 1, or the
                turns of a program are not consecutive; the message names `source` and the line.
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
        }
        where = source or name
        for column, value in values.items():
            if len(value) != rows:
                raise UserError(f"column {column} has {len(value)} rows", where=where, expected=f"{rows} rows")
        _check_ranges({k: np.asarray(v) for k, v in values.items()}, where)
        columns = {k: np.ascontiguousarray(v, dtype=COLUMNS[k]) for k, v in values.items()}
        _check_order(columns, where)
        return cls(name=name, source=source, format=format, notes=tuple(notes), counts=dict(counts or {}), **columns)

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

    def slice_time(self, start_s: float, end_s: float) -> Workload:
        """Programs that arrive in ``[start_s, end_s)``, with all their turns; the slice's clock starts at `start_s`."""
        if not 0.0 <= start_s < end_s:
            raise UserError(f"time slice [{start_s}, {end_s}) s", expected="0 <= start_s < end_s")
        start_us, end_us = round(start_s * 1e6), round(min(end_s, MAX_TIME_US / 1e6) * 1e6)
        lo, hi = np.searchsorted(self.arrival_us, [start_us, end_us], side="left")
        chosen = self._rows(slice(int(lo), int(hi)), f"no program arrives in [{start_s}, {end_s}) s")
        return chosen._replace(arrival_us=chosen.arrival_us - start_us)

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

    def to_requests(self, pad_to: int | None = None) -> Requests:
        """The machine's table: first turns by arrival, then later turns, padded with inert rows to `pad_to` rows.

        Raises:
            UserError: `pad_to` is smaller than the number of turns.
        """
        size = len(self) if pad_to is None else pad_to
        return Requests(**{k: jnp.asarray(v) for k, v in self._device_columns(size).items()})

    @classmethod
    def from_requests(cls, requests: Requests, name: str = "requests") -> Workload:
        """The workload of one lane of a device table (the inverse of `to_requests`; unreachable rows are dropped)."""
        table = {k: np.asarray(v) for k, v in vars(requests).items()}
        programs = int(table["num_programs"])
        rows, owner, turn = [np.arange(programs)], [np.arange(programs)], [np.zeros(programs, np.int32)]
        while True:
            following = table["next_turn"][rows[-1]]
            alive = following >= 0
            if not alive.any():
                break
            rows.append(following[alive])
            owner.append(owner[-1][alive])
            turn.append(np.full(int(alive.sum()), len(turn), np.int32))
        row, program, turns = np.concatenate(rows), np.concatenate(owner), np.concatenate(turn)
        order = np.lexsort((turns, program))
        row, program, turns = row[order], program[order], turns[order]
        plain = ("prompt_tokens", "output_tokens", "predicted_tokens", "klass", "priority")
        rest: dict[str, Any] = {k: table[k][row] for k in plain}
        return cls.build(
            name,
            arrival_us=join_us(table["arrival_epoch"], table["arrival_us"])[program],
            program=program,
            turn=turns,
            pause_us=np.where(turns == 0, 0, join_us(table["pause_epoch"], table["pause_us"])[row]),
            **rest,
        )

    # -- helpers ---------------------------------------------------------------------------------------------------

    def _replace(self, **changes) -> Workload:
        """A copy with columns changed, validated again."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return Workload.build(**{**fields, **changes})

    def _rows(self, index: slice | np.ndarray, empty_problem: str) -> Workload:
        """The chosen rows (whole programs), or a UserError when none is left."""
        columns = {k: getattr(self, k)[index] for k in COLUMNS}
        if len(columns["arrival_us"]) == 0:
            raise UserError(empty_problem, where=self.source or self.name, expected="at least one program")
        return self._replace(**columns)

    def _device_columns(self, size: int) -> dict[str, np.ndarray]:
        """int32 columns of `Requests`, `size` rows."""
        if size < len(self):
            raise UserError(f"table of {size} rows for {len(self)} turns", where=self.name, expected=f">= {len(self)}")
        first = self.first_mask
        order = np.concatenate([np.flatnonzero(first), np.flatnonzero(~first)])
        position = np.empty(len(self), np.int32)
        position[order] = np.arange(len(self), dtype=np.int32)
        following = np.full(len(self), -1, np.int32)
        has_next = np.flatnonzero(self.turn[1:] > 0)  # row i is followed by a later turn of the same program
        following[has_next] = position[has_next + 1]
        arrival_epoch, arrival_us = split_us(np.where(first, self.arrival_us, 0))
        pause_epoch, pause_us = split_us(self.pause_us)
        columns = {
            "arrival_epoch": arrival_epoch,
            "arrival_us": arrival_us,
            "next_turn": following,
            "pause_epoch": pause_epoch,
            "pause_us": pause_us,
        }
        for name in ("prompt_tokens", "output_tokens", "predicted_tokens", "klass", "priority"):
            columns[name] = getattr(self, name)
        inert = {"prompt_tokens": 1, "output_tokens": 1, "predicted_tokens": 1, "next_turn": -1}
        table: dict[str, np.ndarray] = {"num_programs": np.asarray(self.num_programs, np.int32)}
        table["program"] = np.arange(size, dtype=np.int32)  # padding belongs to itself
        table["program"][: len(self)] = (np.cumsum(first, dtype=np.int32) - 1)[order]
        for name, value in columns.items():
            table[name] = np.full(size, inert.get(name, 0), np.int32)
            table[name][: len(self)] = value[order]
        return table


def stack(workloads: Sequence[Workload], pad_to: int | None = None) -> Requests:
    """One device table with a leading lane axis ``[lanes, rows]``, each lane padded to the longest (or `pad_to`)."""
    if not workloads:
        raise UserError("no workloads to stack", expected="at least one")
    size = max(len(w) for w in workloads) if pad_to is None else pad_to
    lanes = [w._device_columns(size) for w in workloads]
    return Requests(**{k: jnp.asarray(np.stack([lane[k] for lane in lanes])) for k in lanes[0]})


def _check_positive(value: float, name: str) -> None:
    if not (np.isfinite(value) and value > 0.0):
        raise UserError(f"{name} {value}", expected="a finite number > 0")


def _check_ranges(columns: Mapping[str, np.ndarray], where: str) -> None:
    """Refuse an empty table and values outside a column's range, naming the first bad row."""
    if len(columns["arrival_us"]) == 0:
        raise UserError("empty workload: no requests", where=where, expected="at least one request")
    limits = {
        "arrival_us": (0, MAX_TIME_US),
        "pause_us": (0, MAX_TIME_US),
        "prompt_tokens": (1, MAX_TOKENS),
        "output_tokens": (1, MAX_TOKENS),
        "predicted_tokens": (1, MAX_TOKENS),
        "klass": (0, 2**30),
        "priority": (-(2**30), 2**30),
        "turn": (0, 2**30),
        "line": (0, 2**31 - 1),
    }
    for name, (low, high) in limits.items():
        value = columns[name]
        bad = ~((value >= low) & (value <= high))  # NaN fails both comparisons
        if bad.any():
            row = int(np.argmax(bad))
            raise UserError(
                f"{name} is {value[row]}",
                where=_place(columns["line"], row, where),
                expected=f"{low} <= {name} <= {high}",
            )


def _check_order(columns: Mapping[str, np.ndarray], where: str) -> None:
    """Refuse arrivals that go backwards and programs whose turns are not 0, 1, 2, ... in consecutive rows."""
    arrival, program, turn = columns["arrival_us"], columns["program"], columns["turn"]
    back = np.flatnonzero(arrival[1:] < arrival[:-1])
    if len(back):
        row = int(back[0]) + 1
        raise UserError(
            f"timestamp {arrival[row] / 1e6:.6f} s is earlier than the one before it ({arrival[row - 1] / 1e6:.6f} s)",
            where=_place(columns["line"], row, where),
            expected="arrival times that never decrease",
            hint="Sort the trace by time first.",
        )
    later = turn > 0
    broken = later.copy()
    broken[1:] &= (turn[1:] != turn[:-1] + 1) | (program[1:] != program[:-1]) | (arrival[1:] != arrival[:-1])
    broken |= ~later & (columns["pause_us"] != 0)
    if broken.any():
        row = int(np.argmax(broken))
        raise UserError(
            f"turn {turn[row]} of program {program[row]} does not follow its previous one, or a first turn has a pause",
            where=_place(columns["line"], row, where),
            expected="the turns of a program in consecutive rows, counted from 0",
        )


def _place(line: np.ndarray, row: int, where: str) -> str:
    """``file, line N`` when the line is known, else the row."""
    number = int(line[row])
    return f"{where}, line {number}" if number > 0 else f"{where}, row {row}"
