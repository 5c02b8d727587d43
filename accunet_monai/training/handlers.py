"""Ignite handlers of the training workflow: validation, kept weights, clipped gradients, the table of cases."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from rich.console import Console
from torch import nn

from accunet_monai.errors import NetworkError
from accunet_monai.networks.checkpoint import network_header, save_weights
from accunet_monai.training.distributed import is_main
from accunet_monai.training.evaluation import CaseDice, print_case_table, write_case_table
from accunet_monai.training.run_file import run_header

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
    """Keep the best and the last weights as safetensors, each written whole or not at all, by the first process.

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

    def state_dict(self) -> dict[str, Any]:
        """The best score so far."""
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep only weights that are better than that."""
        self.best = state["best"]

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator; it runs after each validation."""
        engine.add_event_handler(Events.COMPLETED, self.save)

    def save(self, evaluator: Engine) -> None:
        """Write the last weights, and the best if the metric has never been higher."""
        score = float(evaluator.state.metrics[self.key_metric])
        is_best, self.best = score > self.best, max(score, self.best)
        if is_main():
            self._write(LAST_WEIGHTS, score)
            if is_best:
                self._write(BEST_WEIGHTS, score)

    def _write(self, name: str, score: float) -> None:
        header = {**self.metadata, **run_header(self.output_dir), self.key_metric: f"{score:.6f}"}
        header |= network_header(self.network)
        save_weights(self.network.state_dict(), self.output_dir / name, header)


class GradientClip:
    """Keep the gradient's norm in ``state.gradient_norm`` before each optimiser step, and clip it.

    With a gradient scaler (float16) the gradients are unscaled first; infinite ones are then the scaler's business.

    Args:
        network: whose gradients are clipped.
        max_norm: largest norm; ``None`` clips nothing.
    """

    def __init__(self, network: nn.Module, max_norm: float | None) -> None:
        self.network = network
        self.max_norm = max_norm

    def attach(self, engine: Engine) -> None:
        """Attach to a MONAI trainer (its ``BACKWARD_COMPLETED``)."""
        from monai.engines.utils import IterationEvents

        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self.clip)

    def clip(self, engine: Any) -> None:
        """Clip now.

        Raises:
            NetworkError: ``GRADIENT_NOT_FINITE``, before it reaches the weights; not with a gradient scaler.
        """
        scaler = getattr(engine, "scaler", None)
        if scaler is not None:
            scaler.unscale_(engine.optimizer)
        limit = math.inf if self.max_norm is None else self.max_norm
        norm = float(nn.utils.clip_grad_norm_(self.network.parameters(), limit))
        if scaler is None and not math.isfinite(norm):
            raise NetworkError(
                "GRADIENT_NOT_FINITE",
                f"the gradient's norm is {norm} in epoch {engine.state.epoch}, iteration {engine.state.iteration}.",
                hint="Lower learning_rate; the weights of the last validation are kept.",
            )
        engine.state.gradient_norm = norm


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
        """Print and write, in the first of several processes."""
        if not is_main():
            return
        print_case_table(self.metric, self.title)
        if self.path is not None:
            Console().print(f"written: {write_case_table(self.metric, self.path)}", highlight=False, soft_wrap=True)


def last_loss(engine: Engine) -> float:
    """The loss of the last iteration of a MONAI trainer, whose output is decollated or not."""
    output: Any = engine.state.output
    first = output[0] if isinstance(output, list) else output
    loss = first["loss"]
    return float(loss.detach() if isinstance(loss, torch.Tensor) else loss)
