"""Dice against hand-counted voxels, and the rule for labels that are nowhere."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine
from rich.console import Console

from accunet_monai.training.evaluation import CaseDice, dice_per_label, print_case_table, write_case_table

PREDICTION = torch.tensor([[1, 1, 0, 2], [0, 2, 2, 2]])
REFERENCE = torch.tensor([[1, 0, 0, 2], [0, 2, 0, 0]])


def test_dice_counted_by_hand() -> None:
    scores = dice_per_label(PREDICTION, REFERENCE, [1, 2, 3])
    assert scores[1] == pytest.approx(2 * 1 / (2 + 1))
    assert scores[2] == pytest.approx(2 * 2 / (4 + 2))
    assert math.isnan(scores[3])


def test_ignored_voxels_count_for_nothing() -> None:
    reference = torch.tensor([[1, 9, 0, 2], [0, 2, 9, 9]])
    assert dice_per_label(PREDICTION, reference, [1, 2], ignore_label=9) == {1: 1.0, 2: 1.0}
    metric = CaseDice({1: "one", 2: "two"}, ignore_label=9)
    metric.update([{"case": "a", "pred": PREDICTION, "label": reference}])
    assert metric.compute() == 1.0


def metric_of(cases: list[tuple[torch.Tensor, torch.Tensor]]) -> CaseDice:
    metric = CaseDice({1: "one", 2: "two"})
    metric.update([{"case": f"c{i}", "pred": p, "label": r} for i, (p, r) in enumerate(cases)])
    return metric


def test_mean_over_labels_of_means_over_cases_that_have_the_label() -> None:
    empty = torch.zeros(2, 4, dtype=torch.long)
    metric = metric_of([(PREDICTION, REFERENCE), (empty, empty), (torch.ones_like(empty), empty)])
    assert metric.label_means()["one"] == pytest.approx(
        (2 / 3 + 0) / 2
    )  # found where there is none: 0; nowhere: left out
    assert metric.label_means()["two"] == pytest.approx(4 / 6)
    assert metric.compute() == pytest.approx((1 / 3 + 2 / 3) / 2)
    metric.reset()
    assert metric.rows == []
    assert metric.compute() == 0.0


def test_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="differ"):
        metric_of([(PREDICTION, REFERENCE[:1])])


def test_attached_to_an_engine_it_sees_batch_and_output() -> None:
    def step(engine: Engine, batch: object) -> object:
        engine.state.batch = [{"case": "x", "reference": REFERENCE}]
        return [{"pred": PREDICTION}]

    engine = Engine(step)
    metric = CaseDice({1: "one"}, reference_key="reference")
    metric.attach(engine, "dice")
    engine.run([0])
    assert engine.state.metrics["dice"] == pytest.approx(2 / 3)
    assert metric.rows[0]["case"] == "x"


def test_the_tables_hold_every_case_worst_first(tmp_path: Path) -> None:
    metric = metric_of([(REFERENCE, REFERENCE), (PREDICTION, REFERENCE)])
    path = write_case_table(metric, tmp_path / "sub" / "cases.csv")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == ["c0", "c1"]
    assert float(rows[1]["one"]) == pytest.approx(2 / 3)
    console = Console(record=True, width=100)
    print_case_table(metric, "Dice", console)
    text = console.export_text()
    assert text.index("c1") < text.index("c0") < text.index("mean", text.index("c0"))
    assert "0.6667" in text
    assert "1.0000" in text
