"""The learning rate at which a training begins to learn, and the one at which it breaks: a range test (Smith 2017)."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from ignite.engine import Events
from rich.console import Console
from rich.table import Table

from accunet_monai.errors import NetworkError
from accunet_monai.volumes import atomic_output

CURVE = "learning_rate.png"
SMOOTHING = 0.8
"""Share of the past in the smoothed loss."""
DIVERGED = 4.0
"""The test ends when the smoothed loss is so many times its least."""


def find_learning_rate(
    trainer: Any, output_dir: str | Path, lowest: float = 1e-5, highest: float = 1.0, iterations: int = 100
) -> float:
    """Train with a learning rate that grows from iteration to iteration, print and draw the loss; nothing is kept.

    MONAI's ``LearningRateFinder`` wants an optimiser without a schedule and leaves out the trainer's inferer, so the
    steps are made here.

    Args:
        trainer: a MONAI trainer that has not run; its network and optimiser are as before afterwards.
        output_dir: gets the curve, ``learning_rate.png``.
        lowest: first learning rate.
        highest: last one, unless the loss diverges before.
        iterations: number of learning rates.

    Returns:
        The learning rate at which the smoothed loss falls steepest: about right as the peak of ``one_cycle``.

    Raises:
        NetworkError: ``NO_LEARNING_RATE`` when the loss diverges at once.
    """
    kept = copy.deepcopy((trainer.network.state_dict(), trainer.optimizer.state_dict()))
    rates, losses = [], []
    try:
        for rate, loss in _smoothed(_range_test(trainer, np.geomspace(lowest, highest, iterations).tolist())):
            rates.append(rate)
            losses.append(loss)
            if not math.isfinite(loss) or loss > DIVERGED * min(losses):
                break
    finally:
        trainer.network.load_state_dict(kept[0])
        trainer.optimizer.load_state_dict(kept[1])
    if len(losses) < 3:
        message = f"the loss diverges at a learning rate of {rates[-1]:.2g}."
        raise NetworkError("NO_LEARNING_RATE", message, hint="Look at the data and the loss.")
    steepest = rates[int(np.argmin(np.gradient(losses)))]
    _print(rates, losses)
    path = _draw(rates, losses, steepest, Path(output_dir) / CURVE)
    Console().print(
        f"steepest fall at a learning rate of {steepest:.2g}; curve: {path}", highlight=False, soft_wrap=True
    )
    return steepest


def _range_test(trainer: Any, rates: list[float]) -> Iterator[tuple[float, float]]:
    batches = itertools.chain.from_iterable(itertools.repeat(trainer.data_loader))
    trainer.fire_event(Events.EPOCH_STARTED)  # for those who choose the epoch's slices or measure its time
    trainer.network.train()
    for rate, batch in zip(rates, batches, strict=False):
        for group in trainer.optimizer.param_groups:
            group["lr"] = rate
        trainer.optimizer.zero_grad()
        image, label = trainer.prepare_batch(batch, trainer.state.device, False)
        loss = trainer.loss_function(trainer.inferer(image, trainer.network), label)
        loss.backward()
        trainer.optimizer.step()
        yield rate, float(loss.detach())


def _smoothed(values: Iterator[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """A running mean that is right from the first value on."""
    mean, weight = 0.0, 0.0
    for rate, value in values:
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        yield rate, mean / weight


def _print(rates: list[float], losses: list[float]) -> None:
    table = Table("learning rate", "loss", "", title="learning rate test")
    for index in range(0, len(rates), max(1, len(rates) // 20)):
        bar = "█" * max(0, round(30 * losses[index] / max(losses)))
        table.add_row(f"{rates[index]:.1e}", f"{losses[index]:.4f}", bar)
    Console().print(table)


def _draw(rates: list[float], losses: list[float], steepest: float, path: Path) -> Path:
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(rates, losses)
    axes.axvline(steepest, color="tab:red", linestyle="--", label=f"steepest fall at {steepest:.2g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss, smoothed")
    axes.legend()
    with atomic_output(path) as stream:
        figure.savefig(stream, format="png", dpi=120)
    plt.close(figure)
    return path
