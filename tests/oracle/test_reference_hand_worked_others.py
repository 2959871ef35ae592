"""Tiny episodes worked out by hand: other engines, routers, programs (conventions: test_reference_hand_worked.py)."""

from __future__ import annotations

import pytest

from tests.oracle.cluster import simulate
from tests.oracle.data import EngineConfig, Router, RouterConfig, StepFeatures, Workload
from tests.oracle.engine import Instance
from tests.oracle.test_reference_hand_worked import engine, lives, sync_steps, ten_plus_total


def test_sarathi_takes_a_prompts_blocks_at_admission_and_wants_a_free_block_for_every_decode() -> None:
    result = simulate(
        Workload.simple([0, 0], [5, 8], [3, 2]), engine(kind="sarathi", usable_blocks=4, token_budget=6), ten_plus_total
    )
    assert sync_steps(result) == [
        (0, 16, [[0, 5], [1, 1]], [], [], 0),  # A 2 blocks; B 2 blocks for all 8 tokens, chunk of 1
        (16, 27, [[0, 1]], [1], [], 2),  # A c6 needs no block, but none is free: B out, and no admission
        (27, 43, [[0, 1], [1, 5]], [], [0], 0),  # A c7 g3 = done; B again: 6 - 1 = 5 tokens
        (43, 56, [[1, 3]], [], [], 2),  # B c8 g1
        (56, 67, [[1, 1]], [], [1], 1),  # B c9: third block; g2 = done
    ]
    assert lives(result) == [(0, 16, 43, 0, 7), (0, 56, 67, 1, 1 + 5 + 3 + 1)]


def test_sarathi_keeps_the_watermark_even_on_an_idle_engine() -> None:
    # 4 blocks, watermark 2, chunk 3.
    settings = engine(kind="sarathi", usable_blocks=4, watermark_blocks=2, token_budget=3)
    result = simulate(Workload.simple([0, 0, 15], [2, 2, 2], [5, 3, 1]), settings, ten_plus_total)
    assert sync_steps(result) == [
        (0, 13, [[0, 2], [1, 1]], [], [], 2),  # A: 1 <= 4 - 2; B: 1 <= 3 - 2, a chunk of 1
        (13, 25, [[0, 1], [1, 1]], [], [], 2),  # A c3 g2; B c2 g1
        (25, 37, [[0, 1], [1, 1]], [], [], 2),  # A c4 g3; B c3 g2; the chunk has room, but C: 1 > 2 - 2
        (37, 49, [[0, 1], [1, 1]], [], [1], 1),  # A c5 g4: its second block; B c4 g3 = done
        (49, 60, [[0, 1]], [], [0], 2),  # A c6 g5 = done; C: 1 > 2 - 2
        (60, 72, [[2, 2]], [], [2], 3),
    ]
    idle = simulate(Workload.simple([0, 0], [8, 9], [1, 1]), settings, ten_plus_total)
    assert [r.fate for r in idle.records] == ["finished", "rejected_size"]  # 2 + 2 and 3 + 2 blocks of 4


def test_vllm_v0_runs_whole_prompts_first_and_decodes_otherwise() -> None:
    result = simulate(
        Workload.simple([0, 0], [5, 6], [3, 2]),
        engine(kind="vllm-v0", usable_blocks=6, watermark_blocks=1, token_budget=10),
        ten_plus_total,
    )
    assert sync_steps(result) == [
        (0, 15, [[0, 5]], [], [], 4),  # 5 + 6 > 10: B waits
        (15, 31, [[1, 6]], [], [], 2),  # B's prompt: A does not advance
        (31, 43, [[0, 1], [1, 1]], [], [1], 2),  # A c6 g2, B c7 g2 = done
        (43, 54, [[0, 1]], [], [0], 4),
    ]
    assert lives(result) == [(0, 15, 54, 0, 7), (15, 31, 43, 0, 7)]


