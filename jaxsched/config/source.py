"""Layers of configuration as plain data that remembers where each key was written.

A layer is a YAML file, its `extends:` bases, or a set of overrides. Layers are merged key by key;
lists and scalars replace.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from jaxsched.errors import UserError

DataPath = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """YAML with the scalars people mean (1.2): only true/false are boolean, ``1e3`` is a number, no dates or octals."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith((":bool", ":int", ":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^(?:[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
    list("-+0123456789."),
)


@dataclass
class Layer:
    """Nested plain data and, for every key and list item in it, where it was written."""

    data: dict[str, Any]
    origins: dict[DataPath, str] = field(default_factory=dict)


def parse_scalar(text: str) -> Any:
    """The value of an override as YAML reads it (``3``, ``true``, ``[1, 2]``); text that is not YAML stays text."""
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except yaml.YAMLError:
        return text


def read_yaml(path: Path, *, wanted_by: str = "") -> Layer:
    """Read one file, without its bases.

    Raises:
        UserError: the file is missing, unreadable, not YAML, not a mapping, or says a key twice.
    """
    shown = str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.5)
        hint = f"Did you mean {path.parent / near[0]}?" if near else ""
        raise UserError(
            f"no such file: {shown}" if wanted_by else "no such file",
            where=wanted_by or shown,
            expected="a configuration in YAML",
            hint=hint,
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"cannot be read ({reason})", where=shown, expected="a configuration in YAML") from None
    try:
        node = yaml.compose(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{shown}, line {mark.line + 1}" if mark else shown
        problem = getattr(error, "problem", None) or "unreadable"
        raise UserError(f"not valid YAML ({problem})", where=where, expected="a configuration in YAML") from None
    if not isinstance(node, yaml.MappingNode):
        found = "an empty file" if node is None else f"a {node.id}"
        raise UserError(f"found {found}", where=shown, expected="a mapping of keys (name:, workload:, ...)")
    layer = Layer({})
    layer.data = _construct(node, (), shown, layer.origins)
    return layer


def _construct(node: yaml.Node, path: DataPath, shown: str, origins: dict[DataPath, str]) -> Any:
    """Plain data of a node; notes the line of every key and list item on the way."""
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            where = f"{shown}, line {key_node.start_mark.line + 1}"
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError("found a key that is not plain text", where=where, expected="a field name")
            key = str(key_node.value)
            if key in result:
                raise UserError(f"key {key!r} is given twice", where=where, expected="each key once")
            origins[(*path, key)] = where
            result[key] = _construct(value_node, (*path, key), shown, origins)
        return result
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, item in enumerate(node.value):
            origins[(*path, index)] = f"{shown}, line {item.start_mark.line + 1}"
            items.append(_construct(item, (*path, index), shown, origins))
        return items
    loader = _Loader("")
    try:
        return loader.construct_object(node)
    except (yaml.YAMLError, ValueError):
        where = f"{shown}, line {node.start_mark.line + 1}"
        raise UserError(f"cannot read the value {node.value!r}", where=where, expected="a plain value") from None


#: Other names a key may be written by, and the one it is kept under.
ALIASES: dict[DataPath, str] = {("cluster", "max_num_seqs_slots"): "num_slots"}

#: Keys that hold a file path; a relative one is relative to the file that says it, or to the working directory.
PATH_KEYS: tuple[DataPath, ...] = (("workload", "path"), ("timing", "path"))

#: Sections that say by `kind` which fields they have.
KINDS = ("timing", "algo")

#: Settings that belong to one workload source and mean nothing for another.
_SOURCE_SETTINGS = ("preset", "tenants", "path", "format", "options", "rate_per_s", "slice_s")


def normalise(layer: Layer, folder: Path) -> Layer:
    """Rename aliases and make file paths absolute, before layers are merged."""
    for (section, alias), name in ((path, name) for path, name in ALIASES.items()):
        values = layer.data.get(str(section))
        if isinstance(values, dict) and alias in values:
            where = layer.origins.get((section, alias), "")
            if name in values:
                problem = f"both {alias!r} and {name!r} are given"
                raise UserError(problem, where=where, expected="one of them: they mean the same")
            values[name] = values.pop(alias)
            layer.origins[(section, name)] = where
    for section, key in PATH_KEYS:
        values = layer.data.get(str(section))
        if isinstance(values, dict) and isinstance(values.get(key), str):
            values[key] = os.path.abspath(folder / Path(values[key]).expanduser())
    return layer


def merge(base: Layer, top: Layer) -> Layer:
    """`top` over `base`, key by key. Two places replace more than the key that is named:

    - a section of `KINDS` with another `kind` replaces the whole section (its kinds share no fields);
    - a `workload` that names a `preset`, `tenants` or a `path` replaces the others of them, and what belonged to it
      (`format`, `options`, `rate_per_s`, `slice_s`).
    """
    data, origins = dict(base.data), dict(base.origins)

    def forget(path: DataPath) -> None:
        for known in [p for p in origins if p[: len(path)] == path]:
            del origins[known]

    for name in KINDS:
        old, new = data.get(name), top.data.get(name)
        if isinstance(old, dict) and isinstance(new, dict) and new.get("kind", old.get("kind")) != old.get("kind"):
            del data[name]
            forget((name,))
    workload, new_workload = data.get("workload"), top.data.get("workload")
    if isinstance(workload, dict) and isinstance(new_workload, dict):
        named = [k for k in ("preset", "tenants", "path") if new_workload.get(k) is not None]
        if named and any(workload.get(k) != new_workload[k] for k in named):
            data["workload"] = {k: v for k, v in workload.items() if k not in _SOURCE_SETTINGS}
            for key in _SOURCE_SETTINGS:
                forget(("workload", key))

    def merge_into(old: dict[str, Any], new: dict[str, Any], path: DataPath) -> dict[str, Any]:
        result = dict(old)
        for key, value in new.items():
            here = (*path, key)
            if isinstance(value, dict) and isinstance(result.get(key), dict):
                result[key] = merge_into(result[key], value, here)
            else:
                forget(here)
                result[key] = value
        return result

    merged = merge_into(data, top.data, ())
    return Layer(merged, {**origins, **top.origins})


def read_with_bases(path: Path, *, _chain: tuple[Path, ...] = (), _wanted_by: str = "") -> Layer:
    """Read a file and every base it `extends` (a relative path or a list of them; later ones win over earlier ones).

    Raises:
        UserError: as `read_yaml`, or a base that leads back to a file that is being read.
    """
    resolved = path.resolve()
    if resolved in _chain:
        loop = " -> ".join(p.name for p in (*_chain[_chain.index(resolved) :], resolved))
        raise UserError(f"`extends` goes in a circle: {loop}", where=_wanted_by, expected="bases that do not lead back")
    layer = read_yaml(path, wanted_by=_wanted_by)
    bases = layer.data.pop("extends", None)
    where = layer.origins.pop(("extends",), str(path)) + ", field extends"
    names = [] if bases is None else [bases] if isinstance(bases, str) else bases
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"found {bases!r}", where=where, expected="a path or a list of paths")
    layer.origins = {p: o for p, o in layer.origins.items() if p[0] != "extends"}
    result = Layer({})
    for name in names:
        base = path.parent / Path(name).expanduser()
        result = merge(result, read_with_bases(base, _chain=(*_chain, resolved), _wanted_by=where))
    return merge(result, normalise(layer, path.parent))
