"""From a file, its bases and overrides to a checked, immutable configuration."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from jaxsched.config.overrides import Overrides, apply_overrides
from jaxsched.config.problems import as_user_error
from jaxsched.config.schema import CompareConfig, RootConfig, ScenarioConfig
from jaxsched.config.source import Layer, normalise, read_with_bases
from jaxsched.errors import UserError

Config = TypeVar("Config", bound=RootConfig)


def load(path: str | Path, overrides: Overrides = ()) -> ScenarioConfig:
    """Read a scenario.

    Args:
        path: a YAML file; it may start with ``extends: other.yaml`` (relative to itself) or a list of such paths.
        overrides: ``["workload.load=0.8", ...]`` or ``{"workload.load": 0.8}``, applied last, in order.

    Raises:
        UserError: anything in the file or the overrides that is not usable, with file, line and field.
    """
    return load_as(path, overrides, ScenarioConfig)


def load_compare(path: str | Path, overrides: Overrides = ()) -> CompareConfig:
    """Read a comparison: a scenario (usually by `extends`) and a `compare:` section. Otherwise as `load`."""
    return load_as(path, overrides, CompareConfig)


def from_dict(data: Mapping[str, Any], overrides: Overrides = (), *, model: type[Config] = ScenarioConfig) -> Config:
    """Check a configuration given as plain data (paths in it are relative to the working directory)."""
    layer = normalise(Layer(copy.deepcopy(dict(data))), Path.cwd())
    return _validate(apply_overrides(layer, overrides), model, "configuration")


def load_as(path: str | Path, overrides: Overrides, model: type[Config]) -> Config:
    """Read a file of any kind of configuration. Otherwise as `load`."""
    path = Path(path).expanduser()
    layer = read_with_bases(path)
    layer.data.setdefault("name", path.stem)
    return _validate(apply_overrides(layer, overrides), model, str(path))


def _validate(layer: Layer, model: type[Config], source: str) -> Config:
    try:
        config = model.model_validate(layer.data)
    except ValidationError as error:
        raise as_user_error(error, model, layer, source) from None
    config._origins = dict(layer.origins)
    return config


def check_name(config: RootConfig, field: str, name: str, known: Iterable[str], what: str) -> None:
    """Refuse a name that no registry knows, saying where it was written and which name is nearest.

    Args:
        config: the configuration the name came from.
        field: dotted path of the field, e.g. ``"policy.scheduler"``.
        name: the value found there.
        known: names of the registry.
        what: what is named, e.g. ``"scheduler"``.

    Raises:
        UserError: `name` is not among `known`.
    """
    names = list(known)
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]!r}?" if near else ""
    raise UserError(
        f"unknown {what} {name!r}", where=config.where(field), expected=f"one of {', '.join(names)}", hint=hint
    )
