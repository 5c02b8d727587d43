"""Overlays of validation cases for MLflow's image slider: the same cases at every step, and the worst ones."""

from __future__ import annotations

import functools
import heapq
import io
import math
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from monai.data import MetaTensor
from PIL import Image

from accunet_monai.training.evaluation import case_name_of, dice_per_label
from accunet_monai.training.tracking.identity import Identities
from accunet_monai.training.tracking.outbox import Outbox
from accunet_monai.volumes import contact_sheet, render_overlay

_LONGEST_EDGE = 384
"""Voxels of a slice's edge that are kept for a picture: its tiles are smaller."""

FIRST_KEYS = ("val_01_", "worst_01")
"""How keys of pictures begin that are there whenever there are any."""

_SLICES = 6  # one row, which fits the slider's frame


@dataclass(frozen=True, order=True)
class Overlay:
    """A case as it is pictured. Overlays are ordered from the best to the worst case, so that a heap keeps the worst.

    Attributes:
        order: minus the case's mean Dice, and its number.
        title: first line of the picture.
        name: of the case, for a key of MLflow's slider.
        arrays: image, prediction and reference, all (X, Y, Z) or (H, W); the image of a picture may be (H, W, 3).
        spacing: mm per array axis, or ``None``.
    """

    order: tuple[float, int]
    title: str
    name: str
    arrays: tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]
    spacing: tuple[float, ...] | None

    def png(self, labels: Mapping[int, str], axis: int, step: int) -> bytes:
        """Draw it."""
        image, prediction, reference = self.arrays
        if prediction.ndim == 2:
            return _picture_png(image, prediction, reference)
        with tempfile.TemporaryDirectory() as folder:
            path = contact_sheet(
                image,
                prediction,
                Path(folder) / "overlay.png",
                spacing=self.spacing,
                reference=reference,
                axis=axis,
                slices=_SLICES,
                title=f"{self.title}, epoch {step}",
                label_names=dict(labels),
            )
            return path.read_bytes()


class ValidationPictures:
    """Collects overlays of one validation and hands them to the outbox.

    Args:
        labels: label value → name.
        fixed: so many first cases are pictured each time.
        worst: so many of the cases with the lowest mean Dice are pictured, too.
        axis: along which pictures are cut.
        identities: under which names cases are logged.
        ignore_label: value of the reference whose voxels do not count.

    Attributes:
        sent: step of the last pictures, ``None`` before the first.
    """

    def __init__(
        self,
        labels: Mapping[int, str],
        fixed: int,
        worst: int,
        axis: int,
        identities: Identities,
        ignore_label: int | None = None,
    ) -> None:
        self.labels = labels
        self.fixed = fixed
        self.worst = worst
        self.axis = axis
        self.identities = identities
        self.ignore_label = ignore_label
        self.sent: int | None = None
        self._first: list[Overlay] = []
        self._worst: list[Overlay] = []

    def add(self, number: int, case: Mapping[str, Any]) -> None:
        """A case of the running validation, counted from 1: ``image``, ``pred`` and ``label`` (1, X, Y, Z)."""
        overlay = self._overlay(number, case)
        if number <= self.fixed:
            self._first.append(overlay)
        if len(self._worst) < self.worst:
            heapq.heappush(self._worst, overlay)
        elif self.worst:
            heapq.heappushpop(self._worst, overlay)

    def take(self) -> list[tuple[str, Overlay]]:
        """(key of MLflow's slider, overlay) of what was collected, the worst case at ``worst_01``; begins anew."""
        chosen = [(f"val_{overlay.order[1]:02d}_{overlay.name}", overlay) for overlay in self._first]
        ranked = enumerate(sorted(self._worst, reverse=True), 1)
        chosen += [(f"worst_{rank:02d}", overlay) for rank, overlay in ranked]
        self._first, self._worst = [], []
        return chosen

    def send(self, outbox: Outbox, step: int) -> None:
        """Log what was collected and forget it; what comes first, as step 0 too, where MLflow's slider begins."""
        taken = self.take()
        for key, overlay in taken:
            png = functools.cache(functools.partial(overlay.png, self.labels, self.axis, step))
            for shown in (0, step) if self.sent is None else (step,):
                outbox.picture(key, shown, png)
        self.sent = step if taken else self.sent

    def _overlay(self, number: int, case: Mapping[str, Any]) -> Overlay:
        scores = dice_per_label(case["pred"].cpu(), case["label"].cpu(), list(self.labels), self.ignore_label)
        known = [score for score in scores.values() if not math.isnan(score)]
        mean = sum(known) / len(known) if known else 1.0
        name = self.identities.case(case_name_of(case))
        image = case["image"]
        prediction, reference = (np.asarray(case[key].cpu())[0].astype(np.uint8) for key in ("pred", "label"))
        channels = np.asarray(image.cpu()).astype(np.float32)
        colours = prediction.ndim == 2 and len(channels) == 3
        grey = np.moveaxis(channels, 0, -1) if colours else channels[0]
        steps = [
            1 if prediction.ndim == 3 and axis == self.axis else math.ceil(size / _LONGEST_EDGE)
            for axis, size in enumerate(prediction.shape)
        ]
        every = tuple(slice(None, None, step) for step in steps)
        spacing = None
        if isinstance(image, MetaTensor) and prediction.ndim == 3:
            edges = np.linalg.norm(np.asarray(image.affine.cpu())[:3, :3], axis=0)
            spacing = tuple(float(edge) * step for edge, step in zip(edges, steps, strict=True))
        arrays = (grey[every].copy(), prediction[every].copy(), reference[every].copy())
        said = f"{mean:.3f}" if known else "–"
        key = re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)
        return Overlay((-mean, number), f"{name}: Dice {said}", key, arrays, spacing)


def _picture_png(
    image: npt.NDArray[np.float32], prediction: npt.NDArray[np.uint8], reference: npt.NDArray[np.uint8]
) -> bytes:
    low, high = float(image.min()), float(image.max())
    shown = (image - low) * (255 / max(high - low, 1e-6))
    pixels = render_overlay(shown, prediction, reference, window=(0.0, 255.0))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
