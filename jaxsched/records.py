"""Write the records of a run: every request's life, one row each, as Parquet, CSV or JSON lines; atomically."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np

from jaxsched.errors import UserError
from jaxsched.files import check_writable, write_atomic

SUFFIXES = (".parquet", ".csv", ".jsonl")


def check_record_target(path: str | Path) -> Path:
    """The place must be writable, and the ending must be a known format whose library is there."""
    path = check_writable(path)
    if path.suffix not in SUFFIXES:
        raise UserError(f"ending {path.suffix!r}", where=str(path), expected=f"one of {', '.join(SUFFIXES)}")
    if path.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise UserError(
                "Parquet needs pyarrow",
                where=str(path),
                hint="pip install 'jaxsched[traces]', or write .csv or .jsonl.",
            ) from None
    return path


def write_records(path: str | Path, columns: dict[str, np.ndarray]) -> Path:
    """Write columns of equal length to `path`; the format follows its ending."""
    path = check_record_target(path)
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = io.BytesIO()
        pq.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), sink)
        data = sink.getvalue()
    else:
        rows = [
            dict(zip(columns, row, strict=True)) for row in zip(*(v.tolist() for v in columns.values()), strict=True)
        ]
        text = io.StringIO()
        if path.suffix == ".csv":
            writer = csv.DictWriter(text, list(columns), lineterminator="\n")
            writer.writeheader()
            writer.writerows({k: "" if v != v else v for k, v in row.items()} for row in rows)
        else:
            text.writelines(json.dumps({k: None if v != v else v for k, v in row.items()}) + "\n" for row in rows)
        data = text.getvalue().encode()
    return write_atomic(path, data)
