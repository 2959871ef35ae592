"""A small SVG writer: elements, scales, ticks and axes. Colours are CSS classes and variables of the page."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

#: Width of a character of a tick label in a wide system font, in pixels at the size the style sheet gives it.
_CHARACTER_WIDTH = 6.8
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def escape(text: object) -> str:
    """Text for HTML and SVG, in content and in attributes; control characters, which XML forbids, become ``?``."""
    return html.escape(_CONTROL.sub("?", str(text)), quote=True)


def number(value: float) -> str:
    """A coordinate with at most one decimal."""
    text = f"{value:.1f}"
    return text[:-2] if text.endswith(".0") else text


def element(tag: str, content: str = "", **attributes: object) -> str:
    """One element. `content` is markup, taken as it is; attributes are escaped, ``text_anchor`` is ``text-anchor``."""
    shown = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(number(v) if isinstance(v, float) else v)}"'
        for name, v in attributes.items()
        if v is not None
    )
    return f"<{tag}{shown}>{content}</{tag}>" if content else f"<{tag}{shown}/>"


def text(x: float, y: float, content: str, class_: str = "", anchor: str = "start", **attributes: object) -> str:
    """A line of text, escaped."""
    return element(
        "text", escape(content), x=float(x), y=float(y), class_=class_ or None, text_anchor=anchor, **attributes
    )


def document(width: float, height: float, body: Sequence[str], title: str) -> str:
    """A whole SVG that scales with its place; `title` is what a screen reader says."""
    return (
        f'<svg viewBox="0 0 {number(width)} {number(height)}" role="img" aria-label="{escape(title)}" '
        f'style="max-width:{number(width)}px" preserveAspectRatio="xMidYMid meet">' + "".join(body) + "</svg>"
    )


@dataclass(frozen=True)
class Scale:
    """Maps data to coordinates, linearly or by logarithm; values outside are held at the ends."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        value = min(max(value, low), high)
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (self.end - self.start) * ((value - low) / (high - low) if high > low else 0.5)


def linear_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers inside [low, high], at most `most` + 1 of them."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    magnitude = 10 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Powers of ten inside [low, high], with 2 and 5 or 3 between them while they fit."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for parts in ((1, 2, 5), (1, 3), (1,)):
        ticks = [p * 10.0**d for d in decades for p in parts if low * (1 - 1e-9) <= p * 10.0**d <= high * (1 + 1e-9)]
        if len(ticks) <= most:
            return ticks if len(ticks) >= 3 else linear_ticks(low, high, most=4)
    return ticks[:: math.ceil(len(ticks) / most)]


