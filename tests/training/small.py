"""A training small enough to be repeated hundreds of times: real engines, sampler, optimiser, average, schedule."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, ValidationHandler
from torch import nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

from accunet_monai.training import (
    EarlyStop,
    FinalValidation,
    GradientClip,
    MovingAverage,
    Repeatable,
    StopOnNonFinite,
    TrainingState,
    WeightsSaver,
)

EPOCHS, BATCH, SAMPLES = 3, 2, 8
ITERATIONS = EPOCHS * SAMPLES // BATCH


class Order(Sampler[list[int]]):
    """Batches that are a function of the epoch, as ``SliceSampler``'s."""

    epoch, skip = 0, 0

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        self.epoch, self.skip = epoch, skip

    def __len__(self) -> int:
        return SAMPLES // BATCH

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(self.epoch)).tolist()
        yield from [order[n : n + BATCH] for n in range(0, SAMPLES, BATCH)][self.skip :]


class Pairs(TensorDataset):
    """Images and what to make of them."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(7)
        image = torch.randn(SAMPLES, 3, 4, 4, generator=generator)
        super().__init__(image, image.roll(1, 1) * 2 + 0.3)

    def __getitem__(self, index: Any) -> Any:
        image, label = super().__getitem__(index)
        return {"image": image, "label": label}


def small_training(
    folder: Path, *handlers: Any, resume: bool = False, patience: int | None = None, **state: Any
) -> Any:
    """A trainer with its ``evaluator`` and the ``keeper`` of its state."""
    torch.manual_seed(3)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.3), nn.Conv2d(4, 3, 1))
    network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=ITERATIONS + 1)
    average = MovingAverage(network, 0.1, warmup=6)
    sampler = Order()

    def error(engine: Engine, batch: Any) -> Any:
        with torch.no_grad():
            return {"loss": (average.network(batch["image"]) - batch["label"]).square().mean()}

    evaluator: Any = SupervisedEvaluator(
        "cpu", DataLoader(Pairs(), BATCH), average.network, iteration_update=error, decollate=False
    )

    @evaluator.on(Events.COMPLETED)
    def score(engine: Engine) -> None:
        engine.state.metrics["val_mean_dice"] = -float(engine.state.output["loss"])  # type: ignore[call-overload,index]

    saver, stop = WeightsSaver(average.network, folder), EarlyStop(evaluator, patience)
    saver.attach(evaluator)
    parts = {"network": network, "optimizer": optimizer, "schedule": schedule, "average": average}
    parts |= {"saver": saver, "stop": stop}
    keeper = TrainingState(folder, parts, evaluator, interval=state.pop("interval", 0), resume=resume, **state)
    trainer: Any = SupervisedTrainer(
        "cpu",
        EPOCHS,
        DataLoader(Pairs(), batch_sampler=sampler),
        network,
        optimizer,
        nn.MSELoss(),
        decollate=False,
        train_handlers=[
            keeper,
            Repeatable(5, sampler),
            average,
            LrScheduleHandler(schedule, print_lr=False, epoch_level=False),
            GradientClip(network, 1.0),
            StopOnNonFinite(),
            stop,
            ValidationHandler(1, evaluator),
            FinalValidation(evaluator),
            *handlers,
        ],
    )
    trainer.evaluator, trainer.keeper = evaluator, keeper
    return trainer


def digest(folder: Path) -> dict[str, str]:
    """sha256 of the weights that a training left."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}


class Killed(BaseException):
    """Ends a training as SIGKILL does: nothing is saved after it."""


class KillAt:
    """Ends the training at an event's n-th occurrence, of the trainer or of its evaluator."""

    def __init__(self, event: Any, number: int) -> None:
        self.event, self.left = event, number

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(self.event, self._count)

    def _count(self, engine: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed
