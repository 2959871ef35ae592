"""Reading public trace formats: `read` detects the format from the contents of a file or folder.

Each module of this package reads one format and its docstring gives the source, the fields and how pauses are derived.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jaxsched.errors import UserError
from jaxsched.workloads.names import nearest
from jaxsched.workloads.readers import (
    agentic_v2,
    azure,
    bailian,
    burstgpt,
    jobs,
    lengths_csv,
    mooncake,
    servegen,
    vidur,
    weka,
)
from jaxsched.workloads.readers.text import first_line
from jaxsched.workloads.table import Workload


@dataclass(frozen=True)
class Format:
    """One readable trace format."""

    name: str
    summary: str
    read: Callable[..., Workload]

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the reader's options."""
        return tuple(list(inspect.signature(self.read).parameters)[1:])


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("azure", "Azure LLM inference 2023/2024 CSV", azure.read),
        Format("mooncake", "Mooncake JSONL, with or without session_id and delay", mooncake.read),
        Format("agentic_v2", "agentic_mooncake version 2 JSONL: programs that are graphs", agentic_v2.read),
        Format("burstgpt", "BurstGPT CSV", burstgpt.read),
        Format("vidur", "Vidur processed CSV, with or without arrived_at", vidur.read),
        Format("servegen", "ServeGen model folder (requests are generated)", servegen.read),
        Format("bailian", "Qwen-Bailian JSONL", bailian.read),
        Format("weka", "coding-agent sessions, a folder of trace_*.json", weka.read),
        Format("jobs", "a list of jobs, JSONL: prompt_tokens, output_tokens, group, group_tokens", jobs.read),
        Format("lengths_csv", "plain CSV: arrival_s, prompt_tokens, output_tokens", lengths_csv.read),
    )
}
_CSV_HEADERS = {
    "azure": azure.HEADER,
    "burstgpt": burstgpt.HEADER,
    "vidur": vidur.HEADER,
    "lengths_csv": lengths_csv.HEADER,
}


def list_formats() -> tuple[str, ...]:
    """Names of the readable formats."""
    return tuple(FORMATS)


def read(path: str | Path, format: str = "auto", **options) -> Workload:
    """Read a trace.

    Args:
        path: a file or a folder, as downloaded.
        format: one of `list_formats`, or "auto" to tell from the contents; the workload's notes say what was detected.
        **options: options of that format's reader.

    Raises:
        UserError: the file is missing, of no known format, or wrong somewhere (file, line and field are named).
    """
    path = Path(path)
    if not path.exists():
        raise UserError("no such file or folder", where=str(path), expected="a trace as downloaded")
    detected, why = (format, "") if format != "auto" else detect(path)
    if detected not in FORMATS:
        raise UserError(
            f"unknown trace format {detected!r}",
            expected=f"auto or one of {', '.join(FORMATS)}",
            hint=nearest(detected, FORMATS),
        )
    reader = FORMATS[detected]
    for name in options:
        if name not in reader.options:
            raise UserError(
                f"unknown option {name!r} for format {detected}",
                expected=f"one of {', '.join(reader.options) or '(no options)'}",
                hint=nearest(name, reader.options),
            )
    workload = reader.read(path, **options)
    if format == "auto":
        workload = dataclasses.replace(workload, notes=(f"format {detected}, detected from {why}", *workload.notes))
    return workload


def detect(path: Path) -> tuple[str, str]:
    """(format, what gave it away) of a file or folder. Raises UserError listing the formats when none fits."""
    if path.is_dir():
        if servegen.client_files(path):
            return "servegen", "its files chunk-*-trace.csv"
        if weka.session_files(path):
            return "weka", "its files trace_*.json"
        if any(path.glob("**/chunk-*-trace.csv")):
            return "servegen", "files chunk-*-trace.csv below it"
        raise _unknown(path, f"a folder with {', '.join(sorted(p.name for p in path.iterdir())[:6]) or 'nothing'}")
    line = first_line(path)
    if not line:
        raise UserError("the file is empty: no requests", where=str(path), expected="a trace as downloaded")
    if line.lstrip().startswith(b"{"):
        return _detect_json(path, line)
    header = [name.strip() for name in line.decode("utf-8", "replace").lstrip("\ufeff").split(",")]
    best, shared = max(((n, len(set(h) & set(header))) for n, h in _CSV_HEADERS.items()), key=lambda item: item[1])
    if shared >= 2:
        return best, "its header line"
    raise _unknown(path, f"a first line {line[:60].decode('utf-8', 'replace')!r}")


def _detect_json(path: Path, line: bytes) -> tuple[str, str]:
    try:
        fields = json.loads(line)
    except ValueError:
        fields = {}
        for name in (b'"requests"', b'"chat_id"', b'"input_length"'):  # a long or cut first line: look at its beginning
            if name in line:
                fields[name.strip(b'"').decode()] = None
    if "schema" in fields:
        return "agentic_v2", "the schema in its first line"
    if "requests" in fields:
        return "weka", "the list of requests in it"
    if "chat_id" in fields:
        return "bailian", "the field chat_id"
    if "input_length" in fields:
        return "mooncake", "the field input_length"
    if "prompt_tokens" in fields:
        return "jobs", "the field prompt_tokens"
    raise _unknown(path, f"a JSON object with {', '.join(list(fields)[:8]) or 'unreadable fields'}")


def _unknown(path: Path, found: str) -> UserError:
    return UserError(
        f"unknown trace format: {found}",
        where=str(path),
        expected=f"one of {', '.join(FORMATS)}",
        hint="Name it with format=..., or use lengths_csv with its columns option.",
    )
