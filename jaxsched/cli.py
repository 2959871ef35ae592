"""The command line: compare, simulate, calibrate, verify, list. Imports JAX only when a command needs it."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence

from jaxsched.errors import UserError
from jaxsched.terminal import Status, print_comparison, print_nested

OVERRIDES = "any field of the configuration can be set: --workload.num_requests 500, --set cluster.num_instances=8"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Exit codes: 0 done, 1 a check failed (`verify`), 2 the user's mistake, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` closed the pipe: not an error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jaxsched", description="Exact, vectorised simulation of LLM-serving clusters."
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    compare = commands.add_parser(
        "compare", help="policies x loads x seeds: table and report", epilog=OVERRIDES, allow_abbrev=False
    )
    compare.add_argument("config", help="a comparison, e.g. configs/compare/chat.yaml")
    compare.add_argument(
        "--out", default="results", help="folder for report.html and comparison.json (default: results)"
    )
    compare.add_argument(
        "--policies", help="comma-separated, of those configured or others: vllm,sarathi+least_kv,runs/mine"
    )
    compare.add_argument("--json", action="store_true", help="print the table as JSON")

    simulate = commands.add_parser("simulate", help="run one policy", epilog=OVERRIDES, allow_abbrev=False)
    simulate.add_argument("config", help="a scenario, e.g. configs/scenarios/chat.yaml")
    simulate.add_argument("--policy", help="a policy of the catalogue, instead of the configured one")
    simulate.add_argument("--seeds", type=int, default=1, help="lanes; for a trace, windows of it (default: 1)")
    simulate.add_argument("--record", metavar="FILE", help="write every request's life: .parquet, .csv or .jsonl")
    simulate.add_argument("--report", metavar="FILE", help="write an HTML report")
    simulate.add_argument("--json", action="store_true", help="print the metrics as JSON")

    calibrate = commands.add_parser("calibrate", help="fit a step-time model to measured steps", allow_abbrev=False)
    calibrate.add_argument("measurements", help="CSV of measured engine steps (docs: jaxsched/timing/measurements.py)")
    calibrate.add_argument("--model", help="rows of this model, e.g. llama-3-8b")
    calibrate.add_argument("--device", help="rows of this device, e.g. a100")
    calibrate.add_argument("--tp", type=int, help="rows of this tensor-parallel degree")
    calibrate.add_argument("--pp", type=int, help="rows of this pipeline degree")
    calibrate.add_argument("--target", help="column to fit")
    calibrate.add_argument("--host-overhead-us", type=float, default=0.0, help="added to each step after the fit")
    calibrate.add_argument("--seed", type=int, default=0, help="another seed holds out other rows")
    calibrate.add_argument(
        "--out", metavar="FILE", help="write the coefficients (timing: {kind: coefficients, path: FILE})"
    )
    calibrate.add_argument("--json", action="store_true", help="print the report as JSON")

    verify = commands.add_parser("verify", help="run the machine on recorded engine decisions", allow_abbrev=False)
    verify.add_argument("folder", help="a recorded scenario, or a folder of them")
    verify.add_argument("--json", action="store_true", help="print the outcome as JSON")

    listing = commands.add_parser("list", help="what there is", allow_abbrev=False)
    listing.add_argument("what", choices=["policies", "routers", "workloads", "models", "devices", "scenarios"])
    listing.add_argument("--json", action="store_true", help="as JSON")
    return parser


def _run(arguments: list[str]) -> int:
    parser = _parser()
    overrides: list[str] = []
    if arguments[:1] in (["compare"], ["simulate"]):
        from jaxsched.config import split_overrides

        overrides, arguments = split_overrides(arguments)
    options = parser.parse_args(arguments)
    if options.version:
        import jaxsched

        print(f"jaxsched {jaxsched.__version__}")
        return 0
    if options.command is None:
        parser.print_help()
        return 0
    commands: dict[str, Callable[..., int]] = {
        "compare": _compare, "simulate": _simulate, "calibrate": _calibrate, "verify": _verify, "list": _list,
    }  # fmt: skip
    if options.command in ("compare", "simulate", "verify"):
        configure_jax()
    return commands[options.command](options, overrides)


def configure_jax() -> None:
    """Before JAX starts: a CPU device per core (XLA uses one core per device), fast loops, a cache of compilations."""
    from jaxsched.xla import ask_for_native_loops

    ask_for_native_loops(os.environ)
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = os.environ.get("XDG_CACHE_HOME", os.path.join(os.path.expanduser("~"), ".cache"))
        jax.config.update("jax_compilation_cache_dir", os.path.join(home, "jaxsched", "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        with contextlib.suppress(RuntimeError):  # called from Python where JAX runs already: the devices it has
            jax.config.update("jax_num_cpu_devices", max(1, min(cores, 64)))


def _command_line() -> str:
    return shlex.join(["jaxsched", *sys.argv[1:]])


def _compare(options: argparse.Namespace, overrides: list[str]) -> int:
    from jaxsched.config import load_compare
    from jaxsched.files import check_writable

    folder = options.out
    report = os.path.join(folder, "report.html")
    check_writable(report)
    config = load_compare(options.config, _with_policies(options, overrides))
    from jaxsched.comparison import compare
    from jaxsched.files import write_atomic
    from jaxsched.report import comparison_table, explain_winners, render_comparison, write_html
    from jaxsched.scenario import from_config, policy_from_config

    scenario = from_config(config)
    policies = {name: policy_from_config(config, name, section) for name, section in config.policies().items()}
    section = config.compare
    with Status() as status:
        comparison = compare(
            scenario,
            policies,
            section.loads,
            section.seeds,
            baseline=section.baseline,
            metric=section.metric,
            capacity_per_s=None if section.capacity == "auto" else section.capacity,
            capacity_of=section.capacity_of,
            capacity_seeds=section.capacity_seeds,
            capacity_programs=section.capacity_programs,
            confidence=section.confidence,
            num_bootstrap=section.num_bootstrap,
            command=_command_line(),
            config_yaml=config.to_yaml(),
            say=status.say,
        )
    data = comparison.data
    table, winners = comparison_table(data), explain_winners(data)
    outcome = {
        "capacity_per_s": data.capacity_per_s,
        "capacity_note": data.capacity_note,
        "config_hash": config.config_hash(),
        "winners": winners,
        "table": table,
        "notes": data.notes,
        "versions": data.versions,
        "command": data.command,
        "per_seed": [
            {
                "policy": name,
                "load": load,
                **{m: [None if v != v else v for v in map(float, x)] for m, x in values.items()},
            }
            for (name, load), values in data.per_seed.items()
        ],
    }
    text = json.dumps(outcome, indent=1)
    write_html(report, render_comparison(data))
    write_atomic(os.path.join(folder, "comparison.json"), (text + "\n").encode())
    if options.json:
        print(text)
    else:
        print_comparison(data, winners)
        print(f"report: {report}")
    return 0


def _with_policies(options: argparse.Namespace, overrides: list[str]) -> list[str]:
    if not options.policies:
        return overrides
    from jaxsched.config import load_compare

    names = [name.strip() for name in options.policies.split(",") if name.strip()]
    # A name of the configuration keeps its settings there.
    known = {choice.name: choice.model_dump(mode="json") for choice in load_compare(options.config).compare.policies}
    extra = [f"compare.policies={json.dumps([known.get(name, name) for name in names])}"]
    if not any(o.startswith("compare.baseline=") for o in overrides):
        extra.append(f"compare.baseline={names[0]}")
    return [*overrides, *extra]


def _simulate(options: argparse.Namespace, overrides: list[str]) -> int:
    from jaxsched.config import load
    from jaxsched.files import check_writable
    from jaxsched.records import check_record_target, write_records

    if options.seeds < 1:
        raise UserError(f"{options.seeds} seeds", where="option --seeds", expected="at least 1")
    if options.record:
        check_record_target(options.record)
    if options.report:
        check_writable(options.report)
    config = load(options.config, overrides)
    from jaxsched.comparison import compared_metrics, timeline, versions
    from jaxsched.policies import split_name
    from jaxsched.report import SimulationData, render_simulation, write_html
    from jaxsched.scenario import from_config, policy_from_config
    from jaxsched.simulation import rollout

    scenario = from_config(config)
    policy = scenario.policy
    if options.policy:
        name, router = split_name(options.policy)
        section = config.policy.model_copy(update={"scheduler": name, **({"router": router} if router else {})})
        policy = policy_from_config(config, options.policy, section)
    assert policy is not None
    with Status() as status:
        result = rollout(
            scenario,
            policy,
            seeds=options.seeds,
            record=bool(options.record),
            progress=lambda done, of: status.say(f"simulating {policy.name}", done, of),
        )
    if options.record:
        write_records(options.record, result.records())
    if options.report:
        data = SimulationData(
            title=scenario.name, command=_command_line(), config_yaml=config.to_yaml(), versions=versions(),
            seeds=result.seeds, policy=policy.name, summary=compared_metrics(result), cdfs=result.cdfs(),
            timeline=timeline(result), notes=[*scenario.notes, *result.warnings()],
        )  # fmt: skip
        write_html(options.report, render_simulation(data))
    if options.json:
        metrics = {k: [None if v != v else float(v) for v in values] for k, values in result.metrics.items()}
        print(
            json.dumps(
                {
                    "scenario": scenario.name,
                    "policy": policy.name,
                    "seeds": result.seeds,
                    "metrics": metrics,
                    "rate_per_s": result.rate_per_s,
                    "warnings": result.warnings(),
                    "notes": list(scenario.notes),
                },
                indent=1,
            )
        )
    else:
        for note in scenario.notes:
            print(note)
        print(result.summary())
        for what, path in (("records", options.record), ("report", options.report)):
            if path:
                print(f"{what}: {path}")
    return 0


def _calibrate(options: argparse.Namespace, _: list[str]) -> int:
    from jaxsched.files import check_writable
    from jaxsched.timing import fit_csv

    if options.out:
        check_writable(options.out)
    fit = fit_csv(
        options.measurements,
        model=options.model,
        device=options.device,
        tp=options.tp,
        pp=options.pp,
        target_column=options.target,
        host_overhead_us=options.host_overhead_us,
        seed=options.seed,
    )
    if options.out:
        fit.save(options.out)
    if options.json:
        print(json.dumps(fit.report, indent=1))
        return 0
    print(fit.step_time.explain())
    print_nested(fit.report)
    if options.out:
        print(f"coefficients: {options.out}")
    return 0


def _verify(options: argparse.Namespace, _: list[str]) -> int:
    from jaxsched.verify import main as verify

    return verify(options.folder, json=options.json)


def _list(options: argparse.Namespace, _: list[str]) -> int:
    from jaxsched.catalogue import LISTS

    rows = LISTS[options.what]()
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        rest = "; ".join(str(v) for k, v in row.items() if k != "name" and v not in ("", None))
        print(f"{row['name']:{width}}  {rest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