def test_vllm_v0_preempts_the_last_when_a_decode_sees_no_free_block_and_keeps_the_watermark() -> None:
    result = simulate(
        Workload.simple([0, 0, 0], [4, 4, 4], [3, 3, 1]),
        engine(kind="vllm-v0", usable_blocks=3, watermark_blocks=1),
        ten_plus_total,
    )
    assert sync_steps(result) == [
        (0, 18, [[0, 4], [1, 4]], [], [], 1),  # 3 - 1 >= 1, 2 - 1 >= 1; C: 1 - 1 < 1
        (18, 29, [[0, 1]], [1], [], 1),  # A c5 takes the last block; B sees none free and is the last itself
        (29, 40, [[0, 1]], [], [0], 1),  # B, before C: 1 - 2 < 1; A c6 g3 = done
        (40, 55, [[1, 5]], [], [], 1),  # B: 3 - 2 >= 1; C: 1 - 1 < 1
        (55, 66, [[1, 1]], [], [1], 1),
        (66, 80, [[2, 4]], [], [2], 2),
    ]


def test_vllm_v0_rejects_a_request_that_could_outgrow_the_prefill_budget() -> None:
    workload = Workload.simple([0, 0], [8, 8], [3, 4])  # 10 and 11 tokens to recompute at most
    result = simulate(workload, engine(kind="vllm-v0", token_budget=10), ten_plus_total)
    assert [r.fate for r in result.records] == ["finished", "rejected_size"]


def test_engines_whose_decodes_must_see_a_free_block_reject_a_request_that_would_fill_the_pool() -> None:
    workload = Workload.simple([0, 0], [5, 5], [3, 4])  # 7 and 8 tokens: 2 blocks
    for kind, usable_blocks, fates in [
        ("vllm", 2, ["finished", "finished"]),
        ("vllm-v0", 3, ["finished", "finished"]),
        ("vllm-v0", 2, ["rejected_size", "rejected_size"]),
        ("sarathi", 3, ["finished", "finished"]),
        ("sarathi", 2, ["rejected_size", "rejected_size"]),
    ]:
        result = simulate(workload, engine(kind=kind, usable_blocks=usable_blocks), ten_plus_total)
        assert [r.fate for r in result.records] == fates


def test_a_call_that_only_preempted_is_repeated_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # The size test keeps such requests out; without it A fills the pool of 2 blocks, so that each decode sees no free
    # block and A preempts itself.
    monkeypatch.setattr(Instance, "never_fits", lambda *_: False)
    result = simulate(Workload.simple([0], [5], [4]), engine(kind="vllm-v0", usable_blocks=2), ten_plus_total)
    assert sync_steps(result) == [
        (0, 15, [[0, 5]], [], [], 0),
        (15, 15, [], [0], [], 2),
        (15, 31, [[0, 6]], [], [], 0),
        (31, 31, [], [0], [], 2),
        (31, 48, [[0, 7]], [], [], 0),
        (48, 48, [], [0], [], 2),
        (48, 66, [[0, 8]], [], [0], 0),
    ]
    assert lives(result) == [(0, 15, 66, 3, 5 + 6 + 7 + 8)]


THREE = Workload.simple([0, 0, 0], [4, 3, 2], [2, 3, 1])


def test_orca_reserves_the_longest_sequence_for_each_request() -> None:
    # 8 tokens reserved = 2 blocks each; the pool has 5: two at a time.
    result = simulate(THREE, engine(kind="orca", usable_blocks=5, max_model_len=8), ten_plus_total)
    assert sync_steps(result) == [
        (0, 17, [[0, 4], [1, 3]], [], [], 1),
        (17, 29, [[0, 1], [1, 1]], [], [0], 1),
        (29, 42, [[1, 1], [2, 2]], [], [1, 2], 1),  # C joins as soon as A has left
    ]


def test_static_batching_waits_for_the_whole_batch() -> None:
    result = simulate(THREE, engine(kind="static", usable_blocks=5, max_model_len=8), ten_plus_total)
    assert sync_steps(result) == [
        (0, 17, [[0, 4], [1, 3]], [], [], 1),
        (17, 29, [[0, 1], [1, 1]], [], [0], 1),
        (29, 40, [[1, 1]], [], [1], 3),
        (40, 52, [[2, 2]], [], [2], 3),
    ]


