"""Where a run's numbers go: two JSONL files always, a live line where a person watches, other trackers if asked for.

``metrics.jsonl`` holds what training computed: one row an iteration, the same bits however often the run was
interrupted. ``timing.jsonl`` holds how long it took, which is never the same twice.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from jaxsched.errors import UserError

TRACKERS = ("tensorboard", "wandb")


class Tracker(Protocol):
    """Something that takes numbers."""

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


class Jsonl:
    """A file of JSON rows that knows how far it has been written, and can be taken back to an earlier point."""

    def __init__(self, path: str | Path, at: int = 0):
        """Open for appending; anything beyond byte `at` is dropped.

        Raises:
            UserError: the file is shorter than that.
        """
        self.path = Path(path)
        size = self.path.stat().st_size if self.path.exists() else 0
        if size < at:
            raise UserError(f"has {size} bytes", where=str(self.path), expected=f"at least the {at} of the checkpoint",
                            hint="It was changed after the run stopped; start anew.")  # fmt: skip
        self._file = open(self.path, "ab")  # noqa: SIM115
        self._file.truncate(at)
        self._file.seek(at)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row. Numbers that JSON does not have (NaN, infinity) become null."""
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        self._file.write((json.dumps(clean) + "\n").encode())

    def sync(self) -> int:
        """Bring what was written to the disk; how many bytes there are."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """Event files for TensorBoard (needs tensorboardX)."""

    def __init__(self, folder: str | Path):
        try:
            from tensorboardX import SummaryWriter  # type: ignore[import-not-found]
        except ImportError:
            raise UserError("tensorboardX is not installed", where="run.track", expected="it, for tensorboard",
                            hint="pip install tensorboardX, or leave the tracker out: metrics.jsonl is always written.",
                            ) from None  # fmt: skip
        self._writer = SummaryWriter(str(folder))

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, iteration)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """Weights & Biases (needs wandb and its own log-in; offline mode works too)."""

    def __init__(self, folder: str | Path, name: str, config: Mapping[str, Any]):
        try:
            import wandb  # type: ignore[import-not-found]
        except ImportError:
            raise UserError("wandb is not installed", where="run.track", expected="it, for wandb",
                            hint="pip install wandb, or leave the tracker out: metrics.jsonl is always written.",
                            ) from None  # fmt: skip
        self._run = wandb.init(project="jaxsched", name=name, dir=str(folder), config=dict(config), resume="allow")

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=iteration)

    def close(self) -> None:
        self._run.finish()


def make_tracker(kind: str, folder: str | Path, name: str, config: Mapping[str, Any]) -> Tracker:
    """A tracker by name.

    Raises:
        UserError: unknown, or what it needs is not installed.
    """
    if kind == "tensorboard":
        return TensorBoard(Path(folder) / "tensorboard")
    if kind == "wandb":
        return WandB(folder, name, config)
    raise UserError(f"unknown tracker {kind!r}", where="run.track", expected=f"among {', '.join(TRACKERS)}")


class LiveLine:
    """One line that is redrawn on a terminal: progress, headline, throughput, time left. Silent when piped."""

    def __init__(self, total: int, start: int, headline: str, decisions: int, *, is_quiet: bool = False):
        from rich.console import Console

        self.console = Console(stderr=True)
        self._headline, self._decisions = headline, decisions
        self._live: Any = None
        self._begun, self._start = time.monotonic(), start
        if self.console.is_terminal and not is_quiet:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._live = Progress(
                TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"),
                TimeRemainingColumn(), console=self.console, transient=True,
            )  # fmt: skip
            self._live.start()
            self._task = self._live.add_task("compiling", total=total, completed=start)

    def show(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """After an iteration."""
        if self._live is None:
            return
        passed = max(time.monotonic() - self._begun, 1e-9)
        rate = (iteration - self._start) * self._decisions / passed
        losses = [f"{n} {metrics[n]:.4g}" for n in (self._headline, "loss", "kl", "explained_variance") if n in metrics]
        text = f"{' · '.join(losses)} · {rate:,.0f} decisions/s"
        self._live.update(self._task, description=text, completed=iteration)

    def close(self) -> None:
        """Remove the line."""
        if self._live is not None:
            self._live.stop()
