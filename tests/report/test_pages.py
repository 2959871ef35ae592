"""A report is one valid, self-contained page that shows everything it was given."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from jaxsched.report import FATES, Timeline, render_comparison, render_simulation
from tests.report.synthetic import POLICIES, make_comparison, make_simulation

_VOID = {"meta", "input", "br", "hr", "img", "link"}


class Checker(HTMLParser):
    """Refuses tags that do not nest; collects ids, text and attributes that could load something."""

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.scripts = 0
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"attribute twice in <{tag}>: {names}"
        self.loads += [
            f"{tag} {k}={v}" for k, v in attrs if k in ("src", "href", "xlink:href", "action", "data", "srcset")
        ]
        self.ids += [v for k, v in attrs if k == "id"]
        self.scripts += tag == "script"
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)


def text_of(page: str) -> str:
    return " ".join(Checker(page).words)


def svgs(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(found) for found in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


@pytest.fixture(scope="module")
def page() -> str:
    return render_comparison(make_comparison())


def test_a_comparison_shows_every_policy_load_and_fate(page):
    text = text_of(page)
    for policy in POLICIES:
        assert text.count(policy) >= 5, policy
    for load in ("0.5×", "0.8×", "0.95×", "1.1×"):
        assert text.count(load) >= 5, load
    for fate in FATES:
        assert text.count(fate.replace("_", " ")) >= 5, fate


def test_a_comparison_has_every_part(page):
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings == [
        "Who wins",
        "Policies by load",
        "Where each policy stands",
        "Through the knee",
        "Latency distributions",
        "One run over time",
        "What became of every request",
        "Definitions and method",
        "How to make this report again",
    ]
    text = text_of(page)
    for said in ("jaxsched compare configs/compare/demo.yaml", "0123abc (clean)", "0 to 7 (8)", "preset: chat_smooth"):
        assert said in text
    assert "Time to first token" in text


@pytest.mark.parametrize(
    "render", [lambda: render_comparison(make_comparison()), lambda: render_simulation(make_simulation())]
)
def test_a_page_is_valid_and_loads_nothing(render):
    html = render()
    checked = Checker(html)
    assert checked.loads == [] and checked.scripts == 1
    assert len(set(checked.ids)) == len(checked.ids)
    assert not re.search(r"https?://|url\(|@import|<link|<img|<iframe", html)


def test_every_chart_is_well_formed_and_stays_in_finite_coordinates(page):
    charts = svgs(page)
    plots = [c for c in charts if c.get("role") == "img"]
    # 4 heat maps, 6 curves, 3 distributions for each of 4 loads, 3 timelines for each of 5 policies.
    assert len(plots) == 4 + 6 + 12 + 15
    for chart in plots:
        assert chart.get("aria-label")
        assert not re.search(r"nan|inf", ElementTree.tostring(chart, encoding="unicode"), re.IGNORECASE)


def test_curves_have_a_line_and_markers_for_every_policy(page):
    curve = next(c for c in svgs(page) if c.get("aria-label") == "TTFT p99 over load")
    classes = [e.get("class", "") for e in curve.iter()]
    for index in range(len(POLICIES)):
        assert f"line s{index} c{index}" in classes and classes.count(f"mark s{index} c{index}") == 4
        assert f"band s{index} c{index}" in classes


def test_higher_latency_is_drawn_higher(page):
    curve = next(c for c in svgs(page) if c.get("aria-label") == "E2E mean over load")
    marks = {e.find("title").text: float(e.get("cy")) for e in curve.iter("circle")}
    heights = [y for tip, y in marks.items() if tip.startswith("vllm ")]
    assert heights == sorted(heights, reverse=True) and len(set(heights)) == 4


def test_names_are_escaped_everywhere():
    evil = '<script>alert("1")</script>&\x07'
    data = make_comparison({"vllm": POLICIES["vllm"], evil: POLICIES["srpt"]})
    data = dataclasses.replace(
        data, title=evil, command=evil, config_yaml=evil, notes=[evil], capacity_note=evil, versions={evil: evil}
    )
    html = render_comparison(data)
    assert Checker(html).scripts == 1 and "<script>alert" not in html and "\x07" not in html
    assert svgs(html)  # still well-formed
    assert '<script>alert("1")</script>&?' in text_of(html)


def test_nothing_optional_is_needed():
    data = make_comparison({"only": POLICIES["vllm"]}, loads=(0.9,), num_seeds=1)
    for values in data.per_seed.values():
        for name in [n for n in values if n != "e2e_mean_s"]:
            del values[name]
    data = dataclasses.replace(data, cdfs={}, timelines={}, notes=[])
    html = render_comparison(data)
    Checker(html)
    assert "only alone" in html and "One run over time" not in html


def test_missing_values_and_empty_recordings_do_not_break_a_page():
    data = make_comparison(num_seeds=3)
    data.per_seed["static", 1.1]["e2e_mean_s"][:] = np.nan
    data.per_seed["static", 1.1]["ttft_p99_s"][:] = np.nan
    data.per_seed["vllm", 0.5]["goodput_per_s"][:] = 0.0
    data.timelines["vllm"] = Timeline(np.zeros(0), np.zeros((0, 2)), np.zeros((0, 2)), np.zeros((0, 2)))
    data.cdfs["vllm", 0.5]["ttft_s"] = (np.array([0.1, 1.0]), np.zeros(2))
    html = render_comparison(data)
    Checker(html)
    for chart in svgs(html):
        assert not re.search(r"\"[^\"]*(nan|inf)\b", ElementTree.tostring(chart, encoding="unicode"))


def test_many_instances_are_shown_by_their_spread():
    html = render_comparison(make_comparison(num_instances=40))
    assert "40 instances: line = median" in html and "instance 3<" not in html


def test_many_policies_stay_apart_by_colour_and_dash():
    policies = {f"policy-{i}": (1.0, 0.02, 0.0) for i in range(14)}
    html = render_comparison(make_comparison(policies, loads=(0.5, 0.9), num_seeds=3))
    Checker(html)
    assert 'class="line s13 c1 dashed"' in html and 'class="line s1 c1"' in html


def test_a_simulation_shows_summary_fates_and_provenance():
    text = text_of(render_simulation(make_simulation()))
    for said in (
        "chat under sarathi",
        "TTFT p99",
        "rejected queue",
        "Running requests",
        "jaxsched simulate",
        "0123abc",
    ):
        assert said in text


def test_a_simulation_of_one_seed_says_that_there_is_no_interval():
    data = make_simulation()
    single = dataclasses.replace(data, seeds=[5], summary={k: v[:1] for k, v in data.summary.items()}, timeline=None)
    html = render_simulation(single)
    Checker(html)
    assert "One seed: there is no interval." in html and "The run over time" not in html


def test_a_timeline_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"timeline queue: expected \[3, instances\], found \(2, 4\)"):
        Timeline(np.arange(3), np.zeros((3, 4)), np.zeros((3, 4)), np.zeros((2, 4)))