def test_step_features_tell_decodes_from_prefills() -> None:
    seen: list[StepFeatures] = []

    def spy(features: StepFeatures) -> int:
        seen.append(features)
        return 0  # a step still takes 1 us

    # A: 100 tokens in chunks of 64 and 36; B from 1 on.
    result = simulate(Workload.simple([0, 1], [100, 3], [2, 1]), engine(token_budget=64), spy)
    assert seen == [
        StepFeatures(64, 64, 0, 0, 1, 64, 64, 64 * (64 >> 6)),
        StepFeatures(39, 103, 0, 0, 2, 39, 103, 36 * ((128 + 36) >> 6) + 0),  # B: 3 * (3 >> 6) = 0
        StepFeatures(1, 101, 1, 101, 0, 0, 0, 0),
    ]
    assert [(s[0], s[1]) for s in sync_steps(result)] == [(0, 1), (1, 2), (2, 3)]

    seen.clear()
    simulate(Workload.simple([0], [65], [1]), engine(token_budget=64), spy)
    assert seen[1] == StepFeatures(1, 65, 1, 65, 0, 0, 0, 0)  # a last chunk of one token costs what a decode costs
    seen.clear()
    simulate(Workload.simple([0], [1], [1]), engine(), spy)
    assert seen == [StepFeatures(1, 1, 0, 0, 1, 1, 1, 0)]


# Routers: five long requests at 0, 1, 2, 10, 11 on two instances; nothing finishes meanwhile.
LONG = Workload.simple([0, 1, 2, 10, 11], [40, 8, 4, 4, 4], [50] * 5)


@pytest.mark.parametrize(
    ("kind", "delay_us", "instances"),
    [
        ("round_robin", 0, [0, 1, 0, 1, 0]),
        ("least_outstanding", 0, [0, 1, 0, 1, 0]),  # (0,0) (1,0) (1,1) (2,1) (2,2)
        ("least_outstanding", 10, [0, 0, 0, 1, 1]),  # empty view until the tick at 10, which comes before the arrival
        ("least_kv", 0, [0, 1, 1, 1, 1]),  # blocks: (0,0) (10,0) (10,2) (10,3) (10,4)
        ("least_work", 0, [0, 1, 1, 0, 1]),  # tokens: (0,0) (90,0) (90,58) (90,112) (144,112)
    ],
)
def test_routers_choose(kind: Router, delay_us: int, instances: list[int]) -> None:
    result = simulate(LONG, engine(), ten_plus_total, num_instances=2, router=RouterConfig(kind, delay_us), until_us=11)
    assert [r.instance for r in result.records] == instances
    assert {r.fate for r in result.records} == {"unfinished"}


def test_least_kv_counts_the_prompts_of_waiting_requests() -> None:
    # At 2: 1 block on instance 0, 3 on 1. At 3: 1 + 5 waiting on 0, 3 on 1.
    workload = Workload.simple([0, 1, 2, 3], [4, 12, 20, 4], [9] * 4)
    result = simulate(workload, engine(), ten_plus_total, num_instances=2, router=RouterConfig("least_kv"), until_us=3)
    assert [r.instance for r in result.records] == [0, 1, 0, 1]


def test_hashed_routers_use_the_numbers_given() -> None:
    draws = [(7, 4), (8, 5), (9, 6), (10, 0), (13, 0), (12, 1)]

    def uniform(row: int, draw: int) -> int:
        return draws[row][draw]

    def run(kind: Router) -> list[int]:
        workload = Workload.simple([0] * 6, [4] * 6, [9] * 6)
        router = RouterConfig(kind)
        result = simulate(workload, engine(), ten_plus_total, num_instances=3, router=router, uniform=uniform)
        return [r.instance for r in result.records]

    assert run("random") == [1, 2, 0, 1, 1, 0]
    # Loads (0,0,0): 7 % 3 = 1 and 4 % 2 = 0: a tie, the first drawn: 1. (0,1,0): 2 and 5 % 2 = 1: 2 is emptier.
    # (0,1,1): 0 and 6 % 2 = 0, shifted to 1: 0. (1,1,1): 1 and 0: a tie: 1. (1,2,1): 1 and 0: 0 is emptier.
    # (2,2,1): 0 and 1 % 2 = 1, shifted to 2: 2 is emptier.
    assert run("power_of_two") == [1, 2, 0, 1, 0, 2]


