"""The published form of a trained policy: ``policy.msgpack`` (numbers) and ``policy.json`` (what they are).

Small, readable without orbax and without the training programs: whatever runs or compares a policy loads this. The
whole state of a training run, from which it is resumed, is another thing (``train/checkpoints.py``).

``policy.json`` names the network, its heads and sizes, the scenario it was trained on, the versions of the libraries,
and for the numbers their shapes, dtypes and the SHA-256 of the file; ``content_hash`` is the SHA-256 of all that,
so two exports are the same policy exactly if their content hashes are equal.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import serialization, traverse_util

from jaxsched.errors import UserError
from jaxsched.files import write_atomic

FORMAT = "jaxsched-policy"
FORMAT_VERSION = 1
#: Libraries whose version is written down: numbers can depend on them.
LIBRARIES = ("jax", "jaxlib", "flax", "numpy")


@dataclass(frozen=True)
class PolicyExport:
    """A policy as it was read from its two files.

    Attributes:
        params: nested dictionaries of NumPy arrays, as ``flax.serialization.to_state_dict`` makes them.
        network: what computes with them: ``{"kind": "set", ...}`` or ``{"kind": "index", ...}`` and its settings.
        sizes: sizes that the policy was trained at (slots, instances, features by name).
        scenario: the scenario it was trained on, as plain data; empty if there was none.
        training: how it was trained (algorithm, seed, number of steps), as plain data.
        versions: of jaxsched and the libraries, when it was written.
        content_hash: 64 hex digits naming the policy.
        path: the folder it was read from.
    """

    params: Any
    network: dict[str, Any]
    sizes: dict[str, Any] = field(default_factory=dict)
    scenario: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    content_hash: str = ""
    path: Path = Path()

    def params_like(self, target: Any) -> Any:
        """The parameters in the structure of `target` (parameters of the same network, freshly initialised).

        Raises:
            UserError: the network that `target` belongs to is not the one these parameters are for: names the first
                parameter that is missing, left over or of another shape.
        """
        wanted, found = describe_params(target), describe_params(self.params)
        where = str(self.path / "policy.json")
        for name in wanted:
            if name not in found:
                raise UserError(
                    f"has no parameter {name}",
                    where=where,
                    expected=f"one of shape {wanted[name][0]}",
                    hint="The checkpoint is of another network.",
                )
            if wanted[name] != found[name]:
                raise UserError(
                    f"parameter {name} has shape {found[name][0]} {found[name][1]}",
                    where=where,
                    expected=f"{wanted[name][0]} {wanted[name][1]}",
                    hint="The checkpoint is of another network, or of other features.",
                )
        left = [name for name in found if name not in wanted]
        if left:
            raise UserError(
                f"has a parameter {left[0]} that the network does not have",
                where=where,
                expected="the parameters of that network",
                hint="The checkpoint is of another network.",
            )
        return serialization.from_state_dict(target, self.params)


def describe_params(params: Any) -> dict[str, list[Any]]:
    """``{"encoder/kernel": [[12, 64], "float32"], ...}`` of any parameter pytree."""
    return {name: [list(np.shape(leaf)), str(np.asarray(leaf).dtype)] for name, leaf in _flat(params).items()}


def _flat(params: Any) -> dict[str, Any]:
    state = serialization.to_state_dict(params)
    if not isinstance(state, dict):  # one bare array
        return {"": state}
    flat: dict[str, Any] = traverse_util.flatten_dict(state, sep="/")  # type: ignore[assignment]
    return flat


def save_policy(
    folder: str | Path,
    params: Any,
    *,
    network: Mapping[str, Any],
    sizes: Mapping[str, Any] | None = None,
    scenario: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
) -> str:
    """Write ``policy.msgpack`` and ``policy.json`` into a folder (made if missing).

    Args:
        folder: where to.
        params: parameter pytree (flax dictionaries, `flax.struct` classes or one array).
        network: plain data naming the network; needs the key ``kind``.
        sizes: sizes trained at, plain data.
        scenario: the scenario trained on, plain data.
        training: algorithm, seed, steps, plain data.

    Returns:
        The content hash.

    Raises:
        UserError: the folder cannot be written, or a parameter is not finite.
    """
    if "kind" not in network:
        raise ValueError("`network` needs a `kind`")
    folder = Path(folder).expanduser()
    state = jax.tree.map(np.asarray, serialization.to_state_dict(params))
    for name, leaf in _flat(state).items():
        if np.issubdtype(leaf.dtype, np.floating) and not np.all(np.isfinite(leaf)):
            raise UserError(f"parameter {name} holds NaN or infinity", where=str(folder), expected="finite numbers")
    data = serialization.msgpack_serialize(state if isinstance(state, dict) else {"": state})
    about: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "network": dict(network),
        "sizes": dict(sizes or {}),
        "scenario": dict(scenario or {}),
        "training": dict(training or {}),
        "versions": versions(),
        "params": {
            "file": "policy.msgpack",
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "arrays": describe_params(state),
            "count": int(sum(np.size(leaf) for leaf in _flat(state).values())),
        },
    }
    about["content_hash"] = _content_hash(about)
    write_atomic(folder / "policy.msgpack", data)
    write_atomic(folder / "policy.json", (json.dumps(about, indent=1) + "\n").encode())
    return about["content_hash"]


def load_policy(path: str | Path) -> PolicyExport:
    """Read an exported policy.

    Args:
        path: the folder that holds the two files (a run folder), or either file.

    Raises:
        UserError: a file is missing, truncated, changed, of another program or of a later version of the format.
    """
    path = Path(path).expanduser()
    folder = path.parent if path.suffix in (".json", ".msgpack") else path
    about_path = folder / "policy.json"
    try:
        about = json.loads(about_path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            "no policy.json here",
            where=str(folder),
            expected="policy.json and policy.msgpack",
            hint="`python -m train` writes them into its run folder when it ends.",
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"cannot be read ({error})", where=str(about_path), expected="JSON") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise UserError("is not an exported policy", where=str(about_path), expected=f'"format": "{FORMAT}"')
    if about.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"has format version {about.get('format_version')!r}",
            where=str(about_path),
            expected=str(FORMAT_VERSION),
            hint="Load it with the version of jaxsched that wrote it.",
        )
    if about.get("content_hash") != _content_hash(about):
        raise UserError(
            "was changed after it was written: its content hash is another one",
            where=str(about_path),
            expected="the file as exported",
        )
    numbers = folder / about["params"]["file"]
    try:
        data = numbers.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot be read ({error.strerror or error})",
            where=str(numbers),
            expected="the parameters beside policy.json",
        ) from None
    if len(data) < about["params"]["bytes"]:
        raise UserError(f"is truncated: {len(data)} bytes", where=str(numbers), expected=f"{about['params']['bytes']}")
    if hashlib.sha256(data).hexdigest() != about["params"]["sha256"]:
        raise UserError(
            "does not hold the parameters that policy.json describes",
            where=str(numbers),
            expected=f"SHA-256 {about['params']['sha256'][:16]}...",
            hint="The two files belong to different exports.",
        )
    params = serialization.msgpack_restore(data)
    if list(about["params"]["arrays"]) == [""]:
        params = params[""]
    return PolicyExport(
        params=params,
        network=about["network"],
        sizes=about["sizes"],
        scenario=about["scenario"],
        training=about["training"],
        versions=about["versions"],
        content_hash=about["content_hash"],
        path=folder,
    )


def versions() -> dict[str, str]:
    """Of jaxsched and the libraries that numbers can depend on."""
    import jaxsched

    return {"jaxsched": jaxsched.__version__} | {name: importlib.metadata.version(name) for name in LIBRARIES}


def _content_hash(about: Mapping[str, Any]) -> str:
    content = {key: value for key, value in about.items() if key != "content_hash"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
