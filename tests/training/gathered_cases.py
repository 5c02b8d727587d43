"""What each of several processes does in a test; a module of its own, as the processes import it."""

from __future__ import annotations

import json
from pathlib import Path

import ignite.distributed as idist
import torch
from ignite.engine import Engine

from accunet_monai.errors import DatasetError
from accunet_monai.training import CaseDice, CaseMeasures

CASES = 5


def made_case(number: int) -> dict[str, object]:
    """A case whose Dice depends on its number."""
    reference = torch.zeros(1, 6, 6, 6, dtype=torch.uint8)
    reference[:, 1:4, 1:4, 1:4] = 1
    prediction = reference.clone()
    prediction[:, 3, : number + 1] = 0
    return {"case": f"case_{number}", "subject": f"s{number // 2}", "pred": prediction, "label": reference}


def evaluate(numbers: list[int]) -> list[dict[str, object]]:
    """Values and rows of both metrics after an engine has seen these cases one by one."""

    def step(engine: Engine, number: int) -> list[dict[str, object]]:
        engine.state.batch = [{}]
        return [made_case(number)]

    engine = Engine(step)
    metrics = {"dice": CaseDice({1: "one", 2: "two"}), "measures": CaseMeasures({1: "one", 2: "two"})}
    for name, metric in metrics.items():
        metric.attach(engine, name)
    engine.run(numbers)
    return [{"value": engine.state.metrics[name], "rows": metric.rows} for name, metric in metrics.items()]


def share_and_evaluate(rank: int, folder: str) -> None:
    """Like torch's DistributedSampler: cases in turn, the first ones again to fill up."""
    world = idist.get_world_size()
    numbers = [*range(CASES), *range(-CASES % world)]
    found = evaluate(numbers[rank::world])
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    try:
        evaluate([0, 0])
    except DatasetError as error:
        (Path(folder) / f"{rank}.txt").write_text(error.code, encoding="utf-8")
