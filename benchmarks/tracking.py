"""What does the log cost a training?

    python benchmarks/tracking.py --cases 6 --epochs 6

Trains a small network on made volumes with and without MLflow, in turn, and prints the seconds of both and their ratio.
The training's own time is that of its epochs with their validations; what the report at its end takes is told apart: it
does not grow with the number of epochs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from ignite.engine import Events

from accunet_monai.training.tracking.runs import connect, open_experiment
from benchmarks.measuring.report import Report
from tests.training.tracked import Training, nifti_cases, volume_bundle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=6, help="volumes")
    parser.add_argument("--size", type=int, default=40, help="voxels of their edges")
    parser.add_argument("--width", type=int, default=4, help="base filters of the network")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--steps", type=int, default=12, help="iterations of an epoch")
    parser.add_argument("--repeats", type=int, default=3, help="trainings of each kind, in turn")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="also write the table as Markdown")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        rows = _measured(Path(name), options)
    Report(options.output).table(
        f"{options.epochs} epochs of {options.steps} iterations, {options.cases} validation cases",
        ("", "epochs s", "ratio", "start s", "end s"),
        rows,
        f"Medians of {options.repeats}; {options.threads} threads.",
    )


def _measured(folder: Path, options: argparse.Namespace) -> list[tuple[str, ...]]:
    bundle = volume_bundle(folder, options.width)
    cases = nifti_cases(folder / "data", options.cases, (options.size,) * 3)
    open_experiment(connect(folder / "runs"), "made", folder / "runs")  # a new database takes seconds
    found: dict[str, list[tuple[float, float, float]]] = {"without": [], "with MLflow": []}
    for number in range(options.repeats):
        for kind, times in found.items():
            tracked = {"folder": folder / "runs"} if kind != "without" else None
            times.append(_times(bundle, cases, folder / f"{kind}_{number}", options, tracked))
    base = median(times[1] for times in found["without"])
    return [
        (kind, f"{median(t[1] for t in times):.2f}", f"{median(t[1] for t in times) / base:.3f}",
         f"{median(t[0] for t in times):.2f}", f"{median(t[2] for t in times):.2f}")
        for kind, times in found.items()
    ]  # fmt: skip


def _times(
    bundle: Path, cases: list[dict[str, Any]], output: Path, options: argparse.Namespace, tracked: dict[str, Any] | None
) -> tuple[float, float, float]:
    """Seconds before the first epoch, of the epochs, and after the last."""
    training = Training(bundle, cases, output, options.epochs, tracked, options.steps)
    marks: list[float] = []
    training.trainer.add_event_handler(Events.EPOCH_STARTED, lambda engine: marks.append(time.perf_counter()))
    training.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: marks.append(time.perf_counter()))
    began = time.perf_counter()
    training.run()
    ended = time.perf_counter()
    return marks[0] - began, marks[-1] - marks[0], ended - marks[-1]


if __name__ == "__main__":
    main()