def linear_range(values: Sequence[float], *, zero: bool = True, cap: float | None = None) -> tuple[float, float]:
    """Range for a linear axis, with a little air above; from zero if asked."""
    finite = [v for v in values if math.isfinite(v)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    low = min(low, 0.0) if zero else low
    if high <= low:
        high = low + 1.0
    high += 0.06 * (high - low)
    return low, high if cap is None else min(high, cap)


def log_range(values: Sequence[float]) -> tuple[float, float]:
    """Range for a logarithmic axis with a little air on both sides; at least a factor of two."""
    finite = [v for v in values if math.isfinite(v) and v > 0]
    low, high = (min(finite), max(finite)) if finite else (0.1, 1.0)
    if high < 2 * low:
        middle = math.sqrt(low * high)
        low, high = middle / math.sqrt(2), middle * math.sqrt(2)
    air = (high / low) ** 0.06
    return low / air, high * air


@dataclass(frozen=True)
class Plot:
    """The area of a chart between its axes, in the coordinates of its SVG."""

    x: Scale
    y: Scale

    def axes(
        self,
        x_ticks: Sequence[float],
        y_ticks: Sequence[float],
        x_label: Callable[[float], str],
        y_label: Callable[[float], str],
        x_title: str = "",
    ) -> list[str]:
        """Grid lines, tick labels, base line and the title of the x axis."""
        left, right, bottom = self.x.start, self.x.end, self.y.start
        parts = []
        for tick in y_ticks:
            y = self.y(tick)
            parts.append(element("line", x1=left, y1=y, x2=right, y2=y, class_="grid"))
            parts.append(text(left - 7, y + 3.5, y_label(tick), "tick", "end"))
        free_from = -math.inf
        for tick in x_ticks:
            x, shown = self.x(tick), x_label(tick)
            parts.append(element("line", x1=x, y1=bottom, x2=x, y2=bottom + 4, class_="axis"))
            half = _CHARACTER_WIDTH * len(shown) / 2
            if x - half >= free_from:  # a label that would touch the one before it is left out
                parts.append(text(x, bottom + 17, shown, "tick", "middle"))
                free_from = x + half + 4
        parts.append(element("line", x1=left, y1=bottom, x2=right, y2=bottom, class_="axis"))
        if x_title:
            parts.append(text((left + right) / 2, bottom + 34, x_title, "axis-title", "middle"))
        return parts

    def path(self, xs: Sequence[float], ys: Sequence[float]) -> str:
        """Path data through the finite points; a gap where a value is missing."""
        commands, pen_down = [], False
        for x, y in zip(xs, ys, strict=True):
            if not (math.isfinite(x) and math.isfinite(y)):
                pen_down = False
                continue
            commands.append(f"{'L' if pen_down else 'M'}{number(self.x(x))} {number(self.y(y))}")
            pen_down = True
        return "".join(commands)

    def steps(self, xs: Sequence[float], ys: Sequence[float]) -> str:
        """Path data of a step function that jumps at each x."""
        commands = []
        for x, y in zip(xs, ys, strict=True):
            if not commands:
                commands.append(f"M{number(self.x(x))} {number(self.y(y))}")
            else:
                commands.append(f"H{number(self.x(x))}V{number(self.y(y))}")
        return "".join(commands)

    def band(self, xs: Sequence[float], low: Sequence[float], high: Sequence[float]) -> str:
        """Path data of the area between two curves; nothing where one of them is not finite."""
        keep = [i for i in range(len(xs)) if math.isfinite(low[i]) and math.isfinite(high[i])]
        if len(keep) < 2:
            return ""
        there = [f"{number(self.x(xs[i]))} {number(self.y(high[i]))}" for i in keep]
        back = [f"{number(self.x(xs[i]))} {number(self.y(low[i]))}" for i in reversed(keep)]
        return "M" + "L".join(there + back) + "Z"


def marker(shape: int, x: float, y: float, class_: str, title: str) -> str:
    """A point of a series: circle, square, diamond or triangle, with a tooltip."""
    tip = element("title", escape(title))
    shape %= 4
    if shape == 0:
        return element("circle", tip, cx=x, cy=y, r=3.4, class_=class_)
    if shape == 1:
        return element("rect", tip, x=x - 3.1, y=y - 3.1, width=6.2, height=6.2, class_=class_)
    reach = 4.3
    corners = (
        [(0, -reach), (reach, 0), (0, reach), (-reach, 0)] if shape == 2 else [(0, -reach), (reach, 3.2), (-reach, 3.2)]
    )
    points = " ".join(f"{number(x + dx)},{number(y + dy)}" for dx, dy in corners)
    return element("polygon", tip, points=points, class_=class_)


def thin_curve(xs: np.ndarray, ys: np.ndarray, resolution: float) -> tuple[np.ndarray, np.ndarray]:
    """Drop points of a monotone curve that move less than `resolution` in y since the last one kept; ends stay."""
    keep = [0]
    for i in range(1, len(ys)):
        moves = abs(ys[i] - ys[keep[-1]]) >= resolution
        if (moves or i == len(ys) - 1) and ys[i] != ys[keep[-1]]:
            keep.append(i)
    return xs[keep], ys[keep]