def program(next_turn: list[int], pause_us: list[int], arrival_us: list[int], prompts: list[int]) -> Workload:
    num_programs = len(prompts) - sum(turn >= 0 for turn in next_turn)
    workload = Workload.simple(arrival_us, prompts, [1] * len(prompts), next_turn=next_turn, pause_us=pause_us)
    workload.num_programs = num_programs
    return workload


def test_a_turn_returning_after_no_pause_is_seen_by_instances_whose_event_is_still_to_come() -> None:
    # A -> instance 0, B -> 1, C -> 0; A and B end a step at 14. A's next turn D returns at 14 and goes to 1, whose
    # event at 14 has not been taken: D joins B's next step.
    workload = program([3, -1, -1, -1], [0, 0, 0, 0], [0, 0, 3, 0], [4, 4, 2, 2])
    workload.output_tokens[1] = 2
    result = simulate(workload, engine(), ten_plus_total, num_instances=2)
    assert [r.instance for r in result.records] == [0, 1, 0, 1]
    assert sync_steps(result, 0) == [(0, 14, [[0, 4]], [], [0], 99), (14, 26, [[2, 2]], [], [2], 99)]
    assert sync_steps(result, 1) == [(0, 14, [[1, 4]], [], [], 99), (14, 27, [[1, 1], [3, 2]], [], [1, 3], 97)]
    assert result.records[3].arrival_us == 14


def test_a_turn_returning_after_no_pause_waits_where_the_event_has_been_taken() -> None:
    # Now B has the next turn D: when it returns at 14, instance 0 has already started C: D is scheduled at 26.
    workload = program([-1, 4, -1, -1, -1], [0] * 5, [0, 0, 3, 4, 0], [4, 4, 2, 20, 2])
    result = simulate(workload, engine(max_num_seqs=1), ten_plus_total, num_instances=2)
    assert [r.instance for r in result.records] == [0, 1, 0, 1, 0]
    assert sync_steps(result, 0) == [
        (0, 14, [[0, 4]], [], [0], 99),
        (14, 26, [[2, 2]], [], [2], 99),
        (26, 38, [[4, 2]], [], [4], 99),
    ]


def test_a_turn_returning_to_the_same_idle_instance_starts_at_once_and_pauses_are_kept() -> None:
    workload = program([1, 2, -1], [0, 0, 7], [0, 0, 0], [4, 2, 2])
    result = simulate(workload, engine(), ten_plus_total)
    assert [(s[0], s[1]) for s in sync_steps(result)] == [(0, 14), (14, 26), (33, 45)]


def test_turns_behind_a_rejected_or_timed_out_turn_never_arrive() -> None:
    workload = program([2, 3, -1, -1], [0] * 4, [0, 0, 0, 0], [9, 4, 1, 1])
    workload.output_tokens[1] = 4
    result = simulate(workload, engine(usable_blocks=2, timeouts_us=(20,)), ten_plus_total)
    assert [r.fate for r in result.records] == ["rejected_size", "timed_out", "never_arrived", "never_arrived"]


def test_engines_outside_the_v1_family_refuse_its_options() -> None:
    for option in ({"asynchronous": True}, {"prefix_caching": True}, {"order": "srpt"}):
        with pytest.raises(ValueError, match="sarathi"):
            EngineConfig(usable_blocks=4, kind="sarathi", **option)  # type: ignore[arg-type]


def test_an_idle_instance_with_requests_waiting_is_reported_as_stuck() -> None:
    result = simulate(Workload.simple([0], [5], [4]), engine(max_num_seqs=0), ten_plus_total)
    assert lives(result) == ["unfinished"] and result.stuck == [True]
