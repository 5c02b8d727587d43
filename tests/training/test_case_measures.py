"""The full evaluation as an Ignite metric: what it measures and writes, and that processes end with all cases once."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from accunet_monai.evaluation import measure_case, read_rows
from accunet_monai.training import CaseDice, CaseMeasures, EvaluationReport
from tests.training.gathered_cases import CASES, evaluate, share_and_evaluate

SPACING = (0.5, 1.0, 3.0)


def volume(array: np.ndarray) -> MetaTensor:
    turned = np.diag([*SPACING, 1.0])[[1, 0, 2, 3]]  # array axes point elsewhere than x, y, z
    return MetaTensor(torch.from_numpy(array[None]), affine=torch.from_numpy(turned))


def engine_over(cases: list[dict[str, Any]]) -> Engine:
    def step(engine: Engine, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        engine.state.batch = [{key: value for key, value in case.items() if key != "pred"} for case in batch]
        return [{"pred": case["pred"]} for case in batch]

    return Engine(step)


def made(number: int) -> dict[str, Any]:
    reference = np.zeros((9, 10, 8), np.uint8)
    reference[2:7, 2:8, 2:6] = 1
    reference[2:7, 5:8, 2:6] = 2
    image = np.random.default_rng(number).normal(size=reference.shape).astype(np.float32)
    prediction = np.roll(reference, number, axis=0)
    pair = {"reference": volume(reference), "pred": volume(prediction)}
    return {"case": f"case {number}", "subject": "s", "original": volume(image), **pair}


def test_rows_are_those_of_measure_case_on_the_references_grid() -> None:
    cases = [made(number) for number in range(3)]
    engine = engine_over(cases)
    metric = CaseMeasures({1: "one", 2: "two"}, reference_key="reference", tolerance_mm=2.0)
    dice = CaseDice({1: "one", 2: "two"}, reference_key="reference")
    metric.attach(engine, "measures")
    dice.attach(engine, "dice")
    state = engine.run([cases[:2], cases[2:]])
    expected = [
        row
        for case in cases
        for row in measure_case(
            np.asarray(case["pred"])[0],
            np.asarray(case["reference"])[0],
            SPACING,
            {1: "one", 2: "two"},
            case=case["case"],
            subject="s",
            tolerance_mm=2.0,
        )
    ]
    assert metric.rows == expected
    assert state.metrics["measures"] == pytest.approx(state.metrics["dice"])
    assert metric.label_means() == pytest.approx(dice.label_means())


def test_pictures_without_a_grid_are_measured_in_pixels() -> None:
    reference = torch.zeros(1, 20, 20)
    reference[:, 5:10, 5:10] = 1
    metric = CaseMeasures({1: "one"}, ignore_label=255)
    metric.update([{"case": "a", "pred": reference.roll(2, 1), "label": reference}])
    (row,) = metric.rows
    assert (row["hd95_mm"], row["subject"]) == (2, "a")
    assert np.isnan(row["volume_prediction_ml"])
    ignored = torch.where(torch.arange(20)[:, None] >= 7, 255.0, reference)
    metric.update([{"case": "b", "pred": reference.roll(2, 1), "label": ignored}])
    assert metric.rows[1]["dice"] == 0


def test_all_processes_end_with_every_case_once_as_one_process_does(tmp_path: Path) -> None:
    meet = f"file://{tmp_path / 'meet'}"  # not a port, which another test may hold
    with idist.Parallel(backend="gloo", nproc_per_node=2, init_method=meet) as parallel:
        parallel.run(share_and_evaluate, str(tmp_path))
    alone = json.loads(json.dumps(evaluate(list(range(CASES)))))
    assert [row["case"] for row in alone[0]["rows"]] == [f"case_{n}" for n in range(CASES)]
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8"))
        assert str(found) == str(alone)  # NaN and all, in the order of the dataset
        assert (tmp_path / f"{rank}.txt").read_text(encoding="utf-8") == "CASE_TWICE"


def test_the_report_is_written_when_all_cases_are_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = [made(number) for number in range(3)]
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    engine = engine_over(cases)
    metric = CaseMeasures({1: "one", 2: "two"}, reference_key="reference")
    metric.attach(engine, "dice")
    EvaluationReport(metric, tmp_path / "out", "Made", weights=weights).attach(engine)
    engine.run([cases[:2], cases[2:]])
    assert read_rows(tmp_path / "out") == metric.rows
    page = (tmp_path / "out" / "review.html").read_text(encoding="utf-8")
    assert re.findall("<h2>(.*?)</h2>", page) == ["case 2", "case 1", "case 0"]
    about = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))["about"]
    assert len(about["weights_sha256"]) == 64
    printed = capsys.readouterr().out
    assert printed.index("case 2") < printed.index("case 0")
    assert "3 cases of 1 subject;" in printed
    assert not (tmp_path / "out" / ".review").exists()


def test_without_an_image_there_is_no_page(tmp_path: Path) -> None:
    case = made(1)
    engine = engine_over([case])
    metric = CaseMeasures({1: "one", 2: "two"}, reference_key="reference")
    metric.attach(engine, "dice")
    EvaluationReport(metric, tmp_path / "out", image_key=None).attach(engine)
    engine.run([[case]])
    assert (tmp_path / "out" / "cases.csv").is_file()
    assert not (tmp_path / "out" / "review.html").exists()
