"""What the machine's counters and histograms must hold, worked out from the reference's records and step logs.

Definitions: docs/metrics.md. Only for runs without prefix caching and with all times below 2^24 us (16.8 s): there
float32 microseconds are exact.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from jaxsched.metrics.histogram import HIGH_EXPONENT, LOW_EXPONENT, NUM_BINS
from jaxsched.sim.state import Count, Hist
from tests.oracle.cluster import Result
from tests.oracle.data import Workload


def token_times(workload: Workload, result: Result) -> dict[int, list[int]]:
    """Times at which each row's output tokens were made, read off the step logs."""
    times: dict[int, list[int]] = defaultdict(list)
    for log in result.steps:
        computed: dict[int, int] = defaultdict(int)
        for step in log:
            for row in step["preempted"]:
                computed[row] = 0
            for row, n in step["tokens"]:
                computed[row] += n
                if computed[row] == workload.prompt_tokens[row] + len(times[row]):
                    times[row].append(step["t_end_us"])
    return times


class Expected:
    """Counters by `Count`, histograms ``[classes, Hist, bins]``, turns per class that finished and met their SLOs."""

    def __init__(
        self,
        workload: Workload,
        result: Result,
        measured: range,
        slos_us: tuple[tuple[int, int], tuple[int, int], tuple[int, int]],
        gaps_us: tuple[int, int] = (2**31, 2**31),
    ):
        self.histograms = np.zeros((2, len(Hist), NUM_BINS), np.int64)
        self.class_finished, self.class_good = np.zeros(2, np.int64), np.zeros(2, np.int64)
        self._count(workload, result, measured)
        program = list(range(len(workload.prompt_tokens)))
        for row, following in enumerate(workload.next_turn):
            if following >= 0:
                program[following] = program[row]
        self.gaps_us = gaps_us
        self.times = token_times(workload, result)
        for record in result.records:
            self._tokens(self.times[record.row])
            if program[record.row] in measured:
                self._latencies(workload, result, record.row, program[record.row], slos_us)

    def _count(self, workload: Workload, result: Result, measured: range) -> None:
        fates = [record.fate for record in result.records]
        steps = [step for log in result.steps for step in log if step["tokens"]]
        last = [fate for fate, following in zip(fates, workload.next_turn, strict=True) if following < 0]
        self.counts = {
            Count.ARRIVED: len(fates) - fates.count("never_arrived"),
            Count.FINISHED: fates.count("finished"),
            Count.REJECTED_SIZE: fates.count("rejected_size"),
            Count.REJECTED_QUEUE: fates.count("rejected_queue"),
            Count.TIMED_OUT: fates.count("timed_out"),
            Count.PREEMPTIONS: sum(record.preemptions for record in result.records),
            Count.SCHEDULED_TOKENS: sum(step["total"] for step in steps),
            Count.ENGINE_STEPS: len(steps),
            Count.BUSY_US: sum(step["t_end_us"] - step["t_start_us"] for step in steps),
            Count.PROGRAMS_DONE: last.count("finished"),
        }

    def _add(self, hist: Hist, klass: int, value_us: np.float32) -> None:
        exponent = np.floor(np.log2(max(value_us, np.float32(1))))
        mantissa = int(np.float32(value_us) / np.float32(2.0) ** exponent * 32) - 32  # 32 equal bins per octave
        bin_ = int(exponent - LOW_EXPONENT) * 32 + mantissa
        assert exponent < HIGH_EXPONENT
        self.histograms[klass, hist, max(bin_, 0)] += 1

    def _tokens(self, times: list[int]) -> None:
        gaps = np.diff(np.asarray(times, np.int64)).astype(np.float32)
        for gap in gaps:
            self._add(Hist.TBT, 0, gap)
        if len(gaps):
            self._add(Hist.TTST, 0, gaps[0])

    def _latencies(self, workload: Workload, result: Result, row: int, first_row: int, slos_us) -> None:
        record, klass = result.records[row], workload.klass[row]
        arrival, output = record.arrival_us, workload.output_tokens[row]
        if record.first_scheduled_us >= 0:
            self._add(Hist.QUEUE, klass, np.float32(record.first_scheduled_us - arrival))
        ttft = np.float32(record.first_token_us - arrival)
        if record.first_token_us >= 0:
            self._add(Hist.TTFT, klass, ttft)
        if record.fate != "finished":
            return
        e2e = np.float32(record.finish_us - arrival)
        tpot = (e2e - ttft) / np.float32(max(output - 1, 1))
        self._add(Hist.E2E, klass, e2e)
        self._add(Hist.NORMALISED, klass, e2e / np.float32(output))
        if output > 1:
            self._add(Hist.TPOT, klass, tpot)
        if workload.next_turn[row] < 0:
            self._add(Hist.JCT, klass, np.float32(record.finish_us - result.records[first_row].arrival_us))
        self.class_finished[klass] += 1
        slo_ttft, slo_tpot, slo_e2e = (slo[klass] for slo in slos_us)
        longest_gap = max(np.diff(np.asarray(self.times[row], np.int64)), default=0)
        in_time = e2e <= slo_e2e and longest_gap <= self.gaps_us[klass]
        self.class_good[klass] += ttft <= slo_ttft and (output == 1 or tpot <= slo_tpot) and in_time
