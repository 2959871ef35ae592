"""Tiny episodes worked out by hand: engines of the V1 family.

Everywhere a block is 4 tokens and a step of T tokens takes 10 + T us. Rows 0, 1, 2, ... are A, B, C, ...
"c6" = 6 tokens computed after this step, "g2" = 2 outputs at the step's end.
"""

from __future__ import annotations

import pytest

from tests.oracle.cluster import Result, simulate
from tests.oracle.data import EngineConfig, StepFeatures, Workload


def ten_plus_total(features: StepFeatures) -> int:
    return 10 + features.total_tokens


def engine(**settings: object) -> EngineConfig:
    return EngineConfig(**({"block_size": 4, "usable_blocks": 100} | settings))  # type: ignore[arg-type]


def steps(result: Result, instance: int = 0) -> list[tuple]:
    """(t_sched, t_start, t_end, tokens, preempted, finished, free blocks after schedule()) of each step."""
    return [
        (s["t_sched_us"], s["t_start_us"], s["t_end_us"], s["tokens"], s["preempted"], s["finished"], s["free_blocks"])
        for s in result.steps[instance]
    ]


def sync_steps(result: Result, instance: int = 0) -> list[tuple]:
    """`steps` without t_start, which synchronous engines have equal to t_sched."""
    assert all(s[0] == s[1] for s in steps(result, instance))
    return [(s[0], *s[2:]) for s in steps(result, instance)]


def lives(result: Result) -> list[tuple | str]:
    """(first scheduled, first token, finish, preemptions, scheduled tokens) of each finished request, else its fate."""
    return [
        (r.first_scheduled_us, r.first_token_us, r.finish_us, r.preemptions, r.scheduled_tokens_total)
        if r.fate == "finished"
        else r.fate
        for r in result.records
    ]


def test_vllm_chunks_a_prompt_and_preempts_the_last_admitted() -> None:
    # A needs ceil((6 + 5 - 1) / 4) = 3 blocks in all, B 2; the pool has 4.
    result = simulate(Workload.simple([0, 0], [6, 5], [5, 4]), engine(usable_blocks=4, token_budget=8), ten_plus_total)
    assert sync_steps(result) == [
        (0, 18, [[0, 6], [1, 2]], [], [], 1),  # A c6 g1 (2 blocks); B: whole prompt 2 <= 2 free, chunk 2 (1 block)
        (18, 32, [[0, 1], [1, 3]], [], [], 0),  # A c7 g2; B c5 g1, its second block
        (32, 44, [[0, 1], [1, 1]], [], [], 0),  # A c8 g3; B c6 g2
        (44, 55, [[0, 1]], [1], [], 1),  # A c9 g4 needs a third block: B out; 2 freed, 1 taken; nobody is admitted
        (55, 66, [[0, 1]], [], [0], 1),  # A c10 g5 = done; B's 7 tokens need 2 > 1
        (66, 83, [[1, 7]], [], [], 2),  # B recomputes 5 + 2, g3
        (83, 94, [[1, 1]], [], [1], 2),  # B c8 g4 = done
    ]
    assert lives(result) == [(0, 18, 66, 0, 10), (0, 32, 94, 1, 14)]


def test_vllm_priority_victim_already_in_the_step_is_refunded() -> None:
    # A (priority 2) is older in the running list than B (priority 1); the pool has 3 blocks.
    result = simulate(
        Workload.simple([0, 1], [4, 4], [4, 5], priority=[2, 1]),
        engine(usable_blocks=3, order="priority"),
        ten_plus_total,
    )
    assert sync_steps(result) == [
        (0, 14, [[0, 4]], [], [], 2),  # A c4 g1
        (14, 29, [[0, 1], [1, 4]], [], [], 0),  # A c5 g2 (2 blocks), B c4 g1 (1)
        (29, 40, [[1, 1]], [0], [], 1),  # A was given c6, then B needs a block: A is the victim, its token refunded
        (40, 51, [[1, 1]], [], [], 1),  # B c6 g3; A's 6 tokens need 2 > 1
        (51, 62, [[1, 1]], [], [], 1),  # B c7 g4
        (62, 73, [[1, 1]], [], [1], 1),  # B c8 g5 = done
        (73, 89, [[0, 6]], [], [], 1),  # A recomputes 4 + 2, g3
        (89, 100, [[0, 1]], [], [0], 1),  # A c7 g4 = done
    ]
    assert lives(result) == [(0, 14, 100, 1, 4 + 1 + 6 + 1), (14, 29, 73, 0, 8)]


