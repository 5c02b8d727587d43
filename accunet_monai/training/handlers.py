"""Ignite handlers of the training workflow: progress, checkpoints, and a stop when the loss is no number."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

from accunet_monai.errors import NetworkError
from accunet_monai.networks.checkpoint import network_header, save_weights
from accunet_monai.training.evaluation import CaseDice, print_case_table, write_case_table

BEST_WEIGHTS = "best.safetensors"
LAST_WEIGHTS = "last.safetensors"


def on_exception(engine: Engine, clean_up: Callable[[Engine, BaseException], None]) -> None:
    """Call ``clean_up`` when the engine's run raises, then let the exception go on.

    Ignite swallows an exception for which there are handlers, and stops at the first handler that raises: so one
    function that raises is kept behind all that clean up.
    """
    engine.add_event_handler(Events.EXCEPTION_RAISED, clean_up)
    if engine.has_event_handler(_reraise, Events.EXCEPTION_RAISED):
        engine.remove_event_handler(_reraise, Events.EXCEPTION_RAISED)
    engine.add_event_handler(Events.EXCEPTION_RAISED, _reraise)


def _reraise(engine: Engine, error: BaseException) -> None:
    raise error


class RichProgress:
    """Progress bar over all iterations with epoch, loss, validation score and remaining time; one line per validation.

    Args:
        evaluator: its ``state.metrics`` are shown after each validation.
        key_metric: name of the metric to show.
    """

    def __init__(self, evaluator: Engine | None = None, key_metric: str = "val_mean_dice") -> None:
        self.evaluator = evaluator
        self.key_metric = key_metric
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
        """Attach to a trainer."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance)
        engine.add_event_handler(Events.COMPLETED, self._stop)
        on_exception(engine, self._fail)
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.COMPLETED, self._validated, engine)

    def _start(self, engine: Engine) -> None:
        total = (engine.state.max_epochs or 0) * (engine.state.epoch_length or 0)
        self.task = self.progress.add_task("training", total=total, epoch=0, loss=float("nan"), score="")
        self.progress.start()

    def _advance(self, engine: Engine) -> None:
        self.progress.update(self.task, advance=1, epoch=engine.state.epoch, loss=last_loss(engine))

    def _validated(self, evaluator: Engine, engine: Engine) -> None:
        score = f"Dice {evaluator.state.metrics.get(self.key_metric, float('nan')):.4f}"
        self.progress.update(self.task, score=score)
        self.console.print(f"epoch {engine.state.epoch}: {score}  loss {last_loss(engine):.4f}")

    def _stop(self, engine: Engine) -> None:
        self.progress.stop()

    def _fail(self, engine: Engine, error: BaseException) -> None:
        self.progress.stop()


class FinalValidation:
    """Validate once more after the last epoch if that epoch was not validated, so that its weights are scored and kept.

    Args:
        evaluator: the validating MONAI engine.
    """

    def __init__(self, evaluator: Any) -> None:
        self.evaluator = evaluator

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, before handlers that finish the run."""
        engine.add_event_handler(Events.COMPLETED, self.validate)

    def validate(self, engine: Engine) -> None:
        """Run the evaluator unless it has just run."""
        if self.evaluator.state.epoch != engine.state.epoch:
            self.evaluator.run(engine.state.epoch)


class WeightsSaver:
    """Keep the best and the last weights as safetensors, each written whole or not at all.

    Args:
        network: whose weights are kept; a constructor ``config`` goes into the file, see ``load_network``.
        output_dir: gets ``best.safetensors`` and ``last.safetensors``.
        key_metric: the evaluator's metric; higher is better.
        metadata: strings for the files' headers.
    """

    def __init__(
        self,
        network: nn.Module,
        output_dir: str | os.PathLike[str],
        key_metric: str = "val_mean_dice",
        metadata: dict[str, str] | None = None,
    ) -> None:
        self.network = network
        self.output_dir = Path(output_dir)
        self.key_metric = key_metric
        self.metadata = metadata or {}
        self.best = -math.inf

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator; it runs after each validation."""
        engine.add_event_handler(Events.COMPLETED, self.save)

    def save(self, evaluator: Engine) -> None:
        """Write the last weights, and the best if the metric has never been higher."""
        score = float(evaluator.state.metrics[self.key_metric])
        self._write(LAST_WEIGHTS, score)
        if score > self.best:
            self.best = score
            self._write(BEST_WEIGHTS, score)

    def _write(self, name: str, score: float) -> None:
        header = {**self.metadata, self.key_metric: f"{score:.6f}", **network_header(self.network)}
        save_weights(self.network.state_dict(), self.output_dir / name, header)


class StopOnNonFinite:
    """Stop the training with a typed error as soon as the loss is not finite; saved weights stay as they are."""

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.check)

    def check(self, engine: Engine) -> None:
        """Raise ``NetworkError`` (``LOSS_NOT_FINITE``) for a loss that is NaN or infinite."""
        if not math.isfinite(last_loss(engine)):
            raise NetworkError(
                "LOSS_NOT_FINITE",
                f"the loss is {last_loss(engine)} in epoch {engine.state.epoch}, iteration {engine.state.iteration}.",
                hint="Lower learning_rate; the weights of the last validation are kept.",
            )


class GradientClip:
    """Clip the gradient's norm before each optimiser step, and keep the norm in ``state.gradient_norm``.

    Args:
        network: whose gradients are clipped.
        max_norm: largest norm.
    """

    def __init__(self, network: nn.Module, max_norm: float) -> None:
        self.network = network
        self.max_norm = max_norm

    def attach(self, engine: Engine) -> None:
        """Attach to a MONAI trainer (its ``BACKWARD_COMPLETED``). Not for float16 with a scaler."""
        from monai.engines.utils import IterationEvents

        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self.clip)

    def clip(self, engine: Engine) -> None:
        """Clip now."""
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)
        engine.state.gradient_norm = float(norm)  # type: ignore[attr-defined]


class CaseTable:
    """Print the case table after an evaluation and write it as CSV.

    Args:
        metric: the evaluator's metric, whose rows are shown.
        path: CSV file to write, or ``None``.
        title: of the printed table.
    """

    def __init__(self, metric: CaseDice, path: str | os.PathLike[str] | None = None, title: str = "Dice") -> None:
        self.metric = metric
        self.path = path
        self.title = title

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.COMPLETED, self.show)

    def show(self, engine: Engine) -> None:
        """Print and write."""
        print_case_table(self.metric, self.title)
        if self.path is not None:
            Console().print(f"written: {write_case_table(self.metric, self.path)}", highlight=False, soft_wrap=True)


def last_loss(engine: Engine) -> float:
    """The loss of the last iteration of a MONAI trainer, whose output is decollated or not."""
    output: Any = engine.state.output
    first = output[0] if isinstance(output, list) else output
    loss = first["loss"]
    return float(loss.detach() if isinstance(loss, torch.Tensor) else loss)
