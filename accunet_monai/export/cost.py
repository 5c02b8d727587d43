"""What a program costs or saves on labelled cases, by the bundle's own ``evaluate`` config."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from accunet_monai.errors import BundleError
from accunet_monai.export.programs import Run
from accunet_monai.workflow import run_config

CALIBRATION_CASES = 2
"""So many training cases show int8 the range of each feature map."""

_NEARLY_CERTAIN = 1e-7  # probabilities are turned back into logits no further than this from 0 and 1


@dataclass(frozen=True)
class Cost:
    """What the written program does on the bundle's validation cases, beside the bundle's network in float32.

    Attributes:
        dice: label's name → mean Dice (network, program).
        seconds: spent in the network and in the program.
        size: bytes of the weights' file and of the program.
    """

    dice: dict[str, tuple[float, float]]
    seconds: tuple[float, float]
    size: tuple[int, int]


class Timed(nn.Module):
    """A network or program as the bundle's evaluation runs one: counts its seconds, keeps its inputs if asked to."""

    def __init__(self, run: Run, from_probabilities: bool = False, keep: bool = False) -> None:
        super().__init__()
        self.run = run
        self.from_probabilities = from_probabilities
        self.kept: list[Tensor] | None = [] if keep else None
        self.seconds = 0.0
        self._warm = False

    def forward(self, x: Tensor) -> Tensor:
        """Image (N, C, *spatial) → logits (N, classes, *spatial)."""
        image = x.as_subclass(Tensor)
        if self.kept is not None:
            self.kept.append(image.clone())
        while not self._warm:  # TorchScript optimises itself in its first two runs
            self.run(image), self.run(image)
            self._warm = True
        start = time.perf_counter()
        result = self.run(image)
        self.seconds += time.perf_counter() - start
        if not self.from_probabilities:
            return result
        certain = result.clamp(_NEARLY_CERTAIN, 1 - _NEARLY_CERTAIN)  # the bundle's inferer expects logits
        return torch.logit(certain) if result.shape[1] == 1 else torch.log(certain)


def evaluated(
    bundle: Path, network: Timed, dataset_dir: str | os.PathLike[str], **overrides: Any
) -> tuple[dict[str, float], float]:
    """(Mean Dice by label, seconds in the network) of the bundle's ``evaluate`` config with another network."""
    with TemporaryDirectory() as folder:
        replaced = {"network": network, "dataset_dir": str(dataset_dir), "device": "cpu", "output_dir": folder}
        workflow = run_config(bundle, "evaluate", {**replaced, "handlers": [], **overrides})
    metrics = workflow.parser.get_parsed_content("key_metric").values()
    found = [metric.label_means() for metric in metrics if hasattr(metric, "label_means")]
    if not found:
        raise BundleError("EXPORT_NO_DICE", "evaluate's key_metric has no Dice by label.", path=bundle)
    return found[0], network.seconds


def calibration_batches(bundle: Path, network: nn.Module, dataset_dir: str | os.PathLike[str] | None) -> list[Tensor]:
    """What the network sees of the first training cases."""
    recorder = Timed(network, keep=True)
    evaluated(bundle, recorder, dataset_dir or "", part="training", limit_cases=CALIBRATION_CASES)
    return recorder.kept or []
