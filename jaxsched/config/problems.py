"""Validation errors in the user's words: file, line, field, what was found, what is expected, the nearest valid key."""

from __future__ import annotations

import difflib
import types
import typing
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from jaxsched.config.source import ALIASES, DataPath, Layer
from jaxsched.errors import UserError

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a text",
    "list_type": "a list",
    "dict_type": "a mapping of names to values",
    "model_type": "a section (a mapping of keys to values)",
    "model_attributes_type": "a section (a mapping of keys to values)",
    "tuple_type": "a list",
}
_BOUNDS = {
    "greater_than": ("gt", "a number above {}"),
    "greater_than_equal": ("ge", "a number of at least {}"),
    "less_than": ("lt", "a number below {}"),
    "less_than_equal": ("le", "a number of at most {}"),
}


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models an annotation may hold, looking through Optional, unions, lists and Annotated."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) is typing.Annotated:
        return _models(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, list):
        return [model for arg in typing.get_args(annotation) for model in _models(arg)]
    return []


def _kind(model: type[BaseModel]) -> str | None:
    """The tag of a member of a union told apart by `kind`."""
    field = model.model_fields.get("kind")
    return typing.get_args(field.annotation)[0] if field else None


def _has(data: Any, path: DataPath) -> bool:
    """Whether nested data has something at the path."""
    for step in path:
        if isinstance(data, list) and isinstance(step, int) and step < len(data):
            data = data[step]
            continue
        if not isinstance(data, dict) or step not in data:
            return False
        data = data[step]
    return True


def _walk(model: type[BaseModel], loc: tuple[str | int, ...], data: Any) -> tuple[DataPath, list[type[BaseModel]]]:
    """Pydantic's `loc` without the members of unions it names, and the models of the section its last element is in."""
    path: list[str | int] = []
    inside: list[type[BaseModel]] = [model]
    here: list[type[BaseModel]] = [model]
    for step in loc:
        tags = {_kind(m): m for m in here}
        if len(here) > 1 and step in tags:
            here = [tags[str(step)]]
            continue
        if not here and not _has(data, (*path, step)):
            continue
        path.append(step)
        inside = here
        if isinstance(step, str):
            fields = [m.model_fields[step] for m in here if step in m.model_fields]
            here = [m for f in fields for m in _models(f.annotation)]
    return tuple(path), inside


def dotted_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every key the model accepts, as dotted paths (list items as ``.0``)."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        is_list = typing.get_origin(field.annotation) is list
        for inner in _models(field.annotation):
            keys += dotted_keys(inner, f"{prefix}{name}.0." if is_list else f"{prefix}{name}.")
    return list(dict.fromkeys(keys))


def _nearest_key(key: str, path: DataPath, inside: list[type[BaseModel]], root: type[BaseModel]) -> str:
    valid = list(dict.fromkeys(name for m in inside for name in m.model_fields))
    valid += [alias for where, alias in ((p[:-1], str(p[-1])) for p in ALIASES) if where == path[:-1]]
    section = ".".join(map(str, path[:-1]))
    elsewhere = [k for k in dotted_keys(root) if k.split(".")[-1] == key]
    near = difflib.get_close_matches(key, valid, n=1, cutoff=0.6)
    if not near and elsewhere:
        return f"Did you mean {elsewhere[0]}?"
    near = near or difflib.get_close_matches(key, valid, n=1, cutoff=0.0)
    listing = f"Valid keys{' in ' + section if section else ''}: {', '.join(valid)}."
    return f"Did you mean {near[0]!r}? {listing}" if near else listing


def _position(layer: Layer, path: DataPath) -> str:
    """Where the innermost known part of the path was written."""
    for end in range(len(path), 0, -1):
        if path[:end] in layer.origins:
            return layer.origins[path[:end]]
    return ""


def _show(value: Any) -> str:
    names = {dict: "a section", list: "a list", type(None): "nothing (null)", bool: "a boolean", str: "a text"}
    text = repr(value) if not isinstance(value, bool) else str(value).lower()
    if isinstance(value, dict | list) or value is None:
        return names[type(value)]
    kind = names.get(type(value), "a number")
    return f"{kind} ({text if len(text) <= 60 else text[:57] + '...'})"


def _describe(error: ErrorDetails, root: type[BaseModel], layer: Layer, source: str) -> tuple[str, str, str, str]:
    """(problem, where, expected, hint) of one validation error."""
    path, inside = _walk(root, error["loc"], layer.data)
    kind, context, found = error["type"], error.get("ctx", {}), error["input"]
    field = ".".join(map(str, path))
    position = _position(layer, path) or source
    where = f"{position}, field {field}" if field and not position.startswith("override") else position
    if kind == "extra_forbidden":
        key = str(path[-1])
        if path == ("compare",):
            hint = "This file is a comparison: run it with `jaxsched compare`."
            return f"unknown key {key!r}", where, "a scenario", hint
        return f"unknown key {key!r}", where, "a valid key", _nearest_key(key, path, inside, root)
    if kind == "missing":
        parent = _position(layer, path[:-1]) or source
        hint = ""
        if path == ("compare",):
            hint = (
                "This file is a scenario: run it with `jaxsched simulate`, or extend it and add a `compare:` section."
            )
        return f"key {field!r} is missing", parent, "it to be given", hint
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        tags = context.get("expected_tags") or "'description', 'affine', 'coefficients'"
        problem = "key 'kind' is missing" if kind == "union_tag_not_found" else f"unknown kind {context['tag']!r}"
        return problem, where, f"kind to be one of {tags}", ""
    if kind == "value_error":
        return str(context["error"]), where, "", ""
    if kind == "union_error" or kind == "literal_error":
        return f"found {_show(found)}", where, str(context.get("expected", error["msg"])), ""
    if kind in _BOUNDS:
        name, text = _BOUNDS[kind]
        return f"found {found!r}", where, text.format(context[name]), ""
    if kind in ("too_short", "too_long"):
        limit = f"at least {context['min_length']}" if kind == "too_short" else f"at most {context['max_length']}"
        return f"found {context['actual_length']} item(s)", where, limit, ""
    return f"found {_show(found)}", where, _EXPECTED.get(kind, error["msg"]), ""


def as_user_error(error: ValidationError, root: type[BaseModel], layer: Layer, source: str) -> UserError:
    """The first problem in full, unknown keys first; any further ones are named in the hint."""
    details = error.errors(include_url=False)
    unknown_first = sorted(details, key=lambda e: e["type"] != "extra_forbidden")
    problem, where, expected, hint = _describe(unknown_first[0], root, layer, source)
    others = []
    for other in unknown_first[1:4]:
        what, place, wanted, _ = _describe(other, root, layer, source)
        text = f"{place}: {what}" + (f", expected {wanted}" if wanted else "")
        if text not in others:
            others.append(text)
    if others:
        hint = f"{hint} Also: {'; '.join(others)}".strip() + ("; ..." if len(unknown_first) > 4 else "")
    return UserError(problem, where=where, expected=expected, hint=hint)
