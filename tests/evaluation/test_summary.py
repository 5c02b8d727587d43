"""Means and their intervals, against scipy's bootstrap and against what an interval promises."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from accunet_monai.errors import DatasetError
from accunet_monai.evaluation import bootstrap, print_cases, print_summary, summarise, worst_first
from tests.evaluation.made_rows import row, rows_of

NAN = math.nan


def test_means_over_cases_then_labels_and_counts_of_what_is_missing() -> None:
    rows = rows_of({"a": (0.8, NAN), "b": (0.6, 0.9), "c": (0.0, NAN)})
    rows[4] |= {"status": "only_reference", "hd95_mm": NAN}
    summary = summarise(rows)
    assert summary.labels["one"]["dice"].mean == pytest.approx(1.4 / 3)
    assert summary.labels["two"]["dice"].mean == 0.9
    assert summary.overall["dice"].mean == pytest.approx((1.4 / 3 + 0.9) / 2)
    assert summary.labels["one"]["hd95_mm"].cases == 2
    assert summary.labels["one"]["hd95_mm"].mean == pytest.approx(3)
    assert summary.statuses["one"] == {"both": 2, "only_reference": 1, "only_prediction": 0, "neither": 0}
    assert summary.statuses["two"]["neither"] == 2
    assert (summary.cases, summary.subjects) == (3, 3)
    assert json.loads(json.dumps(summary.as_dict()))["labels"]["two"]["dice"]["cases"] == 1


def test_intervals_are_those_of_scipys_bootstrap_where_each_case_is_a_subject() -> None:
    values = np.random.default_rng(1).beta(8, 2, 40)
    (ours, overall) = bootstrap(values[:, None], [str(i) for i in range(40)], samples=20_000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=0).confidence_interval
    assert ours.mean == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.1 * (theirs.high - theirs.low))
    assert (overall.mean, overall.low) == pytest.approx((ours.mean, ours.low))


def test_cases_of_one_subject_are_drawn_together() -> None:
    """Four alike cases of each of ten subjects tell no more than ten cases do."""
    of_subject = np.random.default_rng(2).normal(0.8, 0.1, 10)
    once = bootstrap(of_subject[:, None], [f"s{i}" for i in range(10)])[0]
    values = np.repeat(of_subject, 4)[:, None]
    together = bootstrap(values, [f"s{i // 4}" for i in range(40)])[0]
    apart = bootstrap(values, [f"c{i:02d}" for i in range(40)])[0]
    assert (together.low, together.high) == pytest.approx((once.low, once.high))
    assert apart.high - apart.low < 0.7 * (together.high - together.low)


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    draw = np.random.default_rng(3)
    hits = 0
    for _ in range(300):
        sizes = draw.integers(1, 4, 30)  # cases of each subject
        subjects = np.repeat(np.arange(30), sizes)
        values = 0.8 + draw.normal(0, 0.05, 30)[subjects] + draw.normal(0, 0.02, len(subjects))
        found = bootstrap(values[:, None], [str(s) for s in subjects], samples=400)[0]
        hits += found.low <= 0.8 <= found.high
    assert 0.89 <= hits / 300 <= 0.99


def test_draws_depend_on_seed_and_subjects_and_on_no_order() -> None:
    rows = rows_of({f"case_{i}": (0.5 + 0.04 * (i * 7 % 11), 0.9 - 0.03 * (i % 5)) for i in range(12)})
    assert summarise(rows) == summarise(rows)
    assert summarise(rows).labels["one"]["dice"] != summarise(rows, seed=1).labels["one"]["dice"]
    forwards, backwards = (summarise(order).labels["one"]["dice"] for order in (rows, rows[::-1]))
    assert (backwards.low, backwards.high) == pytest.approx((forwards.low, forwards.high))


def test_one_subject_has_no_interval_and_nothing_has_no_mean() -> None:
    rows = [row("left", dice=0.7, subject="s"), row("right", dice=0.9, subject="s"), row("right", "two", NAN, "s")]
    summary = summarise(rows)
    assert summary.labels["one"]["dice"].text(2) == "0.80"
    assert summary.labels["two"]["dice"].text(2) == "–"
    assert math.isnan(summary.overall["dice"].low)
    with pytest.raises(DatasetError, match="TABLE_INVALID"):
        summarise([])


def test_the_worst_case_comes_first_whatever_is_better() -> None:
    rows = rows_of({"good": (0.9, 0.9), "nothing": (NAN, NAN), "bad": (0.2, NAN), "fair": (0.5, 0.7)})
    assert worst_first(rows) == ["bad", "fair", "good", "nothing"]
    assert worst_first(rows, "hd95_mm") == ["bad", "fair", "good", "nothing"]
    errors = [row("under", volume_error_ml=-3.0), row("over", volume_error_ml=2.0), row("right", volume_error_ml=0.1)]
    assert worst_first(errors, "volume_error_ml") == ["under", "over", "right"]
    with pytest.raises(DatasetError) as caught:
        worst_first(rows, "accuracy")
    assert caught.value.code == "MEASURE_UNKNOWN"


def test_of_many_labels_the_table_of_cases_has_the_mean_only() -> None:
    rows = [row(case, f"label {n}", 0.5 + 0.01 * n) for case in ("a", "b") for n in range(7)]
    console = Console(record=True, width=80)
    print_cases(rows, console=console)
    text = console.export_text()
    assert "label" not in text
    assert text.count("0.5300") == 2


def test_the_printed_tables_have_the_figures_on_a_narrow_screen() -> None:
    rows = rows_of({"good": (0.9, 0.9), "b[a]d": (0.0, NAN), "fair": (0.5, 0.7)})
    rows[2]["status"] = "only_reference"
    console = Console(record=True, width=80)
    print_summary(summarise(rows), "title", console)
    print_cases(rows, "cases", console)
    text = console.export_text()
    assert "1 missed" in text
    assert "nowhere" in text
    assert "0.467" in text  # mean Dice of label one
    assert "3 cases of 3 subjects" in text
    assert text.index("b[a]d") < text.index("fair") < text.index("good")
    assert "0.700…0.900" in text  # whole, not cut