def test_vllm_priority_self_preemption_goes_on_with_the_next_request() -> None:
    # A (priority 2) cannot get its second block and is itself the worst: it leaves, B behind it runs.
    result = simulate(
        Workload.simple([0, 0, 1], [4, 3, 1], [2, 2, 1], priority=[2, 1, 3]),
        engine(usable_blocks=2, order="priority"),
        ten_plus_total,
    )
    assert sync_steps(result) == [
        (0, 17, [[1, 3], [0, 4]], [], [], 0),  # the queue is ordered: B before A
        # B c4 stays in its block, g2 = done; A needs a second block: out. C waits: a call that preempted admits nobody.
        (17, 28, [[1, 1]], [0], [1], 1),
        (28, 43, [[0, 5]], [], [0], 0),  # A (priority 2) before C (3): 5 tokens in 2 blocks, g2 = done
        (43, 54, [[2, 1]], [], [2], 1),
    ]


def test_long_prefill_threshold_is_off_for_a_lone_request_and_adapts_to_the_number_of_requests() -> None:
    workload = Workload.simple([0, 1], [20, 6], [1, 1])
    common = {"token_budget": 12, "long_prefill_threshold": 2}
    plain = simulate(workload, engine(**common), ten_plus_total)
    adaptive = simulate(workload, engine(**common, adaptive=True), ten_plus_total)
    assert [s[2] for s in sync_steps(plain)] == [
        [[0, 12]],  # A alone: no threshold
        [[0, 2], [1, 2]],
        [[0, 2], [1, 2]],
        [[0, 2], [1, 2]],  # B done
        [[0, 2]],  # 12 + 4 * 2 = 20: A done
    ]
    assert [s[2] for s in sync_steps(adaptive)] == [
        [[0, 12]],
        [[0, 6], [1, 6]],  # max(2, 12 // 2) = 6; B done
        [[0, 2]],
    ]


def test_watermark_applies_only_while_something_runs() -> None:
    # 5 blocks, watermark 2. A (4 blocks) may come alone; B (2 blocks) needs 2 + 2 <= free while something runs.
    result = simulate(
        Workload.simple([0, 0, 40], [16, 8, 8], [2, 2, 1]), engine(usable_blocks=5, watermark_blocks=2), ten_plus_total
    )
    assert sync_steps(result) == [
        (0, 26, [[0, 16]], [], [], 1),  # 4 + 2 > 5, but nothing runs
        (26, 37, [[0, 1]], [], [0], 0),
        (37, 55, [[1, 8]], [], [], 3),
        (55, 66, [[1, 1]], [], [1], 2),  # C: 2 + 2 > 2
        (66, 84, [[2, 8]], [], [2], 3),
    ]


def test_full_prompt_check_can_be_turned_off() -> None:
    # B's prompt needs 3 blocks, 2 are free; its first chunk of 4 tokens needs 1.
    workload, common = Workload.simple([0, 0], [8, 12], [1, 1]), {"usable_blocks": 4, "token_budget": 12}
    on = simulate(workload, engine(**common), ten_plus_total)
    off = simulate(workload, engine(**common, reserve_full_isl=False), ten_plus_total)
    assert [s[2] for s in sync_steps(on)] == [[[0, 8]], [[1, 12]]]
    assert [s[2] for s in sync_steps(off)] == [[[0, 8], [1, 4]], [[1, 8]]]


def test_without_chunking_a_prompt_waits_for_the_whole_budget() -> None:
    workload = Workload.simple([0, 0, 0], [6, 5, 2], [1, 1, 1])
    result = simulate(workload, engine(token_budget=8, chunked_prefill=False), ten_plus_total)
    assert [s[2] for s in sync_steps(result)] == [[[0, 6]], [[1, 5], [2, 2]]]  # 5 > 2 left: stop, though C would fit


