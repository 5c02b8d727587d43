"""A training that may be killed at any moment and goes on as if it had not been."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from rich.console import Console

from accunet_monai.errors import DatasetError
from accunet_monai.training.distributed import anywhere, is_main, processes
from accunet_monai.training.find_lr import find_learning_rate
from accunet_monai.training.handlers import on_exception
from accunet_monai.training.state_file import read_state, same_layout, write_state
from accunet_monai.training.stopping import Stopped, StopRequest
from accunet_monai.volumes.atomic import PARTIAL_SUFFIX
from accunet_monai.workflow import running_workflow

STATE_FOLDER = "resume"
STATE_FILE = "state.safetensors"

HARMLESS = frozenset(
    {
        *("bundle_root", "dataset_dir", "split_file", "made_dir", "cache_dir", "download"),
        *("output_dir", "runs_dir", "run_name", "parent_run", "register"),
        *("resume", "overwrite", "checkpoint_interval", "find_lr", "imports", "initialize", "run"),
        *("device", "compile", "workers", "postprocessing"),
    }
)
"""Keys of a config that may be others when a training goes on: where things lie, what it is called, how fast it is,
how label maps are cleaned afterwards. All else would make it another training: the number of epochs too, because the
learning rate's schedule spans them."""


def state_path(output_dir: str | Path) -> Path:
    """Where the state of a training lies."""
    return Path(output_dir) / STATE_FOLDER / STATE_FILE


def is_finished(output_dir: str | Path) -> bool:
    """Whether the folder holds a training that has come to its end."""
    path = state_path(output_dir)
    return path.is_file() and bool(read_state(path)["finished"])


def run_training(trainer: Any, output_dir: str | Path, resume: bool = False, find_lr: bool = False) -> None:
    """Run a trainer, unless it is to go on with a training that is finished already.

    Args:
        trainer: a MONAI trainer with :class:`TrainingState` among its handlers.
        output_dir: of the training.
        resume: as of its :class:`TrainingState`.
        find_lr: only look for a learning rate, see :func:`find_learning_rate`.

    Raises:
        DatasetError: as :class:`TrainingState`.
    """
    if find_lr:
        find_learning_rate(trainer, output_dir)
        return
    if resume and is_finished(output_dir):
        check_same(read_state(state_path(output_dir)), trainer.training_state.same, output_dir)
        Console().print(f"{output_dir}: finished already", highlight=False, soft_wrap=True)
        return
    trainer.run()


def check_output_dir(output_dir: str | Path, resume: bool = False, overwrite: bool = False) -> None:
    """Refuse to write over an unfinished training. To be asked before anything takes time, by every process.

    What is begun anew is finished no longer: the state of an earlier training is deleted, unless only a learning rate
    is looked for.

    Raises:
        DatasetError: ``RUN_UNFINISHED``.
    """
    path = state_path(output_dir)
    if resume:
        return
    unfinished = path.is_file() and not overwrite and not is_finished(output_dir)
    if processes() > 1:
        idist.barrier()  # all have looked before it is deleted
    if unfinished:
        raise DatasetError(
            "RUN_UNFINISHED",
            "an unfinished training lies here.",
            path=output_dir,
            hint="Go on with it (--resume), begin anew (--overwrite), or give another output_dir.",
        )
    if is_main() and not _config().get("find_lr"):
        path.unlink(missing_ok=True)


def check_same(state: Mapping[str, Any], same: Mapping[str, Any], output_dir: str | Path) -> None:
    """Refuse to go on with a training as if it were another one.

    Args:
        state: of the training that lies in ``output_dir``; finished ones of earlier versions do not say.
        same: as of :class:`TrainingState`, with ``config``: what it is to be now.
        output_dir: of both.

    Raises:
        DatasetError: ``RESUME_CHANGED``, naming what differs.
    """
    if "same" not in state:
        return
    earlier, now = state["same"], _plain(same)
    changed = [key for key in now if key != "config" and earlier.get(key) != now[key]]
    for key in sorted({*earlier["config"], *now["config"]} - HARMLESS):
        changed += _differences(earlier["config"].get(key), now["config"].get(key), key)
    if changed:
        raise resume_changed(changed, output_dir)


def resume_changed(changed: Iterable[str], output_dir: str | Path, hint: str = "") -> DatasetError:
    """The error for a training that lies here and was another one: ``RESUME_CHANGED``."""
    message = f"what was trained here had other settings: {', '.join(changed)}."
    hint = hint or "Set them as they were, begin anew with --overwrite, or give another output_dir."
    return DatasetError("RESUME_CHANGED", message, path=output_dir, hint=hint)


