"""The results in a bundle's README: from the table, between the marks, and of the bundle's weights."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import date
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from accunet_monai.bundle import write_manifest
from accunet_monai.cli import app
from accunet_monai.errors import DatasetError
from accunet_monai.evaluation import Row, summarise, write_rows
from accunet_monai.evaluation.card import BEGIN, END, write_card
from tests.evaluation.made_rows import rows_of

ROWS = rows_of({f"case_{i}": (0.9 - 0.05 * i, 0.8 - 0.02 * i) for i in range(8)}, {"case_1": "case_0"})
ROWS[-1]["status"] = "only_reference"
TODAY = date(2030, 1, 2)
TEXT = "# A bundle\n\n## Intended use\n\nBy hand: é.\n\n## Results\n\n{}\n\n## Limits\n\nBy hand, too.\n"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "made"
    for name, content in (
        ("configs/metadata.json", '{"version": "1"}'),
        ("models/model.safetensors", "weights"),
        ("docs/README.md", TEXT.format(f"{BEGIN}\nold\n{END}")),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    write_manifest(folder, mlflow_run="run-1", dataset_digest="digest-1")
    return folder


def evaluated(folder: Path, rows: list[Row] = ROWS, weights: str = "weights") -> Path:
    write_rows(rows, folder / "cases.csv")
    digest = hashlib.sha256(weights.encode()).hexdigest()
    (folder / "summary.json").write_text(json.dumps({"about": {"weights_sha256": digest}}), encoding="utf-8")
    (folder / "worst").mkdir()
    for number, case in enumerate(("case_7", "case_6", "case_5", "case_4"), 1):
        (folder / "worst" / f"{number}_{case}.png").write_bytes(case.encode())
    return folder


def test_the_text_by_hand_stays_and_the_results_are_those_of_the_table(bundle: Path, tmp_path: Path) -> None:
    readme = write_card(bundle, evaluated(tmp_path / "e"), command="accunet it", today=TODAY)
    before, after = TEXT.split("{}")
    text = readme.read_text(encoding="utf-8")
    assert text.startswith(before + BEGIN)
    assert text.endswith(END + after)
    assert "old" not in text
    summary = summarise(ROWS)
    one = summary.labels["one"]
    assert f"| one | {one['dice'].text(3)} | {one['iou'].text(3)} | {one['hd95_mm'].text(2)} |" in text
    assert f"| **mean of labels** | {summary.overall['dice'].text(3)} |" in text
    assert "| two | 7 | 1 | 0 | 0 |" in text  # one was missed
    assert "8 cases of 7 subjects, predicted by the bundle's weights." in text
    assert "- date: 2030-01-02" in text
    for fact in (hashlib.sha256(b"weights").hexdigest(), "run-1", "digest-1", "accunet it"):
        assert fact in text
    worst = re.findall(r"^\| (case_\d) ", text, re.M)
    assert worst == ["case_7", "case_6", "case_5", "case_4", "case_3"]
    pictures = re.findall(r"!\[(case_\d), reference in white\]\((\S+)\)", text)
    assert [name for name, _ in pictures] == ["case_7", "case_6", "case_5"]
    assert [(readme.parent / file).read_text() for _, file in pictures] == ["case_7", "case_6", "case_5"]


def test_writing_it_again_changes_nothing_but_what_has_changed(bundle: Path, tmp_path: Path) -> None:
    folder = evaluated(tmp_path / "e")
    first = write_card(bundle, folder, today=TODAY).read_bytes()
    assert write_card(bundle, folder, today=TODAY).read_bytes() == first
    (tmp_path / "f").mkdir()
    write_rows(ROWS, tmp_path / "f" / "cases.parquet")
    later = write_card(bundle, tmp_path / "f" / "cases.parquet", today=TODAY).read_text(encoding="utf-8")
    assert "by weights that the table does not name" in later
    assert "![" not in later
    assert not list((bundle / "docs").glob("*.png"))  # those of the earlier evaluation


def test_a_readme_without_marks_gets_them_at_its_end_and_half_marks_are_refused(bundle: Path, tmp_path: Path) -> None:
    folder = evaluated(tmp_path / "e")
    readme = bundle / "docs" / "README.md"
    readme.write_text("# A bundle\n\nBy hand.\n", encoding="utf-8")
    write_card(bundle, folder, today=TODAY)
    text = readme.read_text(encoding="utf-8")
    assert text.startswith(f"# A bundle\n\nBy hand.\n\n## Results\n\n{BEGIN}\n")
    assert text.endswith(f"{END}\n")
    for broken in (BEGIN, END, f"{END} {BEGIN}", f"{BEGIN}{BEGIN}{END}"):
        readme.write_text(broken, encoding="utf-8")
        with pytest.raises(DatasetError) as caught:
            write_card(bundle, folder)
        assert caught.value.code == "CARD_MARKS"
        assert readme.read_text(encoding="utf-8") == broken


def test_results_of_other_weights_are_refused_unless_they_are_out_of_fold(bundle: Path, tmp_path: Path) -> None:
    folder = evaluated(tmp_path / "e", weights="others")
    with pytest.raises(DatasetError) as caught:
        write_card(bundle, folder)
    assert caught.value.code == "CARD_WEIGHTS"
    text = write_card(bundle, folder, out_of_fold=True).read_text(encoding="utf-8")
    assert "predicted out of fold" in text


def test_subgroups_are_averaged_apart(bundle: Path, tmp_path: Path) -> None:
    folder = evaluated(tmp_path / "e")
    table = tmp_path / "subgroups.csv"
    lines = [f"case_{i},{'old' if i > 3 else 'young'},{'A' if i else ''}" for i in range(8)]
    table.write_text("\n".join(["case,age,scanner", *lines]), encoding="utf-8")
    text = write_card(bundle, folder, subgroups=table).read_text(encoding="utf-8")
    old = summarise([row for row in ROWS if row["case"] > "case_3"])
    assert f"| old | 4 | 4 | {old.overall['dice'].text(3)} |" in text
    assert "By scanner:" in text
    assert re.search(r"^\| unknown \| 1 \| 1 \|", text, re.M)
    for content in ("case,age\ncase_0,1\n", "case\ncase_0\n", "name,age\n1,2\n", ""):
        table.write_text(content, encoding="utf-8")
        with pytest.raises(DatasetError) as caught:
            write_card(bundle, folder, subgroups=table)
        assert caught.value.code == "SUBGROUPS_INVALID"
    many = rows_of({f"c{i}": (0.5, 0.5) for i in range(13)})
    table.write_text("case,age\n" + "".join(f"c{i},{i}\n" for i in range(13)), encoding="utf-8")
    with pytest.raises(DatasetError, match="13 groups"):
        write_card(bundle, evaluated(tmp_path / "f", many), subgroups=table)


def accunet(*arguments: object, status: int = 0) -> Result:
    result: Result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output + repr(result.exception)
    return result


def test_the_command_writes_the_card_and_names_itself_without_this_machines_folders(
    bundle: Path, tmp_path: Path
) -> None:
    folder = evaluated(tmp_path / "e")
    output = accunet("bundle", "card", bundle, "--cases", folder / "cases.csv").stdout
    assert f"next: accunet bundle manifest {bundle}" in output
    text = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    assert "\naccunet bundle card made --cases cases.csv\n" in text
    assert str(tmp_path) not in text
    refused = accunet("bundle", "card", bundle, "--cases", tmp_path / "none", status=1).stderr
    assert refused.startswith("error: [TABLE_MISSING]")


def test_compare_prints_the_verdict_and_writes_json(tmp_path: Path) -> None:
    better = [{**row, "dice": row["dice"] + 0.02, "hd95_mm": row["hd95_mm"] + 1} for row in ROWS]
    write_rows(ROWS, tmp_path / "a" / "cases.csv")
    write_rows(better, tmp_path / "b.parquet")
    assert "B is: better" in accunet("compare", tmp_path / "a", tmp_path / "b.parquet").stdout
    output = accunet(
        "compare", tmp_path / "a", tmp_path / "b.parquet", "--metric", "hd95_mm", "--json", tmp_path / "c.json"
    )
    assert "B is: worse" in output.stdout
    assert json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))["overall"]["mean"] == pytest.approx(1)
    write_rows(ROWS[2:], tmp_path / "fewer.csv")
    refused = accunet("compare", tmp_path / "a", tmp_path / "fewer.csv", status=1).stderr
    assert "[COMPARE_CASES]" in refused
    assert "case_0" in refused
    assert "[MEASURE_UNKNOWN]" in accunet("compare", tmp_path / "a", tmp_path / "a", "--metric", "x", status=1).stderr
