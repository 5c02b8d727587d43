"""Time for data and time for computing are told apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer

from accunet_monai.training import StepTimes
from accunet_monai.training import step_times as module


class Clock:
    """Time that passes only when somebody says so: the machine may be as busy as it likes."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class SlowLoader:
    """Three batches, of 30, 40 and 50 ms."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for number in range(3):
            self.clock.sleep(0.03 + 0.01 * number)
            yield {"image": torch.zeros(1, 1, 2, 2), "label": torch.zeros(1, 1, 2, 2)}


def test_waiting_and_augmenting_are_the_loaders_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    network = torch.nn.Conv2d(1, 1, 1)
    found: list[tuple[float, float]] = []

    def slow_batch(batch: Any, device: Any, non_blocking: bool, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        clock.sleep(0.02)
        return batch["image"], batch["label"]

    def loss(prediction: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        clock.sleep(0.01)
        return prediction.mean()

    def note(engine: Engine) -> None:
        found.append((engine.state.loader_seconds, engine.state.step_seconds))

    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=2,
        train_data_loader=SlowLoader(clock),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=loss,
        prepare_batch=slow_batch,
        train_handlers=[StepTimes()],
        decollate=False,
    )
    trainer.add_event_handler(Events.EPOCH_COMPLETED, note)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: clock.sleep(0.2))  # what handlers do is neither
    trainer.run()
    assert found == [pytest.approx((0.04 + 0.02, 0.01))] * 2
