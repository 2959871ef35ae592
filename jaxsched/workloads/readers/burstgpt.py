"""BurstGPT: ``Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type[,Session ID,Elapsed time]``.

Source: github.com/HPMLL/BurstGPT (Wang et al., 2024). Timestamps are seconds from the start of collection. A request
with
zero response tokens failed: it is left out and counted. Arrivals are open loop: sessions of the later releases are not
turned into closed-loop programs, because the files do not say when an answer was complete for all rows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxsched.errors import UserError
from jaxsched.workloads.readers.csv import check_at_least, read_csv
from jaxsched.workloads.readers.text import check_monotone, to_us
from jaxsched.workloads.table import Workload

HEADER = ("Timestamp", "Model", "Request tokens", "Response tokens")


def read(path: Path, *, model: str | None = None, log_type: str | None = None) -> Workload:
    """A BurstGPT file.

    Args:
        path: the CSV file.
        model: keep only this value of Model (for example "GPT-4").
        log_type: keep only this value of Log Type (for example "Conversation log").
    """
    kinds = {"Timestamp": "float", "Model": "text", "Request tokens": "int", "Response tokens": "int"}
    columns, line = read_csv(path, kinds, {"Log Type": "text"})
    time, prompt, output = columns["Timestamp"], columns["Request tokens"], columns["Response tokens"]
    check_at_least(path, line, "Timestamp", time, 0)
    check_at_least(path, line, "Response tokens", output, 0)
    check_monotone(time, line, path, "column Timestamp", "s")
    keep = output > 0
    counts = {"failed_requests_skipped": int(np.count_nonzero(~keep))}
    for name, wanted in (("Model", model), ("Log Type", log_type)):
        if wanted is not None:
            if name not in columns:
                raise UserError(f"no column {name!r} to select by", where=f"{path}, line 1", expected="that column")
            chosen = columns[name] == wanted.encode()
            if not chosen.any():
                known = ", ".join(sorted(v.decode("utf-8", "replace") for v in np.unique(columns[name])))
                raise UserError(f"no row has {name} {wanted!r}", where=str(path), expected=f"one of {known}")
            counts[f"other_{name.lower().replace(' ', '_')}_skipped"] = int(np.count_nonzero(keep & ~chosen))
            keep &= chosen
    check_at_least(path, line[keep], "Request tokens", prompt[keep], 1)
    return Workload.build(
        path.stem,
        arrival_us=to_us(time[keep], 1e6),
        prompt_tokens=prompt[keep],
        output_tokens=output[keep],
        line=line[keep],
        source=str(path),
        format="burstgpt",
        counts=counts,
    )
