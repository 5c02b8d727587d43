"""How long a training waits for its data, beside how long it computes."""

from __future__ import annotations

import time
from typing import Any

from ignite.engine import Engine, Events


class StepTimes:
    """Keep in a MONAI trainer's state the mean seconds per iteration of the epoch so far.

    ``state.loader_seconds`` is what data take: waiting for the loader, augmentation and the way to the device
    (``prepare_batch``). ``state.step_seconds`` is the rest of the iteration: forward, backward, optimiser. On a GPU the
    work of a step is counted where the program waits for it.
    """

    def attach(self, engine: Engine) -> None:
        """Attach to a MONAI trainer."""
        self._prepare_batch = engine.prepare_batch  # type: ignore[attr-defined]
        engine.prepare_batch = self._timed  # type: ignore[attr-defined]
        engine.add_event_handler(Events.EPOCH_STARTED, self._restart)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._wait)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._waited)
        engine.add_event_handler(Events.ITERATION_STARTED, self._step)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._stepped)

    def _restart(self, engine: Engine) -> None:
        self._iterations, self._loader, self._total = 0, 0.0, 0.0
        engine.state.loader_seconds = engine.state.step_seconds = 0.0  # type: ignore[attr-defined]
        self._since = time.perf_counter()

    def _wait(self, engine: Engine) -> None:
        self._since = time.perf_counter()

    def _waited(self, engine: Engine) -> None:
        waited = time.perf_counter() - self._since
        self._loader += waited
        self._total += waited

    def _step(self, engine: Engine) -> None:
        self._since = time.perf_counter()

    def _timed(self, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        prepared = self._prepare_batch(*args, **kwargs)
        self._loader += time.perf_counter() - started
        return prepared

    def _stepped(self, engine: Engine) -> None:
        self._total += time.perf_counter() - self._since
        self._iterations += 1
        engine.state.loader_seconds = self._loader / self._iterations  # type: ignore[attr-defined]
        engine.state.step_seconds = (self._total - self._loader) / self._iterations  # type: ignore[attr-defined]
