"""Verdicts follow from the intervals, in rows and in words."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from jaxsched.report import ComparisonData, comparison_table, explain_winners
from jaxsched.report.analysis import judge
from jaxsched.report.metrics import change, change_range, count, label, plain, seconds, show, show_range, significant
from tests.report.synthetic import make_comparison


def make(values: dict[str, list[float]], metric: str = "e2e_mean_s", **more) -> ComparisonData:
    """One load, the given per-seed values of one metric."""
    num_seeds = len(next(iter(values.values())))
    defaults = {
        "title": "t", "command": "c", "config_yaml": "", "versions": {}, "seeds": list(range(num_seeds)),
        "policies": list(values), "loads": [0.9], "rates_per_s": [18.0], "capacity_per_s": 20.0, "capacity_note": "",
        "baseline": next(iter(values)), "primary_metric": metric, "higher_is_better": {},
        "per_seed": {(p, 0.9): {metric: np.array(v)} for p, v in values.items()},
    }  # fmt: skip
    return ComparisonData(**{**defaults, **more})


NOISE = [0.3, -0.5, 0.1, 0.4, -0.2, -0.1]
BASE = [10 + x for x in NOISE]
FASTER = [8 + x + 0.05 * y for x, y in zip(NOISE, NOISE[::-1], strict=True)]
SLOWER = [13 + x + 0.05 * y for x, y in zip(NOISE, NOISE[::-1], strict=True)]
SAME = [10 + x + 0.1 * y for x, y in zip(NOISE, [1, -1, -1, 1, 1, -1], strict=True)]


def test_a_row_has_means_changes_and_a_verdict():
    rows = {
        r["policy"]: r for r in comparison_table(make({"base": BASE, "fast": FASTER, "slow": SLOWER, "same": SAME}))
    }
    assert {p: r["verdict"] for p, r in rows.items()} == {
        "base": "tie", "fast": "better", "slow": "worse", "same": "tie"
    }  # fmt: skip
    fast = rows["fast"]
    assert fast["mean"] == pytest.approx(8.0, abs=0.01) and fast["difference"] == pytest.approx(-2.0, abs=0.01)
    assert fast["difference_low"] < fast["difference"] < fast["difference_high"] < 0
    assert fast["ratio"] == pytest.approx(0.8, abs=0.002) and fast["ratio_high"] < 1
    assert fast["ci_low"] < fast["mean"] < fast["ci_high"] and fast["num_seeds"] == 6
    assert (rows["base"]["difference"], rows["base"]["ratio"]) == (0, 1)


def test_more_is_better_where_it_is():
    values = {"base": BASE, "more": SLOWER}
    assert comparison_table(make(values, "goodput_per_s"))[1]["verdict"] == "better"
    assert comparison_table(make(values, "my_score", higher_is_better={"my_score": True}))[1]["verdict"] == "better"
    assert comparison_table(make(values, "my_score"))[1]["verdict"] == "worse"


def test_rows_are_json_even_with_one_seed_and_missing_values():
    rows = comparison_table(make({"base": [1.0], "other": [math.nan]}))
    json.dumps(rows, allow_nan=False)
    assert rows[1]["mean"] is None and rows[1]["verdict"] == "tie" and rows[1]["num_seeds"] == 0
    assert rows[0]["ci_low"] is None  # one seed: no interval


def test_seeds_without_a_value_are_left_out_in_pairs():
    row = comparison_table(make({"base": [*BASE, 99.0], "fast": [*FASTER, math.nan]}))[1]
    assert row["num_seeds"] == 6 and row["difference"] == pytest.approx(-2.0, abs=0.01)


def test_other_metrics_can_be_asked_for():
    rows = comparison_table(make_comparison(), ["ttft_p99_s", "goodput_per_s"])
    assert len(rows) == 5 * 4 * 2 and {r["metric"] for r in rows} == {"ttft_p99_s", "goodput_per_s"}


def test_a_clear_winner_is_named_with_its_margins():
    (sentence,) = explain_winners(make({"base": BASE, "fast": FASTER, "slow": SLOWER}))
    assert sentence.startswith("At 0.9× capacity (18.0 requests/s): fast wins with E2E mean")
    assert "−20% against the baseline base at 10.0 s (95% CI −" in sentence
    assert "slow loses to the baseline base (+30%)." in sentence


def test_policies_that_cannot_be_told_apart_tie():
    (sentence,) = explain_winners(make({"base": BASE, "same": SAME}))
    assert "no clear winner" in sentence and "cannot be told apart with 6 seeds" in sentence
    verdict = judge(make({"base": BASE, "same": SAME, "slow": SLOWER}))[0]
    assert set(verdict.winners) == {"base", "same"} and "tie for the lead" in verdict.story
    assert "slow loses to the baseline base" in verdict.story


def test_the_baseline_can_win():
    (verdict,) = judge(make({"base": FASTER, "other": BASE}))
    assert verdict.winners == ["base"] and "against the next best, other" in verdict.story


def test_one_seed_names_no_winner():
    (verdict,) = judge(make({"base": [10.0], "fast": [1.0]}))
    assert verdict.headline == "no clear winner"


def test_an_oracle_is_a_bound_and_does_not_win():
    values = {"base": BASE, "fast": FASTER, "srpt-oracle": [x - 3 for x in FASTER]}
    (verdict,) = judge(make(values))
    assert verdict.winners == ["fast"] and "The bound srpt-oracle is at 5.00 s." in verdict.story
    (verdict,) = judge(make(values, bounds=[]))
    assert verdict.winners == ["srpt-oracle"]


def test_a_winner_that_finishes_fewer_requests_is_called_into_doubt():
    data = make({"base": BASE, "fast": FASTER})
    for policy, finished in (("base", 100.0), ("fast", 70.0)):
        counts = {"fate_finished": np.full(6, finished), "fate_rejected_queue": np.full(6, 100 - finished)}
        data.per_seed[policy, 0.9].update(counts)
    (sentence,) = explain_winners(data)
    assert "Read with care: fast finished 70.0% of its requests, base 100.0%" in sentence


def test_a_win_is_explained_by_the_metrics_that_moved():
    at_top = judge(make_comparison())[-1]
    assert at_top.winners == ["srpt"] and "It gains in" in at_top.story and "TTFT p50" in at_top.story


def test_sentences_come_one_per_load_in_order():
    sentences = explain_winners(make_comparison())
    assert [s.split("×")[0] for s in sentences] == ["At 0.5", "At 0.8", "At 0.95", "At 1.1"]


def test_incomplete_data_are_refused():
    data = make_comparison()
    with pytest.raises(ValueError, match="baseline 'nobody'"):
        dataclasses.replace(data, baseline="nobody")
    with pytest.raises(ValueError, match=r"per_seed\['vllm', 0\.5\]\['nothing'\]: expected 8 values, found nothing"):
        dataclasses.replace(data, primary_metric="nothing")
    with pytest.raises(ValueError, match="4 loads but 1 rates"):
        dataclasses.replace(data, rates_per_s=[1.0])


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        (significant(1234.5), "1\u202f234"),
        (significant(0.00012345), "0.000123"),
        (significant(-2.5), "−2.50"),
        (significant(math.nan), "–"),
        (significant(9.9999), "10.0"),
        (significant(99999.0), "99\u202f999"),
        (seconds(0.99999), "1.00 s"),
        (plain(20.0), "20"),
        (count(4560.0), "4\u202f560"),
        (count(1e9 + 1), "1\u202f000\u202f000\u202f001"),
        (seconds(0.0123), "12.3 ms"),
        (seconds(12.34), "12.3 s"),
        (seconds(720), "12.0 min"),
        (seconds(4e-6), "4.00 µs"),
        (show("slo_attainment", 0.987), "98.7%"),
        (show("goodput_per_s", 12.0), "12.0/s"),
        (show_range("e2e_mean_s", 5.5, 5.7), "5.50 to 5.70 s"),
        (show_range("e2e_mean_s", 0.9, 1.2), "900 ms to 1.20 s"),
        (change(0.69), "−31%"),
        (change(1.08), "+8.0%"),
        (change(2.4), "2.4×"),
        (change(1.0001), "0%"),
        (change_range(0.9, 0.95), "−10 to −5.0%"),
        (label("ttft_p99_s"), "TTFT p99"),
        (label("goodput_per_s"), "Goodput"),
        (label("my_own_p50_s"), "my own p50"),
    ],
)
def test_numbers_and_names_read_well(shown, wanted):
    assert shown == wanted
