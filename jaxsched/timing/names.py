"""Finding a model or device by the many ways its name is written."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

from jaxsched.errors import UserError

T = TypeVar("T")

_PREFIXES = ("meta-", "nvidia-")
_SUFFIXES = ("-hf", "-instruct", "-chat", "-base")


def normalise(name: str) -> str:
    """``"meta-llama/Meta-Llama-3-8B"`` -> ``"llama-3-8b"``: no owner, lower case, dashes, no release suffixes."""
    short = name.strip().lower().rsplit("/", 1)[-1].replace("_", "-").replace(" ", "-")
    for prefix in _PREFIXES:
        short = short.removeprefix(prefix)
    while (stripped := _strip_suffix(short)) != short:
        short = stripped
    return short


def lookup(kind: str, name: str, table: Mapping[str, T], aliases: Mapping[str, str]) -> T:
    """The entry of `table` that `name` means.

    Raises:
        UserError: unknown, with the nearest known names.
    """
    key = normalise(name)
    key = aliases.get(key, key)
    if key in table:
        return table[key]
    raise UserError(
        f"unknown {kind} {name!r}", expected=f"one of {', '.join(table)}", hint=nearest_hint(key, [*table, *aliases])
    )


def nearest_hint(name: str, known: Iterable[str]) -> str:
    """``"Did you mean ...?"`` or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(close)}?" if close else ""


def _strip_suffix(name: str) -> str:
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name