class TrainingState:
    """Keeps the state of a training in ``output_dir/resume/``, so that it can go on from any iteration.

    Kept are epoch and iteration and the ``state_dict`` of all ``parts``, in one file that is replaced when the next one
    is whole: every ``interval`` seconds, after each epoch, and when the training is asked to stop (SIGTERM, SIGINT, a
    file named ``stop`` in ``output_dir``), after which ``Stopped`` is raised. After an error nothing is kept: the older
    state is the good one. On the CPU a resumed training ends with the very bits of an uninterrupted one, if what it
    draws at random is ``Repeatable``.

    Args:
        output_dir: folder of the training.
        parts: name → what has ``state_dict`` and ``load_state_dict``; the trainer's gradient scaler is found by itself.
        evaluator: the validating engine, which is left at once when the training is asked to stop.
        interval: seconds between two states; 0 keeps one after each iteration.
        resume: go on from the state that lies there; without one, begin.
        same: further values that must be the same when the training goes on, e.g. the names of its cases.

    Raises (when the training starts):
        DatasetError: ``RESUME_CHANGED`` for another config, ``RUN_FINISHED``, ``STATE_UNREADABLE``.
    """

    def __init__(
        self,
        output_dir: str | Path,
        parts: Mapping[str, Any],
        evaluator: Engine | None = None,
        interval: float = 300.0,
        resume: bool = False,
        same: Mapping[str, Any] | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.parts = dict(parts)
        self.evaluator = evaluator
        self.interval = interval
        self.resume = resume
        self.same = {"config": _config(), **(same or {})}
        self.asked = StopRequest(self.output_dir)
        self._signals = ExitStack()
        self._saved = 0.0
        self._epoch_open = False  # its iterations are done, its validation is not

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, before all handlers that look at its epoch and iteration when it starts."""
        engine.training_state = self  # type: ignore[attr-defined]
        engine.add_event_handler(Events.STARTED, self._start)
        on_exception(engine, lambda engine, error: self._signals.close())
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._validating, engine)

    def _start(self, engine: Engine) -> None:
        self._signals.enter_context(self.asked.listening())
        if is_main():
            self.asked.file.unlink(missing_ok=True)
            for left in self.output_dir.glob(f"{STATE_FOLDER}/.*{PARTIAL_SUFFIX}"):  # by a killed one
                left.unlink(missing_ok=True)
        path = state_path(self.output_dir)
        if self.resume and path.is_file():
            self._load(engine, read_state(path))
        self._saved = time.monotonic()
        # Handlers that are added now are called after all that were attached. So is the first of them, in this event.
        engine.add_event_handler(Events.STARTED, self._catch_up)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _load(self, engine: Any, state: dict[str, Any]) -> None:
        check_same(state, self.same, self.output_dir)
        if state["finished"]:
            message = "the training that lies here has come to its end."
            raise DatasetError("RUN_FINISHED", message, path=self.output_dir, hint="--overwrite begins anew.")
        engine.state.iteration, engine.state.epoch = state["iteration"], state["epoch"]
        for name, part in self.parts.items():
            part.load_state_dict(state["parts"][name])
            if isinstance(part, torch.optim.Optimizer):
                same_layout(part)
        if engine.scaler is not None and state["scaler"]:
            engine.scaler.load_state_dict(state["scaler"])
        self._epoch_open = state["epoch_open"]
        if state["terminating"]:
            engine.terminate()

    def _catch_up(self, engine: Engine) -> None:
        """Do what an epoch ends with, if that was not finished."""
        if self._epoch_open:
            engine.fire_event(Events.EPOCH_COMPLETED)

    def _iteration(self, engine: Engine) -> None:
        length = engine.state.epoch_length or 0
        self._epoch_open = bool(length) and engine.state.iteration % length == 0
        asked = anywhere(bool(self.asked))
        if asked or time.monotonic() - self._saved >= self.interval:
            self.save(engine)
        if asked:
            self._stop()

    def _validating(self, evaluator: Engine, engine: Engine) -> None:
        if self._epoch_open and processes() == 1 and self.asked:  # processes may have unequal numbers of cases
            self.save(engine)
            self._stop()

    def _epoch(self, engine: Engine) -> None:
        self._epoch_open = False
        self.save(engine)
        if anywhere(bool(self.asked)):
            self._stop()

    def _stop(self) -> None:
        if is_main():
            told = f"stopped by {self.asked.reason}; go on with --resume"
            Console().print(told, highlight=False, soft_wrap=True)
        raise Stopped(self.asked.reason)

    def _finish(self, engine: Engine) -> None:
        self._signals.close()
        if is_main():
            write_state({"finished": True, "same": _plain(self.same)}, state_path(self.output_dir))

    def save(self, engine: Any) -> None:
        """Keep the state as it is now."""
        length = engine.state.epoch_length
        if is_main():
            state = {
                "finished": False,
                "iteration": engine.state.iteration,
                "epoch": engine.state.iteration // length if length else engine.state.epoch,
                "epoch_open": self._epoch_open,
                "terminating": bool(engine.should_terminate),
                "scaler": {} if engine.scaler is None else engine.scaler.state_dict(),
                "parts": {name: part.state_dict() for name, part in self.parts.items()},
                "same": _plain(self.same),
            }
            write_state(state, state_path(self.output_dir))
        self._saved = time.monotonic()


def _config() -> dict[str, Any]:
    """The merged config that is being run: its text, overrides included. Nothing outside of a config."""
    workflow = running_workflow()
    if workflow is None:
        return {}
    return {key: value for key, value in workflow.parser.get().items() if key != "_meta_"}


def _differences(before: Any, now: Any, name: str) -> list[str]:
    """Keys of a nested config, as overrides name them, under which there is another value."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = dict.fromkeys([*before, *now])
        return [found for key in keys for found in _differences(before.get(key), now.get(key), f"{name}::{key}")]
    return [] if before == now else [name]


def _plain(value: Any) -> Any:
    """As JSON would give it back."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
