"""Answers of a corpus as files: JSON, CSV or Parquet, with the same columns, by the file's suffix."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, require_package
from ..files import atomic_path, write_json, write_text
from .ask import Row

COLUMNS = tuple(field.name for field in dataclasses.fields(Row))
SUFFIXES = (".parquet", ".json", ".csv")


def require_suffix(path: Path) -> None:
    """Raise InputError for a file that is none of SUFFIXES, DependencyError for Parquet without pyarrow."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"--out: expected a file of {', '.join(SUFFIXES)}, got {path.name}")
    if path.suffix == ".parquet":
        require_package("pyarrow.parquet", "corpus")


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write them, whole or not at all. Raises InputError when it cannot, and what `require_suffix` does."""
    require_suffix(path)
    table = [dataclasses.asdict(row) for row in rows]
    if path.suffix == ".json":
        write_json(path, table)
    elif path.suffix == ".csv":
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
        write_text(path, text.getvalue())
    else:
        arrow: Any = require_package("pyarrow", "corpus")
        parquet: Any = require_package("pyarrow.parquet", "corpus")
        with atomic_path(path) as temporary:
            parquet.write_table(arrow.Table.from_pylist(table, schema=_schema(arrow)), temporary)


def _schema(arrow: Any) -> Any:
    kinds = {"str": arrow.string(), "int": arrow.int64(), "float": arrow.float64(), "float | None": arrow.float64()}
    return arrow.schema([(field.name, kinds[str(field.type)]) for field in dataclasses.fields(Row)])
