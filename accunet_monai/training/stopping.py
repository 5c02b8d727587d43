"""What ends a training early: a signal, a file named ``stop``, a loss that is no number, scores that rise no more."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping

from accunet_monai.errors import NetworkError
from accunet_monai.training.handlers import last_loss

STOP_FILE = "stop"
"""A file of this name in a training's ``output_dir`` ends it after the iteration."""


class Stopped(KeyboardInterrupt):
    """A training was asked to stop and has saved its state."""


class StopRequest:
    """Whether somebody asked for an end: SIGTERM, SIGINT or a stop file. A second SIGINT interrupts at once.

    Args:
        output_dir: folder in which a file ``stop`` is looked for.
    """

    def __init__(self, output_dir: Path) -> None:
        self.file = output_dir / STOP_FILE
        self.reason = ""

    def __bool__(self) -> bool:
        if not self.reason and self.file.exists():
            self.reason = f"the file {self.file}"
        return bool(self.reason)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within this block the two signals only ask. Nothing is done outside of the main thread."""
        try:
            before = {one: signal.signal(one, self._ask) for one in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # signals are the main thread's
            yield
            return
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.reason and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.reason = signal.Signals(number).name


class StopOnNonFinite:
    """Stop the training with a typed error as soon as the loss is not finite; saved weights stay as they are."""

    def attach(self, engine: Engine) -> None:
        """Attach to a MONAI trainer."""
        from monai.engines.utils import IterationEvents

        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self.check)

    def check(self, engine: Engine) -> None:
        """Raise ``NetworkError`` (``LOSS_NOT_FINITE``) for a loss that is NaN or infinite."""
        if not math.isfinite(last_loss(engine)):
            raise NetworkError(
                "LOSS_NOT_FINITE",
                f"the loss is {last_loss(engine)} in epoch {engine.state.epoch}, iteration {engine.state.iteration}.",
                hint="Lower learning_rate; the weights of the last validation are kept.",
            )


class EarlyStop:
    """Ends the training when so many validations in a row brought no better score, by Ignite's ``EarlyStopping``.

    Args:
        evaluator: the validating engine.
        patience: number of validations; ``None`` never stops.
        key_metric: name of the evaluator's metric; higher is better.
    """

    def __init__(self, evaluator: Engine, patience: int | None = None, key_metric: str = "val_mean_dice") -> None:
        self.evaluator = evaluator
        self.patience = patience
        self.key_metric = key_metric
        self._stopping: EarlyStopping | None = None

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        if self.patience is not None:
            self._stopping = EarlyStopping(self.patience, self._score, engine)
            self.evaluator.add_event_handler(Events.COMPLETED, self._stopping)

    def _score(self, evaluator: Any) -> float:
        return float(evaluator.state.metrics[self.key_metric])

    def state_dict(self) -> dict[str, Any]:
        """The best score and how many validations were no better since."""
        return {} if self._stopping is None else dict(self._stopping.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting from there."""
        if self._stopping is not None and state:
            self._stopping.load_state_dict(state)
