"""What does the log cost a training?

    python benchmarks/tracking.py --width 8 --steps 45 --epochs 2

Trains a small network on made volumes with and without MLflow, in turn, and tells the cost in two ways:

* the ratio of the seconds of the epochs with their validations, which on a shared machine varies by more than the log
  costs;
* the log's own share of the processor time that the epochs take: its handlers in the training's thread, and the thread
  that draws and sends. It hardly depends on what else the machine does; ``--log-only`` measures nothing else.

The report at a training's end is told apart: it does not grow with the number of epochs.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from ignite.engine import Events

from accunet_monai.training import MLflowTracker
from accunet_monai.training.tracking.runs import connect, open_experiment
from benchmarks.measuring.report import Report, describe_machine
from tests.training.tracked import Training, nifti_cases, volume_bundle

HANDLERS = ("_look_at", "_collect", "_log_epoch", "_log_validation")
"""What the tracker does in the training's thread between the first epoch and the last."""

OUTBOX = "mlflow outbox"
"""Name of the thread that draws and sends."""


@dataclass
class Taken:
    """Seconds of a training: before the first epoch, of the epochs, after the last; of processors, of the log's own."""

    start: float
    epochs: float
    end: float
    processor: float
    handlers: float
    thread: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=6, help="volumes")
    parser.add_argument("--size", type=int, default=40, help="voxels of their edges")
    parser.add_argument("--width", type=int, default=4, help="base filters of the network")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--steps", type=int, default=12, help="iterations of an epoch")
    parser.add_argument("--repeats", type=int, default=3, help="trainings of each kind, in turn")
    parser.add_argument("--log-only", action="store_true", help="no trainings without MLflow")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="also write the table as Markdown")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report = Report(options.output)
    report.paragraph(describe_machine("cpu"))
    with tempfile.TemporaryDirectory() as name:
        found = _measured(Path(name), options)
    base = median(taken.epochs for taken in next(iter(found.values())))
    rows = []
    for kind, every in found.items():
        names = ("epochs", "processor", "start", "end", "handlers", "thread")
        epochs, processor, start, end, handlers, thread = (
            median(getattr(taken, name) for taken in every) for name in names
        )
        own = "" if kind == "without" else f"{(handlers + thread) / processor:.2%}"
        cells = (epochs, epochs / base, processor, handlers, thread)
        rows.append((kind, *(f"{cell:.3f}" for cell in cells), own, f"{start:.1f}", f"{end:.1f}"))
    report.table(
        f"{options.epochs} epochs of {options.steps} iterations, {options.cases} validation cases each",
        ("", "epochs s", "ratio", "CPU s", "handlers CPU s", "sending CPU s", "log's share", "start s", "end s"),
        rows,
        f"Medians of {options.repeats}. Share: handlers and sending, of the epochs' processor time.",
    )


def _measured(folder: Path, options: argparse.Namespace) -> dict[str, list[Taken]]:
    bundle = volume_bundle(folder, options.width)
    cases = nifti_cases(folder / "data", options.cases, (options.size,) * 3)
    open_experiment(connect(folder / "runs"), "made", folder / "runs")  # a new database takes seconds
    found: dict[str, list[Taken]] = {} if options.log_only else {"without": []}
    found["with MLflow"] = []
    for number in range(options.repeats):
        for kind, times in found.items():
            tracked = {"folder": folder / "runs"} if kind != "without" else None
            times.append(_taken(bundle, cases, folder / f"{kind}_{number}", options, tracked))
    return found


def _taken(
    bundle: Path, cases: list[dict[str, Any]], output: Path, options: argparse.Namespace, tracked: dict[str, Any] | None
) -> Taken:
    spent = [0.0]
    kept = {name: getattr(MLflowTracker, name) for name in HANDLERS}
    for name, method in kept.items():
        setattr(MLflowTracker, name, _timed(method, spent))
    training = Training(bundle, cases, output, options.epochs, tracked, options.steps)
    for name, method in kept.items():
        setattr(MLflowTracker, name, method)
    marks: list[tuple[float, float, float, float]] = []

    def mark() -> None:
        marks.append((time.perf_counter(), time.process_time(), spent[0], _sending_seconds()))

    training.trainer.add_event_handler(Events.EPOCH_STARTED, mark)
    training.trainer.add_event_handler(Events.EPOCH_COMPLETED, mark)
    began = time.perf_counter()
    training.run()
    ended = time.perf_counter()
    first, last = marks[0], marks[-1]
    spans = [after - before for before, after in zip(first, last, strict=True)]
    return Taken(first[0] - began, spans[0], ended - last[0], *spans[1:])


def _timed(method: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """The method, which adds its seconds."""

    @functools.wraps(method)
    def timed(*arguments: Any) -> Any:
        began = time.thread_time()
        try:
            return method(*arguments)
        finally:
            spent[0] += time.thread_time() - began

    return timed


def _sending_seconds() -> float:
    """Processor time of the thread that draws and sends."""
    threads = [thread for thread in threading.enumerate() if thread.name == OUTBOX]
    return sum(time.clock_gettime(time.pthread_getcpuclockid(thread.ident)) for thread in threads if thread.ident)


if __name__ == "__main__":
    main()