def test_async_schedules_one_step_ahead_and_sees_arrivals_one_step_later() -> None:
    result = simulate(
        Workload.simple([0, 15], [4, 4], [3, 1]), engine(usable_blocks=8, asynchronous=True), ten_plus_total
    )
    assert steps(result) == [
        (0, 0, 14, [[0, 4]], [], [], 7),
        (0, 14, 25, [[0, 1]], [], [], 6),  # second call at once: A's first token is in flight, c5
        (14, 25, 36, [[0, 1]], [], [0], 6),  # A c6: yields its third and last token
        (25, 36, 50, [[1, 4]], [], [1], 5),  # A waits for its last output, holding its blocks; B came at 15
    ]
    assert lives(result) == [(0, 14, 36, 0, 6), (25, 50, 50, 0, 4)]


def test_async_request_preempted_with_its_last_token_in_flight_finishes_while_waiting() -> None:
    result = simulate(
        Workload.simple([0, 0], [3, 3], [4, 2]), engine(usable_blocks=2, asynchronous=True), ten_plus_total
    )
    assert steps(result) == [
        (0, 0, 16, [[0, 3], [1, 3]], [], [], 0),
        (0, 16, 28, [[0, 1], [1, 1]], [], [1], 0),  # c4 both; yields A g2 and B g2 = done
        (16, 28, 39, [[0, 1]], [1], [], 0),  # A c5 needs a block: B loses its blocks while its last token is in flight
        (28, 39, 50, [[0, 1]], [], [0], 0),  # B finished at 28; A c6, g4 = done
    ]
    assert lives(result) == [(0, 16, 50, 0, 6), (0, 16, 28, 1, 4)]


def test_sjf_admits_the_smallest_prediction_first_ties_by_arrival() -> None:
    workload = Workload.simple([0, 1, 2, 3], [4, 1, 1, 1], [1, 1, 1, 1], predicted_tokens=[1, 9, 3, 3])
    result = simulate(workload, engine(order="sjf", max_num_seqs=1), ten_plus_total)
    assert [s[2] for s in sync_steps(result)] == [[[0, 4]], [[2, 1]], [[3, 1]], [[1, 1]]]


def test_srpt_preempts_for_a_shorter_request_and_recomputes() -> None:
    workload = Workload.simple([0, 1], [4, 5], [4, 1])
    result = simulate(workload, engine(usable_blocks=3, order="srpt", max_num_seqs=1, token_budget=5), ten_plus_total)
    assert sync_steps(result) == [
        (0, 14, [[0, 4]], [], [], 2),  # A g1: 3 remain
        (
            14,
            29,
            [[1, 5]],
            [0],
            [1],
            1,
        ),  # B (1 remains) takes the only slot; A's token is refunded: B has the budget of 5
        (29, 44, [[0, 5]], [], [], 1),  # A recomputes 4 + 1, g2
        (44, 55, [[0, 1]], [], [], 1),
        (55, 66, [[0, 1]], [], [0], 1),
    ]
    assert lives(result) == [(0, 14, 66, 1, 11), (14, 29, 29, 0, 5)]


def test_srpt_victim_among_equals_is_the_last_admitted() -> None:
    workload = Workload.simple([0, 0, 1], [2, 2, 1], [4, 4, 1])
    result = simulate(workload, engine(order="srpt", max_num_seqs=2), ten_plus_total)
    assert sync_steps(result)[:2] == [
        (0, 14, [[0, 2], [1, 2]], [], [], 98),
        (14, 26, [[0, 1], [2, 1]], [1], [2], 98),
    ]


def test_srpt_does_not_preempt_for_an_equal_request() -> None:
    workload = Workload.simple([0, 1], [4, 2], [4, 3])  # at 14 both have 3 to go
    result = simulate(workload, engine(order="srpt", max_num_seqs=1), ten_plus_total)
    assert lives(result)[0] == (0, 14, 47, 0, 7)
    assert result.records[1].first_scheduled_us == 47


