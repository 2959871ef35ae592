"""Names, units, directions and definitions of the metrics a report shows."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

#: The first part of a metric's name -> (label, definition).
_BASES: dict[str, tuple[str, str]] = {
    "ttft": ("TTFT", "Time to first token: from a request's arrival to the end of the step that made its first token."),
    "ttst": ("TTST", "Time to second token: from the first token to the second."),
    "tpot": ("TPOT", "Time per output token of one request: (end − first token) / (output tokens − 1)."),
    "tbt": ("TBT", "Time between tokens: every single gap between two tokens of a request, over all gaps."),
    "itl": ("ITL", "Inter-token latency: every single gap between two tokens of a request, over all gaps."),
    "e2e": ("E2E", "End-to-end latency: from a request's arrival to its last token."),
    "queueing": ("Queueing", "Queueing delay: from a request's arrival to the first step it was scheduled in."),
    "normalised": ("Normalised latency", "End-to-end latency divided by the number of output tokens."),
    "jct": (
        "Job completion",
        "From the arrival of a program's first turn to the last token of its last, pauses included.",
    ),
    "active": ("Active time", "Job completion time less the program's pauses."),
    "slowdown": (
        "Slowdown",
        "A program's completion time over what it would take alone, every turn finding the context of the one before.",
    ),
    "goodput": ("Goodput", "Requests per second that finished within all limits of their class."),
    "throughput": ("Throughput", "Requests per second that finished."),
    "slo_attainment": ("SLO attainment", "Share of requests that finished within all limits of their class."),
    "preemptions": ("Preemptions", "How often a running request lost its KV blocks and had to start over."),
    "recomputed_tokens": ("Recomputed tokens", "Tokens computed again after a preemption."),
    "kv_used_fraction": ("KV used", "Share of KV blocks in use, averaged over time and instances."),
    "batch_mean": ("Batch size", "Requests scheduled in a step, averaged over steps."),
    "engine_steps": ("Engine steps", "Steps taken by all instances."),
    "service_gap_tokens": (
        "Service gap",
        "Largest difference in service (prompt + 2 output tokens, over weight) between two tenants while both wait.",
    ),
    "service_gap_of_bound": ("Gap / bound", "The service gap over 2 max(longest prompt, 2 tokens of KV), VTC's bound."),
    "jain_service": (
        "Jain index",
        "Of the tenants' service until the last arrival, each over its max-min fair share: 1 = fair.",
    ),
    "makespan": ("Makespan", "Until the last job of a list is done."),
    "output_tokens": ("Output tokens", "Output tokens per second, from the start of the run to its end."),
    "prefix_saving": ("Prefix saving", "Share of the tokens to prefill that were found in the prefix cache."),
    "quality_loss": ("Quality loss", "Mean loss of finished requests to KV compression, by a stated curve."),
    "quality_bad": ("Bad answers", "Share of finished requests that lost more than 0.1 to KV compression."),
    "kept_ratio": ("KV kept", "Mean retained share of the KV of finished requests."),
    "carried_on": ("Carried on", "Rollouts that the end of a round took out, to go on in the next."),
    "gpu_seconds": ("GPU-seconds", "Device time of all instances."),
}
#: Beginnings of the names of metrics of which more is better.
UP = ("goodput", "throughput", "slo_attainment", "jain", "output_tokens_per_s", "prefix_saving")
_STATISTIC = re.compile(r"^(?P<base>.+?)_(?P<stat>mean|p\d+|max)(?P<unit>_s)?$")


def label(metric: str) -> str:
    """Short label: ``ttft_p99_s`` -> ``TTFT p99``."""
    found = _STATISTIC.match(metric)
    base = found["base"] if found else re.sub(r"_(per_s|s)$", "", metric)
    if metric in _BASES:
        return _BASES[metric][0]
    name = _BASES[base][0] if base in _BASES else base.replace("_", " ")
    return f"{name} {found['stat']}" if found else name


def definition(metric: str) -> tuple[str, str] | None:
    """(label of the family, definition), or None for a metric that is not a known one."""
    found = _STATISTIC.match(metric)
    base = found["base"] if found else re.sub(r"_(per_s|s)$", "", metric)
    return _BASES.get(metric) or _BASES.get(base)


def unit(metric: str) -> str:
    """``s``, ``/s``, ``%`` or nothing."""
    if metric.endswith("_per_s"):
        return "/s"
    if metric.endswith("_fraction") or metric in ("slo_attainment", "prefix_saving"):
        return "%"
    return "s" if metric.endswith("_s") else ""


def higher_is_better(metric: str, given: dict[str, bool]) -> bool:
    """Direction of a metric: as given, else goodput, throughput and attainment up, all others down."""
    return given.get(metric, metric.startswith(UP))


def significant(value: float, digits: int = 3) -> str:
    """A number with so many significant digits, without exponent, with a true minus and thousands separated."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")  # 9.999 is 10.0, not 10.00
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    text = f"{round(value, decimals):,.{decimals}f}".replace(",", "\u202f")
    return text.replace("-", "−")


def plain(value: float, digits: int = 3) -> str:
    """As `significant`, without trailing zeros: for ticks and counts."""
    text = significant(value, digits)
    return text.rstrip("0").rstrip(".") if "." in text else text


def count(value: float) -> str:
    """A count, whole."""
    return plain(float(round(value)), 15) if math.isfinite(value) else significant(value)


def seconds(value: float, digits: int = 3, form: Callable[[float, int], str] = significant) -> str:
    """A duration in the unit that reads best."""
    if not math.isfinite(value):
        return significant(value)
    size = abs(value)
    if size >= 600:
        return f"{form(value / 60, digits)} min"
    if size >= 0.9995 or size == 0:
        return f"{form(value, digits)} s"
    return f"{form(value * 1e3, digits)} ms" if size >= 0.9995e-3 else f"{form(value * 1e6, digits)} µs"


def show(metric: str, value: float, digits: int = 3) -> str:
    """A value of a metric with its unit."""
    kind = unit(metric)
    if kind == "s":
        return seconds(value, digits)
    if kind == "%":
        return f"{significant(100 * value, digits)}%" if math.isfinite(value) else significant(value)
    return f"{significant(value, digits)}{'/s' if kind else ''}"


def show_range(metric: str, low: float, high: float) -> str:
    """An interval with its unit once where both ends have the same: ``5.51 to 5.67 s``."""
    return _join_range(show(metric, low), show(metric, high))


def change_range(low: float, high: float) -> str:
    """An interval of changes: ``−9.1 to −7.7%``."""
    return _join_range(change(low), change(high))


def _join_range(first: str, last: str) -> str:
    unit_of = re.compile(r"[^\d]*$")
    tail = unit_of.search(first), unit_of.search(last)
    if tail[0] and tail[1] and tail[0][0] == tail[1][0]:
        first = first[: tail[0].start()]
    return f"{first} to {last}"


def change(ratio: float) -> str:
    """A ratio to the baseline in words of change: ``−31%``, ``+8%``, ``2.4×``."""
    if not math.isfinite(ratio):
        return significant(ratio)
    if ratio >= 2:
        return f"{significant(ratio, 2)}×"
    percent = 100 * (ratio - 1)
    if abs(percent) < 0.05:
        return "0%"
    digits = 0 if abs(percent) >= 9.95 else 1
    return f"{percent:+.{digits}f}%".replace("-", "−")
