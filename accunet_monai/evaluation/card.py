"""The results in a bundle's ``docs/README.md``, written from a case table between two marks; all other text stays."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from urllib.parse import unquote

from accunet_monai.bundle import WEIGHTS, read_manifest
from accunet_monai.bundle.manifest import file_entry
from accunet_monai.errors import DatasetError
from accunet_monai.evaluation.measures import MEASURES, STATUSES, Row, mean_of
from accunet_monai.evaluation.report import SUMMARY, WORST
from accunet_monai.evaluation.summary import MOST_LABELS, Summary, names_of, summarise, worst_first
from accunet_monai.evaluation.tables import PathLike, read_rows
from accunet_monai.volumes import atomic_output

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
README = Path("docs") / "README.md"

WORST_ROWS, WORST_PICTURES = 5, 3
MOST_GROUPS = 12
"""So many groups fit a table that people read; ages and the like are to be put into ranges."""

_OUT_OF_FOLD = (
    "predicted out of fold: each by a network that was trained on other subjects; the bundle's weights are from "
    "another training"
)
_SHOWN = ("dice", "iou", "hd95_mm", "surface_dice", "volume_error_ml", "volume_error_percent")


def write_card(
    bundle: Path,
    cases: PathLike,
    *,
    out_of_fold: bool = False,
    subgroups: PathLike | None = None,
    command: str = "",
    today: date | None = None,
) -> Path:
    """Write or refresh the results in a bundle's README.

    They are tables with intervals by label and by subgroup, counts of labels missed, made up or nowhere, the worst
    cases with pictures where the evaluation has drawn them, the date, the digest of the weights and the command.

    Args:
        bundle: the bundle's folder. Its README gets the results at its end where it does not have the marks.
        cases: case table, or the folder of an evaluation.
        out_of_fold: whether each case was predicted by a network of cross-validation that had not seen its subject,
            and not by the bundle's weights.
        subgroups: CSV with a column ``case`` and further columns, each of which divides the cases into groups.
        command: that is named as having made the results.
        today: the date; by default today's.

    Returns:
        Path of the README. The bundle's manifest is to be written anew.

    Raises:
        DatasetError: ``CARD_WEIGHTS`` when the evaluation is of other weights than the bundle's, ``CARD_MARKS`` for a
            README with only one of the marks, ``SUBGROUPS_INVALID``, and what
            :func:`~accunet_monai.evaluation.read_rows` raises.
    """
    rows = read_rows(cases)
    folder = Path(cases) if Path(cases).is_dir() else Path(cases).parent
    groups = {} if subgroups is None else _read_subgroups(Path(subgroups), rows)
    how = _OUT_OF_FOLD if out_of_fold else _by_weights(bundle, folder)
    readme = bundle / README
    before, after = _around(readme, bundle.name)
    pictures = _copy_pictures(folder / WORST, readme.parent)
    summary = summarise(rows)
    parts = [
        _about(bundle, summary, how, today or date.today()),
        _label_table(summary),
        _status_table(summary),
        *(_subgroup_table(rows, column, groups[column]) for column in groups),
        _worst_table(rows),
        *(f"![{name}, reference in white]({path.name})" for name, path in pictures.items()),
        f"Written by\n\n```\n{command}\n```" if command else "",
    ]
    block = "\n\n".join(part for part in parts if part)
    with atomic_output(readme) as stream:
        stream.write(f"{before}{BEGIN}\n{block}\n{END}{after}".encode())
    return readme


def _around(readme: Path, name: str) -> tuple[str, str]:
    """The text before and after the results."""
    text = readme.read_text(encoding="utf-8") if readme.is_file() else f"# {name}\n"
    marks = text.count(BEGIN), text.count(END)
    if marks == (0, 0):
        return f"{text.rstrip()}\n\n## Results\n\n", "\n"
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if marks != (1, 1) or not end:
        message = f"expected {BEGIN} and, after it, {END}, each once."
        raise DatasetError("CARD_MARKS", message, path=readme)
    return before, after


def _by_weights(bundle: Path, folder: Path) -> str:
    """Of which weights the table is; the evaluation's summary tells, and they must be those of the bundle."""
    summary = folder / SUMMARY
    named = (
        json.loads(summary.read_text(encoding="utf-8"))["about"].get("weights_sha256") if summary.is_file() else None
    )
    if named is None:
        return "predicted by weights that the table does not name"
    weights = bundle / WEIGHTS
    if not weights.is_file() or file_entry(weights).sha256 != named:
        message = f"the evaluation is of weights {named[:12]}…, not of the bundle's."
        hint = "Evaluate the bundle, or say --out-of-fold for the results of cross-validation."
        raise DatasetError("CARD_WEIGHTS", message, path=summary, hint=hint)
    return "predicted by the bundle's weights"