def test_mlfq_demotes_by_attained_tokens_and_lets_a_higher_level_push_out_a_lower_one() -> None:
    # Quantum 4, 3 levels: up to 4 tokens level 0, up to 8 level 1, else 2. The pool has 3 blocks.
    result = simulate(
        Workload.simple([0, 1, 2], [5, 6, 3], [6, 1, 2]),
        engine(usable_blocks=3, order="mlfq", mlfq_quantum=4, mlfq_levels=3),
        ten_plus_total,
    )
    assert sync_steps(result) == [
        (0, 15, [[0, 5]], [], [], 1),
        (15, 29, [[0, 1], [2, 3]], [], [], 0),  # C (prompt 3: level 0) before B (prompt 6: level 1)
        (29, 41, [[0, 1], [2, 1]], [], [2], 0),  # B does not fit; A c7 is level 1 too: no preemption
        (41, 52, [[0, 1]], [], [], 1),  # A c8: still level 1; B needs 2 > 1
        (52, 68, [[1, 6]], [0], [1], 1),  # A c9 would be level 2 > 1: out; B in; A's 9 tokens need 3 > 1
        (68, 87, [[0, 9]], [], [], 0),
        (87, 98, [[0, 1]], [], [0], 0),  # A c10 g6 = done
    ]
    assert lives(result) == [(0, 15, 98, 1, 18), (52, 68, 68, 0, 6), (15, 29, 41, 0, 4)]


@pytest.mark.parametrize(
    ("b_arrival_us", "w", "order"),
    [
        # At 14: A waited 12: 12 * 4 / 3 = 16. B waited 3: 3 * 4 / 1 = 12. C is behind B in its queue.
        (11, 0.0, [1, 2, 3]),
        # B waited 5: 20 > 16. At 27: A 25 * 4 / 3 = 33.3, C 15 * 4 = 60.
        (9, 0.0, [2, 3, 1]),
        # A: 16 * (1 + ln 9) = 51.2; B: 20 * (1 + ln 4) = 47.7.
        (9, 1.0, [1, 2, 3]),
    ],
)
def test_ewsjf_weighs_waiting_against_length(b_arrival_us: int, w: float, order: list[int]) -> None:
    workload = Workload.simple([0, 2, b_arrival_us, 12], [4, 8, 3, 2], [1, 1, 1, 1])
    settings = engine(order="ewsjf", max_num_seqs=1, ewsjf_step=4, ewsjf_num_queues=3, ewsjf_w=w)
    result = simulate(workload, settings, ten_plus_total)
    assert [row for s in sync_steps(result) for row, _ in s[2]] == [0, *order]
    assert result.smallest_gap > 0.05


def test_a_running_request_past_its_deadline_is_aborted_and_a_waiting_one_dropped_at_the_head() -> None:
    # Class 0 times out after 30 us, class 1 never. One slot. Deadlines: A 30, B 31, D 40. A needs all 4 blocks.
    workload = Workload.simple([0, 1, 2, 10], [4, 1, 2, 1], [10, 1, 1, 1], klass=[0, 0, 1, 0])
    result = simulate(workload, engine(usable_blocks=4, max_num_seqs=1, timeouts_us=(30, 0)), ten_plus_total)
    assert sync_steps(result) == [
        (0, 14, [[0, 4]], [], [], 3),
        (14, 25, [[0, 1]], [], [], 2),
        (25, 36, [[0, 1]], [], [], 2),
        (36, 48, [[2, 2]], [], [2], 3),  # A aborted after 3 outputs, B dropped; at 48 D is dropped
    ]
    assert lives(result) == ["timed_out", "timed_out", (36, 48, 48, 0, 2), "timed_out"]


def test_at_the_deadline_outputs_come_first() -> None:
    workload = Workload.simple([0, 0], [4, 4], [3, 4])  # steps end at 18, 30, 42
    result = simulate(workload, engine(timeouts_us=(42,)), ten_plus_total)
    assert lives(result) == [(0, 18, 42, 0, 6), "timed_out"]


def test_arrivals_are_rejected_by_size_and_by_queue_length() -> None:
    # One slot, queue of one. The first arrival still waits when the second comes at the same time.
    workload = Workload.simple([0, 0, 1, 2, 20], [4, 1, 1, 1, 9], [2, 1, 1, 1, 1])
    result = simulate(workload, engine(usable_blocks=2, max_num_seqs=1, max_queue=1), ten_plus_total)
    assert [r.fate for r in result.records] == [
        "finished",
        "rejected_queue",  # A waits
        "finished",
        "rejected_queue",  # C waits
        "rejected_size",  # 9 tokens need 3 blocks > 2
    ]
