"""What a person at the terminal sees of a training: what will be trained, how far it is, how long it will take."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sized
from typing import Any

from ignite.engine import Engine, Events
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from torch import nn

from accunet_monai.training.distributed import is_main
from accunet_monai.training.handlers import last_loss, on_exception


class RichProgress:
    """Progress bar over all iterations with epoch, loss, validation score and remaining time; one line per validation.

    Args:
        evaluator: its ``state.metrics`` are shown after each validation.
        key_metric: name of the metric to show.
        facts: told before the first iteration, name → text; see :func:`training_facts`.
    """

    def __init__(
        self,
        evaluator: Engine | None = None,
        key_metric: str = "val_mean_dice",
        facts: Mapping[str, str] | None = None,
    ) -> None:
        self.evaluator = evaluator
        self.key_metric = key_metric
        self.facts = dict(facts or {})
        self.console = Console()
        self.progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[score]}"),
            console=self.console,
        )

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer; of several processes only the first shows anything."""
        if not is_main():
            return
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._estimate)
        engine.add_event_handler(Events.COMPLETED, self._stop)
        on_exception(engine, self._fail)
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.COMPLETED, self._validated, engine)

    def _start(self, engine: Engine) -> None:
        table = Table(show_header=False, box=None)
        for name, text in self.facts.items():
            table.add_row(name, text)
        if self.facts:
            self.console.print(table, highlight=False)
        total = (engine.state.max_epochs or 0) * (engine.state.epoch_length or 0)
        self.task = self.progress.add_task(
            "training", total=total, completed=engine.state.iteration, epoch=engine.state.epoch, loss=float("nan"),
            score="",
        )  # fmt: skip
        self.began, self.first = time.monotonic(), engine.state.iteration
        self.progress.start()

    def _advance(self, engine: Engine) -> None:
        self.progress.update(
            self.task, completed=engine.state.iteration, epoch=engine.state.epoch, loss=last_loss(engine)
        )

    def _estimate(self, engine: Engine) -> None:
        """Once, after the first epoch of this start, its validation included where one followed."""
        if not self.began:
            return
        done = engine.state.iteration - self.first
        left = (engine.state.max_epochs or 0) * (engine.state.epoch_length or 0) - engine.state.iteration
        if done and left:
            seconds = (time.monotonic() - self.began) / done * left
            self.console.print(f"about {duration(seconds)} to go", highlight=False)
        self.began = 0.0

    def _validated(self, evaluator: Engine, engine: Engine) -> None:
        score = f"Dice {evaluator.state.metrics.get(self.key_metric, float('nan')):.4f}"
        self.progress.update(self.task, score=score)
        self.console.print(f"epoch {engine.state.epoch}: {score}  loss {last_loss(engine):.4f}")

    def _stop(self, engine: Engine) -> None:
        self.progress.stop()

    def _fail(self, engine: Engine, error: BaseException) -> None:
        self.progress.stop()


def training_facts(
    network: nn.Module, dataset: Sized, cases: Sized, validation: Sized, batches: Sized, epochs: int, device: Any
) -> dict[str, str]:
    """What a training is of, for a person to read before it starts.

    Args:
        network: what is trained.
        dataset: of slices.
        cases: to train on.
        validation: cases to validate on.
        batches: one epoch's.
        epochs: number of them.
        device: where it is trained.
    """
    size = sum(parameter.numel() for parameter in network.parameters())
    return {
        "network": f"{type(network).__name__}, {size / 1e6:.2f} million parameters, on {device}",
        "training": f"{len(cases)} cases, {len(dataset)} slices",
        "validation": f"{len(validation)} cases",
        "length": f"{epochs} epochs of {len(batches)} iterations",
    }


def duration(seconds: float) -> str:
    """Hours and minutes, for people.

    Example:
        >>> duration(40), duration(600), duration(7500)
        ('1 minute', '10 minutes', '2 h 5 min')
    """
    minutes = max(1, round(seconds / 60))
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} minute{'s' if minutes > 1 else ''}"