def _about(bundle: Path, summary: Summary, how: str, today: date) -> str:
    lines = [
        f"{summary.cases} cases of {summary.subjects} subjects, {how}. In brackets 95 % intervals by bootstrap over "
        "subjects. A label that is missed or made up scores 0 and has no HD95; where it is nowhere, the case is left "
        "out of its means.",
        "",
        f"- date: {today.isoformat()}",
    ]
    if (bundle / WEIGHTS).is_file():
        lines.append(f"- sha256 of the bundle's weights: `{file_entry(bundle / WEIGHTS).sha256}`")
    manifest = read_manifest(bundle)
    if manifest is not None:
        origin = {"MLflow run": manifest.mlflow_run, "digest of the training data": manifest.dataset_digest}
        lines += [f"- {name}: `{value}`" for name, value in origin.items() if value]
    return "\n".join(lines)


def _label_table(summary: Summary) -> str:
    tolerances = ", ".join(f"{tolerance:g}" for tolerance in summary.tolerances_mm)
    titles = [MEASURES[name].title + (f" ({tolerances} mm)" if name == "surface_dice" else "") for name in _SHOWN]
    lines = [
        [label, *(found[name].text(MEASURES[name].digits) for name in _SHOWN)]
        for label, found in summary.labels.items()
    ]
    overall = ["" if MEASURES[name].signed else summary.overall[name].text(MEASURES[name].digits) for name in _SHOWN]
    return _table(["label", *titles], [*lines, ["**mean of labels**", *overall]])


def _status_table(summary: Summary) -> str:
    lines = [[label, *(str(counts[status]) for status in STATUSES)] for label, counts in summary.statuses.items()]
    return _table(["label", "cases with both", "missed", "made up", "nowhere"], lines)


def _subgroup_table(rows: Sequence[Row], column: str, group_of: Mapping[str, str]) -> str:
    lines = []
    for group in sorted(set(group_of.values())):
        summary = summarise([row for row in rows if group_of[row["case"]] == group])
        figures = [summary.overall[name].text(MEASURES[name].digits) for name in ("dice", "hd95_mm", "surface_dice")]
        lines.append([group, str(summary.cases), str(summary.subjects), *figures])
    return f"By {column}:\n\n" + _table([column, "cases", "subjects", "Dice", "HD95 (mm)", "surface Dice"], lines)


def _worst_table(rows: Sequence[Row]) -> str:
    _, labels = names_of(rows)
    shown = labels if len(labels) <= MOST_LABELS else []
    found = {(row["case"], row["label"]): row for row in rows}
    lines = []
    for case in worst_first(rows)[:WORST_ROWS]:
        of_case = [found[case, label] for label in labels if (case, label) in found]
        dice = {row["label"]: row["dice"] for row in of_case}
        distance = mean_of(row["hd95_mm"] for row in of_case)
        figures = [_figure(dice.get(label, float("nan")), 3) for label in shown]
        lines.append([case, *figures, _figure(mean_of(dice.values()), 3), _figure(distance, 2)])
    head = ["case", *(f"Dice, {label}" for label in shown), "mean Dice", "HD95 (mm)"]
    return "The worst cases:\n\n" + _table(head, lines)


def _copy_pictures(source: Path, docs: Path) -> dict[str, Path]:
    """Name → picture, of the worst cases; earlier ones are deleted."""
    for old in docs.glob("worst_*.png"):
        old.unlink()
    docs.mkdir(exist_ok=True)
    found = {}
    for number in range(1, WORST_PICTURES + 1):
        for picture in source.glob(f"{number}_*.png"):
            found[unquote(picture.stem.partition("_")[2])] = docs / f"worst_{number}.png"
            shutil.copy(picture, docs / f"worst_{number}.png")
    return found


def _read_subgroups(path: Path, rows: Sequence[Row]) -> dict[str, dict[str, str]]:
    """Column → case → group."""
    if not path.is_file():
        raise DatasetError("SUBGROUPS_INVALID", "no such file.", path=path)
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = list(csv.DictReader(file))
    columns = [name for name in (lines[0] if lines else ()) if name and name != "case"]
    cases = set(names_of(rows)[0])
    missing = cases - {str(line.get("case")) for line in lines}
    if not columns or missing:
        message = f"no line for {', '.join(sorted(missing)[:5])}." if columns else "no column beside case."
        hint = "A column case and one for each grouping; a line for each case."
        raise DatasetError("SUBGROUPS_INVALID", message, path=path, hint=hint)
    groups = {
        name: {line["case"]: line[name] or "unknown" for line in lines if line["case"] in cases} for name in columns
    }
    for name, group_of in groups.items():
        if len(set(group_of.values())) > MOST_GROUPS:
            message = f"column {name!r} makes {len(set(group_of.values()))} groups, at most {MOST_GROUPS} are shown."
            raise DatasetError("SUBGROUPS_INVALID", message, path=path, hint="Put its values into ranges.")
    return groups


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(head)
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in (head, rule, *lines)
    )


def _figure(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if value == value else "–"
