"""Two runs on the same cases: the change by hand, the verdict, and what cannot be compared."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from rich.console import Console

from accunet_monai.errors import DatasetError
from accunet_monai.evaluation import Row, bootstrap, compare, print_comparison
from tests.evaluation.made_rows import row, rows_of

NAN = math.nan
CASES = [f"case_{i:02d}" for i in range(16)]
SUBJECTS = {case: f"s{i // 2}" for i, case in enumerate(CASES)}


def run(change: float = 0.0, spread: float = 0.0) -> list[Row]:
    draw = np.random.default_rng(5)
    base = draw.uniform(0.4, 0.8, (16, 2))  # cases differ much more than runs do
    values = base + change + spread * np.random.default_rng(6).normal(size=(16, 2))
    return rows_of({case: tuple(map(float, line)) for case, line in zip(CASES, values, strict=True)}, SUBJECTS)


def test_changes_and_counts_by_hand() -> None:
    a = rows_of({"x": (0.5, 0.7), "y": (0.6, NAN), "z": (0.9, 0.9)})
    b = rows_of({"x": (0.7, 0.8), "y": (0.5, NAN), "z": (0.9, 0.9)})
    found = compare(a, b)
    assert found.labels["one"].mean == pytest.approx((0.2 - 0.1 + 0) / 3)
    assert found.labels["two"].mean == pytest.approx(0.05)
    assert found.overall.mean == pytest.approx((0.1 / 3 + 0.05) / 2)
    assert found.mean_b - found.mean_a == pytest.approx(found.overall.mean)
    assert (found.better, found.worse, found.same, found.one_sided) == (1, 1, 1, 0)
    assert [item.case for item in found.changes] == ["y", "z", "x"]
    assert found.changes[-1].change == pytest.approx(0.15)
    assert found.verdict == "no difference shown"  # three subjects


def test_a_small_change_in_every_case_is_seen_although_the_cases_differ_much() -> None:
    better, worse, none = (compare(run(), run(change, 0.01)) for change in (0.02, -0.02, 0.0))
    assert [found.verdict for found in (better, worse, none)] == ["better", "worse", "no difference shown"]
    assert better.overall.low > 0 > worse.overall.high
    assert none.overall.low < 0 < none.overall.high
    unpaired = bootstrap(np.array([[r["dice"]] for r in run() if r["label"] == "one"]), [SUBJECTS[c] for c in CASES])[0]
    assert unpaired.high - unpaired.low > 5 * (better.labels["one"].high - better.labels["one"].low)


def test_the_interval_is_the_bootstrap_of_the_differences_over_subjects() -> None:
    a, b = run(), run(0.01, 0.03)
    table = np.array([[y["dice"] - x["dice"] for x, y in zip(a, b, strict=True)]]).reshape(16, 2)
    expected = bootstrap(table, [SUBJECTS[case] for case in CASES])
    found = compare(a, b)
    assert (found.overall.low, found.overall.high) == pytest.approx((expected[-1].low, expected[-1].high))
    assert found.subjects == 8
    back = compare(b, a)
    assert (back.overall.low, back.overall.high) == pytest.approx((-found.overall.high, -found.overall.low), abs=1e-12)
    assert (back.better, back.worse) == (found.worse, found.better)


def test_lower_is_better_for_distances_and_nearer_to_0_for_errors_of_volume() -> None:
    found = compare(run(), run(0.05), "hd95_mm")
    assert found.overall.mean == pytest.approx(-0.5)
    assert (found.verdict, found.better) == ("better", 16)
    over = [{**item, "volume_error_ml": -item["volume_error_ml"]} for item in run()]
    assert compare(run(), over, "volume_error_ml").verdict == "no difference shown"  # the other sign, the same size
    assert compare(run(), run(0.05), "volume_error_ml").verdict == "better"


def test_a_false_find_is_worse_than_rightly_finding_nothing() -> None:
    a = [row(case, dice=NAN, volume_reference_ml=0.0) for case in CASES]
    b = [{**row(case, dice=0.0, volume_reference_ml=0.0), "status": "only_prediction"} for case in CASES]
    found = compare(a, b)
    assert (found.verdict, found.overall.mean, found.worse) == ("worse", -1, 16)
    assert compare(b, a).verdict == "better"
    assert compare(a, a).overall.cases == 0
    found = compare(
        [{**item, "hd95_mm": 3.0} for item in run()], [{**item, "hd95_mm": NAN} for item in run()], "hd95_mm"
    )
    assert (found.one_sided, found.changes) == (32, ())
    assert found.verdict == "no difference shown"


@pytest.mark.parametrize(
    ("change", "code", "named"),
    [
        (lambda rows: rows[2:], "COMPARE_CASES", "only in A case_00"),
        (lambda rows: [*rows, row("new"), row("new", "two")], "COMPARE_CASES", "only in B new"),
        (lambda rows: rows[1:], "COMPARE_CASES", "case_00"),
        (lambda rows: [{**r, "label": r["label"].upper()} for r in rows], "COMPARE_LABELS", "only in B ONE, TWO"),
        (lambda rows: [{**r, "subject": r["case"]} for r in rows], "COMPARE_SUBJECTS", "case_00, case_01"),
        (lambda rows: [*rows[:-1], {**rows[-1], "volume_reference_ml": 3.1}], "COMPARE_REFERENCE", "case_15"),
        (lambda rows: [*rows, rows[0]], "CASE_TWICE", "case_00"),
    ],
)
def test_runs_on_other_cases_are_refused_by_name(change: object, code: str, named: str) -> None:
    with pytest.raises(DatasetError) as caught:
        compare(run(), change(run()))  # type: ignore[operator]
    assert caught.value.code == code
    assert named in caught.value.message


def test_surface_dice_of_two_tolerances_is_refused_and_other_measures_are_not() -> None:
    other = [{**item, "tolerance_mm": 2.0} for item in run()]
    assert compare(run(), other).same == 16
    with pytest.raises(DatasetError) as caught:
        compare(run(), other, "surface_dice")
    assert caught.value.code == "COMPARE_TOLERANCE"


def test_it_is_printed_and_stored_with_its_worst_cases() -> None:
    found = compare(run(), run(0.0, 0.05))
    console = Console(record=True, width=80)
    print_comparison(found, console, worst=2)
    text = console.export_text()
    worst = [item.case for item in found.changes]
    assert text.index(worst[0]) < text.index(worst[1])
    assert worst[2] not in text
    assert f"{found.better} better, {found.worse} worse" in text
    assert "B is: no difference shown\n" in text
    stored = json.loads(json.dumps(found.as_dict()))
    assert stored["verdict"] == "no difference shown"
    assert stored["changes"][0]["case"] == worst[0]
