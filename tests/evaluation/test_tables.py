"""Case tables come back as they were, and what is no case table is refused by name."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
from pyarrow import parquet

from accunet_monai.errors import DatasetError
from accunet_monai.evaluation import COLUMNS, Row, read_rows, write_rows
from tests.evaluation.made_rows import row

ROWS = [
    row("a, b", "größer", 1 / 3, "s 1"),
    row('"c"', "one", math.nan),
    row("d", "one", 0.0, hd95_mm=math.nan, status="only_prediction", volume_reference_ml=0.0),
]


def same(one: list[Row], other: list[Row]) -> bool:
    return [list(map(repr, item.values())) for item in one] == [list(map(repr, item.values())) for item in other]


@pytest.mark.parametrize("name", ["cases.csv", "sub/cases.parquet"])
def test_rows_come_back_exactly(name: str, tmp_path: Path) -> None:
    path = write_rows(ROWS, tmp_path / name)
    assert same(read_rows(path), ROWS)
    assert same(read_rows(write_rows(read_rows(path), tmp_path / f"again{path.suffix}")), ROWS)


def test_what_is_undefined_is_nothing_and_not_a_number(tmp_path: Path) -> None:
    write_rows(ROWS, tmp_path / "cases.csv")
    with (tmp_path / "cases.csv").open(encoding="utf-8", newline="") as file:
        stored = list(csv.DictReader(file))
    assert tuple(stored[0]) == COLUMNS
    assert stored[1]["dice"] == ""
    table = parquet.read_table(write_rows(ROWS, tmp_path / "cases.parquet"))
    assert table.column("dice").null_count == 1
    assert table.column("hd95_mm").null_count == 2
    assert same(read_rows(tmp_path), ROWS)  # the folder of an evaluation


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("none.csv", None, "TABLE_MISSING"),
        ("cases.xlsx", "x", "TABLE_FORMAT"),
        ("wide.csv", "case,one\na,0.5\n", "TABLE_INVALID"),
        ("empty.csv", ",".join(COLUMNS) + "\n", "TABLE_INVALID"),
        ("words.csv", ",".join(COLUMNS) + "\na,a,one,both," + ",".join(["x"] * 9) + "\n", "TABLE_INVALID"),
        ("status.csv", ",".join(COLUMNS) + "\na,a,one,perfect," + ",".join(["1"] * 9) + "\n", "TABLE_INVALID"),
        ("short.csv", ",".join(COLUMNS) + "\na,a\n", "TABLE_INVALID"),
        ("no.parquet", "x", "TABLE_INVALID"),
        ("twice.csv", ",".join(COLUMNS) + "\n" + ("a,a,one,both," + ",".join(["1"] * 9) + "\n") * 2, "CASE_TWICE"),
    ],
)
def test_what_is_no_case_table_is_refused(name: str, content: str | None, code: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DatasetError) as caught:
        read_rows(tmp_path / name)
    assert caught.value.code == code
    assert caught.value.path == str(tmp_path / name)
