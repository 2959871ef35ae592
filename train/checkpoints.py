"""The whole state of a training run on disk, from which it goes on as if it had never stopped.

Orbax writes each checkpoint into a temporary folder and renames it, so a process killed at any moment leaves the
earlier ones whole. Every checkpoint says what it holds (path, shape and type of each array) and their SHA-256; it is
read back only into a learner of that structure, and only with those bits.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsched.checkpoint import versions
from jaxsched.errors import UserError

FORMAT = "jaxsched-training"
FORMAT_VERSION = 1


def flatten(state: Any) -> dict[str, np.ndarray]:
    """Arrays of any pytree by path, on the host; JAX keys as their numbers."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): _plain(leaf) for path, leaf in leaves}


def _plain(leaf: Any) -> np.ndarray:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def _describe(arrays: dict[str, np.ndarray]) -> dict[str, list[Any]]:
    return {name: [list(array.shape), str(array.dtype)] for name, array in arrays.items()}


def digest(arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 of names, shapes, types and contents."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"{name} {array.shape} {array.dtype};".encode())
        total.update(array.tobytes())
    return total.hexdigest()


class Checkpoints:
    """Checkpoints of one run.

    Args:
        folder: ``runs/<name>/checkpoints``; made if missing.
        keep: how many of the latest are kept.
        about: plain data written into each and compared when one is read: what the run is (algorithm, network, ...).

    Raises:
        UserError: orbax is not installed.
    """

    def __init__(self, folder: str | Path, keep: int, about: dict[str, Any]):
        try:
            import orbax.checkpoint as ocp
        except ImportError:
            raise UserError("orbax-checkpoint is not installed", expected="it, to save and resume training",
                            hint="pip install orbax-checkpoint") from None  # fmt: skip
        logging.getLogger("absl").setLevel(logging.ERROR)  # it reports every step of every save
        self._ocp = ocp
        self.folder = Path(folder).expanduser().resolve()
        self.about = about
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except OSError as error:
            raise UserError(f"cannot be written ({error.strerror or error})", where=str(self.folder),
                            expected="a writable folder") from None  # fmt: skip

    def iterations(self) -> list[int]:
        """Iterations after which there is a checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, iteration: int, state: Any, cursor: dict[str, int]) -> None:
        """Write a checkpoint; returns when it is complete.

        Args:
            iteration: iterations done.
            state: the learner, any pytree.
            cursor: how far the run's logs had been written, in bytes by file name.
        """
        arrays = flatten(state)
        about = {
            "format": FORMAT, "format_version": FORMAT_VERSION, "iteration": iteration, "cursor": cursor,
            "run": self.about, "arrays": _describe(arrays), "digest": digest(arrays), "versions": versions(),
        }  # fmt: skip
        # Orbax refuses arrays of size zero (a memory of width 0); they are remade from their shape.
        stored = {name.replace("/", "."): array for name, array in arrays.items() if array.size}
        args = self._ocp.args
        self._manager.save(
            iteration, args=args.Composite(state=args.StandardSave(stored), about=args.JsonSave(about)), force=True
        )
        self._manager.wait_until_finished()

    def restore(self, like: Any) -> tuple[int, Any, dict[str, int]]:
        """The latest checkpoint.

        Args:
            like: a learner of the structure expected (freshly initialised, or its `jax.eval_shape`).

        Returns:
            Iterations done, the learner, and the cursor as saved.

        Raises:
            UserError: there is none, it is damaged, or it belongs to another run; says what is different.
        """
        steps = self.iterations()
        if not steps:
            raise UserError("no checkpoint here", where=str(self.folder), expected="a run that was saved at least once",
                            hint="Start it anew without --resume.")  # fmt: skip
        iteration, place = steps[-1], self.folder / str(steps[-1])
        earlier = f"remove the folder to go on from iteration {steps[-2]}" if steps[1:] else "start anew"
        damaged = UserError("is damaged: not all of it can be read", where=str(place),
                            expected="a checkpoint as it was written", hint=f"To go on, {earlier}.")  # fmt: skip
        args = self._ocp.args
        try:
            about = self._manager.restore(iteration, args=args.Composite(about=args.JsonRestore()))["about"]
        except Exception:
            raise damaged from None
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise UserError("is not a checkpoint of `python -m train`", where=str(place), expected="one")
        self._check(about, like, place)
        shapes = {name: jax.ShapeDtypeStruct(tuple(shape), dtype) for name, (shape, dtype) in about["arrays"].items()}
        wanted = {name.replace("/", "."): np.zeros(s.shape, s.dtype) for name, s in shapes.items() if np.prod(s.shape)}
        try:
            restored = self._manager.restore(iteration, args=args.Composite(state=args.StandardRestore(wanted)))[
                "state"
            ]
        except Exception:
            raise damaged from None
        arrays = {name: np.asarray(restored.get(name.replace("/", "."), np.zeros(s.shape, s.dtype)))
                  for name, s in shapes.items()}  # fmt: skip
        if digest(arrays) != about["digest"]:
            raise damaged
        leaves, tree = jax.tree_util.tree_flatten_with_path(like)
        values = [_like(arrays[jax.tree_util.keystr(path, simple=True, separator="/")], leaf) for path, leaf in leaves]
        return iteration, jax.tree_util.tree_unflatten(tree, values), about["cursor"]

    def _check(self, about: dict[str, Any], like: Any, place: Path) -> None:
        """Refuse the checkpoint of another run."""
        if about["format_version"] != FORMAT_VERSION:
            raise UserError(
                f"has format version {about['format_version']}", where=str(place), expected=f"{FORMAT_VERSION}"
            )
        for name, value in self.about.items():
            found = about["run"].get(name)
            if found != value:
                raise UserError(f"was written with {name} {found!r}", where=str(place), expected=f"{value!r}",
                                hint="The checkpoint belongs to another run or configuration.")  # fmt: skip
        wanted = _describe(flatten(jax.tree.map(_zeros, like)))
        for name in [*wanted, *about["arrays"]]:
            found, want = about["arrays"].get(name), wanted.get(name)
            if found != want:
                shown = [f"{x[1]}{x[0]}" if x else "absent" for x in (found, want)]
                raise UserError(f"{name} is {shown[0]}", where=str(place), expected=shown[1],
                                hint="The checkpoint belongs to another network or environment.")  # fmt: skip

    def close(self) -> None:
        """Release what orbax holds."""
        self._manager.close()


def _zeros(leaf: Any) -> Any:
    """An array like an abstract leaf (keys as keys)."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return (
            leaf
            if isinstance(leaf, jax.Array)
            else jax.random.split(jax.random.key(0), leaf.shape or 1).reshape(leaf.shape)
        )
    return np.zeros(leaf.shape, leaf.dtype)


def _like(array: np.ndarray, leaf: Any) -> Any:
    """A stored array as the leaf it stands for."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(array))
    return jnp.asarray(array)
