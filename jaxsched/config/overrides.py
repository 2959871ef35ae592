"""Values set from outside the file: ``--workload.load 0.8``, ``--set a.b=3``, or a dict from Python."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxsched.config.source import Layer, merge, normalise, parse_scalar
from jaxsched.errors import UserError

#: Either texts ``"a.b=3"`` or a mapping ``{"a.b": 3}`` / ``{"a": {"b": 3}}``.
Overrides = Mapping[str, Any] | Iterable[str]


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take the overrides out of a command line: ``--a.b 3``, ``--a.b=3`` and ``--set a.b=3``.

    Returns:
        The overrides as ``"a.b=3"`` texts, in order, and the arguments that are not overrides.

    Raises:
        UserError: an override without a value.
    """
    taken: list[str] = []
    rest: list[str] = []
    index = 0
    while index < len(arguments):
        argument = arguments[index]
        name, equals, _ = argument.partition("=")
        if argument == "--":
            return taken, rest + list(arguments[index:])
        if name == "--set" or (name.startswith("--") and "." in name):
            if not equals:
                index += 1
                if index == len(arguments) or arguments[index].startswith("--"):
                    raise UserError(
                        "has no value", where=f"option {argument}", expected="a value, e.g. --workload.load 0.8"
                    )
            if name == "--set":
                taken.append(argument.partition("=")[2] if equals else arguments[index])
            else:
                taken.append(argument[2:] if equals else f"{argument[2:]}={arguments[index]}")
        else:
            rest.append(argument)
        index += 1
    return taken, rest


def _pairs(overrides: Overrides) -> list[tuple[str, Any]]:
    if isinstance(overrides, str):
        overrides = [overrides]
    if isinstance(overrides, Mapping):
        return list(overrides.items())
    pairs = []
    for text in overrides:
        name, equals, value = text.removeprefix("--").partition("=")
        if not equals or not name:
            raise UserError(f"found {text!r}", where="override", expected="KEY=VALUE, e.g. workload.load=0.8")
        pairs.append((name, parse_scalar(value)))
    return pairs


def apply_overrides(layer: Layer, overrides: Overrides) -> Layer:
    """Apply overrides one after another over a layer. File paths in them are relative to the working directory.

    Raises:
        UserError: not of the form KEY=VALUE, or a path that leads through something that is not a section or list.
    """
    for name, value in _pairs(overrides):
        keys = name.split(".")
        where = f"override {name}"
        in_list = _find_list(layer.data, keys)
        if in_list is not None:
            layer = _replace_item(layer, keys, in_list, value, where)
            continue
        nested: Any = copy.deepcopy(value)
        for key in reversed(keys):
            nested = {key: nested}
        top = Layer(nested)
        _note(nested, (), where, top.origins)
        _refuse_through_scalars(layer.data, keys, where)
        layer = merge(layer, normalise(top, Path.cwd()))
    return layer


def _note(data: Any, path: tuple[str | int, ...], where: str, origins: dict[tuple[str | int, ...], str]) -> None:
    """Note `where` for every key of nested data."""
    if isinstance(data, dict):
        for key, value in data.items():
            origins[(*path, key)] = where
            _note(value, (*path, key), where, origins)


def _find_list(data: Any, keys: list[str]) -> int | None:
    """How many leading keys lead to a list that the next key points into (``slo.0.ttft_ms``), or None."""
    for index, key in enumerate(keys):
        if isinstance(data, list):
            return index
        if not isinstance(data, dict) or key not in data:
            return None
        data = data[key]
    return None


def _replace_item(layer: Layer, keys: list[str], depth: int, value: Any, where: str) -> Layer:
    """Override inside a list item: the list is copied, the item's field is set."""
    data = copy.deepcopy(layer.data)
    target: Any = data
    path: list[str | int] = []
    for position, key in enumerate(keys):
        step: Any = key
        if isinstance(target, list):
            if not key.isdigit() or int(key) >= len(target):
                items = f"0 to {len(target) - 1}" if target else "nothing: the list is empty"
                raise UserError(f"no item {key!r} in {'.'.join(keys[:position])}", where=where, expected=items)
            step = int(key)
        elif not isinstance(target, dict):
            raise UserError(f"{'.'.join(keys[:position])} is not a section", where=where, expected="a field name")
        path.append(step)
        if position == len(keys) - 1:
            target[step] = copy.deepcopy(value)
        elif isinstance(target, dict):
            target = target.setdefault(step, {})
        else:
            target = target[step]
    return Layer(data, {**layer.origins, tuple(path): where})


def _refuse_through_scalars(data: Any, keys: list[str], where: str) -> None:
    for position, key in enumerate(keys[:-1]):
        data = data.get(key) if isinstance(data, dict) else None
        if data is None:
            return
        if not isinstance(data, dict):
            name = ".".join(keys[: position + 1])
            raise UserError(f"{name} is a value ({data!r}), not a section", where=where, expected=f"--{name} VALUE")
