"""Case tables on disk, as CSV or Parquet: one line for each case and label; nothing stands for what is undefined."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from accunet_monai.errors import DatasetError
from accunet_monai.evaluation.measures import COLUMNS, NUMBER_COLUMNS, STATUSES, TEXT_COLUMNS, Row
from accunet_monai.volumes import atomic_output

PathLike = str | os.PathLike[str]
TABLE = "cases.csv"
"""Name of the table in the folder of an evaluation."""


def write_rows(rows: Iterable[Row], path: PathLike) -> Path:
    """Write a case table, whole or not at all.

    Args:
        rows: as :func:`~accunet_monai.evaluation.measure_case` gives them.
        path: ends in ``.csv`` or ``.parquet``; for the latter pyarrow is needed.

    Raises:
        DatasetError: ``TABLE_FORMAT`` for another ending.
    """
    target = Path(path)
    listed = [{column: _stored(row[column]) for column in COLUMNS} for row in rows]
    if _format(target) == ".parquet":
        import pyarrow as pa  # type: ignore[import-untyped]
        import pyarrow.parquet as pq  # type: ignore[import-untyped]

        types = [(name, pa.string()) for name in TEXT_COLUMNS] + [(name, pa.float64()) for name in NUMBER_COLUMNS]
        with atomic_output(target) as stream:
            pq.write_table(pa.Table.from_pylist(listed, pa.schema(types)), stream)
        return target
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(listed)
    with atomic_output(target) as stream:
        stream.write(text.getvalue().encode())
    return target


def read_rows(path: PathLike) -> list[Row]:
    """Read a case table that :func:`write_rows` wrote; other columns are passed over.

    Args:
        path: a ``.csv`` or ``.parquet`` file, or a folder with ``cases.csv``.

    Raises:
        DatasetError: ``TABLE_MISSING``, ``TABLE_FORMAT``, ``TABLE_INVALID`` (missing columns or a value that is none)
            or ``CASE_TWICE`` (two lines for one case and label).
    """
    source = Path(path) / TABLE if Path(path).is_dir() else Path(path)
    if not source.is_file():
        hint = "Give the table of an evaluation, or the folder that it wrote."
        raise DatasetError("TABLE_MISSING", "no such case table.", path=source, hint=hint)
    ending = _format(source)
    try:
        stored = list(_stored_rows(source, ending))
        rows = [{name: _read(name, row[name]) for name in COLUMNS} for row in stored]
    except KeyError as error:
        message = f"no column {error}; a case table has {', '.join(COLUMNS)}."
        raise DatasetError("TABLE_INVALID", message, path=source) from error
    except (ValueError, TypeError) as error:
        raise DatasetError("TABLE_INVALID", f"not a case table ({error}).", path=source) from error
    if not rows:
        raise DatasetError("TABLE_INVALID", "there are no cases in the table.", path=source)
    check_unique(rows, source)
    return rows


def check_unique(rows: Sequence[Row], path: PathLike | None = None) -> None:
    """Refuse two rows for one case and label.

    Raises:
        DatasetError: ``CASE_TWICE``.
    """
    seen: set[tuple[str, str]] = set()
    for row in rows:
        key = row["case"], row["label"]
        if key in seen:
            message = f"case {key[0]!r} is there twice (label {key[1]!r})."
            raise DatasetError("CASE_TWICE", message, path=path, hint="Give each case a name of its own.")
        seen.add(key)


def _format(path: Path) -> str:
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise DatasetError("TABLE_FORMAT", "a case table ends in .csv or .parquet.", path=path)
    return path.suffix.lower()


def _stored(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _read(name: str, value: Any) -> Any:
    if name in NUMBER_COLUMNS:
        return math.nan if value in ("", None) else float(value)
    if not isinstance(value, str) or (name == "status" and value not in STATUSES):
        raise ValueError(f"{name} {value!r}")
    return value


def _stored_rows(source: Path, ending: str) -> Iterator[dict[str, Any]]:
    if ending == ".parquet":
        import pyarrow.parquet as pq

        yield from pq.read_table(source).to_pylist()
        return
    with source.open(encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file)
