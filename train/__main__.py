"""``python -m train CONFIG [--set algo.lr=3e-4] [--resume RUN]``: train a policy.

The run folder (``runs/<name>``) gets config.yaml, metrics.jsonl, timing.jsonl, checkpoints/ and, at the end, the policy
as policy.msgpack and policy.json. Exit codes: 0 done, 2 the user's mistake, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxsched.errors import UserError
from train.entry import entry_point

EPILOG = "any field of the configuration can be set: --set algo.lr=3e-4, --run.num_iterations 500"


@entry_point("interrupted; go on with --resume RUN (from its latest checkpoint)")
def main(arguments: Sequence[str]) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m train", description="Train a policy.", epilog=EPILOG, allow_abbrev=False
    )
    parser.add_argument("config", nargs="?", help="e.g. configs/train/queue_ppo.yaml; with --resume: that of the run")
    parser.add_argument("--resume", metavar="RUN", help="run folder to go on with, e.g. runs/queue_ppo")
    parser.add_argument("--quiet", action="store_true", help="no live line")
    if list(arguments) in (["-h"], ["--help"]):  # before anything is imported
        parser.print_help()
        return 0
    from jaxsched.config import split_overrides

    overrides, rest = split_overrides(list(arguments))
    options = parser.parse_args(rest)
    if (path := _searched(options)) is not None:
        from train.run_es import run as run_search

        return run_search(path, overrides)
    config, folder = _configuration(options, overrides)

    from jaxsched.cli import configure_jax

    configure_jax()
    from train.build import build
    from train.config import TrainConfig
    from train.loop import RunPlan, run
    from train.tracking import make_tracker

    assert isinstance(config, TrainConfig)
    algorithm = build(config)
    trackers = [make_tracker(kind, folder, config.name, config.to_dict()) for kind in config.run.track]
    plan = RunPlan(
        folder=folder,
        num_iterations=config.run.num_iterations,
        seed=config.run.seed,
        checkpoint_every=config.run.checkpoint_every,
        keep=config.run.keep,
        about={"config_hash": config.what_is_learned(), "environment": config.env.id},
        scenario=config.env.model_dump(mode="json"),
        is_quiet=options.quiet,
        native_loops=config.run.native_loops,
    )
    _begin_folder(folder, config, resume=options.resume is not None)
    try:
        result = run(algorithm, plan, resume=options.resume is not None, trackers=trackers)
    finally:
        for tracker in trackers:
            tracker.close()
    shown = result.metrics.get(algorithm.headline)
    headline = f"{algorithm.headline} {shown:.4g}, " if shown is not None else ""
    print(f"{config.name}: {plan.num_iterations} iterations, {headline}policy {result.content_hash[:12]} in {folder}")
    return 0


def _searched(options: argparse.Namespace) -> str | None:
    """The configuration, if it is of a search (`algo.kind: es`): that has no environment, and a shape of its own."""
    from jaxsched.config.source import read_with_bases

    path = options.config if options.resume is None else str(Path(options.resume).expanduser() / "config.yaml")
    if path is None or not Path(path).expanduser().is_file():
        return None  # said with the other mistakes
    algo = read_with_bases(Path(path).expanduser()).data.get("algo")
    return path if isinstance(algo, dict) and algo.get("kind") == "es" else None


def _configuration(options: argparse.Namespace, overrides: list[str]) -> tuple[Any, Path]:
    """The configuration, and the run's folder."""
    from train.config import load

    if options.resume is None:
        if options.config is None:
            raise UserError("no configuration given", expected="python -m train CONFIG", hint="See configs/train/.")
        config = load(options.config, overrides)
        return config, Path(config.run.folder).expanduser() / config.name
    folder = Path(options.resume).expanduser()
    own = folder / "config.yaml"
    if not own.is_file():
        raise UserError("is not a run folder: it has no config.yaml", where=str(folder),
                        expected="a folder that `python -m train` made")  # fmt: skip
    before = load(own)
    config = load(options.config or own, overrides)
    if config.what_is_learned() != before.what_is_learned():
        names = _differences(before.to_dict(), config.to_dict())
        raise UserError(f"the configuration differs from the run's in {', '.join(names[:5])}", where=str(folder),
                        expected="the run's own (leave CONFIG out), or a new run under another name")  # fmt: skip
    return config, folder


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the settings that differ and matter to the result."""
    names: list[str] = []
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            names += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            names.append(f"{prefix}{key} ({old!r} there, {new!r} here)")
    ignored = ("name (", "description (", "run.folder", "run.checkpoint_every", "run.keep", "run.track")
    return [name for name in names if not name.startswith(ignored)]


def _begin_folder(folder: Path, config: Any, *, resume: bool) -> None:
    """Write the resolved configuration; a folder that holds a run already is left alone."""
    from jaxsched.files import check_writable, write_atomic

    target = folder / "config.yaml"
    check_writable(target)
    if target.exists() and not resume and any((folder / "checkpoints").glob("[0-9]*")):
        raise UserError("holds a run already", where=str(folder), expected="a new name (--set name=...)",
                        hint=f"To go on with it: python -m train --resume {folder}")  # fmt: skip
    write_atomic(target, config.to_yaml().encode())


if __name__ == "__main__":
    sys.exit(main())
